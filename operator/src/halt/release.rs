//! Releases a halt that a TradingResume asks for. The intent is written first, the latch is seen to be gone, and only
//! then the halt is `Released`.

use std::time::Duration;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};
use kube::{Api, Resource, ResourceExt, runtime::controller::Action};
use standfast_crds::v1alpha1::{
    HaltPhase, Release, ResumePhase, TradingHalt, TradingHaltStatus, TradingResume, halt_conditions as c, set_condition,
};

use super::{HaltReconciler, act::EFFECT_DEADLINE, evidence, record, record::WriteError};
use crate::{client, controller::Failure, jobs};

/// How old a request may be that is acted on: what the gates said then is not true for ever.
const FRESH: Duration = Duration::from_secs(30);
/// How old a request is that nobody acts on any more: whoever found it fresh has written his intent by then.
const SPENT: Duration = Duration::from_secs(60);

/// How far the request is from now. One from the future is as far from being true as an old one.
fn age(requested: Timestamp, now: Timestamp) -> Duration {
    now.duration_since(requested).unsigned_abs()
}

/// Whether a release that was asked for then will not happen any more, unless its intent is written already.
pub fn spent(requested: Timestamp, now: Timestamp) -> bool {
    age(requested, now) >= SPENT
}

/// Whether a resume asks for the release of exactly this halt, and still wants it.
pub fn asks(resume: &TradingResume, halt: &TradingHalt, now: Timestamp) -> bool {
    let Some(status) = &resume.status else { return false };
    let running = matches!(status.phase, ResumePhase::Checking | ResumePhase::Releasing | ResumePhase::Restoring);
    running
        && !resume.spec.abort
        && !resume.spec.paused
        && resume.spec.halt_ref.name == halt.name_any()
        && status.halt_uid.is_some()
        && status.halt_uid == halt.uid()
        && status.release_requested_at.as_ref().is_some_and(|t| age(t.0, now) < FRESH)
        && resume.metadata.deletion_timestamp.is_none()
}

impl HaltReconciler {
    /// The resume that asks for the release, as the cache knows it.
    pub(super) fn release_asked(&self, halt: &TradingHalt) -> Option<TradingResume> {
        let resumes = self.resumes.read_namespace(&halt.namespace().unwrap_or_default());
        let now = Timestamp::now();
        resumes.iter().find(|r| asks(r, halt, now)).map(|r| TradingResume::clone(r))
    }

    /// Whether the guardrails allow a release. Missing or edited ones do not: the halt's status says so.
    pub(super) async fn may_release(&self, halt: &TradingHalt, resume: &TradingResume) -> Result<bool, Failure> {
        let Some((reason, why)) = self.guardrails.fresh().await.problem() else { return Ok(true) };
        let old = halt.status.clone().unwrap_or_default();
        let (mut status, now) = (old.clone(), Timestamp::now());
        let message =
            format!("TradingResume {} asks, but the guardrails are not as they should be: {why}", resume.name_any());
        set_condition(&mut status.conditions, now, halt.metadata.generation, (c::RELEASED, "False", reason), message);
        if record::differs(&old, &status) {
            self.settle(self.write(halt, status).await)?;
        }
        Ok(false)
    }

    /// Goes on with a release: `resume` asks for it, or its intent is in the status already.
    pub(super) async fn release(&self, halt: &TradingHalt, resume: Option<&TradingResume>) -> Result<Action, Failure> {
        let namespace = halt.namespace().unwrap_or_default();
        let name = halt.name_any();
        let mut current = halt.clone();
        let mut status = halt.status.clone().unwrap_or_default();
        if status.released.is_none() {
            let Some(resume) = resume else { return Ok(Action::await_change()) };
            // The cache may be behind: the request is read live before anything depends on it.
            let api: Api<TradingResume> = Api::namespaced(self.client.clone(), &namespace);
            let what = format!("reading TradingResume {namespace}/{}", resume.name_any());
            let live = client::read(EFFECT_DEADLINE, what, api.get_opt(&resume.name_any())).await;
            let live = live.map_err(|e| Failure(e.to_string()))?;
            let Some(live) = live.filter(|r| r.uid() == resume.uid() && asks(r, halt, Timestamp::now())) else {
                return Ok(Action::requeue(self.pace));
            };
            let by = Release {
                resume: live.name_any(),
                resume_uid: live.uid().unwrap_or_default(),
                requested_by: live.spec.requested_by.clone(),
            };
            self.may_begin(&namespace, &name)?;
            let now = Timestamp::now();
            let ledger = evidence::ledger(&status);
            evidence::append(&mut status.evidence, now, "Recorded", &ledger, false);
            let message = format!("TradingResume {}, requested by {}", by.resume, by.requested_by);
            evidence::append(&mut status.evidence, now, "ReleaseIntended", &message, true);
            status.released = Some(by);
            match self.write(halt, status.clone()).await {
                Ok(written) => current = written,
                other => return self.settle(other).map(|_| Action::requeue(self.pace)),
            }
        }
        self.may_begin(&namespace, &name)?;
        // A close or a cancel that waits for its Pod must not come when the bot trades again.
        let owner = current.owner_ref(&()).unwrap_or_default();
        let stopped = jobs::stop_jobs(&self.client, &namespace, &owner).await;
        stopped.map_err(|e| Failure::new(format!("releasing {namespace}/{name}"), e))?;
        self.may_begin(&namespace, &name)?;
        let latch = status.latch.as_ref().map(|l| l.config_map.clone()).unwrap_or_default();
        self.latches.remove(&namespace, &latch).await?;
        finish(&mut status, current.metadata.generation, Timestamp::now());
        let written = self.write(&current, status).await;
        if written.is_ok() {
            let uid = current.uid().unwrap_or_default();
            self.registry.forget(&uid);
            self.forget_looks(&uid);
            self.metrics.halt_gone(&namespace, &name);
        }
        self.settle(written)?;
        Ok(Action::requeue(super::CATCH_UP))
    }

    /// Leadership is asked for before each part of a release: the calls between them take their time.
    fn may_begin(&self, namespace: &str, name: &str) -> Result<(), Failure> {
        self.leadership.check(EFFECT_DEADLINE).map_err(|e| Failure::new(format!("releasing {namespace}/{name}"), e))
    }

    /// An error of a write as the reconciler's result: what somebody else wrote in between is looked at again.
    pub(super) fn settle(&self, written: Result<TradingHalt, WriteError>) -> Result<Option<TradingHalt>, Failure> {
        match written {
            Ok(halt) => Ok(Some(halt)),
            Err(WriteError::Conflict | WriteError::Gone) => Ok(None),
            Err(WriteError::Failed(failure)) => Err(failure),
        }
    }
}

fn finish(status: &mut TradingHaltStatus, generation: Option<i64>, now: Timestamp) {
    let by = status.released.clone().map(|r| format!("by TradingResume {}, requested by {}", r.resume, r.requested_by));
    let by = by.unwrap_or_default();
    evidence::append(&mut status.evidence, now, "Released", &by, true);
    status.times.released_at = Some(MicroTime(now));
    if let Some(latch) = &mut status.latch {
        latch.held = false;
    }
    status.phase = HaltPhase::Released;
    set_condition(&mut status.conditions, now, generation, (c::RELEASED, "True", "Released"), by.clone());
    for type_ in [c::HALTED, c::LATCHED] {
        set_condition(&mut status.conditions, now, generation, (type_, "False", "Released"), by.clone());
    }
    record::kstatus(status, generation, now);
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    const REQUESTED: i64 = 1_000;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[rstest]
    #[case::at_once(json!({}), 0, true)]
    #[case::while_young(json!({}), 29, true)]
    #[case::grown_old(json!({}), 30, false)]
    #[case::days_later(json!({}), 200_000, false)]
    #[case::a_clock_a_little_ahead(json!({}), -1, true)]
    #[case::a_clock_that_was_set_back(json!({}), -3600, false)]
    #[case::paused(json!({"spec": {"paused": true}}), 0, false)]
    #[case::aborted(json!({"spec": {"abort": true}}), 0, false)]
    #[case::ended(json!({"status": {"phase": "Failed"}}), 0, false)]
    #[case::of_another_halt(json!({"status": {"haltUid": "uid-other"}}), 0, false)]
    #[case::not_asked_for(json!({"status": {"releaseRequestedAt": null}}), 0, false)]
    fn only_a_young_request_that_is_still_wanted_asks(#[case] but: Value, #[case] age: i64, #[case] expected: bool) {
        let mut resume = json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingResume",
            "metadata": {"name": "go", "namespace": "bots", "uid": "uid-go"},
            "spec": {"haltRef": {"name": "stale"}, "requestedBy": "risk"},
            "status": {"phase": "Releasing", "haltUid": "uid-stale", "releaseRequestedAt": MicroTime(at(REQUESTED))}});
        for (part, fields) in but.as_object().unwrap() {
            for (key, value) in fields.as_object().unwrap() {
                resume[part][key] = value.clone();
            }
        }
        let halt = json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingHalt",
            "metadata": {"name": "stale", "namespace": "bots", "uid": "uid-stale"},
            "spec": {"systemRef": {"name": "crypto"}, "reason": "a test"}});
        let (resume, halt) = (serde_json::from_value(resume).unwrap(), serde_json::from_value(halt).unwrap());
        assert_eq!(asks(&resume, &halt, at(REQUESTED + age)), expected);
    }

    #[test]
    fn a_request_is_spent_only_when_nobody_can_have_found_it_fresh() {
        let spent = |age| spent(at(REQUESTED), at(REQUESTED + age));
        assert_eq!([0, 30, 59, 60, 200_000, -3600].map(spent), [false, false, false, true, true, true]);
        // The longest read and write of an intent in between, and clocks that differ.
        assert!(SPENT >= FRESH + EFFECT_DEADLINE * 4);
    }
}
