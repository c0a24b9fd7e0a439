//! `TradingHalt`: halts a trading system and keeps it halted.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Duration, LocalReference, PositionAction, SystemSelector, TradingHaltStatus};

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

/// The longest name of a TradingHalt, as its validation says: its latch is named after it.
const NAME_LIMIT: usize = 200;

impl TradingHalt {
    /// The name that is made of these: so much of the stem as there is room for.
    pub fn fitting_name(stem: &str, suffix: &str) -> String {
        let stem: String = stem.chars().take(NAME_LIMIT.saturating_sub(suffix.len())).collect();
        format!("{}{suffix}", stem.trim_end_matches(['-', '.']))
    }
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
