//! `TradingSystem`: the noun that everything else refers to.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Action, ApprovalRequirement, Duration, Expectation, Header, HttpAuth, HttpRequest, ItemAction, JobAction, Limit,
    NumberRead, Objective, OrdersRead, PositionsRead, ResumePolicy, SecretKeyRef, StateRead, WorkloadKind,
    conditions_schema,
};

/// The noun that everything else refers to: which workloads trade and which support them, where orders live and how
/// they are cancelled, closed and counted, what tells that the system is well. Written once, so that an emergency
/// manifest is five lines.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "standfast.dev",
    version = "v1alpha1",
    kind = "TradingSystem",
    namespaced,
    status = "TradingSystemStatus",
    derive = "PartialEq",
    shortname = "ts",
    category = "standfast",
    annotation("helm.sh/resource-policy", "keep"),
    doc = "A trading system: its workloads, venues, checks and objectives.",
    printcolumn(
        name = "Halted",
        type_ = "string",
        json_path = ".status.halt.halted",
        description = "Whether trading is halted, proven"
    ),
    printcolumn(name = "By", type_ = "string", json_path = ".status.halt.by", description = "The halts that hold"),
    printcolumn(
        name = "Since",
        type_ = "date",
        json_path = ".status.halt.since",
        description = "When the first of them latched"
    ),
    printcolumn(
        name = "Prepared",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Prepared")].status"#,
        description = "Whether an emergency halt would work now"
    ),
    printcolumn(
        name = "Checks",
        type_ = "string",
        json_path = ".status.checksPassing",
        description = "Checks that pass, of all"
    ),
    printcolumn(
        name = "Why",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Prepared")].message"#,
        description = "What is missing",
        priority = "1"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("self.workloads.exists(w, w.role == 'Trading')", "workloads needs at least one entry with role: Trading, which is what a halt stops"))]
#[x_kube(validation = ("!has(self.haltPolicy.reverifyInterval) || duration(self.haltPolicy.reverifyInterval) <= duration('1m')", "haltPolicy.reverifyInterval is at most 1m, because what was not verified for three minutes is not known"))]
pub struct TradingSystemSpec {
    /// What runs: trading workloads are halted, supporting ones keep running.
    #[schemars(length(min = 1, max = 1000))]
    pub workloads: Vec<Workload>,
    /// The bot's own halt endpoint: best effort, recorded, never evidence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub application_halt: Option<ApplicationHalt>,
    /// Where orders live.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["name".into()]))]
    pub venues: Vec<Venue>,
    /// Brings the bot's books in line with the venues; run before trading resumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sync_positions: Option<Action>,
    /// What tells that the system is well, evaluated all the time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["name".into()]))]
    pub checks: Vec<Check>,
    /// Counts, intervals and limits of halting.
    #[serde(default)]
    pub halt_policy: HaltPolicy,
    /// What trading may return through after a halt. It binds every TradingResume of the system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume_policy: Option<ResumePolicy>,
    /// Limits that the bot keeps to, for the stages of a resume.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["name".into()]))]
    pub limits: Vec<Limit>,
    /// How fast recovery must be and how little may be lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objectives: Option<Objectives>,
}

/// Whether a workload is stopped by a halt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WorkloadRole {
    /// Places orders: a halt stops it.
    Trading,
    /// Does not: it keeps running.
    Supporting,
}

/// One workload by name, or all workloads of a kind with certain labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.name) != has(self.matchLabels)", "name one workload with name, or several with matchLabels"))]
#[x_kube(validation = ("self.kind in ['Deployment', 'StatefulSet', 'CronJob', 'DaemonSet'] != has(self.apiVersion)", "kind is Deployment, StatefulSet, CronJob or DaemonSet, without apiVersion; or another one that the charts list in scalableKinds, with its apiVersion"))]
pub struct Workload {
    /// The workload's group and version, if its kind is not built in.
    #[schemars(length(min = 1, max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    /// The workload's kind.
    pub kind: WorkloadKind,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Or the labels that all of them carry.
    #[schemars(extend("minProperties" = 1, "maxProperties" = 16))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub match_labels: Option<BTreeMap<String, String>>,
    /// Whether a halt stops it.
    pub role: WorkloadRole,
}

/// The bot's own endpoint for stopping and starting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApplicationHalt {
    /// Asks the bot to stop.
    pub request: HttpRequest,
    /// Asks it to go on, at the end of a resume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<HttpRequest>,
    /// Tells whether it is stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<StateRead>,
    /// The bot does not trade after its start until `resume` was asked for. Then limits that are set by HTTP are safe
    /// without a suspension at the venue.
    #[serde(default)]
    pub starts_halted: bool,
}

/// Which orders of an account belong to the system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Ownership {
    /// All of them.
    #[default]
    Account,
}

/// An account at an exchange or broker. Reads tell what is open, actions change it; only reads are evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Venue {
    /// A name for it.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// What identifies the account; two systems with the same one are warned of each other.
    #[schemars(length(max = 128))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// Which of the account's orders belong to the system.
    #[serde(default)]
    pub ownership: Ownership,
    /// Makes the venue refuse new orders.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub suspend_trading: Vec<Action>,
    /// Makes it accept them again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub allow_trading: Vec<Action>,
    /// Tells whether the venue refuses new orders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trading_suspended: Option<StateRead>,
    /// The venue refuses closing orders too while trading is suspended: positions are closed first.
    #[serde(default)]
    pub suspend_blocks_closing: bool,
    /// Cancels all orders; one entry for each class of orders that the venue keeps apart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub cancel_orders: Vec<Action>,
    /// Cancels one order. Needed for `orders.cancel: NonProtective`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_order: Option<ItemAction>,
    /// Reads open orders; one entry for each class.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub open_orders: Vec<OrdersRead>,
    /// Closes all positions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub close_positions: Vec<Action>,
    /// Closes one position. Needed for `CloseMatching` and `ReduceTo`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub close_position: Option<ItemAction>,
    /// The smallest step of a quantity, as a decimal string: `"1"` for whole shares. With it `ReduceTo` closes a part of
    /// the last position, rounded up to whole steps; `closePosition` must then use `{quantity}`. Without it positions
    /// are closed as a whole.
    #[schemars(length(min = 1, max = 40))]
    #[x_kube(validation = (r"self.matches('^[0-9]{1,12}(\\.[0-9]{1,18})?$') && double(self) > 0.0", "quantityStep is a positive decimal number in quotes, such as \"1\" or \"0.001\""))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantity_step: Option<String>,
    /// Reads what the account is worth, all positions included. Needed for `ReduceTo`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equity: Option<NumberRead>,
    /// Reads open positions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub open_positions: Vec<PositionsRead>,
    /// Reads the account's balance, for the reconciliation of a resume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance: Option<NumberRead>,
    /// Reads fills since `{since}` (RFC 3339, in the address or body), for the reconciliation of a resume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fills: Option<OrdersRead>,
    /// Reads all orders that were placed since `{since}` (RFC 3339, in the address or body), open or not. Two of them with
    /// the same client order id are a regression of a resume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orders_since: Option<OrdersRead>,
    /// Tells whether the market is open; a closed one is named as the reason why positions do not close.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub market_open: Option<StateRead>,
}

/// What a check is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names say it")]
pub enum CheckGroup {
    Infrastructure,
    Data,
    Trading,
    Monitoring,
}

impl CheckGroup {
    /// Its name, as in YAML.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Infrastructure => "infrastructure",
            Self::Data => "data",
            Self::Trading => "trading",
            Self::Monitoring => "monitoring",
        }
    }
}

/// A question with the answers yes, no and unknown. Exactly one of `http`, `sql`, `workload`, `tcp`, `prometheus` and `job`
/// is set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("(has(self.http) ? 1 : 0) + (has(self.sql) ? 1 : 0) + (has(self.workload) ? 1 : 0) + (has(self.tcp) ? 1 : 0) + (has(self.prometheus) ? 1 : 0) + (has(self.job) ? 1 : 0) == 1", "a check asks exactly one question: give one of http, sql, workload, tcp, prometheus, job"))]
pub struct Check {
    /// A name for it.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// What it is about.
    pub group: CheckGroup,
    /// How often it is asked, 30s if not given. A Job is run at most every 5 minutes, whatever this says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Duration>,
    /// An HTTP endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpCheck>,
    /// A query on PostgreSQL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sql: Option<SqlCheck>,
    /// Pods that are ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<WorkloadCheck>,
    /// A port that accepts connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpCheck>,
    /// A query to a Prometheus server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prometheus: Option<PrometheusCheck>,
    /// A Job of the user's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobCheck>,
}

/// An HTTP endpoint answers, and says what it should.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.path) == has(self.expect)", "path and expect go together: the value at path must be as expected"))]
#[x_kube(validation = ("self.request.method in ['GET', 'POST']", "a check changes nothing: write method: GET, or POST where the source is asked that way"))]
pub struct HttpCheck {
    /// The request.
    pub request: HttpRequest,
    /// Status codes that are well; 200 to 299 if not given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub status: Vec<u16>,
    /// JSONPath of a value in the answer.
    #[schemars(length(min = 1, max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What that value must be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<Expectation>,
}

/// A query whose first column of its only row is as expected. It runs in a read-only transaction with a time limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SqlCheck {
    /// A connection URL, `postgresql://user:password@host:port/database?sslmode=verify-full`. Only `verify-full` and
    /// `verify-ca` make sure that it is the database that answers; `require` and `prefer`, the default, take any
    /// certificate.
    pub connection_secret_ref: SecretKeyRef,
    /// The query.
    #[schemars(length(min = 1, max = 4096))]
    pub query: String,
    /// What its answer must be.
    pub expect: Expectation,
    /// The longest that it may take, 10s if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
}

/// A workload has as many ready pods as it wants, and at least one (a DaemonSet: one on each node it is meant for).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("self.kind in ['Deployment', 'StatefulSet', 'CronJob', 'DaemonSet']", "kind is Deployment, StatefulSet, CronJob or DaemonSet"))]
pub struct WorkloadCheck {
    /// The workload's kind.
    pub kind: WorkloadKind,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// How many ready pods are enough; as many as it wants if not given.
    #[schemars(range(min = 1))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_ready: Option<i32>,
}

/// A port accepts a connection. Nothing is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("!self.host.contains('/') && !self.host.contains('@')", "host is a name alone, for example redis.trading.svc: the port has a field of its own, and there is no scheme"))]
pub struct TcpCheck {
    /// The host's name; of services of the cluster, those of the own namespace.
    #[schemars(length(min = 1, max = 253))]
    pub host: String,
    /// The port.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// The longest that it may take, 5s if not given, at most 60s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
}

/// An instant query to a server that speaks the HTTP API of Prometheus. Its value must be as expected; if it gives several
/// series, the value of each. No series, NaN, an infinite value and an answer with warnings never pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("(self.url.startsWith('https://') || self.url.startsWith('http://')) && !self.url.contains('?') && !self.url.contains('#')", "url is the address of the server without a query, for example https://prometheus.example.com: /api/v1/query is added"))]
#[x_kube(validation = ("!has(self.auth) || has(self.auth.headers)", "a Prometheus server takes auth.headers only"))]
pub struct PrometheusCheck {
    /// The address of the server. `/api/v1/query` is added to it.
    #[schemars(length(min = 1, max = 1024))]
    pub url: String,
    /// The query, in PromQL.
    #[schemars(length(min = 1, max = 4096))]
    pub query: String,
    /// What the value of each series must be.
    pub expect: Expectation,
    /// Headers with plain values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub headers: Vec<Header>,
    /// How the request authenticates itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<HttpAuth>,
    /// The longest that the call may take, 5s if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
}

/// A Job that succeeds, or whose termination message (JSON) is as expected. It is run at most every 5 minutes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("!has(self.path) || has(self.expect)", "path needs expect: what the value at path must be"))]
pub struct JobCheck {
    /// What is run.
    #[serde(flatten)]
    pub run: JobAction,
    /// JSONPath of a value in the termination message, `$` if not given.
    #[schemars(length(min = 1, max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What that value must be. Without it, the exit code is the answer: 0 is yes, 1 to 125 is no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<Expectation>,
}

/// What a halt may do to positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PositionAction {
    /// Leave them as they are.
    #[default]
    Keep,
    /// Close all of them at the market.
    CloseAll,
    /// Close those that lose too much, or were held for too long.
    CloseMatching,
    /// Close until what is held is worth at most a share of the account's equity.
    ReduceTo,
}

impl PositionAction {
    /// The action's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "Keep",
            Self::CloseAll => "CloseAll",
            Self::CloseMatching => "CloseMatching",
            Self::ReduceTo => "ReduceTo",
        }
    }

    /// Whether it closes some positions only, which are selected once.
    pub const fn selects(self) -> bool {
        matches!(self, Self::CloseMatching | Self::ReduceTo)
    }
}

/// Counts, intervals and limits of halting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HaltPolicy {
    /// How many reads in a row must find no open order, or no position. Default 3. A read by Job is repeated at most
    /// every 5 minutes.
    #[schemars(range(min = 1, max = 20))]
    pub verify_reads: u32,
    /// The time between them. Default 1s.
    pub verify_interval: Duration,
    /// How often a held halt is verified again, at most 1m. Default 10s.
    pub reverify_interval: Duration,
    /// How long closing positions may take before the halt says that it did not succeed. Default 10m.
    pub close_deadline: Duration,
    /// How long pods may take to end before the halt says that they did not. Default 90s.
    pub stop_grace_period: Duration,
    /// What a halt may do to positions. Default `[Keep]`.
    #[schemars(length(min = 1, max = 4))]
    pub allowed_position_actions: Vec<PositionAction>,
    /// Whose Approvals allow a halt what is not listed there. Default: one of anybody. Whoever asked for the halt never
    /// counts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub position_approvals: Vec<ApprovalRequirement>,
}

impl Default for HaltPolicy {
    fn default() -> Self {
        Self {
            verify_reads: 3,
            verify_interval: Duration::from_secs(1),
            reverify_interval: Duration::from_secs(10),
            close_deadline: Duration::from_secs(600),
            stop_grace_period: Duration::from_secs(90),
            allowed_position_actions: vec![PositionAction::Keep],
            position_approvals: vec![],
        }
    }
}

/// How fast recovery must be and how little may be lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Objectives {
    /// Recovery time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rto: Option<Objective>,
    /// Recovery point: how much of the past may be lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo: Option<Objective>,
    /// How many trades may be lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_trades: Option<LostTrades>,
}

/// How many trades may be lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LostTrades {
    /// At most this many.
    pub maximum: u32,
}

/// What is known of a trading system.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TradingSystemStatus {
    /// The generation of the spec that the rest speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Prepared` (would an emergency halt work now?), `ChecksPassing`, `SharedAccount`,
    /// `ResumePolicyInvalid` (resumes fail at first sight), `Ready`.
    #[serde(default)]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
    /// Whether trading is halted, and by what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halt: Option<HaltSummary>,
    /// What stands in the way of an emergency halt, one entry for each missing thing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub problems: Vec<Problem>,
    /// The checks and their answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["name".into()]))]
    pub checks: Vec<CheckStatus>,
    /// How many checks pass, as `3/4`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checks_passing: Option<String>,
    /// The trading workloads that a halt would stop now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    pub trading_workloads: Vec<WorkloadStatus>,
    /// How orders are cancelled: `HTTP`, `Job (slow)` or `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_path: Option<String>,
    /// Other controllers that set replicas of trading workloads (HorizontalPodAutoscaler, KEDA, Argo CD, Flux).
    /// They are named, never changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub coexistence: Vec<String>,
    /// The objectives in words, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objectives: Option<String>,
}

/// Whether trading is halted, and by what.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HaltSummary {
    /// `Yes` when every halt that holds is proven, `No` when none holds, `Unverified` otherwise.
    pub halted: String,
    /// The halts that hold, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// When the first of them latched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
}

/// One thing that is missing for an emergency halt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// A word for it.
    pub reason: String,
    /// What was tried on which object, and what to do.
    pub message: String,
}

/// Answer of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CheckState {
    /// Yes.
    Passing,
    /// No.
    Failing,
    /// It could not be asked.
    Unknown,
}

/// A check and its answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CheckStatus {
    /// The check's name.
    pub name: String,
    /// What it is about.
    pub group: CheckGroup,
    /// The answer.
    pub state: CheckState,
    /// What was found, with the number where there is one.
    pub message: String,
    /// Since when the answer is this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<MicroTime>,
}

/// A workload and its size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadStatus {
    /// The workload's kind.
    pub kind: WorkloadKind,
    /// Its name.
    pub name: String,
    /// How many replicas it wants; of a DaemonSet the nodes it is meant for; absent for a CronJob.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
}
