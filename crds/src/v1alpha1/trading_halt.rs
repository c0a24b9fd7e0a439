//! `TradingHalt`: halts a trading system and keeps it halted.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CountedApproval, Duration, LocalReference, PositionAction, WorkloadKind, conditions_schema};

/// Halts a trading system and keeps it halted until a TradingResume releases it.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "standfast.dev",
    version = "v1alpha1",
    kind = "TradingHalt",
    namespaced,
    status = "TradingHaltStatus",
    derive = "PartialEq",
    shortname = "halt",
    category = "standfast",
    annotation("helm.sh/resource-policy", "keep"),
    doc = "A halt of a trading system, or of several: latched, verified all the time, released only by a TradingResume.",
    validation = Rule::new("self.spec == oldSelf.spec").message("a TradingHalt is immutable: to escalate, create a second one; to resume trading, create a TradingResume"),
    validation = Rule::new("self.metadata.name.size() <= 200").message("the name of a TradingHalt has at most 200 characters, because its latch is named after it"),
    validation = Rule::new("!has(self.spec.systemSelector) || self.metadata.name.size() <= 63").message("the name of a TradingHalt with a systemSelector has at most 63 characters, because the halts it makes carry it as a label"),
    printcolumn(name = "System", type_ = "string", json_path = ".*['systemRef.name','target']", description = "The system, or how many of them"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Orders", type_ = "integer", json_path = ".status.openOrders", description = "Open orders that should not be, as last read"),
    printcolumn(name = "Pods", type_ = "integer", json_path = ".status.runningPods", description = "Trading pods still there"),
    printcolumn(name = "Positions", type_ = "integer", json_path = ".status.openPositions", description = "Open positions, as last read"),
    printcolumn(name = "Verified", type_ = "date", json_path = ".status.lastVerifiedAt", description = "When all of it was last proven"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".spec.reason"),
    printcolumn(name = "Message", type_ = "string", json_path = r#".status.conditions[?(@.type=="Halted")].message"#, priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.systemRef) != has(self.systemSelector)", "a TradingHalt has one of systemRef and systemSelector: write systemRef: {name: <a TradingSystem>} to halt one system, systemSelector: {matchLabels: {<label>: <value>}} to halt several, or systemSelector: {} to halt every TradingSystem of the namespace"))]
pub struct TradingHaltSpec {
    /// The TradingSystem to halt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_ref: Option<LocalReference>,
    /// Instead of `systemRef`: the TradingSystems of the namespace to halt, by their labels; `{}` selects all of them.
    /// They are selected once, when the halt is first seen; each gets a TradingHalt of its own, and is released by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_selector: Option<SystemSelector>,
    /// Why; one line. It is what people read later, and what they are told when the latch refuses something.
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(validation = (r"!self.contains('\n') && !self.contains('\r')", "the reason is one line, because people read it where the latch refuses something"))]
    pub reason: String,
    /// Who asks for it. If given, it must be the user who creates the object.
    #[schemars(length(min = 1, max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
    /// What happens to open orders.
    #[serde(default)]
    pub orders: HaltOrders,
    /// What happens to positions.
    #[serde(default)]
    pub positions: HaltPositions,
}

impl TradingHaltSpec {
    /// What an Approval of the halt binds to: SHA-256 of the RFC 8785 JSON of the spec, in hexadecimal.
    ///
    /// # Errors
    ///
    /// A spec that cannot be written as JSON.
    pub fn hash(&self) -> Result<String, String> {
        crate::hash::of_json(&serde_json::to_value(self).map_err(|e| e.to_string())?)
    }

    /// Whether it halts several systems, by halts that it makes: it stops and holds nothing itself.
    pub fn is_group(&self) -> bool {
        self.system_selector.is_some()
    }

    /// The name of the system that it halts itself; empty, which is no name, for a halt of several systems.
    pub fn system(&self) -> &str {
        self.system_ref.as_ref().map_or("", |r| r.name.as_str())
    }

    /// Whether it halts this system itself.
    pub fn halts(&self, system: &str) -> bool {
        self.system_ref.as_ref().is_some_and(|r| r.name == system)
    }
}

/// Selects TradingSystems by their labels: all that is given must hold, and nothing given selects all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SystemSelector {
    /// Labels and their values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// Requirements on labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub match_expressions: Vec<SelectorRequirement>,
}

impl SystemSelector {
    /// Whether a system with these labels is selected.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|e| e.holds(labels))
    }

    /// Whether it selects every system.
    pub fn selects_all(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }
}

impl std::fmt::Display for SystemSelector {
    /// As `kubectl --selector` takes it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let labels = self.match_labels.iter().map(|(key, value)| format!("{key}={value}"));
        let expressions = self.match_expressions.iter().map(SelectorRequirement::to_string);
        f.write_str(&labels.chain(expressions).collect::<Vec<_>>().join(","))
    }
}

/// What is asked of a label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)", "values go with the operators In and NotIn, and are needed there: write {key: desk, operator: In, values: [fx]} or {key: desk, operator: Exists}"))]
pub struct SelectorRequirement {
    /// The label.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// What is asked of it.
    pub operator: SelectorOperator,
    /// The values of `In` and `NotIn`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub values: Vec<String>,
}

impl SelectorRequirement {
    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            SelectorOperator::In => value.is_some_and(|v| self.values.contains(v)),
            // As everywhere in Kubernetes, one without the label is not in.
            SelectorOperator::NotIn => value.is_none_or(|v| !self.values.contains(v)),
            SelectorOperator::Exists => value.is_some(),
            SelectorOperator::DoesNotExist => value.is_none(),
        }
    }
}

impl std::fmt::Display for SelectorRequirement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (key, values) = (&self.key, self.values.join(","));
        match self.operator {
            SelectorOperator::In => write!(f, "{key} in ({values})"),
            SelectorOperator::NotIn => write!(f, "{key} notin ({values})"),
            SelectorOperator::Exists => f.write_str(key),
            SelectorOperator::DoesNotExist => write!(f, "!{key}"),
        }
    }
}

/// What is asked of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SelectorOperator {
    /// It has one of the values.
    In,
    /// It has none of the values, or is not there.
    NotIn,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

/// Label of a TradingHalt that a halt of several systems made: the name of that one.
pub const HALT_GROUP: &str = "standfast.dev/halt-group";
/// Annotation beside it: its uid.
pub const HALT_GROUP_UID: &str = "standfast.dev/halt-group-uid";
/// The most systems that one halt selects.
pub const GROUP_LIMIT: usize = 100;

/// Which open orders are cancelled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CancelOrders {
    /// All of them.
    #[default]
    All,
    /// All but those that guard a position (see `protective` of the venue's reads).
    NonProtective,
    /// None.
    None,
}

/// What happens to open orders.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HaltOrders {
    /// Which of them are cancelled. Default `All`.
    pub cancel: CancelOrders,
}

/// What happens to positions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("(self.action == 'CloseMatching') == has(self.closeMatching)", "closeMatching goes with action: CloseMatching, and is needed there: write closeMatching: {unrealizedLossBelowPercent: \"10\"} or closeMatching: {heldLongerThan: 168h}"))]
#[x_kube(validation = ("(self.action == 'ReduceTo') == has(self.reduceTo)", "reduceTo goes with action: ReduceTo, and is needed there: write reduceTo: {exposurePercent: \"50\"}"))]
pub struct HaltPositions {
    /// What is done. Default `Keep`. What the system's `haltPolicy.allowedPositionActions` does not list is done only
    /// when an Approval allows it.
    #[serde(default)]
    pub action: PositionAction,
    /// Which positions are closed; for `CloseMatching`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub close_matching: Option<CloseMatching>,
    /// How much is left; for `ReduceTo`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reduce_to: Option<ReduceTo>,
}

impl HaltPositions {
    /// The action alone, for those that need nothing else.
    pub fn of(action: PositionAction) -> Self {
        Self { action, ..Self::default() }
    }
}

impl std::fmt::Display for HaltPositions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.action.as_str())?;
        if let Some(CloseMatching { unrealized_loss_below_percent, held_longer_than }) = &self.close_matching {
            let loss = unrealized_loss_below_percent.iter().map(|percent| format!("loss above {percent} %"));
            let held = held_longer_than.iter().map(|age| format!("held longer than {age}"));
            write!(f, " ({})", loss.chain(held).collect::<Vec<_>>().join(" and "))?;
        }
        if let Some(ReduceTo { exposure_percent, .. }) = &self.reduce_to {
            write!(f, " ({exposure_percent} % of equity)")?;
        }
        Ok(())
    }
}

/// Which positions `CloseMatching` closes: those for which all that is given holds. One of which that is not known is
/// listed and not closed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.unrealizedLossBelowPercent) || has(self.heldLongerThan)", "closeMatching needs at least one of unrealizedLossBelowPercent and heldLongerThan; to close everything write action: CloseAll"))]
pub struct CloseMatching {
    /// Those that lose more than so many percent of what was paid for them, as a decimal string: `"10"` closes what is
    /// below -10 %, `"0"` all that loses.
    #[schemars(length(min = 1, max = 24))]
    #[x_kube(validation = (r"self.matches('^[0-9]{1,3}(\\.[0-9]{1,18})?$') && double(self) <= 100.0", "unrealizedLossBelowPercent is a loss in percent, written in quotes and without a sign, from \"0\" to \"100\": \"10\" closes what is below -10 %"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unrealized_loss_below_percent: Option<String>,
    /// Those that were opened longer ago than this.
    #[x_kube(validation = ("duration(self) > duration('0s')", "heldLongerThan is longer than zero, for example 168h; to close everything write action: CloseAll"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_longer_than: Option<Duration>,
}

/// How far `ReduceTo` reduces, at each venue by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReduceTo {
    /// What all positions together may be worth, long and short added up, in percent of the venue's equity, as a decimal
    /// string: `"50"` is a half.
    #[schemars(length(min = 1, max = 24))]
    #[x_kube(validation = (r"self.matches('^[0-9]{1,4}(\\.[0-9]{1,18})?$') && double(self) >= 1.0 && double(self) <= 1000.0", "exposurePercent is in percent of equity, written in quotes, from \"1\" to \"1000\": \"50\" is a half; to close everything write action: CloseAll"))]
    pub exposure_percent: String,
    /// Which positions are closed first. Default `LargestFirst`.
    #[serde(default)]
    pub order: ReductionOrder,
}

/// Which positions are closed first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ReductionOrder {
    /// Those of the largest value, whichever way they go.
    #[default]
    LargestFirst,
}

/// What people read in one word. Programs read the conditions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum HaltPhase {
    /// Seen, nothing done: the system is not known, for example.
    #[default]
    Pending,
    /// Latching, cancelling, scaling down.
    Fencing,
    /// Stopped and without orders; positions are being closed.
    Closing,
    /// Everything was done, and is being read back.
    Verifying,
    /// Proven, as of `lastVerifiedAt`.
    Halted,
    /// Something cannot be proven: a person has to look.
    Unverified,
    /// Of a halt of several systems: some of its halts were released, the others are proven.
    Releasing,
    /// A TradingResume released it; of a halt of several systems: all of its halts were released.
    Released,
}

impl HaltPhase {
    /// The phase's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Fencing => "Fencing",
            Self::Closing => "Closing",
            Self::Verifying => "Verifying",
            Self::Halted => "Halted",
            Self::Unverified => "Unverified",
            Self::Releasing => "Releasing",
            Self::Released => "Released",
        }
    }

    /// All phases.
    pub const ALL: [Self; 8] = [
        Self::Pending,
        Self::Fencing,
        Self::Closing,
        Self::Verifying,
        Self::Halted,
        Self::Unverified,
        Self::Releasing,
        Self::Released,
    ];
}

/// Types of the conditions of a TradingHalt.
pub mod halt_conditions {
    /// A scale-up was refused by our policy.
    pub const LATCHED: &str = "Latched";
    /// No pod of a trading workload is left.
    pub const WORKLOADS_STOPPED: &str = "WorkloadsStopped";
    /// No order is open that the halt asked to cancel.
    pub const ORDERS_CANCELLED: &str = "OrdersCancelled";
    /// The position action is proven.
    pub const POSITIONS_CLOSED: &str = "PositionsClosed";
    /// Everything that is claimed was read back.
    pub const VERIFIED: &str = "Verified";
    /// The system is halted, as of `lastVerifiedAt`.
    pub const HALTED: &str = "Halted";
    /// Somebody undid a part of the halt, and it was done again.
    pub const CONTENDED: &str = "Contended";
    /// A TradingResume released it.
    pub const RELEASED: &str = "Released";
    /// kstatus: the halt does what it should.
    pub const READY: &str = "Ready";
    /// kstatus: on the way.
    pub const RECONCILING: &str = "Reconciling";
    /// kstatus: a person has to look.
    pub const STALLED: &str = "Stalled";
}

/// What is known of a halt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TradingHaltStatus {
    /// The generation of the spec that the rest speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One word for people.
    #[serde(default)]
    pub phase: HaltPhase,
    /// What is true at the moment.
    #[serde(default)]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
    /// Of a halt with a `systemSelector`: how many systems it halts, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Of a halt with a `systemSelector`: the systems that it selected, and the halts that it made for them. Written before
    /// the first of those is made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["system".into()]))]
    pub systems: Vec<SystemHalt>,
    /// The latch. Written before anything is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latch: Option<Latch>,
    /// uid of the TradingSystem that was halted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_uid: Option<String>,
    /// The trading workloads and what to go back to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    pub workloads: Vec<LatchedWorkload>,
    /// What is known at each venue.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["name".into()]))]
    pub venues: Vec<VenueStatus>,
    /// What was done, with results. An intent is here before its effect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["name".into()]))]
    pub actions: Vec<ActionStatus>,
    /// Open orders that should not be, at all venues; absent when not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_orders: Option<i64>,
    /// Open orders that are kept on purpose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_orders: Option<i64>,
    /// Open positions at all venues; absent when not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_positions: Option<i64>,
    /// Pods of trading workloads that are not gone; absent when not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running_pods: Option<i64>,
    /// All of it was proven by reads that began at this moment or later; written at most once a minute when nothing
    /// changed. After `verifiedUntil` it counts as unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_verified_at: Option<MicroTime>,
    /// Until when that counts: three minutes later, or, where Jobs read (they do so at most every five minutes), when
    /// the next Job should have answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified_until: Option<MicroTime>,
    /// For how long it has been proven without interruption, in time in which the operator saw it. An operator that was
    /// away, and a clock that was set, neither shorten nor lengthen it. Written with what is written anyway, and at most
    /// every ten seconds while a TradingResume waits for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proven_for: Option<Duration>,
    /// What an Approval binds to; only where what is asked for about positions needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec_hash: Option<String>,
    /// Who allowed what was asked for about positions. Written before the first position is closed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 80))]
    pub approvals: Vec<CountedApproval>,
    /// The moments that people ask for later.
    #[serde(default)]
    pub times: HaltTimes,
    /// What happened, as a chain of hashes.
    #[serde(default)]
    pub evidence: Evidence,
    /// Who released it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released: Option<Release>,
}

/// One of the systems of a halt with a `systemSelector`, and its halt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SystemHalt {
    /// The TradingSystem.
    pub system: String,
    /// The TradingHalt that is made for it.
    pub halt: String,
    /// uid of that one, as soon as it is there: it is never made a second time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halt_uid: Option<String>,
    /// Phase of that one, as last seen.
    #[serde(default)]
    pub phase: HaltPhase,
    /// Its open orders that should not be; absent when not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_orders: Option<i64>,
    /// Its trading pods that are not gone; absent when not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running_pods: Option<i64>,
    /// Until when its proof counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified_until: Option<MicroTime>,
    /// What it says, or why it could not be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// The latch of a halt: a ConfigMap that admission policies read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Latch {
    /// The halt commits to it, and it has not been released.
    pub held: bool,
    /// Name of the ConfigMap.
    pub config_map: String,
}

/// A workload that a halt stopped, and what to go back to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LatchedWorkload {
    /// The workload's kind.
    pub kind: WorkloadKind,
    /// Its name.
    pub name: String,
    /// Replicas to go back to; absent for a CronJob or DaemonSet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Whether a CronJob was suspended, or a DaemonSet kept from all nodes, already, and stays so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended: Option<bool>,
    /// Labels of its pods; absent when its selector cannot be expressed by labels alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub match_labels: Option<BTreeMap<String, String>>,
    /// The earlier halt whose record this is, when the workload was halted already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inherited_from: Option<String>,
    /// Jobs of a CronJob that were suspended; they are listed at release, not resumed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub suspended_jobs: Vec<String>,
}

/// An order, without anything secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrderSummary {
    /// The venue's id.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The id that the client chose.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_order_id: Option<String>,
    /// The symbol.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symbol: Option<String>,
    /// The type.
    #[serde(rename = "type")]
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub type_: Option<String>,
    /// Buy or sell.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub side: Option<String>,
    /// The quantity, as the venue writes it.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantity: Option<String>,
}

/// A position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PositionSummary {
    /// The symbol.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symbol: Option<String>,
    /// The quantity, as the venue writes it.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantity: Option<String>,
    /// What it is worth, as the venue writes it.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub market_value: Option<String>,
    /// Which way it goes, as far as the venue tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub side: Option<PositionSide>,
    /// What it would lose if it was closed now, in percent of what was paid; negative for a profit.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unrealized_loss_percent: Option<String>,
    /// When it was opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opened_at: Option<MicroTime>,
}

/// Which way a position goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum PositionSide {
    /// Bought: closed by selling.
    Long,
    /// Sold without having it: closed by buying.
    Short,
}

/// Positions of a venue that a halt closes: selected once, when no order was open any more, and not changed afterwards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PositionSelection {
    /// As of when the positions were judged.
    pub evaluated_at: MicroTime,
    /// What the account was worth; for `ReduceTo`.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equity: Option<String>,
    /// What the positions were worth, long and short added up; for `ReduceTo`.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exposure: Option<String>,
    /// What is closed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 500))]
    pub closes: Vec<SelectedPosition>,
    /// What is not closed because it could not be judged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub not_judged: Vec<UnjudgedPosition>,
    /// Further ones that found no room in `notJudged`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub not_judged_more: i64,
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// How far the close of a selected position is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CloseState {
    /// Nothing was sent yet.
    #[default]
    Selected,
    /// An attempt was recorded: it may have been sent.
    Closing,
    /// As much as was selected is closed, read back `verifyReads` times. It stays so.
    Closed,
}

/// A position that a halt closes, wholly or in part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SelectedPosition {
    /// The symbol.
    #[schemars(length(max = 256))]
    pub symbol: String,
    /// Which way it goes.
    pub side: PositionSide,
    /// How much was held when it was selected, without a sign.
    #[schemars(length(max = 256))]
    pub held: String,
    /// How much of it is closed.
    #[schemars(length(max = 256))]
    pub quantity: String,
    /// Why.
    #[schemars(length(max = 256))]
    pub why: String,
    /// How far it is.
    #[serde(default)]
    pub state: CloseState,
    /// How often a close was recorded, to be sent.
    #[serde(default)]
    pub attempts: i64,
    /// How much of it was read to go, from one read to the next: what somebody buys back does not lower it.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed: Option<String>,
    /// How much was held by the last read.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub still_held: Option<String>,
}

/// A position that could not be judged, and is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct UnjudgedPosition {
    /// The symbol.
    #[schemars(length(max = 256))]
    pub symbol: String,
    /// The quantity, as the venue writes it.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantity: Option<String>,
    /// What is not known of it.
    #[schemars(length(max = 256))]
    pub why: String,
}

/// What is known at one venue.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VenueStatus {
    /// The venue's name.
    pub name: String,
    /// Orders found open by the first read, which starts together with the first cancel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orders_before: Option<i64>,
    /// Positions found by the first read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub positions_before: Option<i64>,
    /// Open orders that should not be, as last read; absent when not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_orders: Option<i64>,
    /// Open orders that are kept on purpose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_orders: Option<i64>,
    /// Open positions, as last read; absent when not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_positions: Option<i64>,
    /// Whether the venue refuses new orders, as it says itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trading_suspended: Option<bool>,
    /// Some of the open orders.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub orders: Vec<OrderSummary>,
    /// Some of the open positions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50))]
    pub positions: Vec<PositionSummary>,
    /// What `CloseMatching` or `ReduceTo` closes here; absent until it is selected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selection: Option<PositionSelection>,
    /// Why the last read failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// When the numbers were read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_at: Option<MicroTime>,
}

/// How far an action is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ActionState {
    /// Recorded, not done yet.
    #[default]
    Intended,
    /// Done; whether it helped is for the reads to say.
    Done,
    /// It certainly had no effect.
    Failed,
    /// It may have had an effect.
    Unknown,
}

/// An action and its last result.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ActionStatus {
    /// What is done where: `alpaca/cancelOrders/0`, `scaleWorkloads`, `applicationHalt`.
    pub name: String,
    /// How far it is.
    pub state: ActionState,
    /// How often it was tried.
    pub attempts: i64,
    /// The Job that carries out the present attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_ref: Option<String>,
    /// When it was last tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_attempt_at: Option<MicroTime>,
    /// Until when a call of the present attempt may be under way; only of what may not be repeated at will.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<MicroTime>,
    /// Which leader recorded that intent: the number of transitions of the Lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<i64>,
    /// What came back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// The moments that people ask for later, in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HaltTimes {
    /// The object was created (whole seconds: the API server's clock).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_at: Option<MicroTime>,
    /// The halt committed itself, and everything started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committed_at: Option<MicroTime>,
    /// The first cancel was handed to the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_cancel_sent_at: Option<MicroTime>,
    /// Every trading workload was scaled to zero.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaled_at: Option<MicroTime>,
    /// A scale-up was first refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latched_at: Option<MicroTime>,
    /// The last trading pod was gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods_gone_at: Option<MicroTime>,
    /// No order was open any more, proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zero_orders_at: Option<MicroTime>,
    /// No position was open any more, proven; only where closing was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flat_at: Option<MicroTime>,
    /// Everything was proven for the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halted_at: Option<MicroTime>,
    /// A TradingResume released it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released_at: Option<MicroTime>,
}

/// What happened, as a chain of hashes. The first entry continues the chain of the system's previous halt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Evidence {
    /// Who asked for the halt, or `not recorded`.
    #[serde(default)]
    pub requested_by: String,
    /// Head of the chain of the system's previous halt when this one began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_sha256: Option<String>,
    /// Head of this chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// The entries, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 200))]
    pub entries: Vec<EvidenceEntry>,
    /// Entries that found no room.
    #[serde(default)]
    pub dropped: i64,
}

/// One thing that happened. `sha256` is over the RFC 8785 JSON of `{previousSha256, at, event, message}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvidenceEntry {
    /// When.
    pub at: MicroTime,
    /// What, in a word.
    pub event: String,
    /// What, in a sentence.
    pub message: String,
    /// Hash of this entry and of the one before.
    pub sha256: String,
}

/// Who released a halt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Release {
    /// The TradingResume.
    pub resume: String,
    /// Its uid.
    pub resume_uid: String,
    /// Who asked for it.
    pub requested_by: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_selector_selects_as_everywhere_in_kubernetes() {
        let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let fx = labels(&[("desk", "fx"), ("region", "eu")]);
        for (selector, fx_matches, bare_matches, text) in [
            (json!({}), true, true, ""),
            (json!({"matchLabels": {"desk": "fx"}}), true, false, "desk=fx"),
            (json!({"matchLabels": {"desk": "fx", "region": "us"}}), false, false, "desk=fx,region=us"),
            (
                json!({"matchExpressions": [{"key": "desk", "operator": "In", "values": ["fx", "eq"]}]}),
                true,
                false,
                "desk in (fx,eq)",
            ),
            (
                json!({"matchExpressions": [{"key": "desk", "operator": "NotIn", "values": ["fx"]}]}),
                false,
                true,
                "desk notin (fx)",
            ),
            (json!({"matchExpressions": [{"key": "desk", "operator": "Exists"}]}), true, false, "desk"),
            (json!({"matchExpressions": [{"key": "desk", "operator": "DoesNotExist"}]}), false, true, "!desk"),
            (
                json!({"matchLabels": {"region": "eu"}, "matchExpressions": [{"key": "desk", "operator": "Exists"}]}),
                true,
                false,
                "region=eu,desk",
            ),
        ] {
            let read: SystemSelector = serde_json::from_value(selector.clone()).unwrap();
            assert_eq!((read.matches(&fx), read.matches(&BTreeMap::new())), (fx_matches, bare_matches), "{selector}");
            assert_eq!((read.to_string().as_str(), read.selects_all()), (text, text.is_empty()));
        }
    }
}
