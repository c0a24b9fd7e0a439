//! `TradingResume`: releases a halt through gates.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Break, Check, CheckGroup, Decision, Duration, ResumePolicy, StepStatus, any_json, conditions_schema};

/// Releases one halt: runs the checks and the position sync, and when all pass, releases the halt, restores the
/// recorded replicas, lets the venue accept orders again and verifies that the bot is ready.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "standfast.dev",
    version = "v1alpha1",
    kind = "TradingResume",
    namespaced,
    status = "TradingResumeStatus",
    derive = "PartialEq",
    shortname = "resume",
    category = "standfast",
    annotation("helm.sh/resource-policy", "keep"),
    doc = "The release of one TradingHalt, through gates.",
    printcolumn(name = "Halt", type_ = "string", json_path = ".spec.haltRef.name"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Step", type_ = "string", json_path = ".status.currentStep"),
    printcolumn(name = "Stage", type_ = "string", json_path = ".status.stage"),
    printcolumn(name = "Approvals", type_ = "string", json_path = ".status.approved"),
    printcolumn(name = "By", type_ = "string", json_path = ".spec.requestedBy"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Completed")].message"#
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.haltRef == oldSelf.haltRef && self.requestedBy == oldSelf.requestedBy && has(self.checks) == has(oldSelf.checks) && (!has(self.checks) || self.checks == oldSelf.checks) && self.deadline == oldSelf.deadline && has(self.extraChecks) == has(oldSelf.extraChecks) && (!has(self.extraChecks) || self.extraChecks == oldSelf.extraChecks) && has(self.policy) == has(oldSelf.policy) && (!has(self.policy) || self.policy == oldSelf.policy) && self.dryRun == oldSelf.dryRun").message("only paused and abort of a TradingResume may change: create another one instead"))]
#[x_kube(validation = Rule::new("!oldSelf.abort || self.abort").message("an aborted TradingResume stays aborted: create another one"))]
pub struct TradingResumeSpec {
    /// The halt to release.
    pub halt_ref: HaltReference,
    /// Who asks for it: must be the user who creates the object.
    #[schemars(length(min = 1, max = 256))]
    pub requested_by: String,
    /// Which of the system's checks must pass; all of them if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checks: Option<CheckSelection>,
    /// Checks of this resume alone; they must pass like the system's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub extra_checks: Vec<Check>,
    /// What this resume asks for beyond the TradingSystem's `resumePolicy`: further approvals, a longer cool-off, further
    /// comparisons; a ramp of its own only where the system declares none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<ResumePolicy>,
    /// Only evaluates every gate and says what would happen. Nothing is released or sent.
    #[serde(default)]
    pub dry_run: bool,
    /// How long the gates may take, from the first sight of the resume. Afterwards it fails, with the halt still
    /// held. Default 1h.
    #[serde(default = "default_deadline")]
    pub deadline: Duration,
    /// Stops before the next step.
    #[serde(default)]
    pub paused: bool,
    /// Ends the resume: before the release nothing has happened, after it the system is halted again. One way.
    #[serde(default)]
    pub abort: bool,
}

fn default_deadline() -> Duration {
    Duration::from_secs(3600)
}

/// A halt by name, and by uid where a later one of the same name must not be meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HaltReference {
    /// The TradingHalt's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its uid.
    #[schemars(length(min = 1, max = 64))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// Checks by group or name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.groups) || has(self.names)", "checks needs groups or names; leave checks out to require all"))]
pub struct CheckSelection {
    /// All checks of these groups.
    #[schemars(length(min = 1, max = 8))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<CheckGroup>>,
    /// Checks with these names.
    #[schemars(length(min = 1, max = 64))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<Vec<String>>,
}

/// What people read in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ResumePhase {
    /// Not begun.
    #[default]
    Pending,
    /// The gates are being asked; the halt holds.
    Checking,
    /// Somebody must still approve; the halt holds.
    AwaitingApproval,
    /// The halt was not proven for long enough yet; it holds.
    CoolingOff,
    /// The bot's view is compared with the venues', or somebody must accept the breaks; the halt holds.
    Reconciling,
    /// The halt is being released.
    Releasing,
    /// Workloads are being restored.
    Restoring,
    /// Trading within the limits of a stage.
    Ramping,
    /// Trading in full; the checks are still watched.
    Watching,
    /// Trading.
    Completed,
    /// Only evaluated: `dryRun`.
    Evaluated,
    /// Somebody who may approve rejected it. The halt holds.
    Rejected,
    /// A watched check failed, and the system is halted again.
    ReHalted,
    /// Not released, or released and not brought to its end: the message says which. What was released stays released,
    /// unless another halt holds.
    Failed,
    /// Ended by `abort`.
    Aborted,
    /// Stopped by `paused`.
    Paused,
    /// An outcome cannot be known: a person has to decide.
    Indeterminate,
}

impl ResumePhase {
    /// The phase's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Checking => "Checking",
            Self::AwaitingApproval => "AwaitingApproval",
            Self::CoolingOff => "CoolingOff",
            Self::Reconciling => "Reconciling",
            Self::Releasing => "Releasing",
            Self::Restoring => "Restoring",
            Self::Ramping => "Ramping",
            Self::Watching => "Watching",
            Self::Completed => "Completed",
            Self::Evaluated => "Evaluated",
            Self::Rejected => "Rejected",
            Self::ReHalted => "ReHalted",
            Self::Failed => "Failed",
            Self::Aborted => "Aborted",
            Self::Paused => "Paused",
            Self::Indeterminate => "Indeterminate",
        }
    }

    /// Whether a resume of this phase will not go on by itself.
    pub const fn is_over(self) -> bool {
        matches!(
            self,
            Self::Completed
                | Self::Evaluated
                | Self::Rejected
                | Self::ReHalted
                | Self::Failed
                | Self::Aborted
                | Self::Indeterminate
        )
    }
}

/// What is known of a resume.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TradingResumeStatus {
    /// The generation of the spec that the rest speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One word for people.
    #[serde(default)]
    pub phase: ResumePhase,
    /// `Completed`, `Released`, `Ready`, `Reconciling`, `Stalled`; with stages or a watch also `Regressed`.
    #[serde(default)]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
    /// uid of the halt, pinned at first sight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halt_uid: Option<String>,
    /// When the operator first saw the resume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<MicroTime>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<MicroTime>,
    /// What will be done, frozen at first sight: spec, checks, actions and workloads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_json")]
    pub plan: Option<Value>,
    /// SHA-256 of the RFC 8785 JSON of `plan`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_hash: Option<String>,
    /// The step that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_step: Option<String>,
    /// The journal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["name".into()]))]
    pub steps: Vec<StepStatus>,
    /// Asks the halt's controller to release the halt. Written once, when every gate has passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release_requested_at: Option<MicroTime>,
    /// How many of the approvals that are needed are there, as `1/2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved: Option<String>,
    /// The approvals that count, each in the slot that it fills. With the request for the release they are used up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 80))]
    pub approvals: Vec<CountedApproval>,
    /// Where the bot's view and the venues' differ by more than the tolerance, and nobody accepted it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub breaks: Vec<Break>,
    /// Those that somebody accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub accepted_breaks: Vec<Break>,
    /// The stage that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// The stages, as far as they came.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 9))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["name".into()]))]
    pub stages: Vec<StageStatus>,
    /// The watched check that failed, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regression: Option<Regression>,
    /// Workloads that were brought back, as `Deployment bot`: whoever stops one afterwards is not undone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    pub restored: Vec<String>,
    /// Jobs that the halt suspended and that nobody resumes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub suspended_jobs: Vec<String>,
}

/// An approval, and the slot that it fills.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CountedApproval {
    /// Name of the Approval.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Who approved.
    pub approver: String,
    /// What was decided.
    pub decision: Decision,
    /// The group that the slot asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// When it was created.
    pub at: MicroTime,
}

/// How far a stage is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StageStatus {
    /// The stage's name; `watch` for the time after the last one.
    pub name: String,
    /// When it began to count: limits read back, workloads ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<MicroTime>,
    /// For how long its checks were seen to pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Duration>,
    /// The limits as the bot itself told them.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub limits: std::collections::BTreeMap<String, String>,
    /// When it was left for the next one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<MicroTime>,
}

/// A watched check that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Regression {
    /// The check.
    pub check: String,
    /// What it said, with its value.
    pub message: String,
    /// The stage in which it failed.
    pub stage: String,
    /// When that was seen.
    pub at: MicroTime,
    /// The halt that was created for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halt: Option<String>,
}
