//! Approvals of what a halt asks to do to positions and its TradingSystem's policy does not allow.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};
use kube::{ResourceExt, runtime::controller::Action};
use standfast_crds::v1alpha1::{
    ApprovalRequirement, CountedApproval, HaltPolicy, PositionAction, SubjectKind, TradingHalt, TradingHaltStatus,
    shorten,
};

use super::{HaltReconciler, evidence};
use crate::{
    approval::{
        self,
        count::{Count, Excluded, Rules, Subject, count},
    },
    controller::Failure,
};

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

/// Whose approvals count. Nobody allows what he asked for himself: an error says that who did is not certain. `since` is
/// when names became true.
pub fn rules(halt: &TradingHalt, policy: &HaltPolicy, since: Timestamp) -> Result<Rules, String> {
    let repair = "create another TradingHalt with requestedBy";
    let Some(user) = &halt.spec.requested_by else {
        return Err(format!("who asked for the halt is not recorded, and nobody allows his own: {repair}"));
    };
    if halt.metadata.creation_timestamp.as_ref().is_none_or(|t| t.0 <= since) {
        return Err(format!(
            "who asked for the halt is not certain, it is older than the guardrails about names as they are now: {repair}"
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
        let why = rejection.comment.as_ref().map(|c| format!(": {c}")).unwrap_or_default();
        return Approved::Wanting(format!("it was rejected by {}{why}", rejection.by.approver));
    }
    if count.met() {
        return Approved::Granted(count.counted);
    }
    let unfit = count.unfit.first().map(|(name, why)| format!("; Approval {name} does not count: {why}"));
    Approved::Wanting(format!("wanting Approvals: {}{}", count.missing.join(" and "), unfit.unwrap_or_default()))
}

impl HaltReconciler {
    /// Who allows what this halt asks for, live.
    pub(super) async fn approved(
        &self,
        halt: &TradingHalt,
        status: &TradingHaltStatus,
        policy: Option<&HaltPolicy>,
    ) -> Approved {
        if !status.approvals.is_empty() {
            return Approved::Used;
        }
        match policy {
            Some(policy) if asks(halt, policy) => match self.guardrails.names_true_since().await {
                Ok(since) => self.counted(halt, policy, since).await,
                Err(why) => Approved::Wanting(format!("no approval counts while {why}")),
            },
            // What is not known is not allowed, and that is said elsewhere.
            _ => Approved::NotAsked,
        }
    }

    async fn counted(&self, halt: &TradingHalt, policy: &HaltPolicy, since: Timestamp) -> Approved {
        let namespace = halt.namespace().unwrap_or_default();
        let counted = async {
            let (rules, subject) = (rules(halt, policy, since)?, subject(halt)?);
            let approvals = approval::of_subject(&self.client, &namespace, &subject).await?;
            Ok(count(&subject, &rules, &approvals, since, Timestamp::now()))
        };
        counted.await.map_or_else(Approved::Wanting, said)
    }

    /// Records who allowed it, before anything is done with it. Counted once more, with guardrails read just now.
    pub(super) async fn use_up(
        &self,
        halt: &TradingHalt,
        mut status: TradingHaltStatus,
        policy: &HaltPolicy,
    ) -> Result<Action, Failure> {
        let counted = match self.guardrails.names_true_since_now().await {
            Ok(since) => self.counted(halt, policy, since).await,
            Err(why) => Approved::Wanting(why),
        };
        if let Approved::Granted(counted) = counted {
            note(&mut status, halt, counted, Timestamp::now());
            self.settle(self.write(halt, status).await)?;
        }
        // The next look closes: other halts of the system know by then that this one does.
        Ok(Action::requeue(self.pace))
    }
}

fn note(status: &mut TradingHaltStatus, halt: &TradingHalt, counted: Vec<CountedApproval>, now: Timestamp) {
    let at = |c: &CountedApproval| format!("{} at {}", c.approver, MicroTime(c.at.0).0);
    let by: Vec<_> = counted.iter().map(at).collect();
    let message = shorten(&format!("{} was allowed by {}", halt.spec.positions, by.join(", ")));
    evidence::append(&mut status.evidence, now, "PositionsApproved", &message, false);
    status.approvals = counted;
}
