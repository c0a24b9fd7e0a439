//! What a resume will do, frozen when it is first seen.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use standfast_crds::v1alpha1::{
    Action, Check, CheckSelection, CheckThresholds, Duration, HaltPhase, HaltReference, HttpRequest, LatchedWorkload,
    Limit, OrdersRead, ResumePolicy, StateRead, TradingHalt, TradingResume, TradingSystem, TradingSystemSpec,
};

use super::{
    gates, policy, ramp,
    reconcile::{self, plan::PlanComparison},
};
use crate::halt::group;

/// The whole of what a resume will do. Later edits of the TradingSystem or the resume change nothing of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResumePlan {
    /// The resume's spec, without `paused` and `abort`.
    pub spec: PlanSpec,
    /// The halt that is released.
    pub halt: Pinned,
    /// The system that trades again.
    pub system: Pinned,
    /// The checks that must pass.
    pub checks: Vec<Check>,
    /// Names of those that only what the halt stopped can answer.
    #[serde(default)]
    pub answered_by_stopped: Vec<String>,
    /// Brings the bot's books in line with the venues.
    pub sync_positions: Option<Action>,
    /// What makes the venues accept orders again.
    pub venues: Vec<PlanVenue>,
    /// The bot's own endpoint.
    pub application_resume: Option<HttpRequest>,
    /// What the halt stopped, and what to go back to.
    pub workloads: Vec<LatchedWorkload>,
    /// What trading returns through: the system's policy, and what the resume adds.
    #[serde(default)]
    pub policy: ResumePolicy,
    /// The limits that its stages use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<Limit>,
    /// What is compared before trading returns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reconciliation: Vec<PlanComparison>,
    /// The bot does not trade after its start until it is asked to.
    #[serde(default)]
    pub starts_halted: bool,
}

/// The part of a resume's spec that does not change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanSpec {
    /// The halt to release.
    pub halt_ref: HaltReference,
    /// Who asks for it.
    pub requested_by: String,
    /// Which checks must pass.
    pub checks: Option<CheckSelection>,
    /// Further checks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra_checks: Vec<Check>,
    /// What it asks for beyond the TradingSystem's policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<ResumePolicy>,
    /// Nothing is done.
    #[serde(default)]
    pub dry_run: bool,
    /// How long the gates may take.
    pub deadline: Duration,
}

/// An object by name and uid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pinned {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

impl Pinned {
    /// A TradingSystem as the owner of Jobs.
    pub(super) fn owner_ref(&self) -> OwnerReference {
        OwnerReference {
            api_version: TradingSystem::api_version(&()).into(),
            kind: TradingSystem::kind(&()).into(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            controller: Some(true),
            block_owner_deletion: None,
        }
    }

    fn of<K: Resource>(object: &K) -> Self {
        Self { name: object.name_any(), uid: object.uid().unwrap_or_default() }
    }
}

/// What a plan is about: to be read also when the rest of it cannot be.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Subject {
    /// The halt that is released.
    pub halt: Pinned,
    /// The system that trades again.
    pub system: Pinned,
}

impl Subject {
    /// What the plan in the status is about.
    pub fn read(resume: &TradingResume) -> Result<Self, String> {
        read(resume)
    }
}

fn read<T: serde::de::DeserializeOwned>(resume: &TradingResume) -> Result<T, String> {
    let plan = resume.status.as_ref().and_then(|s| s.plan.clone()).ok_or("there is no plan in the status")?;
    serde_json::from_value(plan).map_err(|error| format!("this version cannot read the plan: {error}"))
}

/// What is done at one venue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanVenue {
    /// The venue's name.
    pub name: String,
    /// Makes it accept orders again.
    pub allow_trading: Vec<Action>,
    /// Tells whether it refuses them.
    pub trading_suspended: Option<StateRead>,
    /// Lists the orders that were placed since a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orders_since: Option<OrdersRead>,
}

impl ResumePlan {
    /// The plan as it stands in a status.
    pub fn read(resume: &TradingResume) -> Result<Self, String> {
        read(resume)
    }

    /// The plan as it is stored, and the SHA-256 of its RFC 8785 JSON.
    pub fn freeze(&self) -> Result<(Value, String), String> {
        let mut plan = serde_json::to_value(self).map_err(|e| format!("the plan cannot be stored: {e}"))?;
        leave_out_nulls(&mut plan);
        let hash = hash(&plan)?;
        Ok((plan, hash))
    }

    /// Checks that can pass while the system is halted: all but those of a workload that the halt stops and that is
    /// started afterwards. One that was at zero before stays there: what needs it does not pass afterwards either.
    pub fn gates(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|c| !self.asks_a_stopped_workload(c))
    }

    /// Checks that can only pass afterwards.
    pub fn exit_checks(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|c| self.asks_a_stopped_workload(c))
    }

    /// The workloads that are started again.
    pub fn started(&self) -> impl Iterator<Item = &LatchedWorkload> {
        self.workloads.iter().filter(|w| gates::target(w).is_some())
    }

    /// How often checks must answer.
    pub fn thresholds(&self) -> CheckThresholds {
        self.policy.thresholds.clone().unwrap_or_default()
    }

    /// The checks that are watched by a stage that selects these. It was looked at when the plan was made.
    pub fn watched(&self, selection: Option<&CheckSelection>) -> Vec<Check> {
        ramp::watched(&self.checks, selection).unwrap_or_else(|_| self.checks.clone())
    }

    fn asks_a_stopped_workload(&self, check: &Check) -> bool {
        let asked = check.workload.as_ref();
        asked.is_some_and(|c| self.started().any(|w| w.kind == c.kind && w.name == c.name))
            || self.answered_by_stopped.contains(&check.name)
    }
}

/// What is not set is left out, except in JSON of the user's own.
fn leave_out_nulls(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(leave_out_nulls),
        Value::Object(fields) => {
            fields.retain(|_, v| !v.is_null());
            fields.iter_mut().filter(|(k, _)| *k != "body").for_each(|(_, v)| leave_out_nulls(v));
        }
        _ => {}
    }
}

/// SHA-256 of the RFC 8785 JSON of a plan, in hexadecimal.
pub fn hash(plan: &Value) -> Result<String, String> {
    standfast_crds::hash::of_json(plan).map_err(|e| format!("the plan: {e}"))
}

/// What a resume restores. Empty for one that was not begun, or whose plan cannot be read.
pub fn plan_workloads(resume: &TradingResume) -> Vec<LatchedWorkload> {
    ResumePlan::read(resume).map(|p| p.workloads).unwrap_or_default()
}

/// How many percent run in the stages of a resume.
pub fn plan_percents(resume: &TradingResume) -> Vec<u32> {
    let plan = ResumePlan::read(resume).ok();
    plan.iter().flat_map(|p| &p.policy.ramp).map(|s| s.replicas_percent).collect()
}

/// Whether the halt may be released, and how, as things stand when the resume is first seen. `system` is the one that
/// the halt names, `systems` are the names there are. The error says why not, and what there is instead.
pub fn accept(
    resume: &TradingResume,
    halts: &[TradingHalt],
    system: Option<&TradingSystem>,
    systems: &[String],
) -> Result<ResumePlan, String> {
    let halt = halt_to_release(resume, halts)?;
    let name = halt.spec.system();
    let Some(system) = system else {
        return Err(format!(
            "the TradingSystem {name} of TradingHalt {} does not exist, and only it tells how to resume: {}",
            halt.name_any(),
            there_are(systems.iter().map(String::as_str))
        ));
    };
    let mut checks = select("the TradingSystem", &system.spec.checks, resume.spec.checks.as_ref())?;
    for extra in &resume.spec.extra_checks {
        if system.spec.checks.iter().chain(&checks).any(|c| c.name == extra.name) {
            return Err(format!("extraChecks: there is a check {} already, give it another name", extra.name));
        }
        checks.push(extra.clone());
    }
    let workloads: Vec<_> = halt.status.iter().flat_map(|s| s.workloads.clone()).collect();
    let policy = policy::merge(system.spec.resume_policy.as_ref(), resume.spec.policy.as_ref())?;
    let limits = ramp::resolve(&policy, &system.spec, &checks, &workloads)?;
    let reconciliation = reconcile::plan::resolve(&policy, &system.spec)?;
    Ok(ResumePlan {
        spec: PlanSpec {
            halt_ref: resume.spec.halt_ref.clone(),
            requested_by: resume.spec.requested_by.clone(),
            checks: resume.spec.checks.clone(),
            extra_checks: resume.spec.extra_checks.clone(),
            policy: resume.spec.policy.clone(),
            dry_run: resume.spec.dry_run,
            deadline: resume.spec.deadline,
        },
        halt: Pinned::of(halt),
        system: Pinned::of(system),
        checks,
        answered_by_stopped: vec![],
        sync_positions: system.spec.sync_positions.clone(),
        venues: system
            .spec
            .venues
            .iter()
            .map(|v| PlanVenue {
                name: v.name.clone(),
                allow_trading: v.allow_trading.clone(),
                trading_suspended: v.trading_suspended.clone(),
                orders_since: v.orders_since.clone(),
            })
            .collect(),
        application_resume: system.spec.application_halt.as_ref().and_then(|a| a.resume.clone()),
        workloads,
        policy,
        limits,
        reconciliation,
        starts_halted: system.spec.application_halt.as_ref().is_some_and(|a| a.starts_halted),
    })
}

/// Why no resume can be carried out under the policy of this system, of which these workloads trade.
pub fn policy_problem(system: &TradingSystemSpec, workloads: &[LatchedWorkload]) -> Option<String> {
    let policy = system.resume_policy.as_ref()?;
    let ramp = ramp::resolve(policy, system, &system.checks, workloads).map(drop);
    ramp.and_then(|()| reconcile::plan::resolve(policy, system).map(drop)).err()
}

/// The halt that a resume names, if it can be released at all.
pub fn halt_to_release<'a>(resume: &TradingResume, halts: &'a [TradingHalt]) -> Result<&'a TradingHalt, String> {
    let reference = &resume.spec.halt_ref;
    let name = &reference.name;
    let Some(halt) = halts.iter().find(|h| h.name_any() == *name) else {
        let namespace = resume.namespace().unwrap_or_default();
        let held = halts.iter().filter(|h| crate::held::holds(h)).filter_map(|h| h.metadata.name.as_deref());
        let held = some(held).map_or("none holds".into(), |names| format!("these hold: {names}"));
        return Err(format!("there is no TradingHalt {name} in namespace {namespace}: {held}"));
    };
    if let Some(uid) = reference.uid.as_ref().filter(|u| Some(*u) != halt.metadata.uid.as_ref()) {
        let there = halt.uid().unwrap_or_default();
        return Err(format!("TradingHalt {name} is another one now: its uid is {there}, not {uid}"));
    }
    if halt.spec.is_group() {
        return Err(format!("{}: create a TradingResume for each", group::not_itself(halt)));
    }
    let born = |meta: &kube::core::ObjectMeta| meta.creation_timestamp.as_ref().map(|t| t.0);
    if born(&halt.metadata) > born(&resume.metadata) {
        return Err(format!(
            "TradingHalt {name} is younger than this TradingResume, which cannot mean it: create another one"
        ));
    }
    let status = halt.status.clone().unwrap_or_default();
    let by = status.released.as_ref().filter(|r| Some(&r.resume_uid) != resume.metadata.uid.as_ref());
    if let Some(by) = by {
        return Err(format!("TradingHalt {name} was already released by TradingResume {}", by.resume));
    }
    match status.latch {
        _ if status.phase == HaltPhase::Released => Err(format!("TradingHalt {name} was already released")),
        Some(latch) if !latch.held => Err(format!("TradingHalt {name} was already released")),
        Some(_) => Ok(halt),
        None => {
            Err(format!("TradingHalt {name} has not latched anything: there is nothing to release, it may be deleted"))
        }
    }
}

/// The checks among those of `whose` that are selected.
pub(super) fn select(whose: &str, checks: &[Check], selection: Option<&CheckSelection>) -> Result<Vec<Check>, String> {
    let Some(selection) = selection else { return Ok(checks.to_vec()) };
    let names = selection.names.as_deref().unwrap_or_default();
    if let Some(unknown) = names.iter().find(|n| !checks.iter().any(|c| c.name == **n)) {
        let there = there_are(checks.iter().map(|c| c.name.as_str()));
        return Err(format!("{whose} has no check {unknown}: {there}"));
    }
    let groups = selection.groups.as_deref().unwrap_or_default();
    // A group without checks would pass.
    if let Some(empty) = groups.iter().find(|g| !checks.iter().any(|c| c.group == **g)) {
        let mut there: Vec<_> = checks.iter().map(|c| c.group.as_str()).collect();
        there.sort_unstable();
        there.dedup();
        let there = there_are(there.into_iter());
        return Err(format!("{whose} has no check of the group {}: {there}", empty.as_str()));
    }
    let chosen = checks.iter().filter(|c| names.contains(&c.name) || groups.contains(&c.group));
    Ok(chosen.cloned().collect())
}

pub(super) fn there_are<'a>(names: impl Iterator<Item = &'a str>) -> String {
    some(names).map_or("there is none".into(), |names| format!("there are {names}"))
}

/// Some of the names, in order; none if there is none.
fn some<'a>(names: impl Iterator<Item = &'a str>) -> Option<String> {
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    names.truncate(5);
    (!names.is_empty()).then(|| names.join(", "))
}
