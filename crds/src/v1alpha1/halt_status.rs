//! What is known of a TradingHalt.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CountedApproval, Duration, WorkloadKind, conditions_schema};

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
    /// At least so many orders were open before: counted together with the first cancel, which waits for nothing. Absent
    /// when none was found then, which says nothing of before, or when nothing was counted before a cancel. Where no order
    /// is cancelled it is the first count.
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
