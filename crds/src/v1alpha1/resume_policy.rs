//! What trading may return through: approvals, cool-off, reconciliation, stages and what is watched.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CheckSelection, Duration, HttpRequest, JobAction, SecretKeyRef};

/// Who decides, how long it takes and in which stages trading returns. The TradingSystem's policy binds every resume; a
/// resume may add to it and never weakens it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("!has(self.ramp) || self.ramp.all(s, self.ramp.exists_one(t, t.name == s.name))", "every stage of ramp needs a name of its own"))]
#[x_kube(validation = ("!has(self.reconciliation) || self.reconciliation.all(s, self.reconciliation.exists_one(t, t.name == s.name))", "every comparison of reconciliation needs a name of its own"))]
pub struct ResumePolicy {
    /// How many people must agree, and of which groups. Each requirement must be met, and one person fills one slot of
    /// all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub approvals: Vec<ApprovalRequirement>,
    /// Whose approval does not count because they asked for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub exclude_requesters: Vec<Requester>,
    /// How long the halt must have been proven without interruption.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cool_off: Option<Duration>,
    /// How often a check must answer before it counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thresholds: Option<CheckThresholds>,
    /// The bot's view compared with the venues'.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub reconciliation: Vec<Comparison>,
    /// The stages in which trading returns; at once and in full if there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub ramp: Vec<Stage>,
    /// What is watched after the last stage, and for how long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watch: Option<Watch>,
    /// What happens when a watched check fails during a stage or the watch. Default `ReHalt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_regression: Option<OnRegression>,
}

/// So many people, optionally of one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalRequirement {
    /// How many different people.
    #[schemars(range(min = 1, max = 10))]
    pub count: u32,
    /// A group that each of them is in, as the API server knows it; anybody if not given.
    #[schemars(length(min = 1, max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Whether service accounts count too. Default false.
    #[serde(default)]
    pub service_accounts: bool,
}

/// Who asked for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Requester {
    /// Whoever asked for the halt. Where that is not recorded, the gate does not open.
    Halt,
    /// Whoever asked for the resume.
    Resume,
}

/// How many answers in a row count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CheckThresholds {
    /// How many times in a row all checks must pass before their gate opens. Default 1.
    #[schemars(range(min = 1, max = 100))]
    pub success: u32,
    /// How many times in a row a watched check must fail before that is a regression. Default 1. An answer that is
    /// unknown counts as failed.
    #[schemars(range(min = 1, max = 100))]
    pub failure: u32,
    /// The time between two evaluations, 1s to 1m. Default 5s.
    pub interval: Duration,
}

impl Default for CheckThresholds {
    fn default() -> Self {
        Self { success: 1, failure: 1, interval: Duration::from_secs(5) }
    }
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Compared {
    /// Quantity for each symbol: the venue's `openPositions`.
    Positions,
    /// Orders by client order id: the venue's `openOrders`.
    OpenOrders,
    /// One number: the venue's `balance`.
    Balance,
    /// Fills by client order id since a time: the venue's `fills`.
    Fills,
}

/// One comparison of the bot's view with a venue's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("(self.compare == 'Fills') == has(self.since)", "since goes with compare: Fills, and only with it: how far back fills are compared, for example 24h"))]
pub struct Comparison {
    /// A name for it.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// The venue, by its name in the TradingSystem.
    #[schemars(length(min = 1, max = 63))]
    pub venue: String,
    /// What is compared.
    pub compare: Compared,
    /// Where the bot's view comes from. Before the ramp the bot is stopped: a view that comes from it is compared at the
    /// end of the first stage.
    pub bot: BotView,
    /// Up to which absolute difference two numbers agree, a decimal string. Default `"0"`.
    #[schemars(length(max = 40), regex(pattern = r"^[0-9]+(\.[0-9]+)?$"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerance: Option<String>,
    /// How far back fills are compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Duration>,
}

/// Where the bot's books can be read. Exactly one of `sql`, `http` and `job` is set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("(has(self.sql) ? 1 : 0) + (has(self.http) ? 1 : 0) + (has(self.job) ? 1 : 0) == 1", "the bot's view has exactly one source: give one of sql, http, job"))]
#[x_kube(validation = ("!has(self.http) || self.http.method in ['GET', 'POST']", "a read changes nothing: write method: GET, or POST where the source is asked that way"))]
pub struct BotView {
    /// A query on PostgreSQL with the columns `symbol` and `quantity`, for orders and fills also `client_order_id`; for a
    /// balance one row with `quantity`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sql: Option<SqlView>,
    /// A request that answers with such items.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpRequest>,
    /// A Job whose termination message holds them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobAction>,
    /// JSONPath (RFC 9535) of the items: `$[*]` if not given.
    #[schemars(length(min = 1, max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<String>,
    /// Where the parts are in one item.
    #[serde(default)]
    pub fields: ViewFields,
}

/// A query that only reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SqlView {
    /// A connection URL, as of a check.
    pub connection_secret_ref: SecretKeyRef,
    /// The query.
    #[schemars(length(min = 1, max = 4096))]
    pub query: String,
    /// The longest that it may take, 10s if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
}

/// Where the parts are in one item of the bot's view (JSONPath, RFC 9535).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ViewFields {
    /// The symbol, `$.symbol` if not given.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symbol: Option<String>,
    /// The signed quantity (shorts are negative), `$.quantity` if not given.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantity: Option<String>,
    /// The client order id, `$.client_order_id` if not given.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_order_id: Option<String>,
}

/// One stage of the way back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Stage {
    /// A name for it.
    #[schemars(length(min = 1, max = 40), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// How many percent of the recorded replicas run, rounded up. Default 100. A CronJob or DaemonSet runs from the first stage with 100 on.
    #[serde(default = "all_of_them")]
    #[schemars(range(min = 1, max = 100))]
    pub replicas_percent: u32,
    /// The limits that hold in it, by their names in the TradingSystem's `limits`. Every stage gives the same ones.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub limits: BTreeMap<String, String>,
    /// How long the watched checks must have been seen to pass before the next stage. Default 0s.
    #[serde(default = "no_time")]
    pub hold: Duration,
    /// Which checks are watched during it; all that the resume requires if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checks: Option<CheckSelection>,
}

fn all_of_them() -> u32 {
    100
}

fn no_time() -> Duration {
    Duration::from_secs(0)
}

/// What is watched when everything trades again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Watch {
    /// For how long, in time that the operator saw.
    #[serde(rename = "for")]
    pub for_: Duration,
    /// Which checks; all that the resume requires if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checks: Option<CheckSelection>,
}

/// What a regression leads to, the mildest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum OnRegression {
    /// Said in the status and by an Event; the time of the stage goes on when the checks pass again.
    Notify,
    /// The stage is not left until a person aborts the resume or the checks pass again for its whole time.
    Hold,
    /// A new TradingHalt that names the check and its value.
    #[default]
    ReHalt,
}

/// Something that the bot keeps to, set from outside and proven by what the bot itself says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Limit {
    /// A name for it, `maxPositionPercent` for example.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[A-Za-z]([-A-Za-z0-9]*[A-Za-z0-9])?$"))]
    pub name: String,
    /// How it is set.
    pub set: LimitTarget,
    /// Reads it back from the bot: what was written proves nothing.
    pub read: LimitRead,
}

/// How a limit is set. Exactly one of `http` and `configMap` is set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.http) != has(self.configMap)", "a limit is set in exactly one way: give either http or configMap"))]
pub struct LimitTarget {
    /// A request with `{value}` in its address or body. It may be repeated, so it must set the value and not change it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpRequest>,
    /// A key that the bot reads. The ConfigMap must exist and carry the label `standfast.dev/use: "true"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<ConfigMapKey>,
}

/// One key of a ConfigMap in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapKey {
    /// The ConfigMap's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key in its data.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// Where the bot tells the limit that it keeps to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("self.http.method in ['GET', 'POST']", "a read changes nothing: write method: GET, or POST where the source is asked that way"))]
pub struct LimitRead {
    /// The request.
    pub http: HttpRequest,
    /// JSONPath of the value. Numbers are compared as numbers.
    #[schemars(length(min = 1, max = 256))]
    pub path: String,
}

/// One difference between the bot's view and a venue's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Break {
    /// The venue.
    #[schemars(length(min = 1, max = 63))]
    pub venue: String,
    /// The symbol; for a balance its name in the comparison.
    #[schemars(length(min = 1, max = 128))]
    pub symbol: String,
    /// What differs.
    pub kind: BreakKind,
    /// The venue's number minus the bot's, rounded to the tolerance, a decimal string.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^-?[0-9]+(\.[0-9]+)?$"))]
    pub difference: String,
    /// The client order id, for orders and fills.
    #[schemars(length(min = 1, max = 128))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_order_id: Option<String>,
}

/// What differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum BreakKind {
    /// The quantity of a position.
    Position,
    /// An open order: one side does not know it, or knows another quantity.
    OpenOrder,
    /// The balance.
    Balance,
    /// A fill: one side does not know it, or knows another quantity.
    Fill,
}
