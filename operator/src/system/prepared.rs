//! Would an emergency halt work now? Looks at everything outside of the spec that a halt needs, without changing
//! anything: Secrets are read, connections opened, permissions asked for. No action is sent.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use k8s_openapi::{
    api::{
        autoscaling::{v1::Scale, v2::HorizontalPodAutoscaler},
        core::v1::Service,
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams},
};
use serde_json::Value;
use standfast_crds::{
    guardrails::{LATCH_ENABLED, LATCH_LABEL},
    v1alpha1::{Check, Problem, TradingSystemSpec, WorkloadKind},
};

use super::{
    checks::{self, Checker},
    coexistence::{self, Autoscaler},
    permissions::Permissions,
    spec::{self, Request, problem},
};
use crate::{
    calls::Caller,
    guardrails::{GuardrailState, Guardrails, namespace_enabled, namespace_excluded},
    jobs::{self, JobError},
    kinds::Kinds,
    outbound::{Call, CallError, Transport},
    workloads::{Key, View, parse_selector},
};

/// The longest that one call may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// How many calls one look makes at once.
const AT_ONCE: usize = 8;

/// What one look at the outside found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Survey {
    /// What stands in the way of a halt.
    pub problems: Vec<Problem>,
    /// What could not be found out, and why.
    pub unknown: Vec<String>,
}

impl Survey {
    fn add(&mut self, other: Self) {
        self.problems.extend(other.problems);
        self.unknown.extend(other.unknown);
    }

    fn sorted(mut self) -> Self {
        // In an order that does not depend on which answer came first.
        self.problems.sort();
        self.problems.dedup();
        self.unknown.sort();
        self.unknown.dedup();
        self
    }
}

/// Looks at the outside.
pub(super) struct Surveyor {
    client: Client,
    caller: Caller,
    halt_transport: Arc<dyn Transport>,
    checker: Checker,
    guardrails: Guardrails,
    permissions: Permissions,
    kinds: Kinds,
}

impl Surveyor {
    /// A surveyor that makes calls as `caller` does, and keeps connections of `halt_transport` warm.
    pub fn new(
        client: Client,
        caller: Caller,
        halt_transport: Arc<dyn Transport>,
        checker: Checker,
        guardrails: Guardrails,
        kinds: Kinds,
    ) -> Self {
        let permissions = Permissions::new(client.clone(), kinds.clone());
        Self { permissions, client, caller, halt_transport, checker, guardrails, kinds }
    }

    /// What may change any minute: namespace, guardrails, Secrets, endpoints. Keeps the connections warm that a halt would use.
    pub async fn near(&self, namespace: &str, spec: &TradingSystemSpec) -> Survey {
        let labelled = async {
            if namespace_excluded(namespace) { None } else { Some(namespace_enabled(&self.client, namespace).await) }
        };
        let (labelled, guardrails, mut survey, checks) =
            tokio::join!(labelled, self.guardrails.state(), self.calls(namespace, spec), self.checks(namespace, spec));
        survey.add(checks);
        survey.add(namespace_survey(namespace, labelled));
        survey.add(guardrail_survey(&guardrails));
        survey.sorted()
    }

    /// What changes rarely: permissions, the workloads' own objects, services.
    pub async fn far(
        &self,
        namespace: &str,
        owner: &OwnerReference,
        spec: &TradingSystemSpec,
        trading: &[View],
    ) -> Survey {
        let (mut survey, objects, jobs) = tokio::join!(
            self.permissions.survey(namespace, spec, trading),
            self.objects(namespace, spec, trading),
            self.jobs(namespace, owner, spec)
        );
        survey.add(objects);
        survey.add(jobs);
        survey.sorted()
    }

    /// What scales workloads of the namespace.
    pub async fn autoscalers(&self, namespace: &str) -> Result<Vec<Autoscaler>, String> {
        let api: Api<HorizontalPodAutoscaler> = Api::namespaced(self.client.clone(), namespace);
        let what = format!("listing HorizontalPodAutoscalers of {namespace}");
        let list = read(&what, api.list(&ListParams::default())).await?;
        let mut found: Vec<_> = list.items.iter().map(coexistence::autoscaler).collect();
        found.sort();
        Ok(found)
    }

    async fn calls(&self, namespace: &str, spec: &TradingSystemSpec) -> Survey {
        // What cannot be built is told as InvalidSpec.
        let requests: Vec<_> = spec::requests(spec).into_iter().filter(|(_, r)| spec::buildable(r)).collect();
        let plain: Vec<_> = requests.iter().filter(|(_, r)| !r.per_item).map(|(_, r)| r.http).collect();
        let mut prepared = self.caller.prefetch(namespace, &plain).await.into_iter();
        let mut calls = vec![];
        for (path, request) in &requests {
            let call = match request.item() {
                None => prepared.next(),
                item => Some(self.caller.prepare(namespace, request.http, item.as_ref()).await),
            };
            calls.extend(call.map(|call| (path.as_str(), *request, call)));
        }
        let hosts = endpoints(&calls);
        let probes = hosts.into_iter().map(|endpoint| async move {
            // Halts have connections of their own: only what waits there is of use to them.
            let transport = if endpoint.halting { &self.halt_transport } else { self.caller.transport() };
            let found = transport.warm(namespace, &endpoint.url, DEADLINE).await;
            (endpoint, found)
        });
        let probes = some_at_once(probes).await;
        let mut survey = credential_survey(&calls);
        survey.problems.extend(probes.into_iter().filter_map(|(endpoint, found)| endpoint.problem(found.err()?)));
        survey
    }

    /// Whether checks by TCP and Prometheus could be asked: a resume would need them.
    async fn checks(&self, namespace: &str, spec: &TradingSystemSpec) -> Survey {
        let looks =
            spec.checks.iter().map(|check| async move { (check, self.checker.prepared(namespace, check).await) });
        let mut survey = Survey::default();
        for (check, found) in some_at_once(looks).await {
            let Err(error) = found else { continue };
            let text = error.to_string();
            match error {
                // What could not be read may be there.
                CallError::NotSent(why) if why.starts_with("Secret ") => survey.unknown.push(why),
                _ => {
                    let secret = text.contains("Secret ");
                    let reason = if secret { "CredentialMissing" } else { "EndpointUnreachable" };
                    let path = format!("checks[{}]", check.name);
                    survey.problems.push(problem(reason, format!("{text}{}", fields(&[&path]))));
                }
            }
        }
        survey
    }

    /// Whether the Jobs could be created. None is.
    async fn jobs(&self, namespace: &str, owner: &OwnerReference, spec: &TradingSystemSpec) -> Survey {
        let environment = jobs::environment(&owner.name, "", "");
        let trials = spec::jobs(spec).into_iter().map(|(path, action)| {
            let environment = &environment;
            async move {
                (path, jobs::check_job(&self.client, namespace, "standfast-trial", owner, action, environment).await)
            }
        });
        let mut survey = Survey::default();
        for (path, trial) in some_at_once(trials).await {
            match trial {
                Ok(()) => {}
                Err(JobError::Refused(why)) => survey.problems.push(job_problem(&path, &why)),
                Err(JobError::Failed(why)) => survey.unknown.push(why),
            }
        }
        survey
    }

    /// Who else sets the workloads' replicas, and whether reads go to pods that a halt stops.
    async fn objects(&self, namespace: &str, spec: &TradingSystemSpec, trading: &[View]) -> Survey {
        let mut survey = Survey::default();
        let mut managers: BTreeMap<String, Vec<Key>> = BTreeMap::new();
        let mut labels: Vec<(Key, BTreeMap<String, String>)> = vec![];
        // Of each only what is needed is kept: there may be a thousand.
        let reads = trading.iter().map(|view| async move {
            let object = whole(&self.client, &self.kinds, &view.key).await?;
            // It may have gone since the cache was read, which is told when the cache has seen it.
            Ok(object.map(|object| (&view.key, git_manager(view.key.kind, &object), template_labels(&object))))
        });
        for read in some_at_once(reads).await {
            match read {
                Ok(Some((key, manager, template))) => {
                    if let Some(manager) = manager {
                        managers.entry(manager).or_default().push(key.clone());
                    }
                    labels.push((key.clone(), template));
                }
                Ok(None) => {}
                Err(error) => survey.unknown.push(error),
            }
        }
        survey.problems.extend(managers.iter().map(|(manager, keys)| git_problem(manager, keys)));
        survey.problems.extend(self.scales(trading).await);

        let api: Api<Service> = Api::namespaced(self.client.clone(), namespace);
        for (name, users) in spec::services(namespace, &spec::requests(spec)) {
            match read(&format!("reading Service {namespace}/{name}"), api.get_opt(&name)).await {
                Ok(service) => {
                    let selector = service.and_then(|s| s.spec?.selector).unwrap_or_default();
                    let paths: Vec<_> = users.into_iter().map(|(path, _)| path).collect();
                    survey.problems.extend(halted_source(namespace, &name, &selector, &labels, &paths));
                }
                Err(error) => survey.unknown.push(error),
            }
        }
        survey
    }
}

impl Surveyor {
    /// What the scale subresource tells otherwise than what a halt goes by.
    async fn scales(&self, trading: &[View]) -> Vec<Problem> {
        let listed = trading.iter().filter_map(|view| Some((view, self.kinds.get(view.key.kind)?)));
        let reads = listed.map(|(view, kind)| async move {
            let api: Api<DynamicObject> =
                Api::namespaced_with(self.client.clone(), &view.key.namespace, &kind.resource());
            let scale = read(&format!("reading the scale of {}", view.key), api.get_scale(&view.key.name)).await;
            scale_problem(view, scale)
        });
        some_at_once(reads).await.into_iter().flatten().collect()
    }
}

/// What stands in the way of stopping a workload by its scale subresource. How many replicas it tells may change at any
/// moment; what it selects does not.
fn scale_problem(view: &View, scale: Result<Scale, String>) -> Option<Problem> {
    let why = match scale {
        Ok(scale) => {
            let selector = scale.status.and_then(|s| s.selector).unwrap_or_default();
            // Others are told as SelectorNotPlainLabels. It may tell the pods of one revision only.
            let counted = |labels: &BTreeMap<String, String>| {
                let known = view.match_labels.as_ref();
                known.is_some_and(|known| known.iter().all(|(key, value)| labels.get(key) == Some(value)))
            };
            let labels = parse_selector(&selector).filter(|labels| !counted(labels))?;
            let labels: Vec<_> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
            format!(
                "{}: its scale selects pods by {}, which is not at the selectorPath that scalableKinds of the charts \
                 gives",
                view.key,
                labels.join(",")
            )
        }
        Err(why) => format!("{why}: a halt stops it by its scale; are its spec.replicas written, and may it be read?"),
    };
    Some(problem("ScaleNotReadable", why))
}

/// Which of these checks only pods of these workloads answer: the names of those that go to a Service of theirs.
pub async fn answered_by(
    client: &Client,
    kinds: &Kinds,
    namespace: &str,
    asked: &[Check],
    workloads: &[Key],
) -> Result<Vec<String>, String> {
    let mut services: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for check in asked {
        services.entry(checks::service(namespace, check).unwrap_or_default()).or_default().push(&check.name);
    }
    services.remove("");
    if services.is_empty() {
        return Ok(vec![]);
    }
    let reads = workloads
        .iter()
        .map(|key| async move { whole(client, kinds, key).await.map(|object| object.as_ref().map(template_labels)) });
    let labels: Vec<_> = some_at_once(reads).await.into_iter().collect::<Result<_, _>>()?;
    let api: Api<Service> = Api::namespaced(client.clone(), namespace);
    let mut answered = vec![];
    for (name, checks) in services {
        let service = read(&format!("reading Service {namespace}/{name}"), api.get_opt(&name)).await?;
        let selector = service.and_then(|s| s.spec?.selector).unwrap_or_default();
        if labels.iter().flatten().any(|labels| picks(&selector, labels)) {
            answered.extend(checks.into_iter().map(str::to_owned));
        }
    }
    answered.sort();
    Ok(answered)
}

async fn whole(client: &Client, kinds: &Kinds, key: &Key) -> Result<Option<DynamicObject>, String> {
    let resource = kinds.resource(key.kind)?;
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &key.namespace, &resource);
    read(&format!("reading {key}"), api.get_opt(&key.name)).await
}

/// Whether a Service leads to pods with these labels.
fn picks(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    !selector.is_empty() && selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

/// The outcomes of all, a few under way at a time, in their order.
pub(super) async fn some_at_once<F: Future>(all: impl Iterator<Item = F>) -> Vec<F::Output> {
    // Collected first: a stream of a lazy iterator over references cannot be sent to another thread.
    stream::iter(all.collect::<Vec<_>>()).buffered(AT_ONCE).collect().await
}

pub(super) async fn read<T>(what: &str, call: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => Err(format!("{what}: {}", status.message)),
        Ok(Err(error)) => Err(format!("{what}: {error}")),
        Err(_) => Err(format!("{what}: no answer within {} s", DEADLINE.as_secs())),
    }
}

/// `None`: the guardrails leave this namespace out.
fn namespace_survey(namespace: &str, labelled: Option<Result<bool, String>>) -> Survey {
    let mut survey = Survey::default();
    match labelled {
        None => survey.problems.push(problem(
            "NamespaceExcluded",
            format!("latches never apply in namespace {namespace}: run the trading system in another one"),
        )),
        Some(Ok(true)) => {}
        Some(Ok(false)) => survey.problems.push(problem(
            "NamespaceNotLabelled",
            format!(
                "Namespace {namespace} does not carry the label that makes latches work, run: \
                 kubectl label namespace {namespace} {LATCH_LABEL}={LATCH_ENABLED}"
            ),
        )),
        Some(Err(error)) => survey.unknown.push(error),
    }
    survey
}

fn guardrail_survey(state: &GuardrailState) -> Survey {
    let mut survey = Survey::default();
    match (state, state.problem()) {
        (GuardrailState::Unknown(why), _) => survey.unknown.push(why.clone()),
        (_, Some((reason, message))) => survey.problems.push(problem(reason, message)),
        (_, None) => {}
    }
    survey
}

fn job_problem(path: &str, why: &str) -> Problem {
    let reason = if why.starts_with("Secret ") { "CredentialMissing" } else { "JobRefused" };
    problem(reason, format!("{why}{}", fields(&[path])))
}

/// The fields that something is about, for the end of a message.
fn fields(paths: &[&str]) -> String {
    match paths {
        [] => String::new(),
        [one] => format!(" (spec.{one})"),
        [first, rest @ ..] => format!(" (spec.{first} and {} more)", rest.len()),
    }
}

type Prepared<'a> = (&'a str, Request<'a>, Result<Call, CallError>);

/// Secrets that are not there or may not be used: one problem for each, whatever number of requests needs it.
fn credential_survey(calls: &[Prepared<'_>]) -> Survey {
    let mut refused: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let mut survey = Survey::default();
    for (path, _, call) in calls {
        match call {
            Ok(_) => {}
            Err(CallError::Refused(why)) => refused.entry(why.clone()).or_default().push(path),
            Err(error) => survey.unknown.push(error.to_string()),
        }
    }
    let missing = refused.iter().map(|(why, paths)| problem("CredentialMissing", format!("{why}{}", fields(paths))));
    survey.problems.extend(missing);
    survey
}

/// A host that requests go to.
#[derive(Debug)]
struct Endpoint<'a> {
    url: String,
    /// A halt calls it.
    halting: bool,
    /// Fields of requests that are needed under a halt.
    needed_by: Vec<&'a str>,
}

impl Endpoint<'_> {
    fn problem(&self, error: CallError) -> Option<Problem> {
        // What only a running bot or a resume needs does not stand in the way of a halt.
        (!self.needed_by.is_empty())
            .then(|| problem("EndpointUnreachable", format!("{error}{}", fields(&self.needed_by))))
    }
}

/// Each host once.
fn endpoints<'a>(calls: &[Prepared<'a>]) -> Vec<Endpoint<'a>> {
    let mut hosts: BTreeMap<String, Endpoint<'a>> = BTreeMap::new();
    for (path, request, call) in calls {
        let Ok(call) = call else { continue };
        let Ok(url) = crate::outbound::guard::parse(&call.url) else { continue };
        let host = url[..url::Position::BeforePath].to_owned();
        let new = || Endpoint { url: call.url.clone(), halting: false, needed_by: vec![] };
        let endpoint = hosts.entry(host).or_insert_with(new);
        // What a halt works without it calls all the same: the bot is asked to stop too.
        endpoint.halting |= request.under_halt || request.best_effort;
        if request.under_halt && !request.best_effort {
            endpoint.needed_by.push(path);
        }
    }
    hosts.into_values().collect()
}

fn git_manager(kind: WorkloadKind, object: &DynamicObject) -> Option<String> {
    coexistence::git_manager(kind, object.metadata.managed_fields.as_deref()?).map(str::to_owned)
}

/// The labels of the pods that a workload makes.
fn template_labels(object: &DynamicObject) -> BTreeMap<String, String> {
    let at = |path: &str| object.data.pointer(path).and_then(Value::as_object);
    at("/spec/template/metadata/labels")
        .or_else(|| at("/spec/jobTemplate/spec/template/metadata/labels"))
        .into_iter()
        .flatten()
        .filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())))
        .collect()
}

fn git_problem(manager: &str, keys: &[Key]) -> Problem {
    let more = if keys.len() > 1 { format!(" and {} more", keys.len() - 1) } else { String::new() };
    let first = keys.first().map(ToString::to_string).unwrap_or_default();
    problem(
        "GitOpsConflict",
        format!(
            "{manager} sets the size of {first}{more}: while halted its whole sync would be refused; take \
             spec.replicas (of a CronJob: suspend; of a DaemonSet: nodeSelector, for nodeAffinity) out of the manifests"
        ),
    )
}

/// A service that requests go to and whose pods are those of a trading workload.
fn halted_source(
    namespace: &str,
    service: &str,
    selector: &BTreeMap<String, String>,
    workloads: &[(Key, BTreeMap<String, String>)],
    paths: &[String],
) -> Option<Problem> {
    let (key, _) = workloads.iter().find(|(_, labels)| picks(selector, labels))?;
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    Some(problem(
        "ReadsFromHaltedWorkload",
        format!(
            "Service {namespace}/{service} leads to pods of {} {}, which a halt stops: call the venue itself, or a \
             Supporting workload{}",
            key.kind,
            key.name,
            fields(&paths)
        ),
    ))
}

/// Shared by all systems.
pub(super) type SharedSurveyor = Arc<Surveyor>;

#[cfg(test)]
#[path = "prepared_tests.rs"]
mod tests;
