//! Steps against a fake API server and a fake venue.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, Request, Response};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::{Client, client::Body};
use rstest::rstest;
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{StepStatus, TradingHalt};
use tower::service_fn;

use super::{BORN, REQUESTED, at, halt, plan, released_by};
use crate::{
    args::Scope,
    calls::Caller,
    engine::{Acted, Observation, Step},
    guardrails::Guardrails,
    metrics::Metrics,
    outbound::{
        Call, CallError, Reply, Transport,
        connect::{Connector, SystemResolver},
        guard::{Guard, GuardConfig},
    },
    resume::{
        context::{Context, Outside},
        status::step,
        steps::procedure,
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
}

struct FakeVenue(Arc<Mutex<Venue>>);

#[async_trait]
impl Transport for FakeVenue {
    async fn send(&self, call: Call) -> Result<Reply, CallError> {
        let mut venue = self.0.lock().unwrap();
        if call.method != Method::GET {
            venue.changes.push(call.url);
            venue.suspended = false;
            if venue.lose_answers {
                return Err(CallError::UnknownOutcome("no answer".into()));
            }
        }
        Ok(Reply { status: 200, body: Bytes::from(json!({"suspended": venue.suspended}).to_string()) })
    }

    async fn probe(&self, _: &str, _: &str, _: Duration) -> Result<(), CallError> {
        Ok(())
    }
}

/// An API server that knows these halts and nothing else; none, and it fails.
fn api(halts: Option<Vec<TradingHalt>>) -> Client {
    let service = service_fn(move |request: Request<Body>| {
        let list = request.uri().path().ends_with("/tradinghalts");
        let (code, body) = match &halts {
            Some(halts) if list => (200, json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": halts})),
            None if list => (500, failure(500)),
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
    let client = api(halts);
    let caller = Caller::new(Arc::new(FakeVenue(Arc::clone(venue))), client.clone(), Metrics::new());
    let guard = Arc::new(Guard::new(GuardConfig::default()));
    let connector = Connector::new(guard, Arc::new(SystemResolver::default()), vec![]).unwrap();
    let databases = Databases::new(client.clone(), connector, vec![]).unwrap();
    let (workloads, _feed) = Workloads::open(&client, &Scope::Cluster, |_, _| {});
    Arc::new(Context {
        namespace: "bots".into(),
        name: "go".into(),
        uid: "uid-go".into(),
        owner: Default::default(),
        plan: plan(),
        paused: false,
        requested_at: Some(at(REQUESTED)),
        until: at(BORN + 3600),
        outside: Arc::new(Outside {
            checker: Checker::new(caller.clone(), databases, client.clone()),
            caller: Arc::new(caller),
            guardrails: Guardrails::new(client.clone()),
            scaler: Scaler::new(client.clone()),
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
        assert_eq!(!definition.repeatable, definition.name.starts_with(step::ALLOW_TRADING), "{}", definition.name);
        // It is begun only when the lease outlasts it.
        assert!(definition.repeatable || definition.call < Duration::from_secs(5));
    }
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
    let intent = StepStatus {
        deadline: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(at(BORN))),
        ..StepStatus::default()
    };
    assert_eq!(allow.observe(&intent).await, Observation::NotDone("the venue refuses orders".into()));
    assert!(matches!(allow.act(&intent).await, Acted::Unknown(_)));
    assert_eq!(allow.observe(&intent).await, Observation::Done("the venue accepts orders".into()));
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
#[case(vec![halt("stale", BORN - 60, released_by("go"))], "Done")]
#[case(vec![halt("stale", BORN - 60, json!({}))], "InProgress")]
#[case(vec![halt("stale", BORN - 60, released_by("other"))], "Failed")]
#[case(vec![], "Failed")]
#[tokio::test]
async fn the_release_is_the_halts_own(#[case] halts: Vec<TradingHalt>, #[case] expected: &str) {
    let seen = find(&context(Some(halts), &Arc::default()), step::RELEASE).observe(&StepStatus::default()).await;
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
