//! The journal of a run: what every multi-step procedure keeps in its status.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How far a step is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum StepState {
    /// Not begun, or waiting for another attempt.
    #[default]
    Pending,
    /// Its intent is recorded; its effect may have happened.
    Running,
    /// Done, and read back.
    Succeeded,
    /// Not done, and will not be.
    Failed,
    /// Not needed.
    Skipped,
    /// Whether it was done cannot be known: a person has to decide.
    Indeterminate,
}

/// One step of a run, as far as it came.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepStatus {
    /// The step's name, unique in the run.
    pub name: String,
    /// How far it is.
    #[serde(default)]
    pub state: StepState,
    /// How often it was tried.
    #[serde(default)]
    pub attempts: i64,
    /// When it was first tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<MicroTime>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<MicroTime>,
    /// Key of the present attempt: the run's uid, the step and the attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation_id: Option<String>,
    /// Until when an effect of the present attempt may still be under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<MicroTime>,
    /// Which leader recorded the intent: the number of transitions of the Lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<i64>,
    /// What it made, a Job for example.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_ref: Option<String>,
    /// What came back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}
