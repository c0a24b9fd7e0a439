//! The admission policies that hold a latch, as they are shipped in the `standfast-crds` chart.
//!
//! The operator compares what it finds in a cluster with these copies: a guardrail that is missing or edited is
//! reported, and nothing is released while it is.

/// The multi-document YAML of all policies and bindings.
pub const MANIFEST: &str = include_str!("../policies/guardrails.yaml");

/// Label that opts a namespace in to the latch; its value must be [`LATCH_ENABLED`].
/// The same key on a ConfigMap, with the value [`LATCH_HELD`], makes that ConfigMap a held latch.
pub const LATCH_LABEL: &str = "standfast.dev/latch";
/// Value of [`LATCH_LABEL`] on a namespace in which latches work.
pub const LATCH_ENABLED: &str = "enabled";
/// Value of [`LATCH_LABEL`] on a ConfigMap that is a held latch.
pub const LATCH_HELD: &str = "held";
/// Key of the node selector that keeps a halted DaemonSet from all nodes: no node has such a label. Its value is
/// [`HALTED_VALUE`].
pub const HALTED_KEY: &str = "standfast.dev/halted";
/// Value of [`HALTED_KEY`].
pub const HALTED_VALUE: &str = "true";
/// Name of the policy (and of its binding) that refuses to raise what a latch names.
pub const LATCH_POLICY: &str = "standfast-latch";
/// Name of the policy (and of its binding) that makes `requestedBy` the user of the request.
pub const REQUESTER_POLICY: &str = "standfast-requester";
/// Name of the policy (and of its binding) that makes `approver` and `groups` of an Approval those of the request.
pub const APPROVAL_POLICY: &str = "standfast-approval";
