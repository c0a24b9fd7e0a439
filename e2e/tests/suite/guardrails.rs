//! The latch and its guards, asked by people of several roles, without any operator.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use futures::{StreamExt, stream};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
    batch::v1::{CronJob, Job},
    core::v1::{ConfigMap, Pod},
    rbac::v1::Role,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{TradingHalt, TradingResume, TradingSystem};
use standfast_e2e::world::World;

use crate::plane::world;

/// Who asks: the built-in roles view, edit and admin, somebody with the verb `release`, and the cluster's administrator.
/// The middle three may also create and delete halts.
const USERS: [&str; 5] = ["viewer", "editor", "manager", "releaser", "boss"];

/// What becomes of a request: allowed, refused for want of a role, refused by a guardrail.
const ALLOWED: char = 'a';
const NO_ROLE: char = '-';
const REFUSED: char = 'X';

/// Only reading is asked for.
const READ: &str = "aaaaa";
/// Everybody who may write at all.
const WRITE: &str = "-aaaa";
/// Nobody.
const NOBODY: &str = "-XXXX";
/// Who holds `release`.
const RELEASE: &str = "-XXaa";

struct Row {
    what: &'static str,
    method: &'static str,
    path: String,
    body: Value,
    expected: &'static str,
}

fn row(what: &'static str, method: &'static str, path: impl Into<String>, body: Value, expected: &'static str) -> Row {
    Row { what, method, path: path.into(), body, expected }
}

fn pod_template(app: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}}, "spec": {"containers": [{"name": "c", "image": "c"}]}})
}

fn deployment(name: &str, replicas: Option<i32>) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {"replicas": replicas,
        "selector": {"matchLabels": {"app": name}}, "template": pod_template(name)}})
}

fn daemon_set(name: &str, node_selector: Value) -> Value {
    let mut template = pod_template(name);
    template["spec"]["nodeSelector"] = node_selector;
    json!({"metadata": {"name": name}, "spec": {"selector": {"matchLabels": {"app": name}}, "template": template}})
}

/// A change of the nodes that a DaemonSet selects.
fn to_nodes(selector: Value) -> Value {
    json!({"spec": {"template": {"spec": {"nodeSelector": selector}}}})
}

fn job_template() -> Value {
    let mut template = pod_template("rebalance");
    template["spec"]["restartPolicy"] = "Never".into();
    template
}

fn owned_by(cron_job: &str) -> Value {
    json!([{"apiVersion": "batch/v1", "kind": "CronJob", "name": cron_job, "uid": "0-0", "controller": true}])
}

fn job(name: &str, cron_job: &str) -> Value {
    json!({"metadata": {"name": name, "ownerReferences": owned_by(cron_job)}, "spec": {"template": job_template()}})
}

fn pod(name: &str, labels: Value) -> Value {
    let mut pod = pod_template("");
    pod["metadata"] = json!({"name": name, "labels": labels});
    pod
}

fn latch(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"standfast.dev/latch": "held"}}, "data": {
        "Deployment.bot": "3", "Deployment.ghost": "2", "StatefulSet.book": "2", "CronJob.rebalance": "suspend=false",
        "DaemonSet.probe": "halted=false", "DaemonSet.gone": "halted=false",
        "pods.0": "app=bot", "pods.1": "app=book", "system": "demo", "halt": "stale",
        "message": "halted by Standfast (prices are stale); create a TradingResume with spec.haltRef.name: stale to release it"}})
}

/// The objects that everybody tries to change, held by a latch. Gives the name of the bot's ReplicaSet.
async fn held(world: &World) -> Result<String> {
    world.create::<Deployment>(deployment("bot", Some(0))).await?;
    world.create::<Deployment>(deployment("dashboard", Some(0))).await?;
    world
        .create::<StatefulSet>(json!({"metadata": {"name": "book"}, "spec": {"replicas": 0, "serviceName": "book",
            "selector": {"matchLabels": {"app": "book"}}, "template": pod_template("book")}}))
        .await?;
    world
        .create::<CronJob>(json!({"metadata": {"name": "rebalance"}, "spec": {"suspend": true, "schedule": "0 0 1 1 *",
            "jobTemplate": {"spec": {"template": job_template()}}}}))
        .await?;
    let halted = json!({"standfast.dev/halted": "true", "disk": "ssd"});
    world.create::<DaemonSet>(daemon_set("probe", halted)).await?;
    world.create::<DaemonSet>(daemon_set("logs", json!({}))).await?;
    let mut active = job("active", "rebalance");
    active["spec"]["suspend"] = true.into();
    active["metadata"]["ownerReferences"][0]["uid"] =
        world.api::<CronJob>().get("rebalance").await?.uid().context("no uid")?.into();
    world.create::<Job>(active).await?;
    world.create::<Pod>(pod("innocent", json!({"app": "innocent"}))).await?;
    world.create::<ConfigMap>(json!({"metadata": {"name": "plain"}})).await?;
    for name in ["demo", "other"] {
        let spec = json!({"workloads": [{"kind": "Deployment", "name": "bot", "role": "Trading"}]});
        world.create::<TradingSystem>(json!({"metadata": {"name": name}, "spec": spec})).await?;
    }
    for name in ["stale", "fresh"] {
        world.halt(name, json!({"systemRef": {"name": "demo"}})).await?;
    }
    let latched = Patch::Merge(json!({"status": {"latch": {"held": true, "configMap": "standfast-latch-stale"}}}));
    world.api::<TradingHalt>().patch_status("stale", &PatchParams::default(), &latched).await?;
    let at = json!("2026-01-01T00:00:00.000000Z");
    for (name, status) in [
        ("at-the-gates", json!({})),
        ("asked", json!({"releaseRequestedAt": at})),
        ("ended", json!({"releaseRequestedAt": at, "finishedAt": at})),
    ] {
        world.resume(name, "stale").await?;
        let patch = Patch::Merge(json!({"status": status}));
        world.api::<TradingResume>().patch_status(name, &PatchParams::default(), &patch).await?;
    }
    let owned = ListParams::default().labels("app=bot");
    let set = world
        .until("the Deployment has its ReplicaSet", async || {
            Ok(world.api::<ReplicaSet>().list(&owned).await?.items.pop())
        })
        .await?;
    world.create::<ConfigMap>(latch("standfast-latch-stale")).await?;
    // Policies learn of their parameters a moment later.
    let raise = Patch::Merge(json!({"spec": {"replicas": 1}}));
    let params = PatchParams { dry_run: true, ..PatchParams::default() };
    let refused = async || Ok(world.api::<Deployment>().patch("bot", &params, &raise).await.err());
    world.until("the latch works", refused).await?;
    Ok(set.name_any())
}

fn rows(replica_set: &str) -> Vec<Row> {
    let scale = |replicas: i32| json!({"spec": {"replicas": replicas}});
    let bot = "apis/apps/v1 deployments/bot";
    let (sets, probe) = ("apis/apps/v1 daemonsets", "apis/apps/v1 daemonsets/probe");
    let set_image = || json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "d"}]}}}});
    let halted_nodes = || json!({"standfast.dev/halted": "true"});
    let applied_to = |selector| {
        let mut set = daemon_set("probe", selector);
        (set["apiVersion"], set["kind"]) = ("apps/v1".into(), "DaemonSet".into());
        set
    };
    let latched = "api/v1 configmaps/standfast-latch-stale";
    let halts = "apis/standfast.dev/v1alpha1 tradinghalts";
    let resumes = "apis/standfast.dev/v1alpha1 tradingresumes";
    let halt = |by: Value| {
        let mut halt = json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingHalt", "metadata": {"name": "new"},
            "spec": {"systemRef": {"name": "demo"}, "reason": "x"}});
        if !by.is_null() {
            halt["spec"]["requestedBy"] = by;
        }
        halt
    };
    let resume = |by: &str| {
        json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingResume",
        "metadata": {"name": "new"}, "spec": {"haltRef": {"name": "stale"}, "requestedBy": by}})
    };
    let label = |value: Value| json!({"metadata": {"labels": {"standfast.dev/latch": value}}});
    let set = format!("apis/apps/v1 replicasets/{replica_set}");
    vec![
        row("kubectl scale", "PATCH", format!("{bot}/scale"), scale(1), NOBODY),
        row("kubectl patch of replicas", "PATCH", bot, scale(1), NOBODY),
        row("server-side apply of replicas", "APPLY", bot, deployment("bot", Some(2)), NOBODY),
        row("scale of a StatefulSet", "PATCH", "apis/apps/v1 statefulsets/book/scale", scale(1), NOBODY),
        row("scale of the ReplicaSet", "PATCH", format!("{set}/scale"), scale(1), NOBODY),
        row("patch of the ReplicaSet", "PATCH", set.clone(), scale(1), NOBODY),
        row(
            "patch of the ReplicaSet, without its owner",
            "PATCH",
            set,
            json!({"metadata": {"ownerReferences": null}, "spec": {"replicas": 1}}),
            NOBODY,
        ),
        row("a latched name is created anew", "POST", "apis/apps/v1 deployments", deployment("ghost", Some(1)), NOBODY),
        row("the same, 1 by default", "POST", "apis/apps/v1 deployments", deployment("ghost", None), NOBODY),
        row("the same with 0", "POST", "apis/apps/v1 deployments", deployment("ghost", Some(0)), WRITE),
        row("a DaemonSet goes to all nodes", "PATCH", probe, to_nodes(Value::Null), NOBODY),
        row("without our label", "PATCH", probe, to_nodes(json!({"standfast.dev/halted": null})), NOBODY),
        row("to nodes that are labelled", "PATCH", probe, to_nodes(json!({"standfast.dev/halted": "no"})), NOBODY),
        row("to other nodes, without ours", "APPLY", probe, applied_to(json!({"disk": "hdd"})), NOBODY),
        row("to other nodes beside ours", "PATCH", probe, to_nodes(json!({"disk": "hdd"})), WRITE),
        row("set image of a DaemonSet", "PATCH", probe, set_image(), WRITE),
        row("a latched DaemonSet is created anew", "POST", sets, daemon_set("gone", json!({})), NOBODY),
        row("the same, kept from all nodes", "POST", sets, daemon_set("gone", halted_nodes()), WRITE),
        row("a DaemonSet that is not latched", "PATCH", format!("{sets}/logs"), to_nodes(json!({"a": "b"})), WRITE),
        row("unsuspend", "PATCH", "apis/batch/v1 cronjobs/rebalance", json!({"spec": {"suspend": false}}), NOBODY),
        row("remove suspend", "PATCH", "apis/batch/v1 cronjobs/rebalance", json!({"spec": {"suspend": null}}), NOBODY),
        row("unsuspend a Job", "PATCH", "apis/batch/v1 jobs/active", json!({"spec": {"suspend": false}}), NOBODY),
        row("create job --from", "POST", "apis/batch/v1 jobs", job("now", "rebalance"), NOBODY),
        row("the same of another CronJob", "POST", "apis/batch/v1 jobs", job("now", "housekeeping"), WRITE),
        row("run with latched labels", "POST", "api/v1 pods", pod("x", json!({"app": "bot", "y": "z"})), NOBODY),
        row("run with other labels", "POST", "api/v1 pods", pod("x", json!({"app": "x"})), WRITE),
        row(
            "a pod gets latched labels",
            "PATCH",
            "api/v1 pods/innocent",
            json!({"metadata": {"labels": {"app": "bot"}}}),
            NOBODY,
        ),
        row(
            "a pod gets another label",
            "PATCH",
            "api/v1 pods/innocent",
            json!({"metadata": {"labels": {"y": "z"}}}),
            WRITE,
        ),
        row("set image", "PATCH", bot, set_image(), WRITE),
        row(
            "rollout restart",
            "PATCH",
            bot,
            json!({"spec": {"template": {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": "x"}}}}}),
            WRITE,
        ),
        row("scale to 0", "PATCH", format!("{bot}/scale"), scale(0), WRITE),
        row("delete the workload", "DELETE", bot, Value::Null, WRITE),
        row("scale another", "PATCH", "apis/apps/v1 deployments/dashboard/scale", scale(3), WRITE),
        row("read the latch", "GET", latched, Value::Null, READ),
        row("change the latch", "PATCH", latched, json!({"data": {"Deployment.bot": null}}), RELEASE),
        row("unlabel the latch", "PATCH", latched, label(Value::Null), RELEASE),
        row("delete the latch", "DELETE", latched, Value::Null, RELEASE),
        row("delete all ConfigMaps", "DELETE", "api/v1 configmaps", Value::Null, RELEASE),
        row("make a latch", "POST", "api/v1 configmaps", latch("mine"), RELEASE),
        row(
            "take a reserved name",
            "POST",
            "api/v1 configmaps",
            json!({"metadata": {"name": "standfast-latch-x"}}),
            RELEASE,
        ),
        row("an ordinary ConfigMap", "POST", "api/v1 configmaps", json!({"metadata": {"name": "x"}}), WRITE),
        row("it becomes a latch", "PATCH", "api/v1 configmaps/plain", label("held".into()), RELEASE),
        row("delete the held halt", "DELETE", format!("{halts}/stale"), Value::Null, RELEASE),
        row("delete a halt that holds nothing", "DELETE", format!("{halts}/fresh"), Value::Null, WRITE),
        row(
            "delete a resume that has asked for the release",
            "DELETE",
            format!("{resumes}/asked"),
            Value::Null,
            RELEASE,
        ),
        row("delete a resume at its gates", "DELETE", format!("{resumes}/at-the-gates"), Value::Null, WRITE),
        row("delete a resume that has ended", "DELETE", format!("{resumes}/ended"), Value::Null, WRITE),
        row(
            "delete the halted system",
            "DELETE",
            "apis/standfast.dev/v1alpha1 tradingsystems/demo",
            Value::Null,
            RELEASE,
        ),
        row("delete another system", "DELETE", "apis/standfast.dev/v1alpha1 tradingsystems/other", Value::Null, WRITE),
        row(
            "edit the halted system",
            "PATCH",
            "apis/standfast.dev/v1alpha1 tradingsystems/demo",
            json!({"spec": {"haltPolicy": {"verifyReads": 2}}}),
            WRITE,
        ),
        row("halt without a name", "POST", halts, halt(Value::Null), WRITE),
        row("halt in the editor's name", "POST", halts, halt("editor".into()), "-aXXX"),
        row("resume in the editor's name", "POST", resumes, resume("editor"), "-aXXX"),
        row("resume in the boss's name", "POST", resumes, resume("boss"), "-XXXa"),
        row("unlabel the namespace", "PATCH", "api/v1", label(Value::Null), "----X"),
        row("another label of the namespace", "PATCH", "api/v1", label("no".into()), "----X"),
        row(
            "a label of the namespace that is none of ours",
            "PATCH",
            "api/v1",
            json!({"metadata": {"labels": {"a": "b"}}}),
            "----a",
        ),
    ]
}

/// What becomes of one request, as a dry run.
async fn ask(client: &Client, namespace: &str, row: &Row) -> Result<(char, String)> {
    let path = match row.path.split_once(' ') {
        Some((group, rest)) => format!("/{group}/namespaces/{namespace}/{rest}"),
        None => format!("/{}/namespaces/{namespace}", row.path),
    };
    let (method, kind, extra) = match row.method {
        "PATCH" if row.body.pointer("/spec/template/spec").is_some() => {
            ("PATCH", "application/strategic-merge-patch+json", "")
        }
        "PATCH" => ("PATCH", "application/merge-patch+json", ""),
        "APPLY" => ("PATCH", "application/apply-patch+yaml", "&force=true&fieldManager=git"),
        other => (other, "application/json", ""),
    };
    let dry_run = if method == "GET" { String::new() } else { format!("?dryRun=All{extra}") };
    let body = if row.body.is_null() { vec![] } else { serde_json::to_vec(&row.body)? };
    let request = http::Request::builder()
        .method(method)
        .uri(format!("{path}{dry_run}"))
        .header("Content-Type", kind)
        .body(body)?;
    Ok(match client.request_text(request).await {
        Ok(_) => (ALLOWED, String::new()),
        Err(kube::Error::Api(status)) if status.message.contains("ValidatingAdmissionPolicy 'standfast-") => {
            (REFUSED, status.message.clone())
        }
        Err(kube::Error::Api(status)) if status.code == 403 && status.message.contains("cannot") => {
            (NO_ROLE, status.message.clone())
        }
        Err(error) => ('?', error.to_string()),
    })
}

#[tokio::test]
async fn the_latch_and_its_guards_hold_for_every_role() -> Result<()> {
    let world = world("roles").await?;
    for (user, role) in [("viewer", "view"), ("editor", "edit"), ("manager", "admin"), ("releaser", "edit")] {
        world.bind(user, "ClusterRole", role).await?;
    }
    let ours = json!({"apiGroups": ["standfast.dev"], "verbs": ["get", "create", "patch", "delete"],
        "resources": ["tradingsystems", "tradinghalts", "tradingresumes"]});
    world.create::<Role>(json!({"metadata": {"name": "halter"}, "rules": [ours]})).await?;
    let release = json!({"apiGroups": ["standfast.dev"], "verbs": ["release"], "resources": ["tradinghalts"]});
    world.create::<Role>(json!({"metadata": {"name": "release"}, "rules": [release]})).await?;
    for user in ["editor", "manager", "releaser"] {
        world.bind(user, "Role", "halter").await?;
    }
    world.bind("releaser", "Role", "release").await?;
    let replica_set = held(&world).await?;

    let mut clients = BTreeMap::new();
    for user in USERS {
        let groups: &[&str] = if user == "boss" { &["system:masters"] } else { &[] };
        clients.insert(user, world.client_as(user, groups).await?);
    }
    let pods: Api<Pod> = Api::namespaced(clients["releaser"].clone(), &world.namespace);
    world.until("the roles work", async || Ok(pods.list(&ListParams::default()).await.ok())).await?;

    let rows = rows(&replica_set);
    let questions: Vec<_> = rows
        .iter()
        .flat_map(|row| USERS.iter().zip(row.expected.chars()).map(move |(user, expected)| (row, *user, expected)))
        .collect();
    let count = questions.len();
    let wrong: Vec<_> = stream::iter(questions)
        .map(async |(row, user, expected)| {
            let (got, said) = ask(&clients[user], &world.namespace, row).await?;
            anyhow::Ok((got != expected).then(|| format!("{}, {user}: {got} instead of {expected} {said}", row.what)))
        })
        .buffer_unordered(16)
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .flatten()
        .collect();
    assert_eq!(wrong, Vec::<String>::new(), "of {count} requests");
    Ok(())
}

#[tokio::test]
async fn a_refusal_tells_why_and_how_to_go_on() -> Result<()> {
    let world = world("tells").await?;
    held(&world).await?;
    world.bind("editor", "ClusterRole", "edit").await?;
    let may = json!({"apiGroups": ["standfast.dev"], "verbs": ["get", "delete"], "resources": ["tradingresumes"]});
    world.create::<Role>(json!({"metadata": {"name": "deleter"}, "rules": [may]})).await?;
    world.bind("editor", "Role", "deleter").await?;
    let refused = async || {
        let (_, said) = world.kubectl(&["delete", "tradingresume/asked", "--as=editor"], "").await?;
        Ok(said.split_once("denied request: ").map(|(_, how)| how.to_owned()))
    };
    let how = world.until("the role works", refused).await?;
    assert_eq!(
        how,
        format!(
            "this TradingResume has asked for the release of its halt and has not ended; abort it instead: kubectl \
             --namespace {} patch tradingresume asked --type merge --patch '{{\"spec\":{{\"abort\":true}}}}'",
            world.namespace
        )
    );
    let (done, said) = world.kubectl(&["scale", "deployment/bot", "--replicas=3"], "").await?;
    assert!(!done);
    assert_eq!(
        said,
        "Error from server (Forbidden): deployments.apps \"bot\" is forbidden: ValidatingAdmissionPolicy \
         'standfast-latch' with binding 'standfast-latch' denied request: halted by Standfast (prices are stale); \
         create a TradingResume with spec.haltRef.name: stale to release it"
    );
    Ok(())
}
