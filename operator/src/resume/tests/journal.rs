//! The journal against a fake API server that keeps what is written.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{Request, Response};
use http_body_util::BodyExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::{Client, client::Body};
use rstest::rstest;
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{CountedApproval, Decision, ResumePhase, StepState, StepStatus, TradingResumeStatus};
use tower::service_fn;

use super::{REQUESTED, at, resume};
use crate::{
    approval::count::Count,
    engine::{Journal, JournalError, Term},
    resume::{journal::ResumeJournal, status::step},
};

/// A client, and what was written with it.
fn api() -> (Client, Arc<Mutex<Vec<Value>>>) {
    let written = Arc::<Mutex<Vec<Value>>>::default();
    let log = Arc::clone(&written);
    let service = service_fn(move |request: Request<Body>| {
        let log = Arc::clone(&log);
        async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            log.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
            Ok::<_, Infallible>(Response::new(Body::from(body.to_vec())))
        }
    });
    (Client::new(service, "bots"), written)
}

struct Lease(bool);

impl Term for Lease {
    fn epoch(&self) -> i64 {
        1
    }

    fn allows(&self, _: Duration) -> Result<(), String> {
        if self.0 { Ok(()) } else { Err("the lease is over".into()) }
    }
}

fn entry(name: &str, state: StepState) -> StepStatus {
    StepStatus { name: name.into(), state, ..StepStatus::default() }
}

#[rstest]
#[case::as_it_was(json!({}), true, Ok(()))]
#[case::no_longer_the_leader(json!({}), false, Err("the lease is over"))]
#[case::paused_in_between(json!({"paused": true}), true, Err("TradingResume bots/go was changed before its release"))]
#[case::aborted_in_between(json!({"abort": true}), true, Err("TradingResume bots/go was changed before its release"))]
#[tokio::test]
async fn a_release_is_asked_for_only_by_the_leader_and_as_the_gates_were_asked(
    #[case] spec: Value,
    #[case] leads: bool,
    #[case] expected: Result<(), &str>,
) {
    let (client, written) = api();
    let lease = Lease(leads);
    let mut journal = ResumeJournal::new(client, &lease, resume(spec));
    let asked = journal.record(vec![entry(step::REQUEST_RELEASE, StepState::Succeeded)]).await;
    assert_eq!(asked, expected.map_err(|why| JournalError::Stale(why.into())));
    let requests = written.lock().unwrap().iter().filter(|w| !w["status"]["releaseRequestedAt"].is_null()).count();
    assert_eq!(requests, usize::from(expected.is_ok()));
}

/// A pause takes hold at once up to the release, and afterwards when the step that is under way has ended.
#[rstest]
#[case::at_the_gates(false, StepState::Pending, StepState::Pending, ResumePhase::Paused)]
#[case::asked_for(true, StepState::Running, StepState::Pending, ResumePhase::Paused)]
#[case::released(true, StepState::Succeeded, StepState::Running, ResumePhase::Restoring)]
#[case::between_steps(true, StepState::Succeeded, StepState::Pending, ResumePhase::Paused)]
#[tokio::test]
async fn a_pause(
    #[case] asked: bool,
    #[case] release: StepState,
    #[case] restore: StepState,
    #[case] expected: ResumePhase,
) {
    let (client, _) = api();
    let mut journal = ResumeJournal::new(client, &Lease(true), resume(json!({"paused": true})));
    let requested = asked.then(|| MicroTime(at(REQUESTED)));
    let steps = vec![entry(step::RELEASE, release), entry(step::RESTORE_WORKLOADS, restore)];
    let status = TradingResumeStatus { release_requested_at: requested, steps, ..TradingResumeStatus::default() };
    journal.settle(status, None).await.unwrap();
    assert_eq!(journal.status().phase, expected);
}

#[tokio::test]
async fn what_was_brought_back_is_written_with_the_next_record() {
    let (client, written) = api();
    let mut resume = resume(json!({}));
    resume.status = Some(TradingResumeStatus { restored: vec!["Deployment bot".into()], ..Default::default() });
    let mut journal = ResumeJournal::new(client, &Lease(true), resume);
    journal.restored.add("CronJob nightly".into());
    journal.record(vec![entry(step::RESTORE_WORKLOADS, StepState::Running)]).await.unwrap();
    assert_eq!(written.lock().unwrap()[0]["status"]["restored"], json!(["CronJob nightly", "Deployment bot"]));
}

/// What was counted for the release stands in the write that asks for it, and is used up by it.
#[tokio::test]
async fn the_approvals_of_a_release_are_written_with_it() {
    let (client, written) = api();
    let lease = Lease(true);
    let mut journal = ResumeJournal::new(client, &lease, resume(json!({})));
    let approver = |name: &str| CountedApproval {
        name: format!("yes-{name}"),
        uid: format!("uid-{name}"),
        approver: name.into(),
        decision: Decision::Approve,
        group: None,
        at: MicroTime(at(REQUESTED)),
    };
    journal.tally.note(Count { counted: vec![approver("anna"), approver("bert")], needed: 2, ..Count::default() });
    journal.record(vec![entry(step::REQUEST_RELEASE, StepState::Succeeded)]).await.unwrap();
    let written = written.lock().unwrap()[0]["status"].clone();
    assert!(!written["releaseRequestedAt"].is_null());
    let used = written["approvals"].as_array().unwrap().iter().map(|a| a["uid"].clone()).collect::<Vec<_>>();
    assert_eq!((used, &written["approved"]), (vec![json!("uid-anna"), json!("uid-bert")], &json!("2/2")));
}
