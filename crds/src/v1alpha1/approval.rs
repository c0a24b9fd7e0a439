//! `Approval`: somebody's decision about one object as it was shown.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Break, conditions_schema};

/// Somebody's decision about one object, at one state of it. An admission policy makes sure that `approver` is the user
/// who creates it and that every group in `groups` is one of theirs; nothing of it changes later. Deleting it withdraws it
/// until it was used.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "standfast.dev",
    version = "v1alpha1",
    kind = "Approval",
    namespaced,
    status = "ApprovalStatus",
    derive = "PartialEq",
    shortname = "appr",
    category = "standfast",
    annotation("helm.sh/resource-policy", "keep"),
    doc = "Somebody's approval or rejection of one object.",
    printcolumn(name = "Subject", type_ = "string", json_path = ".spec.subject.name"),
    printcolumn(name = "Kind", type_ = "string", json_path = ".spec.subject.kind", priority = "1"),
    printcolumn(name = "Decision", type_ = "string", json_path = ".spec.decision"),
    printcolumn(name = "By", type_ = "string", json_path = ".spec.approver"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Expires", type_ = "string", json_path = ".spec.expiresAt", priority = "1"),
    printcolumn(name = "Message", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].message"#),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self == oldSelf").message("an Approval never changes: delete it to withdraw it, and create another one"))]
#[x_kube(validation = ("!has(self.breaks) || self.decision == 'Approve'", "breaks are accepted by decision: Approve; a rejection needs none"))]
pub struct ApprovalSpec {
    /// What is decided about.
    pub subject: ApprovalSubject,
    /// SHA-256 of what was shown, in hexadecimal: `status.planHash` of a TradingResume, `status.specHash` of a TradingHalt.
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub hash: String,
    /// The breaks of a reconciliation that are accepted, as they were shown in the subject's status.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 256))]
    pub breaks: Vec<Break>,
    /// The decision.
    pub decision: Decision,
    /// Who decides: must be the user who creates the object.
    #[schemars(length(min = 1, max = 256))]
    pub approver: String,
    /// The groups on whose behalf; each must be one of the user's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256)))]
    pub groups: Vec<String>,
    /// Why.
    #[schemars(length(min = 1, max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// From when on it does not count any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
}

/// One object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalSubject {
    /// Its kind.
    pub kind: SubjectKind,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its uid: an object of the same name that comes later is another one.
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
}

/// Kinds that are approved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "the names say it")]
pub enum SubjectKind {
    TradingResume,
    TradingHalt,
}

/// A decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Decision {
    Approve,
    Reject,
}

/// What people read in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ApprovalPhase {
    /// Not looked at yet.
    #[default]
    Pending,
    /// It counts, as far as the subject asks for it.
    Valid,
    /// It was counted: withdrawing it changes nothing any more.
    Used,
    /// Its time is over, and it was not counted.
    Expired,
    /// It does not count: the message says why.
    Void,
}

/// What is known of an approval.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalStatus {
    /// The generation of the spec that the rest speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One word for people.
    #[serde(default)]
    pub phase: ApprovalPhase,
    /// `Ready`: it is valid or was used.
    #[serde(default)]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}
