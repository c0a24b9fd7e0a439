//! Approvals of what a halt asks to do to positions and its TradingSystem's policy does not allow.

use std::{borrow::Borrow, time::Duration};

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use standfast_crds::v1alpha1::{
    ApprovalRequirement, CountedApproval, HaltPolicy, PositionAction, SubjectKind, TradingHalt, TradingHaltStatus,
    halt_conditions as c, is_true, shorten,
};
use tokio::time::Instant;

use super::{GLANCE, HaltReconciler, act::EFFECT_DEADLINE, evidence, group, memory::Memory};
use crate::{
    approval::{
        self,
        count::{Count, Excluded, Rules, Subject, count},
    },
    held,
};

/// After this long every look that began before another halt was known to close has written its intents: the longest
/// that a status write may take, and some time for a watch.
const KNOWN: Duration = Duration::from_secs(7);

/// Whether people allow what the policy does not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Approved {
    /// Nobody is asked.
    #[default]
    NotAsked,
    /// They did, and it is in the status: it cannot be withdrawn any more.
    Used,
    /// They do, and nothing was begun yet.
    Granted(Vec<CountedApproval>),
    /// They do not: why.
    Wanting(String),
}

impl Approved {
    /// Whether what was asked for may be done.
    pub const fn granted(&self) -> bool {
        matches!(self, Self::Used | Self::Granted(_))
    }
}

/// Whether a halt needs approvals for what it asks for.
pub fn asks(halt: &TradingHalt, policy: &HaltPolicy) -> bool {
    let action = halt.spec.positions.action;
    action != PositionAction::Keep && !policy.allowed_position_actions.contains(&action)
}

/// What is decided about.
pub fn subject(halt: &TradingHalt) -> Result<Subject, String> {
    let (name, uid, hash) = (halt.name_any(), halt.uid().unwrap_or_default(), halt.spec.hash()?);
    Ok(Subject { kind: SubjectKind::TradingHalt, name, uid, hash })
}

/// Whose approvals count. Nobody allows what he asked for himself: an error says that who did is not certain. `halts` are
/// those of the namespace, `since` is when names became true.
pub fn rules(
    halt: &TradingHalt,
    halts: &[impl Borrow<TradingHalt>],
    policy: &HaltPolicy,
    since: Timestamp,
) -> Result<Rules, String> {
    let repair = "create another TradingHalt with requestedBy";
    let Some(user) = &halt.spec.requested_by else {
        return Err(format!("who asked for the halt is not recorded, and nobody allows his own: {repair}"));
    };
    if !group::requester_certain(halt, halts, since) {
        return Err(format!(
            "who asked for the halt is not certain, it is older than the guardrails about names as they are now, or was \
             not made by the halt of several systems that it names: {repair}"
        ));
    }
    let mut requirements = policy.position_approvals.clone();
    if requirements.is_empty() {
        requirements.push(ApprovalRequirement { count: 1, group: None, service_accounts: false });
    }
    let because = "asked for this TradingHalt, and nobody allows his own".into();
    Ok(Rules { requirements, excluded: vec![Excluded { user: user.clone(), because }] })
}

/// What a count means.
fn said(count: Count) -> Approved {
    if let Some(rejection) = &count.rejected {
        return Approved::Wanting(format!("it was {}", rejection.said()));
    }
    if count.met() {
        return Approved::Granted(count.counted);
    }
    Approved::Wanting(format!("wanting Approvals: {}", count.wanting()))
}

impl HaltReconciler {
    /// Who allows what this halt asks for, live. Nothing else waits for it: it is asked when everything is stopped, and
    /// for a moment only.
    pub(super) async fn approved(
        &self,
        halt: &TradingHalt,
        status: &TradingHaltStatus,
        policy: Option<&HaltPolicy>,
    ) -> Approved {
        if !status.approvals.is_empty() {
            return Approved::Used;
        }
        // What is not known is not allowed, and that is said elsewhere.
        let Some(policy) = policy.filter(|p| asks(halt, p)) else { return Approved::NotAsked };
        if !is_true(&status.conditions, c::WORKLOADS_STOPPED) {
            return Approved::Wanting("approvals are counted when everything is stopped".into());
        }
        let asked = async {
            match self.guardrails.names_true_since().await {
                Ok(since) => self.counted(halt, policy, since).await,
                Err(why) => Approved::Wanting(format!("no approval counts while {why}")),
            }
        };
        let late =
            || Approved::Wanting("approvals cannot be counted now: the API server does not answer in time".into());
        tokio::time::timeout(GLANCE, asked).await.unwrap_or_else(|_| late())
    }

    async fn counted(&self, halt: &TradingHalt, policy: &HaltPolicy, since: Timestamp) -> Approved {
        let namespace = halt.namespace().unwrap_or_default();
        let halts = self.halts.read_namespace(&namespace);
        let counted = async {
            let (rules, subject) = (rules(halt, &halts, policy, since)?, subject(halt)?);
            let approvals = approval::of_subject(&self.client, &namespace, &subject).await?;
            Ok(count(&subject, &rules, &approvals, since, Timestamp::now()))
        };
        counted.await.map_or_else(Approved::Wanting, said)
    }

    /// Takes down who allowed it, to be written before anything is done with it. Counted once more, with guardrails
    /// read just now.
    pub(super) async fn use_up(&self, halt: &TradingHalt, status: &mut TradingHaltStatus, policy: &HaltPolicy) {
        let counted = async {
            let since = self.guardrails.names_true_since_now().await.ok()?;
            Some(self.counted(halt, policy, since).await)
        };
        // The status of the look waits for it. Without an answer the next look asks again.
        if let Ok(Some(Approved::Granted(counted))) = tokio::time::timeout(EFFECT_DEADLINE, counted).await {
            note(status, halt, counted, Timestamp::now());
        }
    }

    /// Whether another halt of the system, which closes positions too, may not know yet that this one was allowed to: a
    /// look that began before may still be at work.
    pub(super) fn unknown_yet(&self, halt: &TradingHalt, memory: &mut Memory) -> bool {
        if halt.status.as_ref().is_none_or(|s| s.approvals.is_empty()) {
            return false;
        }
        let since = memory.approved.get_or_insert_with(Instant::now);
        let closes = |other: &TradingHalt| {
            other.metadata.uid != halt.metadata.uid
                && held::holds(other)
                && other.spec.halts(halt.spec.system())
                && other.spec.positions.action != PositionAction::Keep
        };
        let halts = self.halts.read_namespace(&halt.namespace().unwrap_or_default());
        since.elapsed() < KNOWN && halts.iter().any(|h| closes(h))
    }
}

fn note(status: &mut TradingHaltStatus, halt: &TradingHalt, counted: Vec<CountedApproval>, now: Timestamp) {
    let at = |c: &CountedApproval| format!("{} at {}", c.approver, c.at.0);
    let by: Vec<_> = counted.iter().map(at).collect();
    let message = shorten(&format!("{} was allowed by {}", halt.spec.positions, by.join(", ")));
    evidence::append(&mut status.evidence, now, "PositionsApproved", &message, false);
    status.approvals = counted;
}
