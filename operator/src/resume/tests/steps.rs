//! Steps against a fake API server and a fake venue.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use k8s_openapi::{
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::{SignedDuration, Timestamp},
};
use kube::{Client, CustomResourceExt, client::Body};
use rstest::rstest;
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{StepStatus, TradingHalt, TradingResume, TradingSystem};
use tower::service_fn;

use super::{BORN, REQUESTED, at, halt, plan, released_by};
use crate::{
    args::Scope,
    calls::Caller,
    engine::{Acted, Observation, Step},
    guardrails::Guardrails,
    kinds::Kinds,
    metrics::Metrics,
    outbound::{
        Call, CallError, Reply, Transport,
        connect::{Connector, SystemResolver},
        guard::{Guard, GuardConfig},
    },
    resume::{
        approvals::Tally,
        context::{Context, Outside},
        ramp,
        restore::Names,
        status::step,
        steps::procedure,
        watch::Record,
    },
    scale::Scaler,
    system::{checks::Checker, sql::Databases},
    workloads::Workloads,
};

/// What the venue is asked, and whether it refuses orders.
#[derive(Default)]
struct Venue {
    suspended: bool,
    changes: Vec<String>,
    lose_answers: bool,
    /// The status codes of the next changes; 200 afterwards.
    answers: VecDeque<u16>,
    unreadable: bool,
}

struct FakeVenue(Arc<Mutex<Venue>>);

#[async_trait]
impl Transport for FakeVenue {
    async fn send(&self, call: Call) -> Result<Reply, CallError> {
        let mut venue = self.0.lock().unwrap();
        if call.method != Method::GET {
            venue.changes.push(call.url);
            if let Some(status) = venue.answers.pop_front().filter(|s| *s >= 300) {
                return Ok(Reply { status, body: Bytes::new() });
            }
            venue.suspended = false;
            if venue.lose_answers {
                return Err(CallError::UnknownOutcome("no answer".into()));
            }
        } else if venue.unreadable {
            return Err(CallError::NotSent("no connection".into()));
        }
        Ok(Reply { status: 200, body: Bytes::from(json!({"suspended": venue.suspended}).to_string()) })
    }

    async fn probe(&self, _: &str, _: &str, _: Duration) -> Result<(), CallError> {
        Ok(())
    }
}

/// An API server that knows these halts, this Job, whatever its name, and nothing else; no halts, and it fails.
fn api(halts: Option<Vec<TradingHalt>>, job: Option<Value>) -> Client {
    let service = service_fn(move |request: Request<Body>| {
        let list = |items: Value| (200, json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": items}));
        let (code, body) = match request.uri().path().rsplit_once('/').unwrap() {
            (_, "tradinghalts") => halts.as_ref().map_or_else(|| (500, failure(500)), |halts| list(json!(halts))),
            (_, "pods") => list(json!([])),
            (parent, _) if parent.ends_with("/jobs") && job.is_some() => (200, job.clone().unwrap()),
            _ => (404, failure(404)),
        };
        let answer = Response::builder().status(code).body(Body::from(body.to_string().into_bytes()));
        async move { answer }
    });
    Client::new(service, "bots")
}

fn failure(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "no", "reason": "NotFound", "code": code})
}

fn context(halts: Option<Vec<TradingHalt>>, venue: &Arc<Mutex<Venue>>) -> Arc<Context> {
    context_of(api(halts, None), venue)
}

fn context_of(client: Client, venue: &Arc<Mutex<Venue>>) -> Arc<Context> {
    let caller = Caller::new(Arc::new(FakeVenue(Arc::clone(venue))), client.clone(), Metrics::new());
    let guard = Arc::new(Guard::new(GuardConfig::default()));
    let connector = Connector::new(guard, Arc::new(SystemResolver::default()), vec![]).unwrap();
    let databases = Databases::new(client.clone(), connector, vec![]).unwrap();
    let (workloads, _feed) = Workloads::open(&client, &Scope::Cluster, &Kinds::default(), |_, _| {});
    Arc::new(Context {
        namespace: "bots".into(),
        name: "go".into(),
        uid: "uid-go".into(),
        owner: Default::default(),
        plan: plan(),
        plan_hash: "a".repeat(64),
        born: Some(at(BORN)),
        tally: Tally::default(),
        ledger: Default::default(),
        accepted: vec![],
        paused: false,
        restored: Names::default(),
        record: Record::default(),
        memory: Arc::default(),
        requested_at: Some(at(REQUESTED)),
        until: at(BORN + 3600),
        outside: Arc::new(Outside {
            checker: Checker::new(caller.clone(), databases, client.clone(), Kinds::default()),
            caller: Arc::new(caller),
            guardrails: Guardrails::new(client.clone(), &Kinds::default()),
            scaler: Scaler::new(client.clone(), &Kinds::default()),
            client,
            workloads,
        }),
    })
}

fn find(cx: &Arc<Context>, name: &str) -> Box<dyn Step> {
    procedure(cx).into_iter().flatten().find(|s| s.definition().name == name).unwrap()
}

#[tokio::test]
async fn steps_have_names_of_their_own_and_only_one_kind_may_not_be_repeated() {
    let cx = context(Some(vec![]), &Arc::default());
    let all: Vec<_> = procedure(&cx).iter().flatten().map(|s| s.definition()).collect();
    assert_eq!(all.iter().map(|d| &d.name).collect::<HashSet<_>>().len(), all.len());
    for definition in all {
        let name = &definition.name;
        assert_eq!(!definition.repeatable, name.starts_with(step::ALLOW_TRADING), "{name}");
        let undoes_the_halt = [step::RESTORE_WORKLOADS, step::APPLICATION_RESUME].contains(&name.as_str());
        assert_eq!(definition.within_lease, undoes_the_halt, "{name}");
        // It is begun only when the lease outlasts it.
        assert!(definition.repeatable && !definition.within_lease || definition.call < Duration::from_secs(5));
    }
}

#[test]
fn the_journal_has_room_for_the_longest_procedure() {
    let schema = |crd: CustomResourceDefinition| {
        serde_json::to_value(crd).unwrap()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"].clone()
    };
    let (system, resume) = (schema(TradingSystem::crd()), schema(TradingResume::crd()));
    let venues = &system["spec"]["properties"]["venues"];
    let actions = &venues["items"]["properties"]["allowTrading"]["maxItems"];
    let most = venues["maxItems"].as_u64().unwrap() * actions.as_u64().unwrap();
    let room = resume["status"]["properties"]["steps"]["maxItems"].as_u64().unwrap();
    let stages = &system["spec"]["properties"]["resumePolicy"]["properties"]["ramp"]["maxItems"];
    let stages = stages.as_u64().unwrap() * ramp::part::ALL.len() as u64;
    // The steps around them.
    assert!(most + stages + 16 <= room, "{most} steps of venues, room for {room}");
}

#[rstest]
#[case::free(Some(vec![]), "Started")]
#[case::held_by_an_older_halt(Some(vec![halt("b", BORN, json!({}))]), "NotNeeded(\"still halted by b\")")]
#[case::halted_again(Some(vec![halt("b", REQUESTED + 1, json!({}))]), "Again(\"halted again by b\")")]
#[case::about_to_be_held(
    Some(vec![halt("b", BORN, json!({"latch": null, "phase": "Pending"}))]),
    "Again(\"TradingHalt b is about to hold\")"
)]
#[case::not_known(None, "Again(\"listing TradingHalts in bots: 500 no\")")]
#[tokio::test]
async fn a_venue_is_asked_only_when_no_halt_holds_it(#[case] others: Option<Vec<TradingHalt>>, #[case] expected: &str) {
    let venue = Arc::new(Mutex::new(Venue { suspended: true, ..Venue::default() }));
    let halts = others.map(|mut o| {
        o.push(halt("stale", BORN - 60, released_by("go")));
        o
    });
    let allow = find(&context(halts, &venue), "allow-trading-alpaca");
    let acted = allow.act(&StepStatus::default()).await;
    assert!(format!("{acted:?}").starts_with(expected), "{acted:?}");
    let called = venue.lock().unwrap().changes.len();
    assert_eq!(called, usize::from(matches!(acted, Acted::Started { .. })));
}

#[tokio::test]
async fn a_lost_answer_of_a_venue_is_settled_by_reading() {
    let venue = Arc::new(Mutex::new(Venue { suspended: true, lose_answers: true, ..Venue::default() }));
    let cx = context(Some(vec![halt("stale", BORN - 60, released_by("go"))]), &venue);
    let allow = find(&cx, "allow-trading-alpaca");
    let intent = StepStatus { deadline: Some(MicroTime(at(BORN))), ..StepStatus::default() };
    assert_eq!(allow.observe(&intent).await, Observation::NotDone("the venue refuses orders".into()));
    assert!(matches!(allow.act(&intent).await, Acted::Unknown(_)));
    assert_eq!(allow.observe(&intent).await, Observation::Done("the venue accepts orders".into()));
}

#[tokio::test]
async fn each_of_several_actions_counts_by_its_own_answer() {
    let venue = Arc::new(Mutex::new(Venue { suspended: true, answers: [200, 429].into(), ..Venue::default() }));
    let stale = || halt("stale", BORN - 60, json!({"workloads": []}));
    let mut cx = context(Some(vec![stale()]), &venue);
    let plan = &mut Arc::get_mut(&mut cx).unwrap().plan;
    plan.workloads = vec![];
    let allow = plan.venues[0].allow_trading[0].clone();
    plan.venues[0].allow_trading.push(allow);
    let (one, two) = (find(&cx, "allow-trading-alpaca.1"), find(&cx, "allow-trading-alpaca.2"));
    let intent = StepStatus { deadline: Some(MicroTime(at(BORN))), ..StepStatus::default() };
    assert!(matches!(one.act(&intent).await, Acted::Done(_)));
    // The venue accepts orders already: that tells nothing of the second one.
    for _ in 0..2 {
        assert!(matches!(two.observe(&intent).await, Observation::Unknown(_)));
    }
    assert_eq!(two.act(&intent).await, Acted::Again("answered 429".into()));
    assert!(matches!(two.act(&intent).await, Acted::Done(_)));
    assert_eq!(venue.lock().unwrap().changes.len(), 3);
    venue.lock().unwrap().suspended = true;
    let seen = find(&cx, step::VERIFY).observe(&intent).await;
    assert_eq!(seen, Observation::InProgress("venue alpaca refuses orders".into()));
}

#[rstest]
#[case::nobody_tells(false, false, true, "Indeterminate(\"Job bots/")]
#[case::it_cannot_be_read(true, true, true, "Unknown(\"Job bots/")]
#[case::it_did_nothing(true, false, true, "Failed(\"Job bots/")]
#[case::it_did_it(true, false, false, "Done")]
#[tokio::test]
async fn what_a_job_did_that_failed_only_the_venue_can_tell(
    #[case] readable: bool,
    #[case] unreadable: bool,
    #[case] suspended: bool,
    #[case] expected: &str,
) {
    let venue = Arc::new(Mutex::new(Venue { suspended, unreadable, ..Venue::default() }));
    let job = json!({"apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": "x", "namespace": "bots", "ownerReferences": [
            {"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingResume", "name": "go", "uid": ""}]},
        "status": {"conditions": [{"type": "Failed", "status": "True"}]}});
    let mut cx = context_of(api(Some(vec![]), Some(job)), &venue);
    let plan = &mut Arc::get_mut(&mut cx).unwrap().plan;
    plan.venues[0].allow_trading = vec![serde_json::from_value(json!({"job": {"image": "allow"}})).unwrap()];
    if !readable {
        plan.venues[0].trading_suspended = None;
    }
    let seen = find(&cx, "allow-trading-alpaca").observe(&StepStatus::default()).await;
    assert!(format!("{seen:?}").starts_with(expected), "{seen:?}");
}

#[tokio::test]
async fn nothing_is_released_without_guardrails() {
    let cx = context(Some(vec![halt("stale", BORN - 60, json!({}))]), &Arc::default());
    for name in [step::GUARDRAILS, step::REQUEST_RELEASE] {
        let seen = find(&cx, name).observe(&StepStatus::default()).await;
        assert!(matches!(&seen, Observation::InProgress(why) if why.contains("not found")), "{name}: {seen:?}");
    }
}

/// The proof of a halt counts for another minute.
fn proven_now() -> Value {
    json!({"verifiedUntil": (Timestamp::now() + SignedDuration::from_mins(1)).to_string()})
}

#[rstest]
#[case::proven(Some(vec![halt("stale", BORN - 60, proven_now())]), "Done")]
#[case::not_proven(Some(vec![halt("stale", BORN - 60, json!({"phase": "Fencing"}))]), "InProgress")]
#[case::not_known(None, "InProgress")]
#[case::released_by_another(Some(vec![halt("stale", BORN - 60, released_by("other"))]), "Failed")]
#[case::gone(Some(vec![]), "Failed")]
#[tokio::test]
async fn the_halt_is_proven_before_anything_is_asked(#[case] halts: Option<Vec<TradingHalt>>, #[case] expected: &str) {
    let cx = context(halts, &Arc::default());
    let first = procedure(&cx).into_iter().flatten().next().unwrap();
    assert_eq!(first.definition().name, step::HALTED);
    let seen = first.observe(&StepStatus::default()).await;
    assert!(format!("{seen:?}").starts_with(expected), "{seen:?}");
}

#[rstest]
#[case(vec![halt("stale", BORN - 60, released_by("go"))], 0, "Done")]
#[case(vec![halt("stale", BORN - 60, json!({}))], 0, "InProgress")]
#[case(vec![halt("stale", BORN - 60, released_by("other"))], 0, "Failed")]
#[case(vec![], 0, "Failed")]
#[case::not_acted_on(vec![halt("stale", BORN - 60, json!({}))], 60, "Failed(\"not released: the request")]
#[case::begun_in_time(
    vec![halt("stale", BORN - 60, json!({"released": {"resume": "go", "resumeUid": "uid-go", "requestedBy": "risk"}}))],
    60,
    "InProgress"
)]
#[tokio::test]
async fn the_release_is_the_halts_own(#[case] halts: Vec<TradingHalt>, #[case] age: i64, #[case] expected: &str) {
    let mut cx = context(Some(halts), &Arc::default());
    let requested = Timestamp::from_second(Timestamp::now().as_second() - age).unwrap();
    Arc::get_mut(&mut cx).unwrap().requested_at = Some(requested);
    let seen = find(&cx, step::RELEASE).observe(&StepStatus::default()).await;
    assert!(format!("{seen:?}").starts_with(expected), "{seen:?}");
}

#[rstest]
#[case::held(vec![halt("stale", BORN - 60, released_by("go")), halt("b", BORN, json!({}))], "NotNeeded")]
#[case::halted_again(vec![halt("stale", BORN - 60, released_by("go")), halt("b", REQUESTED, json!({}))], "Again")]
// The fake API server has no Deployment.
#[case::missing(vec![halt("stale", BORN - 60, released_by("go"))], "Failed(\"0 of 1 workloads restored: Deployment")]
#[tokio::test]
async fn workloads_are_restored_only_where_no_halt_holds(#[case] halts: Vec<TradingHalt>, #[case] expected: &str) {
    let acted = find(&context(Some(halts), &Arc::default()), step::RESTORE_WORKLOADS).act(&StepStatus::default()).await;
    assert!(format!("{acted:?}").starts_with(expected), "{acted:?}");
}

/// Deployments by name: their replicas, and how often they were raised. A change takes as long as it is told.
#[derive(Default)]
struct Deployments {
    replicas: BTreeMap<String, (i64, usize)>,
    refused: HashSet<String>,
    takes: Duration,
}

/// An API server with these Deployments and a halt that was released.
fn scaling(deployments: &Arc<Mutex<Deployments>>) -> Client {
    let deployments = Arc::clone(deployments);
    let halts = json!([halt("stale", BORN - 60, released_by("go"))]);
    let service = service_fn(move |request: Request<Body>| {
        let (deployments, halts) = (Arc::clone(&deployments), halts.clone());
        async move {
            let path = request.uri().path().to_owned();
            let name = path.trim_end_matches("/scale").rsplit('/').next().unwrap().to_owned();
            let change = request.method() == Method::PATCH;
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let takes = deployments.lock().unwrap().takes;
            tokio::time::sleep(takes).await;
            let mut deployments = deployments.lock().unwrap();
            let (code, body) = if path.ends_with("/tradinghalts") {
                (200, json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": halts}))
            } else if change && deployments.refused.contains(&name) {
                (403, failure(403))
            } else {
                let (replicas, raised) = deployments.replicas.entry(name.clone()).or_default();
                if change {
                    let patch: Value = serde_json::from_slice(&body).unwrap();
                    (*replicas, *raised) = (patch[1]["value"].as_i64().unwrap(), *raised + 1);
                }
                let spec = json!({"replicas": *replicas});
                let metadata = json!({"name": name, "namespace": "bots", "resourceVersion": "1"});
                (200, json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": metadata, "spec": spec}))
            };
            Response::builder().status(code).body(Body::from(body.to_string().into_bytes()))
        }
    });
    Client::new(service, "bots")
}

fn restoring(client: Client, names: &[&str]) -> Arc<Context> {
    let mut cx = context_of(client, &Arc::default());
    let workloads = names.iter().map(|name| json!({"kind": "Deployment", "name": name, "replicas": 3})).collect();
    Arc::get_mut(&mut cx).unwrap().plan.workloads = serde_json::from_value(Value::Array(workloads)).unwrap();
    cx
}

#[tokio::test]
async fn a_workload_that_was_brought_back_is_not_raised_again() {
    let deployments = Arc::new(Mutex::new(Deployments { refused: ["other".into()].into(), ..Deployments::default() }));
    let cx = restoring(scaling(&deployments), &["bot", "other"]);
    let restore = find(&cx, step::RESTORE_WORKLOADS);
    let Acted::Again(why) = restore.act(&StepStatus::default()).await else { panic!() };
    assert!(why.starts_with("1 of 2 workloads restored: the change of Deployment bots/other was refused"), "{why}");
    assert_eq!(cx.restored.list(), ["Deployment bot"]);
    {
        let mut deployments = deployments.lock().unwrap();
        assert_eq!(deployments.replicas["bot"], (3, 1));
        // Somebody stops it again, for a reason of his own.
        deployments.replicas.get_mut("bot").unwrap().0 = 0;
        deployments.refused.clear();
    }
    // Also another process, which knows what is written down.
    let mut cx = restoring(scaling(&deployments), &["bot", "other"]);
    Arc::get_mut(&mut cx).unwrap().restored = Names::new(&["Deployment bot".into()]);
    let acted = find(&cx, step::RESTORE_WORKLOADS).act(&StepStatus::default()).await;
    assert_eq!(acted, Acted::Done("2 of 2 workloads restored".into()));
    let deployments = deployments.lock().unwrap();
    assert_eq!((deployments.replicas["bot"], deployments.replicas["other"]), ((0, 1), (3, 1)));
}

/// S2-36: a stage runs its share, once, and gives more only to what still has what the stage before gave it.
#[tokio::test]
async fn a_later_stage_raises_what_nobody_changed_in_between() {
    let deployments = Arc::new(Mutex::new(Deployments::default()));
    let staged = |names: &[&str]| {
        let mut cx = restoring(scaling(&deployments), names);
        let stages = json!([{"name": "small", "replicasPercent": 40}, {"name": "full"}]);
        Arc::get_mut(&mut cx).unwrap().plan.policy.ramp = serde_json::from_value(stages).unwrap();
        cx
    };
    let replicas = |name: &str| deployments.lock().unwrap().replicas[name];
    let cx = staged(&["bot", "grown", "stopped"]);
    let small = find(&cx, "small-workloads");
    assert_eq!(small.act(&StepStatus::default()).await, Acted::Done("3 of 3 workloads restored".into()));
    assert_eq!((replicas("bot"), cx.restored.list().len()), ((2, 1), 3));
    for (name, by_somebody) in [("grown", 5), ("stopped", 0)] {
        deployments.lock().unwrap().replicas.get_mut(name).unwrap().0 = by_somebody;
    }
    // Once more changes nothing, and the next stage, in another process, raises only the first.
    small.act(&StepStatus::default()).await;
    let mut cx = staged(&["bot", "grown", "stopped"]);
    let names = ["Deployment bot", "Deployment grown", "Deployment stopped"].map(str::to_owned);
    Arc::get_mut(&mut cx).unwrap().restored = Names::new(&names);
    for _ in 0..2 {
        let acted = find(&cx, "full-workloads").act(&StepStatus::default()).await;
        assert_eq!(acted, Acted::Done("3 of 3 workloads restored".into()));
        assert_eq!([replicas("bot"), replicas("grown"), replicas("stopped")], [(3, 2), (5, 1), (0, 1)]);
    }
}

#[tokio::test]
async fn the_steps_of_stages_are_in_order_and_have_names_of_their_own() {
    let mut cx = context(Some(vec![]), &Arc::default());
    let policy = json!({"ramp": [{"name": "small", "replicasPercent": 10}, {"name": "full"}], "watch": {"for": "1h"}});
    Arc::get_mut(&mut cx).unwrap().plan.policy = serde_json::from_value(policy).unwrap();
    let names: Vec<_> = procedure(&cx).iter().flatten().map(|s| s.definition().name).collect();
    assert_eq!(
        names[5..],
        [
            "release",
            "small-limits",
            "small-workloads",
            "small-ready",
            "small-limits-proven",
            "application-resume",
            "allow-trading-alpaca",
            "small-hold",
            "full-limits",
            "full-workloads",
            "full-ready",
            "full-limits-proven",
            "full-hold",
            "verify",
            "watch",
        ]
    );
    // A hold has no end of its own: only what is seen counts.
    for step in procedure(&cx).iter().flatten().map(|s| s.definition()).filter(|d| ramp::holds(&d.name)) {
        assert_eq!((step.timeout, step.until), (None, None), "{}", step.name);
    }
}

#[tokio::test(start_paused = true)]
async fn many_workloads_are_restored_in_attempts_that_end_within_the_lease() {
    let slow = Deployments { takes: Duration::from_millis(400), ..Deployments::default() };
    let deployments = Arc::new(Mutex::new(slow));
    let names: Vec<_> = (0..300).map(|n| format!("bot-{n}")).collect();
    let cx = restoring(scaling(&deployments), &names.iter().map(String::as_str).collect::<Vec<_>>());
    let restore = find(&cx, step::RESTORE_WORKLOADS);
    let mut attempts = 1;
    loop {
        let begun = tokio::time::Instant::now();
        let acted = restore.act(&StepStatus::default()).await;
        assert!(begun.elapsed() < restore.definition().call, "{:?}", begun.elapsed());
        if acted == Acted::Done("301 of 301 workloads restored".into()) {
            break;
        }
        assert!(matches!(&acted, Acted::Again(why) if why.ends_with("the others come next")), "{acted:?}");
        attempts += 1;
    }
    assert!((2..10).contains(&attempts), "{attempts}");
    assert!(deployments.lock().unwrap().replicas.values().all(|(replicas, raised)| (*replicas, *raised) == (3, 1)));
}
