use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use http::{Request, Response};
use http_body_util::BodyExt;
use kube::client::Body;
use rstest::rstest;
use serde_json::json;
use tower::service_fn;

use super::*;

type Seen = Arc<Mutex<Vec<(String, Value)>>>;

/// A Kubernetes API that answers what `answer` says to `"METHOD path?query"`, and remembers what it was sent.
fn cluster(answer: impl Fn(&str, usize) -> (u16, Value) + Send + Sync + 'static) -> (Client, Seen) {
    let seen = Seen::default();
    let log = Arc::clone(&seen);
    let answer = Arc::new(answer);
    let service = service_fn(move |request: Request<Body>| {
        let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
        async move {
            let what = format!("{} {}", request.method(), request.uri());
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let turn = log.lock().unwrap().iter().filter(|(seen, _)| *seen == what).count();
            log.lock().unwrap().push((what.clone(), serde_json::from_slice(&body).unwrap_or(Value::Null)));
            let (status, body) = answer(&what, turn);
            let response = Response::builder().status(status).body(Body::from(body.to_string().into_bytes()));
            Ok::<_, Infallible>(response.unwrap())
        }
    });
    (Client::new(service, "default"), seen)
}

fn status(code: u16, reason: &str, message: &str) -> (u16, Value) {
    (code, json!({"kind": "Status", "status": "Failure", "reason": reason, "message": message, "code": code}))
}

fn not_found() -> (u16, Value) {
    status(404, "NotFound", "not found")
}

fn owner() -> OwnerReference {
    OwnerReference {
        api_version: "standfast.dev/v1alpha1".into(),
        kind: "TradingHalt".into(),
        name: "stale".into(),
        uid: "halt-uid".into(),
        ..OwnerReference::default()
    }
}

fn action(extra: Value) -> JobAction {
    let mut action = json!({"image": "registry.example/bot@sha256:0"});
    for (name, value) in extra.as_object().unwrap() {
        action[name] = value.clone();
    }
    serde_json::from_value(action).unwrap()
}

fn env() -> Environment {
    environment("bot", "stale", "prices cost $(HOME) or $$5")
}

fn existing(owner_uid: &str, conditions: Value) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": "cancel-1", "namespace": "trading", "uid": "job-uid", "ownerReferences": [
            {"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingHalt", "name": "stale", "uid": owner_uid}]},
        "status": {"conditions": conditions},
    })
}

fn pod_list(owner_uid: &str, exit_code: i32, reason: &str, message: &str) -> Value {
    let ended = json!({"exitCode": exit_code, "reason": reason, "message": message});
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": [{
        "metadata": {"name": "p", "ownerReferences": [
            {"apiVersion": "batch/v1", "kind": "Job", "name": "cancel-1", "uid": owner_uid}]},
        "status": {"containerStatuses": [{
            "name": "action", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": ended}}]},
    }]})
}

async fn ensure(client: &Client, action: &JobAction) -> Result<JobState, JobError> {
    ensure_job(client, "trading", "cancel-1", &owner(), action, &env(), Duration::from_secs(600)).await
}

const GET: &str = "GET /apis/batch/v1/namespaces/trading/jobs/cancel-1";
const PODS: &str =
    "GET /api/v1/namespaces/trading/pods?&labelSelector=batch.kubernetes.io%2Fcontroller-uid%3Djob-uid&limit=10";

/// A Job that ended with `condition`, and its Pod.
fn ended(condition: Value, pods: Value) -> Client {
    cluster(move |what, _| match what {
        GET => (200, existing("halt-uid", json!([condition]))),
        PODS => (200, pods.clone()),
        other => panic!("{other}"),
    })
    .0
}

#[tokio::test]
async fn a_new_job_has_few_rights() {
    let (client, seen) = cluster(|what, _| if what.starts_with("GET") { not_found() } else { (201, json!({})) });
    let action = action(json!({
        "command": ["cancel"], "args": ["--all"], "timeout": "1500ms", "runAsUser": 7,
        "env": [{"name": "MODE", "value": "paper"}, {"name": "STANDFAST_HALT", "value": "forged"}],
    }));
    // The mock's answer is no Job, so the outcome is not known; what was sent is.
    let _ = ensure(&client, &action).await;
    let seen = seen.lock().unwrap();
    let (what, sent) = &seen[1];
    assert!(what.starts_with("POST /apis/batch/v1/namespaces/trading/jobs?"), "{what}");
    assert_eq!(sent["metadata"]["name"], "cancel-1");
    assert_eq!(sent["metadata"]["labels"], json!({"standfast.dev/job": "true"}));
    assert_eq!(sent["metadata"]["ownerReferences"][0]["uid"], "halt-uid");
    let spec = &sent["spec"];
    for (field, value) in [
        ("backoffLimit", json!(0)),
        ("activeDeadlineSeconds", json!(2)),
        ("podReplacementPolicy", json!("Failed")),
        ("ttlSecondsAfterFinished", Value::Null),
    ] {
        assert_eq!(spec[field], value, "{field}");
    }
    let pod = &spec["template"]["spec"];
    for (field, value) in [
        ("automountServiceAccountToken", json!(false)),
        ("enableServiceLinks", json!(false)),
        ("restartPolicy", json!("Never")),
        ("hostNetwork", Value::Null),
        (
            "securityContext",
            json!({"runAsNonRoot": true, "runAsUser": 7, "seccompProfile": {"type": "RuntimeDefault"}}),
        ),
        ("volumes", json!([{"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}])),
    ] {
        assert_eq!(pod[field], value, "{field}");
    }
    let container = &pod["containers"][0];
    for (field, value) in [
        ("command", json!(["cancel"])),
        ("args", json!(["--all"])),
        ("terminationMessagePolicy", json!("File")),
        (
            "securityContext",
            json!({
                "allowPrivilegeEscalation": false, "privileged": false, "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]},
            }),
        ),
        (
            "env",
            json!([
                {"name": "STANDFAST_HALT", "value": "stale"},
                {"name": "STANDFAST_REASON", "value": "prices cost $$(HOME) or $$$$5"},
                {"name": "STANDFAST_SYSTEM", "value": "bot"},
                {"name": "MODE", "value": "paper"},
            ]),
        ),
    ] {
        assert_eq!(container[field], value, "{field}");
    }
    assert!(container["resources"]["limits"]["memory"].is_string());
}

#[test]
fn the_deadline_is_the_nearer_one() {
    let seconds = |timeout: Value, deadline: u64| {
        let action = action(json!({"timeout": timeout}));
        let job = job("j", &owner(), &action, &env(), Duration::from_millis(deadline));
        job.spec.unwrap().active_deadline_seconds.unwrap()
    };
    assert_eq!(seconds(json!(null), 600_000), 60);
    assert_eq!(seconds(json!("5m"), 600_000), 300);
    assert_eq!(seconds(json!("5m"), 10_001), 11);
    assert_eq!(seconds(json!("5m"), 0), 1);
}

#[tokio::test]
async fn secrets_must_be_meant_for_it() {
    let with_secret = action(json!({"env": [{"name": "KEY", "secretKeyRef": {"name": "venue", "key": "token"}}]}));
    let api = |labelled: bool, allowed: bool, key: &'static str| {
        cluster(move |what, _| match what {
            "GET /api/v1/namespaces/trading/secrets/venue" => (
                200,
                json!({
                    "kind": "Secret", "apiVersion": "v1", "data": {key: "eA=="},
                    "metadata": {"name": "venue", "labels": {"standfast.dev/use": labelled.to_string()},
                        "annotations": {"standfast.dev/allowed-in-jobs": allowed.to_string()}},
                }),
            ),
            GET => not_found(),
            post => (201, json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": post}})),
        })
    };
    for (labelled, allowed, told) in [
        (false, true, "kubectl -n trading label secret venue standfast.dev/use=true"),
        (true, false, "kubectl -n trading annotate secret venue standfast.dev/allowed-in-jobs=true"),
    ] {
        let (client, seen) = api(labelled, allowed, "token");
        let error = ensure(&client, &with_secret).await.unwrap_err();
        assert!(matches!(&error, JobError::Refused(why) if why.contains(told)), "{error}");
        let error = check_job(&client, "trading", "probe", &owner(), &with_secret, &env()).await.unwrap_err();
        assert!(matches!(error, JobError::Refused(_)), "{error}");
        assert!(seen.lock().unwrap().iter().all(|(what, _)| !what.starts_with("POST")));
    }
    // The container of a Job whose key is missing does not start: the trial says so before.
    let (client, _) = api(true, true, "tokem");
    let error = check_job(&client, "trading", "probe", &owner(), &with_secret, &env()).await.unwrap_err();
    let expected = "Secret trading/venue has no key token: add it, or correct the name of the key";
    assert_eq!(error, JobError::Refused(expected.into()));

    let (client, seen) = api(true, true, "token");
    assert_eq!(ensure(&client, &with_secret).await, Ok(JobState::Running));
    let seen = seen.lock().unwrap();
    let sent = &seen.iter().find(|(what, _)| what.starts_with("POST")).unwrap().1;
    let expected = json!({"secretKeyRef": {"name": "venue", "key": "token", "optional": false}});
    assert_eq!(sent["spec"]["template"]["spec"]["containers"][0]["env"][3]["valueFrom"], expected);
}

#[tokio::test]
async fn a_trial_creates_nothing() {
    let (client, seen) = cluster(|_, _| (201, json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {}})));
    check_job(&client, "trading", "probe", &owner(), &action(json!({})), &env()).await.unwrap();
    let seen = seen.lock().unwrap();
    assert!(seen.len() == 1 && seen[0].0.contains("dryRun=All"), "{seen:?}");
}

#[rstest]
#[case(403, "pods are forbidden by quota", true)]
#[case(422, "image is required", true)]
#[case(500, "etcd is away", false)]
#[case(429, "wait", false)]
#[tokio::test]
async fn jobs_that_are_not_created(#[case] code: u16, #[case] message: &'static str, #[case] refused: bool) {
    let (client, _) =
        cluster(move |what, _| if what.starts_with("GET") { not_found() } else { status(code, "X", message) });
    for error in [
        ensure(&client, &action(json!({}))).await.unwrap_err(),
        check_job(&client, "trading", "cancel-1", &owner(), &action(json!({})), &env()).await.unwrap_err(),
    ] {
        assert_eq!(matches!(error, JobError::Refused(_)), refused);
        assert!(error.to_string().contains("Job trading/cancel-1") && error.to_string().contains(message), "{error}");
    }
}

#[rstest]
#[case(json!([]))]
#[case(json!([{"type": "Complete", "status": "False"}]))]
#[case(json!([{"type": "SuccessCriteriaMet", "status": "True"}]))]
#[case(json!([{"type": "FailureTarget", "status": "True"}]))]
#[tokio::test]
async fn a_job_that_is_there_is_not_created_again(#[case] conditions: Value) {
    let (client, seen) = cluster(move |_, _| (200, existing("halt-uid", conditions.clone())));
    assert_eq!(ensure(&client, &action(json!({}))).await, Ok(JobState::Running));
    assert_eq!(seen.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn of_two_creators_one_wins() {
    let (client, _) = cluster(|what, turn| match (what, turn) {
        (GET, 0) => not_found(),
        (GET, _) => (200, existing("halt-uid", json!([]))),
        _ => status(409, "AlreadyExists", "jobs.batch cancel-1 already exists"),
    });
    assert_eq!(ensure(&client, &action(json!({}))).await, Ok(JobState::Running));
}

#[tokio::test]
async fn a_foreign_job_is_left_alone() {
    let done = json!([{"type": "Complete", "status": "True"}]);
    let (client, seen) = cluster(move |_, _| (200, existing("other-uid", done.clone())));
    let Ok(JobState::Foreign { message }) = ensure(&client, &action(json!({}))).await else { panic!() };
    assert!(message.contains("kubectl -n trading delete job cancel-1"), "{message}");
    delete_job(&client, "trading", "cancel-1", &owner()).await.unwrap();
    assert!(seen.lock().unwrap().iter().all(|(what, _)| what == GET));
}

#[tokio::test]
async fn looking_at_a_job_that_is_gone_makes_none() {
    let (client, seen) = cluster(|_, _| not_found());
    assert_eq!(job_state(&client, "trading", "cancel-1", &owner()).await, Ok(None));
    assert_eq!(seen.lock().unwrap().iter().map(|(what, _)| what.as_str()).collect::<Vec<_>>(), [GET]);
}

#[tokio::test]
async fn a_job_of_ours_is_deleted_by_uid() {
    let (client, seen) = cluster(|what, _| match what {
        GET => (200, existing("halt-uid", json!([]))),
        _ => (200, json!({"kind": "Status", "status": "Success"})),
    });
    delete_job(&client, "trading", "cancel-1", &owner()).await.unwrap();
    let seen = seen.lock().unwrap();
    assert!(seen[1].0.starts_with("DELETE"), "{seen:?}");
    assert_eq!(seen[1].1["preconditions"]["uid"], "job-uid");
    assert_eq!(seen[1].1["propagationPolicy"], "Background");
}

#[tokio::test]
async fn only_own_jobs_that_have_not_ended_are_stopped() {
    let (client, seen) = cluster(|what, _| {
        let job = |name: &str, owner: &str, conditions| {
            let mut job = existing(owner, conditions);
            job["metadata"]["name"] = name.into();
            job
        };
        let done = |type_: &str| json!([{"type": type_, "status": "True"}]);
        let items = [
            job("running", "halt-uid", json!([])),
            job("foreign", "other-uid", json!([])),
            job("complete", "halt-uid", done("Complete")),
            job("failed", "halt-uid", done("Failed")),
            job("suspended", "halt-uid", done("Suspended")),
        ];
        if what.starts_with("GET") {
            return (200, json!({"kind": "JobList", "apiVersion": "batch/v1", "metadata": {}, "items": items}));
        }
        // Gone by itself in between.
        if what.contains("suspended") { not_found() } else { (200, json!({"kind": "Status", "status": "Success"})) }
    });
    stop_jobs(&client, "trading", &owner()).await.unwrap();
    let seen = seen.lock().unwrap();
    let what: Vec<_> = seen.iter().map(|(what, _)| what.trim_end_matches('?')).collect();
    let jobs = "/apis/batch/v1/namespaces/trading/jobs";
    let list = format!("GET {jobs}?&labelSelector=standfast.dev%2Fjob%3Dtrue");
    assert_eq!(what, [list, format!("DELETE {jobs}/running"), format!("DELETE {jobs}/suspended")]);
    assert_eq!(seen[1].1["preconditions"]["uid"], "job-uid");
}

#[rstest]
#[case(r#"{"openOrders":0}"#, "job-uid", Some(json!({"openOrders": 0})))]
#[case("", "job-uid", None)]
#[case("Traceback: hunter2", "job-uid", None)]
#[case(r#"{"openOrders":0"#, "job-uid", None)]
#[case(r#"{"openOrders":0}"#, "other-uid", None)]
#[tokio::test]
async fn results(#[case] message: &str, #[case] pod_owner: &str, #[case] expected: Option<Value>) {
    let complete = json!({"type": "Complete", "status": "True"});
    let client = ended(complete, pod_list(pod_owner, 0, "Completed", message));
    assert_eq!(ensure(&client, &action(json!({}))).await, Ok(JobState::Succeeded { result: expected }));
}

#[tokio::test]
async fn a_result_that_is_too_long_is_none() {
    let complete = json!({"type": "Complete", "status": "True"});
    let long = format!("\"{}\"", "x".repeat(RESULT_LIMIT));
    let client = ended(complete, pod_list("job-uid", 0, "Completed", &long));
    assert_eq!(ensure(&client, &action(json!({}))).await, Ok(JobState::Succeeded { result: None }));
}

#[rstest]
#[case("BackoffLimitExceeded", "Error", "its program failed (exit code 3);")]
#[case("BackoffLimitExceeded", "OOMKilled", "its program failed (exit code 3, OOMKilled);")]
#[case("DeadlineExceeded", "Error", "it did not finish in time (exit code 3);")]
#[tokio::test]
async fn failures(#[case] reason: &str, #[case] container: &str, #[case] expected: &str) {
    let failed = json!({"type": "Failed", "status": "True", "reason": reason, "message": "m"});
    let client = ended(failed, pod_list("job-uid", 3, container, r#"{"openOrders":0} hunter2"#));
    let Ok(JobState::Failed { message }) = ensure(&client, &action(json!({}))).await else { panic!() };
    assert!(message.contains(expected) && message.contains("describe job cancel-1"), "{message}");
    assert!(!message.contains("hunter2"), "{message}");
}
