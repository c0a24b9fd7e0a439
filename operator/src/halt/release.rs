//! Releases a halt that a TradingResume asks for. The intent is written first, the latch is seen to be gone, and only
//! then the halt is `Released`.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};
use kube::{Api, ResourceExt, runtime::controller::Action};
use standfast_crds::v1alpha1::{
    HaltPhase, Release, ResumePhase, TradingHalt, TradingHaltStatus, TradingResume, halt_conditions as c, set_condition,
};

use super::{HaltReconciler, act::EFFECT_DEADLINE, evidence, record, record::WriteError};
use crate::{client, controller::Failure};

/// Whether a resume asks for the release of exactly this halt, and still wants it.
pub fn asks(resume: &TradingResume, halt: &TradingHalt) -> bool {
    let Some(status) = &resume.status else { return false };
    let running = matches!(status.phase, ResumePhase::Checking | ResumePhase::Releasing | ResumePhase::Restoring);
    running
        && !resume.spec.abort
        && resume.spec.halt_ref.name == halt.name_any()
        && status.halt_uid.is_some()
        && status.halt_uid == halt.uid()
        && status.release_requested_at.is_some()
        && resume.metadata.deletion_timestamp.is_none()
}

impl HaltReconciler {
    /// The resume that asks for the release, as the cache knows it.
    pub(super) fn release_asked(&self, halt: &TradingHalt) -> Option<TradingResume> {
        let resumes = self.resumes.read_namespace(&halt.namespace().unwrap_or_default());
        resumes.into_iter().find(|r| asks(r, halt))
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
            let Some(live) = live.filter(|r| r.uid() == resume.uid() && asks(r, halt)) else {
                return Ok(Action::requeue(self.pace));
            };
            let by = Release {
                resume: live.name_any(),
                resume_uid: live.uid().unwrap_or_default(),
                requested_by: live.spec.requested_by.clone(),
            };
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
        self.leadership.check(EFFECT_DEADLINE).map_err(|e| Failure::new(format!("releasing {namespace}/{name}"), e))?;
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
