//! The gate `approvals`: who must agree, and who has.

use std::{
    borrow::Borrow,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use standfast_crds::v1alpha1::{
    ApprovalRequirement, Break, CountedApproval, Decision, Requester, StepState, StepStatus, SubjectKind, TradingHalt,
    TradingResumeStatus, shorten,
};

use super::{
    context::Context,
    plan::ResumePlan,
    reconcile::compare::remaining,
    status::{NOT_RELEASED, state, step},
};
use crate::{
    approval::{
        self,
        count::{Count, Excluded, Rules, Subject, count},
    },
    engine::{Acted, Definition, Observation, Step},
    halt::group,
};

/// The longest that one look may take: policies, halts and approvals are read, each with a deadline of its own.
pub(super) const LOOK: Duration = Duration::from_secs(20);

/// What was last counted, for the status. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub(super) struct Tally(Arc<Mutex<Option<Count>>>);

impl Tally {
    pub fn note(&self, count: Count) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(count);
    }

    fn rejected(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(|c| c.rejected.is_some())
    }

    /// Puts what was counted into a status. Once the release is asked for nothing is counted any more, and what was
    /// used stays.
    pub fn show(&self, status: &mut TradingResumeStatus) {
        if let Some(count) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            status.approved = Some(count.tally());
            status.approvals = match &count.rejected {
                Some(rejection) => vec![rejection.by.clone()],
                None => count.counted.clone(),
            };
        }
    }
}

/// The rejection that ended a resume, if one did.
pub(super) fn rejection(status: &TradingResumeStatus) -> Option<&CountedApproval> {
    status.approvals.iter().find(|a| a.decision == Decision::Reject).filter(|_| status.release_requested_at.is_none())
}

/// Whether approvals are missing that were counted already.
pub(super) fn lacking(status: &TradingResumeStatus) -> bool {
    let counted = status.approved.as_deref().and_then(|a| a.split_once('/'));
    counted.is_some_and(|(there, needed)| there != needed)
}

fn asked_for(what: &str) -> String {
    format!("asked for {what}, and the resumePolicy excludes whoever did")
}

/// What a plan asks for of the halt that it releases. An error says why nobody can tell whose decisions count: who
/// asked is certain only where it was recorded while the guardrails were in place, `since` then.
pub fn rules(
    plan: &ResumePlan,
    halts: &[impl Borrow<TradingHalt>],
    born: Option<Timestamp>,
    since: Timestamp,
) -> Result<Rules, String> {
    let excludes = |who| plan.policy.exclude_requesters.contains(&who);
    let mut excluded = vec![];
    let uncertain = |what: &str| {
        format!(
            "who asked for {what} is not certain, it is older than the guardrails about names as they are now, and the \
             resumePolicy excludes whoever did"
        )
    };
    if excludes(Requester::Resume) {
        let what = "this TradingResume";
        if born.is_none_or(|at| at <= since) {
            return Err(format!("{}: create another one", uncertain(what)));
        }
        excluded.push(Excluded { user: plan.spec.requested_by.clone(), because: asked_for(what) });
    }
    if excludes(Requester::Halt) {
        let what = format!("TradingHalt {}", plan.halt.name);
        let repair = "only a resumePolicy without it, and another TradingResume, goes on";
        let halt = halts.iter().map(Borrow::borrow).find(|h| h.uid().as_ref() == Some(&plan.halt.uid));
        let Some(halt) = halt else { return Err(format!("{what} is gone")) };
        let Some(user) = &halt.spec.requested_by else {
            return Err(format!(
                "who asked for {what} is not recorded, and the resumePolicy excludes whoever did: {repair}"
            ));
        };
        if !group::requester_certain(halt, halts, since) {
            return Err(format!("{}: {repair}", uncertain(&what)));
        }
        excluded.push(Excluded { user: user.clone(), because: asked_for(&what) });
    }
    let mut requirements = plan.policy.approvals.clone();
    if requirements.is_empty() && !plan.policy.reconciliation.is_empty() {
        // Breaks are accepted by one person at least, who does not decide about a resume of his own.
        requirements.push(ApprovalRequirement { count: 1, group: None, service_accounts: false });
        if !excludes(Requester::Resume) {
            let because = asked_for("this TradingResume");
            excluded.push(Excluded { user: plan.spec.requested_by.clone(), because });
        }
    }
    Ok(Rules { requirements, excluded })
}

/// Who accepts these breaks: approvals that name each of them, counted like those of the plan. The error says what is
/// wanting.
pub(super) async fn accepted(cx: &Context, breaks: &[Break]) -> Result<Vec<CountedApproval>, String> {
    let since = cx.outside.guardrails.names_true_since_now().await;
    let since = since.map_err(|why| format!("no approval counts while {why}"))?;
    let halts = cx.halts().await?;
    let rules = rules(&cx.plan, &halts, cx.born, since)?;
    let subject = subject(cx);
    let mut approvals = approval::of_subject(&cx.outside.client, &cx.namespace, &subject).await?;
    approvals.retain(|a| a.spec.decision == Decision::Reject || remaining(breaks, &a.spec.breaks).is_empty());
    let count = count(&subject, &rules, &approvals, since, Timestamp::now());
    if count.met() {
        return Ok(count.counted);
    }
    Err(match &count.rejected {
        Some(rejection) => format!("rejected by {}", rejection.by.approver),
        None => format!(
            "repair them, or accept exactly these by Approvals that list them, wanting {}",
            count.missing.join(" and ")
        ),
    })
}

fn subject(cx: &Context) -> Subject {
    let (name, uid, hash) = (cx.name.clone(), cx.uid.clone(), cx.plan_hash.clone());
    Subject { kind: SubjectKind::TradingResume, name, uid, hash }
}

/// What a count means for the gate, in words.
pub(super) fn gate(count: &Count) -> Observation {
    if let Some(rejection) = &count.rejected {
        return Observation::Failed(shorten(&rejection.said()));
    }
    let by: Vec<_> = count.counted.iter().map(|c| c.approver.as_str()).collect();
    let by = if by.is_empty() { String::new() } else { format!(" by {}", by.join(", ")) };
    let so_far = format!("{} of {} approvals{by}", count.counted.len(), count.needed);
    if count.met() {
        return Observation::Done(so_far);
    }
    Observation::InProgress(format!("{so_far}, wanting {}", count.wanting()))
}

/// Counts, live.
pub(super) async fn ask(cx: &Context) -> Observation {
    if cx.plan.policy.approvals.is_empty() {
        return Observation::NotNeeded("the resumePolicy asks for no approval".into());
    }
    match cx.outside.guardrails.names_true_since_now().await {
        Ok(since) => ask_with(cx, since).await,
        Err(why) => Observation::InProgress(format!("no approval counts while {why}")),
    }
}

/// Whether somebody rejected it, or withdrew what was counted, while it waits for another gate: it is not asked to
/// the end before that is said. What cannot be read now is asked by that gate's successors again.
pub(super) async fn rejected(cx: &Context, status: &TradingResumeStatus) -> Option<String> {
    if state(&status.steps, step::APPROVALS) != StepState::Succeeded || status.release_requested_at.is_some() {
        return None;
    }
    let since = cx.outside.guardrails.names_true_since().await.ok()?;
    match ask_with(cx, since).await {
        Observation::Failed(why) if cx.tally.rejected() => Some(format!("{NOT_RELEASED} {why}")),
        _ => None,
    }
}

async fn ask_with(cx: &Context, since: Timestamp) -> Observation {
    let halts = match cx.halts().await {
        Ok(halts) => halts,
        Err(why) => return Observation::InProgress(why),
    };
    let rules = match rules(&cx.plan, &halts, cx.born, since) {
        Ok(rules) => rules,
        // Neither changes any more.
        Err(why) => return Observation::Failed(why),
    };
    let subject = subject(cx);
    match approval::of_subject(&cx.outside.client, &cx.namespace, &subject).await {
        Ok(approvals) => {
            let count = count(&subject, &rules, &approvals, since, Timestamp::now());
            let said = gate(&count);
            cx.tally.note(count);
            said
        }
        Err(why) => Observation::InProgress(why),
    }
}

/// Enough people agree.
pub(super) struct Approvals(pub Arc<Context>);

#[async_trait]
impl Step for Approvals {
    fn definition(&self) -> Definition {
        Definition {
            look: LOOK,
            interval: Duration::from_secs(5),
            until: Some(self.0.until),
            ..Definition::new(step::APPROVALS)
        }
    }

    async fn observe(&self, _: &StepStatus) -> Observation {
        ask(&self.0).await
    }

    async fn act(&self, _: &StepStatus) -> Acted {
        Acted::Started { message: String::new(), external_ref: None }
    }
}
