//! Asks the checks of a trading system: an HTTP endpoint, a query, a workload's pods, a port, a Prometheus server, a
//! Job.

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, StatefulSet},
    batch::v1::CronJob,
    core::v1::Pod,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams},
};
use standfast_crds::v1alpha1::{
    Check, CheckState, Duration, Expectation, HttpCheck, HttpRequest, PrometheusCheck, SqlCheck, SqlView, TcpCheck,
    WorkloadCheck, WorkloadKind, shorten,
};

use super::{
    job_checks, prometheus, spec,
    sql::{Databases, SqlError},
};
use crate::{
    calls::caller::TIMEOUT_LIMIT,
    calls::{
        Caller, caller,
        document::{Document, Scalar},
        expect,
    },
    kinds::{Kinds, Scalable},
    outbound::{Call, CallError, Reply, connect::Connector, guard},
    workloads::parse_selector,
};

/// The longest that reading a workload may take.
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(5);
/// The longest text that was found and is shown, in characters.
const SHOWN: usize = 40;

/// What checks are asked with. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Checker {
    caller: Caller,
    databases: Databases,
    client: ClientHandle,
    kinds: Kinds,
}

#[derive(Clone)]
struct ClientHandle(Client);

impl std::fmt::Debug for ClientHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

impl Checker {
    /// HTTP checks are asked with `caller`, SQL checks with `databases`, which knows the way to ports too; `client`
    /// reads workloads and runs Jobs.
    pub fn new(caller: Caller, databases: Databases, client: Client, kinds: Kinds) -> Self {
        Self { caller, databases, client: ClientHandle(client), kinds }
    }

    /// What reads workloads and runs Jobs.
    pub fn client(&self) -> &Client {
        &self.client.0
    }

    /// All rows of a query, as a list of objects by the names of their columns.
    pub async fn rows(&self, namespace: &str, view: &SqlView) -> Result<Document, SqlError> {
        self.databases.rows(namespace, view).await
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    /// The namespace of the system.
    pub namespace: &'a str,
    /// The system, as the owner of Jobs.
    pub system: &'a OwnerReference,
    /// The answer opens a gate: that of a Job counts for five minutes, whatever the check's interval is.
    pub gate: bool,
}

/// What became of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// The answer, and what was found, in at most 256 characters.
    Answer(CheckState, String),
    /// There will be one later; what is waited for.
    Awaited(String),
}

/// Asks a check now. Ends within the check's own limits; a Job is begun, and not waited for.
pub async fn evaluate(checker: &Checker, asker: &Asker<'_>, check: &Check) -> Told {
    let namespace = asker.namespace;
    let Check { name: _, group: _, interval: _, http, sql, workload, tcp, prometheus, job } = check;
    let (state, message) = match (http, sql, workload, tcp, prometheus, job) {
        (Some(http), None, None, None, None, None) => checker.http(namespace, http).await,
        (None, Some(sql), None, None, None, None) => checker.sql(namespace, sql).await,
        (None, None, Some(workload), None, None, None) => checker.workload(namespace, workload).await,
        (None, None, None, Some(tcp), None, None) => checker.tcp(namespace, tcp).await,
        (None, None, None, None, Some(query), None) => checker.prometheus(namespace, query).await,
        (None, None, None, None, None, Some(job)) => {
            match job_checks::ask(&checker.client.0, asker, check, job).await {
                Told::Answer(state, message) => (state, message),
                awaited @ Told::Awaited(_) => return awaited,
            }
        }
        _ => (CheckState::Unknown, "give exactly one of http, sql, workload, tcp, prometheus, job".into()),
    };
    Told::Answer(state, shorten(&message))
}

/// The Service of `namespace` that a check goes to, if its host is one of the cluster's names.
pub(super) fn service(namespace: &str, check: &Check) -> Option<String> {
    let of_url = |url: &str| spec::service_of(namespace, guard::parse(url).ok()?.host_str()?);
    let http = check.http.as_ref().map(|http| http.request.url.as_str());
    let url = http.or(check.prometheus.as_ref().map(|prometheus| prometheus.url.as_str()));
    url.and_then(of_url).or_else(|| spec::service_of(namespace, &check.tcp.as_ref()?.host))
}

impl Checker {
    async fn http(&self, namespace: &str, check: &HttpCheck) -> (CheckState, String) {
        self.ask(namespace, &check.request, |what, reply| judge(check, what, reply, Timestamp::now())).await
    }

    async fn prometheus(&self, namespace: &str, check: &PrometheusCheck) -> (CheckState, String) {
        let request = prometheus::request(check);
        self.ask(namespace, &request, |what, reply| prometheus::judge(check, what, reply, Timestamp::now())).await
    }

    async fn tcp(&self, namespace: &str, check: &TcpCheck) -> (CheckState, String) {
        let what = format!("{} port {}", check.host, check.port);
        let limit = check.timeout.map_or(DEADLINE, |t| t.get()).min(TIMEOUT_LIMIT);
        let target = match self.connector().guard().host(namespace, &check.host, check.port, false) {
            Ok(target) => target,
            Err(why) => return (CheckState::Unknown, why),
        };
        match tokio::time::timeout(limit, self.connector().tcp(&target)).await {
            Ok(Ok(_)) => (CheckState::Passing, format!("{what} accepts connections")),
            // It may be there: it was not asked.
            Ok(Err(CallError::Refused(why))) => (CheckState::Unknown, why),
            Ok(Err(error)) => (CheckState::Failing, error.to_string()),
            Err(_) => {
                (CheckState::Failing, format!("{what} did not accept a connection within {}", Duration::from(limit)))
            }
        }
    }

    fn connector(&self) -> &Connector {
        self.databases.connector()
    }

    /// Whether a check by TCP or Prometheus could be asked now: its Secrets, and the name of its host. Connects to
    /// nothing.
    pub(super) async fn prepared(&self, namespace: &str, check: &Check) -> Result<(), CallError> {
        let guard = self.connector().guard();
        let target = match (&check.tcp, &check.prometheus) {
            (Some(tcp), _) => guard.host(namespace, &tcp.host, tcp.port, false),
            (_, Some(query)) => {
                let call = self.caller.prepare(namespace, &prometheus::request(query), None).await?;
                guard.target(namespace, &call.url).map(|(_, target)| target)
            }
            _ => return Ok(()),
        };
        let target = target.map_err(CallError::Refused)?;
        match tokio::time::timeout(DEADLINE, self.connector().addresses(&target)).await {
            Ok(found) => found.map(drop),
            Err(_) => Err(CallError::NotSent(format!(
                "the name {} did not resolve within {} s",
                target.host,
                DEADLINE.as_secs()
            ))),
        }
    }

    /// Sends a request and lets `judge` say what the answer means.
    async fn ask(
        &self,
        namespace: &str,
        request: &HttpRequest,
        judge: impl FnOnce(&str, &Reply) -> (CheckState, String),
    ) -> (CheckState, String) {
        let call = match self.caller.prepare(namespace, request, None).await {
            Ok(call) => call,
            Err(error) => return (CheckState::Unknown, error.to_string()),
        };
        let what = called(&call);
        match self.send(call).await {
            Ok(reply) => judge(&what, &reply),
            // It may be there: it was not asked.
            Err(CallError::Refused(why)) => (CheckState::Unknown, format!("{what}: {why}")),
            Err(CallError::NotSent(why) | CallError::Declined(why)) => (CheckState::Failing, format!("{what}: {why}")),
            Err(CallError::UnknownOutcome(why)) => {
                let why = why.trim_end_matches("; the request may have had an effect");
                (CheckState::Failing, format!("{what}: {why}"))
            }
        }
    }

    /// A GET without an answer is sent once more: a kept connection may have been closed a moment ago.
    async fn send(&self, call: Call) -> Result<Reply, CallError> {
        let again = (call.method == http::Method::GET).then(|| call.clone());
        match (self.caller.transport().send(call).await, again) {
            (Err(CallError::NotSent(_) | CallError::UnknownOutcome(_)), Some(call)) => {
                self.caller.transport().send(call).await
            }
            (answer, _) => answer,
        }
    }

    async fn sql(&self, namespace: &str, check: &SqlCheck) -> (CheckState, String) {
        match self.databases.value(namespace, check).await {
            Ok(found) => compare(&check.expect, &found, "", Timestamp::now()),
            Err(SqlError::NoRow) => (CheckState::Failing, SqlError::NoRow.to_string()),
            Err(error) => (CheckState::Unknown, error.to_string()),
        }
    }

    async fn workload(&self, namespace: &str, check: &WorkloadCheck) -> (CheckState, String) {
        let what = format!("{} {namespace}/{}", check.kind, check.name);
        let pods = match tokio::time::timeout(DEADLINE, self.pods(namespace, check)).await {
            Ok(Ok(Some(pods))) => pods,
            Ok(Ok(None)) => return (CheckState::Failing, format!("{what} does not exist")),
            Ok(Err(error)) => return (CheckState::Unknown, format!("reading {what}: {error}")),
            Err(_) => {
                return (CheckState::Unknown, format!("reading {what}: no answer within {} s", DEADLINE.as_secs()));
            }
        };
        readiness(&what, check.min_ready, pods)
    }

    async fn pods(&self, namespace: &str, check: &WorkloadCheck) -> kube::Result<Option<Pods>> {
        let client = self.client.0.clone();
        Ok(match check.kind {
            WorkloadKind::Deployment => {
                Api::<Deployment>::namespaced(client, namespace).get_opt(&check.name).await?.map(|d| Pods::Counted {
                    wanted: d.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0),
                    ready: d.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0),
                    seen: d.status.as_ref().and_then(|s| s.observed_generation) >= d.metadata.generation,
                    least: 1,
                })
            }
            WorkloadKind::StatefulSet => {
                Api::<StatefulSet>::namespaced(client, namespace).get_opt(&check.name).await?.map(|s| Pods::Counted {
                    wanted: s.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0),
                    ready: s.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0),
                    seen: s.status.as_ref().and_then(|s| s.observed_generation) >= s.metadata.generation,
                    least: 1,
                })
            }
            WorkloadKind::DaemonSet => {
                Api::<DaemonSet>::namespaced(client, namespace).get_opt(&check.name).await?.map(|d| Pods::Counted {
                    wanted: d.status.as_ref().map_or(0, |s| s.desired_number_scheduled),
                    ready: d.status.as_ref().map_or(0, |s| s.number_ready),
                    seen: d.status.as_ref().and_then(|s| s.observed_generation) >= d.metadata.generation,
                    // There may be no node for it.
                    least: 0,
                })
            }
            WorkloadKind::Scalable(_) => match self.kinds.get(check.kind) {
                Some(kind) => counted(client, namespace, kind, &check.name).await?,
                None => None,
            },
            WorkloadKind::CronJob => Api::<CronJob>::namespaced(client, namespace)
                .get_opt(&check.name)
                .await?
                .map(|c| Pods::Scheduled { suspended: c.spec.as_ref().and_then(|s| s.suspend).unwrap_or(false) }),
        })
    }
}

/// The pods of a workload that has a scale subresource, which does not tell how many are ready.
async fn counted(client: Client, namespace: &str, kind: &Scalable, name: &str) -> kube::Result<Option<Pods>> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &kind.resource());
    let scale = match api.get_scale(name).await {
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
        scale => scale?,
    };
    let selector = scale.status.and_then(|s| s.selector).unwrap_or_default();
    let mut ready = 0;
    if parse_selector(&selector).is_some() {
        let list = ListParams::default().labels(&selector);
        let pods = Api::<Pod>::namespaced(client, namespace).list(&list).await?.items;
        ready = pods.iter().filter(|p| is_ready(p)).count();
    }
    Ok(Some(Pods::Counted {
        wanted: scale.spec.and_then(|s| s.replicas).unwrap_or(0),
        ready: ready.try_into().unwrap_or(i32::MAX),
        seen: true,
        least: 1,
    }))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// The pods of a workload.
#[derive(Clone, Copy, Debug)]
enum Pods {
    /// How many it wants and how many are ready, of which there must be at least so many; `seen` when its controller
    /// knows of the present spec.
    Counted { wanted: i32, ready: i32, seen: bool, least: i32 },
    /// They run by a schedule.
    Scheduled { suspended: bool },
}

fn readiness(what: &str, min_ready: Option<i32>, pods: Pods) -> (CheckState, String) {
    match pods {
        Pods::Scheduled { suspended: true } => (CheckState::Failing, format!("{what} is suspended")),
        Pods::Scheduled { suspended: false } => (CheckState::Passing, format!("{what} is not suspended")),
        Pods::Counted { seen: false, .. } => {
            (CheckState::Failing, format!("{what} was changed and its controller has not seen it yet"))
        }
        Pods::Counted { wanted, ready, least, .. } => {
            let enough = min_ready.unwrap_or(wanted).max(least);
            let state = if ready >= enough { CheckState::Passing } else { CheckState::Failing };
            (state, format!("{what}: {ready} pods ready, wanted at least {enough}"))
        }
    }
}

/// The method and the host: paths and queries may hold tokens.
fn called(call: &Call) -> String {
    let host = url::Url::parse(&call.url).ok().and_then(|u| u.host_str().map(str::to_owned)).unwrap_or_default();
    format!("{} {host}", call.method)
}

/// What an HTTP answer says.
fn judge(check: &HttpCheck, what: &str, reply: &Reply, now: Timestamp) -> (CheckState, String) {
    let status = reply.status;
    let well = if check.status.is_empty() { (200..300).contains(&status) } else { check.status.contains(&status) };
    if !well {
        let wanted = match check.status.as_slice() {
            [] => "200 to 299".into(),
            codes => codes.iter().map(u16::to_string).collect::<Vec<_>>().join(" or "),
        };
        return (CheckState::Failing, format!("{what} answered {status}, wanted {wanted}"));
    }
    let (Some(path), Some(expect)) = (&check.path, &check.expect) else {
        return (CheckState::Passing, format!("{what} answered {status}"));
    };
    match caller::value_at(reply, path) {
        Ok(found) => compare(expect, &found, &format!(" at {path}"), now),
        Err(error) => (CheckState::Unknown, format!("{what} answered {status}: {error}")),
    }
}

/// Whether what was found is what was wanted, and both in words.
pub(super) fn compare(expect: &Expectation, found: &Scalar, place: &str, now: Timestamp) -> (CheckState, String) {
    let shown = show(found);
    match expect::holds(expect, found, now) {
        Ok(true) => (CheckState::Passing, format!("found {shown}{place}, wanted {}", wanted(expect))),
        Ok(false) => (CheckState::Failing, format!("found {shown}{place}, wanted {}", wanted(expect))),
        Err(error) => (CheckState::Unknown, format!("found {shown}{place}: {error}")),
    }
}

/// A value, cut where it is long.
fn show(found: &Scalar) -> String {
    let cut = |text: &str| {
        let line: String = text.chars().take(SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
        if text.chars().count() > SHOWN { format!("{line}…") } else { line }
    };
    match found {
        Scalar::Null => "null".into(),
        Scalar::Bool(value) => value.to_string(),
        Scalar::Number(text) => cut(text),
        Scalar::Text(text) => format!("{:?}", cut(text)),
    }
}

pub(super) fn wanted(expect: &Expectation) -> String {
    let mut parts = vec![];
    if let Some(value) = &expect.equals {
        parts.push(Scalar::of(value).map_or_else(|| "one value".into(), |v| show(&v)));
    }
    parts.extend(expect.at_least.iter().map(|n| format!("at least {n}")));
    parts.extend(expect.at_most.iter().map(|n| format!("at most {n}")));
    parts.extend(expect.newer_than.iter().map(|age| format!("not older than {age}")));
    parts.join(" and ")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn answer(check: Value, status: u16, body: &str) -> (CheckState, String) {
        let mut check = check;
        check["request"] = json!({"url": "https://venue.example/v2/clock?token=hunter2"});
        let check: HttpCheck = serde_json::from_value(check).unwrap();
        let reply = Reply { status, body: Bytes::from(body.to_owned()) };
        judge(&check, "GET venue.example", &reply, "2025-06-01T12:00:00Z".parse().unwrap())
    }

    #[rstest]
    #[case(json!({}), 204, "", CheckState::Passing, "GET venue.example answered 204")]
    #[case(json!({}), 503, "secret", CheckState::Failing, "GET venue.example answered 503, wanted 200 to 299")]
    #[case(json!({"status": [200, 401]}), 401, "", CheckState::Passing, "GET venue.example answered 401")]
    #[case(json!({"status": [200, 401]}), 204, "", CheckState::Failing, "GET venue.example answered 204, wanted 200 or 401")]
    #[case(json!({"path": "$.open", "expect": {"equals": 0}}), 200, r#"{"open": 3}"#, CheckState::Failing, "found 3 at $.open, wanted 0")]
    #[case(json!({"path": "$.p", "expect": {"atLeast": "1", "atMost": "2"}}), 200, r#"{"p": "1.50"}"#, CheckState::Passing, "found \"1.50\" at $.p, wanted at least 1 and at most 2")]
    #[case(json!({"path": "$.t", "expect": {"newerThan": "30s"}}), 200, r#"{"t": "2025-06-01T11:59:45Z"}"#, CheckState::Passing, "found \"2025-06-01T11:59:45Z\" at $.t, wanted not older than 30s")]
    #[case(json!({"path": "$.t", "expect": {"newerThan": "30s"}}), 200, r#"{"t": "2025-06-01T11:00:00Z"}"#, CheckState::Failing, "found \"2025-06-01T11:00:00Z\" at $.t, wanted not older than 30s")]
    fn http_answers_are_judged(
        #[case] check: Value,
        #[case] status: u16,
        #[case] body: &str,
        #[case] state: CheckState,
        #[case] message: &str,
    ) {
        assert_eq!(answer(check, status, body), (state, message.to_owned()));
    }

    #[rstest]
    #[case("<html>hunter2</html>")]
    #[case(r#"{"password": "hunter2"}"#)]
    #[case(r#"{"t": {"a": "hunter2"}}"#)]
    fn an_answer_without_the_value_is_unknown_and_not_repeated(#[case] body: &str) {
        let (state, message) = answer(json!({"path": "$.t", "expect": {"equals": 1}}), 200, body);
        assert_eq!(state, CheckState::Unknown);
        assert!(!message.contains("hunter2"), "{message}");
    }

    #[rstest]
    #[case(None, 2, 2, CheckState::Passing)]
    #[case(None, 2, 1, CheckState::Failing)]
    #[case(None, 0, 0, CheckState::Failing)]
    #[case(Some(1), 5, 1, CheckState::Passing)]
    #[case(Some(2), 5, 1, CheckState::Failing)]
    fn a_workload_is_ready(
        #[case] min: Option<i32>,
        #[case] wanted: i32,
        #[case] ready: i32,
        #[case] state: CheckState,
    ) {
        let pods = |seen, least| Pods::Counted { wanted, ready, seen, least };
        assert_eq!(readiness("Deployment t/bot", min, pods(true, 1)).0, state);
        let without_node = (wanted, min) == (0, None);
        let of_daemon_set = if without_node { CheckState::Passing } else { state };
        assert_eq!(readiness("DaemonSet t/bot", min, pods(true, 0)).0, of_daemon_set);
        let unseen = pods(false, 1);
        assert_eq!(readiness("Deployment t/bot", min, unseen).0, CheckState::Failing);
    }

    #[test]
    fn long_values_are_cut() {
        let text = show(&Scalar::Text("x".repeat(100)));
        assert_eq!(text.chars().count(), SHOWN + 3);
        assert_eq!(show(&Scalar::Text("a\nb".into())), "\"a b\"");
    }
}
