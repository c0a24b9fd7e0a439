//! A real cluster with real pods, seen as its users see it: with kubectl and Helm only.
//!
//! `make e2e` makes the cluster, loads the images and sets KUBECONFIG_E2E, without which nothing is touched. The tests
//! share one installation of Standfast, each with a trading system of its own. Those that kill, upgrade or remove it run
//! alone, the others side by side.

mod cluster;
mod killer;
mod story;

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use standfast_crds::v1alpha1::TradingHaltStatus;
use standfast_operator::halt::evidence;

use cluster::{
    OPERATOR_NAMESPACE, Site, cluster_wide_resources, condition, crds_release, helm, helm_install, kubectl,
    operator_pods, operators, refused, rolled_out, seconds_between, until,
};
use killer::Killer;

/// The demo's path. S0-32 and S1-29: orders are cancelled and workloads scaled without waiting for pods. S1-30: all
/// orders are gone. S2-15: the halt with the bot's token, proven by the venue. S1-33: a failing check keeps the system
/// halted. S1-35: the recorded replicas come back.
#[test]
fn s1_29_a_halt_and_a_resume_with_real_pods() {
    let site = Site::new("path");
    site.start();
    site.kubectl(&["scale", "deployment/trading-bot", "--replicas=2"]);
    site.kubectl(&["wait", "deployment/trading-bot", "--for=jsonpath={.status.readyReplicas}=2", "--timeout=180s"]);
    site.wait_until_trading();

    site.halt("stop-now");
    let halt = site.wait_halted("stop-now");
    let times = &halt["status"]["times"];
    for earlier in ["firstCancelSentAt", "scaledAt"] {
        let ahead = seconds_between(&times[earlier], &times["podsGoneAt"]);
        assert!(ahead >= 0.0, "{earlier} is not before podsGoneAt: {times}");
    }
    let status = &halt["status"];
    assert_eq!(status["openOrders"], 0, "{status}");
    assert_eq!(status["runningPods"], 0, "{status}");
    assert_eq!(status["workloads"][0]["replicas"], 2, "{status}");
    assert_eq!(status["venues"][0]["tradingSuspended"], true, "{status}");
    let application = status["actions"].as_array().unwrap().iter().find(|a| a["name"] == "applicationHalt").unwrap();
    assert_eq!(application["state"], "Done", "{application}");
    for type_ in ["Latched", "WorkloadsStopped", "OrdersCancelled", "Verified"] {
        assert_eq!(condition(&halt, type_)["status"], "True", "{type_}: {status}");
    }
    let status: TradingHaltStatus = serde_json::from_value(status.clone()).unwrap();
    evidence::verify(&status.evidence).expect("the chain of evidence holds");
    let told = site.wait_mirrored("stop-now");
    assert!(["Committed", "Halted"].iter().all(|reason| told.contains(*reason)), "{told:?}");
    assert_eq!(site.bot_pods(), 0);
    let account = site.account();
    assert_eq!((site.open_orders(), &account["suspended"]), (0, &json!(true)), "{account}");
    assert!(account["positions"].as_array().is_some_and(|p| !p.is_empty()), "positions are kept: {account}");

    site.assert_latched("stop-now");
    // Somebody who may delete halts. (An administrator of the cluster holds the verb `release` too, the break-glass.)
    site.kubectl(&["create", "role", "deleter", "--verb=get,delete", "--resource=tradinghalts.standfast.dev"]);
    site.kubectl(&["create", "rolebinding", "deleter", "--role=deleter", "--user=deleter"]);
    let answer = refused(&site.try_kubectl(&["delete", "tradinghalt", "stop-now", "--as=deleter"]));
    assert!(answer.contains("create a TradingResume with spec.haltRef.name: stop-now"), "{answer}");

    site.fault(&json!({"path": "/v2/clock", "action": {"do": "reply", "status": 500}}));
    site.resume("go-on", "stop-now");
    until("the resume waits for its checks", || {
        let resume = site.get("tradingresume/go-on");
        (resume["status"]["phase"] == "Checking"
            && condition(&resume, "Completed")["message"].to_string().contains("venue-clock"))
        .then_some(())
        .ok_or_else(|| resume["status"].to_string())
    });
    assert_eq!(condition(&site.get("tradinghalt/stop-now"), "Halted")["status"], "True");
    site.assert_latched("stop-now");

    site.clear_faults();
    site.wait_completed("go-on");
    assert_eq!(site.get("tradinghalt/stop-now")["status"]["phase"], "Released");
    assert!(site.wait_mirrored("stop-now").contains("Released"));
    assert_eq!(site.get("deployment/trading-bot")["spec"]["replicas"], 2);
    assert_eq!(site.account()["suspended"], false);
    site.wait_until_trading();
    site.finish();
}

/// S3-16: zero orders proven, and `Halted` said, only when the last pod is really gone.
#[test]
fn s3_16_a_bot_that_ignores_sigterm_is_waited_for() {
    let site = Site::new("stubborn");
    site.start_stubborn(10);
    site.halt("stop-now");
    until("halted", || {
        let halt = site.get("tradinghalt/stop-now");
        let halted = condition(&halt, "Halted")["status"] == "True";
        // Read after the claim: what was gone does not come back.
        let pods = site.bot_pods();
        assert!(!halted || pods == 0, "halted with {pods} pods of the bot: {}", halt["status"]);
        halted.then_some(()).ok_or_else(|| halt["status"].to_string())
    });
    let times = &site.get("tradinghalt/stop-now")["status"]["times"];
    let waited = seconds_between(&times["scaledAt"], &times["podsGoneAt"]);
    assert!(waited >= 9.0, "the grace period is 10 s, the pod was gone after {waited} s: {times}");
    assert!(seconds_between(&times["podsGoneAt"], &times["zeroOrdersAt"]) >= 0.0, "{times}");
    site.finish();
}

/// A leader that is killed in the middle of a halt, without a chance to give its lease up: the standby goes on with it.
#[test]
fn a_halt_survives_its_leader() {
    let site = Site::alone("leader");
    // The halt cannot be over before the bot's grace period is: there is time to kill the leader.
    site.start_stubborn(30);
    let leader = cluster::leader();
    let uid = &leader["metadata"]["uid"];
    let killer = Killer::new(&site, &leader, "standfast");
    site.halt("stop-now");
    until("the halt has committed itself", || {
        let status = &site.get("tradinghalt/stop-now")["status"];
        (status["latch"]["held"] == true).then_some(()).ok_or_else(|| status.to_string())
    });
    assert_eq!(&cluster::leader()["metadata"]["uid"], uid, "another pod leads before any was killed");

    let struck = Instant::now();
    killer.strike();
    assert_ne!(site.get("tradinghalt/stop-now")["status"]["phase"], "Halted", "the leader was killed too late");
    until("the standby leads", || {
        let now = &cluster::leader()["metadata"];
        (now["uid"] != *uid).then_some(()).ok_or_else(|| now["name"].to_string())
    });
    let took = struck.elapsed();
    drop(killer);
    // Past the capture of the test's output: it is to be seen when all is well.
    let _ = writeln!(io::stderr(), "the standby led at most {:.1} s after the leader was killed", took.as_secs_f64());
    // The lease lasts 6 s. The rest is for slow machines.
    assert!(took <= Duration::from_secs(60), "{took:?}");

    site.wait_halted("stop-now");
    assert_eq!((site.open_orders(), site.bot_pods()), (0, 0));
    site.assert_latched("stop-now");
    let pods = operators();
    let killed = pods.iter().find(|p| p["metadata"]["uid"] == *uid).expect("the pod is still there");
    let end = &killed["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!((&end["exitCode"], &end["reason"]), (&json!(128 + 9), &json!("Error")), "not by SIGKILL: {end}");
    site.resume("go-on", "stop-now");
    site.wait_completed("go-on");
    site.wait_until_trading();
    site.finish();
}

/// `helm install`, `upgrade`, `rollback` and `uninstall` under a held halt.
#[test]
fn a_halt_outlives_what_helm_does() {
    let site = Site::alone("helm");
    site.start();
    site.halt("stop-now");
    site.wait_halted("stop-now");
    let revisions = || operators().iter().map(|p| p["metadata"]["annotations"]["revision"].clone()).collect::<Vec<_>>();

    // Of each version nothing but its own two pods is left when it has to prove the halt.
    helm_install(&["--set", "podAnnotations.revision=next"]);
    assert_eq!(revisions(), ["next", "next"]);
    site.assert_latched("stop-now");
    site.wait_verified_again("stop-now");
    helm(&["rollback", "standfast", "--namespace", OPERATOR_NAMESPACE, "--wait", "--timeout", "3m"]);
    rolled_out();
    assert_eq!(revisions(), [Value::Null, Value::Null]);
    site.assert_latched("stop-now");
    site.wait_verified_again("stop-now");

    // Standfast's logs end here, and have to be looked at before.
    site.assert_nothing_leaked();
    helm(&["uninstall", "standfast", "--namespace", OPERATOR_NAMESPACE, "--wait", "--timeout", "3m"]);
    helm(&["uninstall", crds_release(), "--namespace", OPERATOR_NAMESPACE]);
    until("no operator is left", || operator_pods().is_empty().then_some(()).ok_or_else(String::new));
    site.assert_latched("stop-now");
    assert_eq!(site.get("tradinghalt/stop-now")["status"]["latch"]["held"], true);
    // A resume that nobody carries out releases nothing.
    site.resume("go-on", "stop-now");
    site.assert_latched("stop-now");

    cluster::install();
    site.wait_completed("go-on");
    site.wait_until_trading();
    site.finish();
}

/// `watchNamespaces`: with nothing but Roles in these namespaces, a halt and a resume work there; a halt anywhere else
/// is not touched.
#[test]
fn an_operator_of_some_namespaces_leaves_the_others_alone() {
    let site = Site::alone("watched");
    let other = site.another("unwatched");
    other.start();
    helm_install(&["--set", &format!("watchNamespaces={{{}}}", site.namespace)]);
    let everywhere = ["selfsubjectaccessreviews", "validatingadmissionpolicies", "validatingadmissionpolicybindings"];
    assert_eq!(cluster_wide_resources(), everywhere.map(str::to_owned).into());

    other.halt("stop-now");
    site.start();
    site.halt("stop-now");
    site.wait_halted("stop-now");
    site.assert_latched("stop-now");
    site.resume("go-on", "stop-now");
    site.wait_completed("go-on");
    site.wait_until_trading();
    // The other one's was there before all that.
    assert_eq!(other.get("tradinghalt/stop-now")["status"], Value::Null);
    assert_eq!((&other.get("deployment/trading-bot")["spec"]["replicas"], other.bot_pods()), (&json!(1), 1));
    other.wait_until_trading();
    // The logs of this installation end here.
    site.assert_nothing_leaked();

    helm_install(&[]);
    other.wait_halted("stop-now");
    other.assert_latched("stop-now");
    other.finish();
    site.finish();
}

/// Who may halt may not resume, and the other way round; who may only look may do neither; and nobody takes a latch
/// away by hand.
#[test]
fn roles_separate_halting_from_resuming() {
    let site = Site::new("roles");
    for role in ["view", "responder", "risk", "author"] {
        site.kubectl(&["create", "serviceaccount", role]);
        let account = format!("--serviceaccount={}:{role}", site.namespace);
        site.kubectl(&["create", "rolebinding", role, &format!("--clusterrole=standfast-{role}"), &account]);
    }
    site.start();
    let user = |role: &str| format!("system:serviceaccount:{}:{role}", site.namespace);
    let resume = |by: &str, name: &str| {
        json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingResume", "metadata": {"name": name},
            "spec": {"haltRef": {"name": "stop-now"}, "requestedBy": by}})
    };
    let halt = |by: &str| {
        json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingHalt", "metadata": {"name": "stop-now"},
            "spec": {"systemRef": {"name": "demo"}, "reason": "somebody asked", "requestedBy": by}})
    };
    let create_as = |role: &str, object: &Value| {
        site.try_kubectl_with(&["create", "--as", &user(role), "-f", "-"], Some(&object.to_string()))
    };
    for role in ["view", "risk", "author"] {
        let answer = refused(&create_as(role, &halt(&user(role))));
        assert!(answer.contains("cannot create resource \"tradinghalts\""), "{role}: {answer}");
    }
    let answer = refused(&create_as("responder", &halt(&user("risk"))));
    assert!(answer.contains("spec.requestedBy must be the user who creates the object"), "{answer}");
    create_as("responder", &halt(&user("responder"))).unwrap();
    let status = site.wait_halted("stop-now")["status"].clone();
    assert_eq!(status["evidence"]["requestedBy"], user("responder"));

    for role in ["view", "responder", "author"] {
        let answer = refused(&create_as(role, &resume(&user(role), "not-mine")));
        assert!(answer.contains("cannot create resource \"tradingresumes\""), "{role}: {answer}");
        let approval = json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "Approval", "metadata": {"name": "yes"},
            "spec": {"subject": {"kind": "TradingResume", "name": "go", "uid": "0"}, "hash": "0".repeat(64),
                "decision": "Approve", "approver": user(role)}});
        let answer = refused(&create_as(role, &approval));
        assert!(answer.contains("cannot create resource \"approvals\""), "{role}: {answer}");
    }
    // Roles of Kubernetes itself: whoever may edit everything in the namespace may not release either.
    site.kubectl(&["create", "serviceaccount", "editor"]);
    let account = format!("--serviceaccount={}:editor", site.namespace);
    site.kubectl(&["create", "rolebinding", "editor", "--clusterrole=edit", &account]);
    let editor = user("editor");
    // A pod that the namespace would take.
    let sneaky = json!({"spec": {
        "securityContext": {"runAsNonRoot": true, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "sneaky", "image": "localhost/standfast-demo-bot:dev", "securityContext":
            {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]}});
    let sneaky = format!("--overrides={sneaky}");
    let image = "--image=localhost/standfast-demo-bot:dev";
    for command in [
        vec!["delete", "configmap", "standfast-latch-stop-now"],
        vec!["label", "configmap", "standfast-latch-stop-now", "standfast.dev/latch-"],
        vec!["scale", "deployment/trading-bot", "--replicas=1"],
        vec!["run", "sneaky", "--labels=app=trading-bot", image, &sneaky],
    ] {
        let answer = refused(&site.try_kubectl(&[command.as_slice(), &["--as", &editor]].concat()));
        assert!(answer.contains("TradingResume"), "{command:?}: {answer}");
    }

    create_as("risk", &resume(&user("risk"), "go-on")).unwrap();
    site.wait_completed("go-on");
    site.finish();
}

/// The operator runs in a namespace that enforces the restricted pod security standard, as nobody, on a root file
/// system that it cannot write.
#[test]
fn the_operator_is_restricted() {
    let site = Site::new("restricted");
    let labels = kubectl(&["get", "namespace", OPERATOR_NAMESPACE, "-o", "jsonpath={.metadata.labels}"]);
    assert!(labels.contains(r#""pod-security.kubernetes.io/enforce":"restricted""#), "{labels}");
    // One leads, both are ready: a standby has warm caches and takes over by itself.
    for pod in operators() {
        let name = pod["metadata"]["name"].as_str().unwrap();
        let container = &pod["spec"]["containers"][0]["securityContext"];
        assert_eq!(container["readOnlyRootFilesystem"], true, "{name}");
        let inside = |command: &[&str]| {
            cluster::try_run("kubectl", &[&["-n", OPERATOR_NAMESPACE, "exec", name, "--"], command].concat(), None)
        };
        assert_eq!(inside(&["id", "-u"]).unwrap().trim(), "65532");
        for (file, why) in [
            ("/here", "Read-only file system"),
            ("/tmp/here", "Read-only file system"),
            // It belongs to somebody else, which is looked at first.
            ("/usr/local/bin/standfast", "Permission denied"),
        ] {
            let answer = refused(&inside(&["touch", file]));
            assert!(answer.contains(why), "{answer}");
        }
    }
    site.finish();
}
