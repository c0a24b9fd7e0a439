//! The guardrails: the admission policies that hold a latch. What a cluster has is compared with the copy that the
//! operator was built with, so that a policy that is missing or was edited is noticed.

use std::{
    collections::BTreeSet,
    sync::{Arc, LazyLock},
    time::Duration,
};

use futures::{StreamExt, stream};
use k8s_openapi::{
    api::{
        admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
        core::v1::Namespace,
    },
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, ObjectMeta},
};
use serde_json::{Map, Value, json};
use standfast_crds::guardrails::{
    APPROVAL_POLICY, LATCH_ENABLED, LATCH_LABEL, LATCH_POLICY, MANIFEST, REQUESTER_POLICY,
};
use tokio::{sync::Mutex, time::Instant};

use crate::kinds::Kinds;

/// The longest that one call may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long an answer is good.
const KEEP: Duration = Duration::from_secs(25);
/// How long an answer is good that is not `Intact`.
const KEEP_BAD: Duration = Duration::from_secs(5);
/// How long after a change of a policy an API server may still decide by the old one. Seen: about a second.
const SETTLED: SignedDuration = SignedDuration::from_secs(10);

/// What became of the guardrails in a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuardrailState {
    /// All of them are there, as they were shipped.
    Intact,
    /// These are not there, as `ValidatingAdmissionPolicy/standfast-latch`.
    Missing(Vec<String>),
    /// These were changed, and none is missing.
    Edited(Vec<String>),
    /// They could not be read: why.
    Unknown(String),
}

impl GuardrailState {
    /// Whether everything is there as it was shipped.
    pub fn intact(&self) -> bool {
        *self == Self::Intact
    }

    /// Reason and message for a condition, unless everything is as it should be.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        let repair = "install the standfast-crds chart again";
        match self {
            Self::Intact => None,
            Self::Missing(names) => Some(("GuardrailsMissing", format!("{} not found: {repair}", names.join(", ")))),
            Self::Edited(names) => {
                let kinds = "with the scalableKinds of the chart standfast";
                let names = names.join(", ");
                Some(("GuardrailsEdited", format!("{names} differ from what was shipped: {repair}, {kinds}")))
            }
            Self::Unknown(why) => Some(("GuardrailsUnknown", why.clone())),
        }
    }
}

/// One policy or binding as it was shipped.
#[derive(Clone, Debug)]
struct Shipped {
    kind: &'static str,
    name: String,
    spec: Value,
}

impl Shipped {
    fn resource(&self) -> ApiResource {
        match self.kind {
            POLICY => ApiResource::erase::<ValidatingAdmissionPolicy>(&()),
            _ => ApiResource::erase::<ValidatingAdmissionPolicyBinding>(&()),
        }
    }
}

const POLICY: &str = "ValidatingAdmissionPolicy";
const BINDING: &str = "ValidatingAdmissionPolicyBinding";

static SHIPPED: LazyLock<Result<Vec<Shipped>, String>> = LazyLock::new(|| shipped(MANIFEST));

fn shipped(manifest: &str) -> Result<Vec<Shipped>, String> {
    let unreadable = |why: String| format!("the built-in guardrails cannot be read: {why}");
    let documents: Vec<Value> = serde_saphyr::from_multiple(manifest).map_err(|e| unreadable(e.to_string()))?;
    documents
        .into_iter()
        .map(|document| {
            let kind = match document["kind"].as_str() {
                Some(POLICY) => POLICY,
                Some(BINDING) => BINDING,
                other => return Err(unreadable(format!("unexpected kind {other:?}"))),
            };
            let name = document["metadata"]["name"].as_str().ok_or_else(|| unreadable("no name".into()))?.to_owned();
            Ok(Shipped { kind, name, spec: normal(document["spec"].clone()) })
        })
        .collect()
}

/// The policies and bindings as they are shipped where these kinds are listed: the latch has a rule more for each.
fn shipped_with(kinds: &Kinds) -> Result<Vec<Shipped>, String> {
    let mut all = SHIPPED.clone()?;
    let latch = all.iter_mut().filter(|s| s.kind == POLICY && s.name == LATCH_POLICY);
    for rules in latch.filter_map(|s| s.spec.pointer_mut("/matchConstraints/resourceRules")?.as_array_mut()) {
        rules.extend(kinds.rules());
        rules.sort_by_key(Value::to_string);
    }
    Ok(all)
}

/// `spec` with the defaults of the API server filled in, and without what says nothing: null, empty lists and maps.
fn normal(mut spec: Value) -> Value {
    if let Some(policy) = spec.as_object_mut().filter(|s| s.contains_key("matchConstraints")) {
        default(policy, "failurePolicy", json!("Fail"));
        if let Some(constraints) = policy.get_mut("matchConstraints").and_then(Value::as_object_mut) {
            default(constraints, "matchPolicy", json!("Equivalent"));
            for rules in ["resourceRules", "excludeResourceRules"] {
                for rule in constraints.get_mut(rules).and_then(Value::as_array_mut).into_iter().flatten() {
                    if let Some(rule) = rule.as_object_mut() {
                        default(rule, "scope", json!("*"));
                    }
                }
            }
        }
    }
    prune(&mut spec);
    // Their order means nothing, and that of the charts' lists of kinds may differ.
    if let Some(rules) = spec.pointer_mut("/matchConstraints/resourceRules").and_then(Value::as_array_mut) {
        rules.sort_by_key(Value::to_string);
    }
    spec
}

fn default(object: &mut Map<String, Value>, key: &str, value: Value) {
    object.entry(key).or_insert(value);
}

fn prune(value: &mut Value) {
    let says_nothing = |v: &Value| match v {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    };
    match value {
        Value::Array(items) => items.iter_mut().for_each(prune),
        Value::Object(fields) => {
            fields.values_mut().for_each(prune);
            fields.retain(|_, v| !says_nothing(v));
        }
        _ => {}
    }
}

/// What one look at one object found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Same,
    Gone,
    Different,
}

/// Compares live with shipped. An object that is being deleted is as good as gone.
fn compare(shipped: &Shipped, live: Option<&DynamicObject>) -> Look {
    match live {
        None => Look::Gone,
        Some(live) if live.metadata.deletion_timestamp.is_some() => Look::Gone,
        Some(live) if normal(live.data["spec"].clone()) == shipped.spec => Look::Same,
        Some(_) => Look::Different,
    }
}

fn summary(looks: impl IntoIterator<Item = (String, Look)>) -> GuardrailState {
    let (mut gone, mut different) = (BTreeSet::new(), BTreeSet::new());
    for (name, look) in looks {
        match look {
            Look::Same => {}
            Look::Gone => drop(gone.insert(name)),
            Look::Different => drop(different.insert(name)),
        }
    }
    match (gone.is_empty(), different.is_empty()) {
        (true, true) => GuardrailState::Intact,
        (true, false) => GuardrailState::Edited(different.into_iter().collect()),
        (false, _) => GuardrailState::Missing(gone.into_iter().collect()),
    }
}

/// When the object became what it is: its creation, or the last change of it that is no change of its status.
fn last_changed(meta: &ObjectMeta) -> Option<Timestamp> {
    let changes = meta.managed_fields.iter().flatten().filter(|f| f.subresource.as_deref() != Some("status"));
    let changes = changes.filter_map(|f| f.time.as_ref());
    meta.creation_timestamp.iter().chain(changes).map(|t| t.0).max()
}

/// Since when every API server has surely decided by these.
fn enforced_since(changed: impl IntoIterator<Item = Option<Timestamp>>) -> Option<Timestamp> {
    let latest = changed.into_iter().try_fold(Timestamp::MIN, |latest, at| Some(latest.max(at?)))?;
    latest.checked_add(SETTLED).ok()
}

/// What one look at one object found, and when it became so.
type Looked = (String, Look, Option<Timestamp>);

async fn look(client: &Client, expected: &Shipped) -> Result<Looked, String> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &expected.resource());
    let label = format!("{}/{}", expected.kind, expected.name);
    match tokio::time::timeout(DEADLINE, api.get_opt(&expected.name)).await {
        Ok(Ok(live)) => {
            let changed = live.as_ref().and_then(|l| last_changed(&l.metadata));
            Ok((label, compare(expected, live.as_ref()), changed))
        }
        Ok(Err(error)) => Err(format!("reading {label}: {error}")),
        Err(_) => Err(format!("reading {label}: no answer within {} s", DEADLINE.as_secs())),
    }
}

/// The state of all of them, and since when names that people sign with are surely true.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Inspection {
    state: GuardrailState,
    names_true_since: Option<Timestamp>,
}

/// Reads all policies and bindings live and compares them with the built-in copy.
async fn inspect(client: &Client, shipped: &Result<Vec<Shipped>, String>) -> Inspection {
    let unknown = |error| Inspection { state: GuardrailState::Unknown(error), names_true_since: None };
    let shipped = match shipped {
        Ok(shipped) => shipped,
        Err(error) => return unknown(error.clone()),
    };
    let looks: Vec<_> = shipped.iter().map(|expected| look(client, expected)).collect();
    let looks: Vec<_> = stream::iter(looks).buffer_unordered(6).collect().await;
    let mut unread = None;
    let mut read = vec![];
    for look in looks {
        match look {
            Ok(look) => read.push(look),
            Err(error) => unread = Some(error),
        }
    }
    let signed = |label: &str| label.ends_with(APPROVAL_POLICY) || label.ends_with(REQUESTER_POLICY);
    let names_true_since = enforced_since(read.iter().filter(|l| signed(&l.0)).map(|l| l.2));
    // What is certainly wrong is said even when something else could not be read.
    match (summary(read.into_iter().map(|(label, look, _)| (label, look))), unread) {
        (GuardrailState::Intact, Some(error)) => unknown(error),
        (state, _) => Inspection { state, names_true_since },
    }
}

/// Whether latches work in the namespace: whether it carries the label `standfast.dev/latch=enabled`.
pub async fn namespace_enabled(client: &Client, namespace: &str) -> Result<bool, String> {
    let api: Api<Namespace> = Api::all(client.clone());
    match tokio::time::timeout(DEADLINE, api.get_metadata(namespace)).await {
        Ok(Ok(meta)) => Ok(meta.labels().get(LATCH_LABEL).is_some_and(|v| v == LATCH_ENABLED)),
        Ok(Err(error)) => Err(format!("reading Namespace {namespace}: {error}")),
        Err(_) => Err(format!("reading Namespace {namespace}: no answer within {} s", DEADLINE.as_secs())),
    }
}

/// Whether the latch policy leaves this namespace out, whatever labels it has.
pub fn namespace_excluded(namespace: &str) -> bool {
    let policy = SHIPPED.iter().flatten().find(|s| s.kind == POLICY && s.name == LATCH_POLICY);
    let expressions =
        policy.and_then(|p| p.spec["matchConstraints"]["namespaceSelector"]["matchExpressions"].as_array());
    expressions.into_iter().flatten().any(|e| {
        e["key"] == "kubernetes.io/metadata.name"
            && e["operator"] == "NotIn"
            && e["values"].as_array().is_some_and(|v| v.iter().any(|v| v == namespace))
    })
}

/// The state of the guardrails, read again at most every 25 s (every 5 s while something is wrong). Cheap to clone.
#[derive(Clone)]
pub struct Guardrails {
    client: Client,
    shipped: Arc<Result<Vec<Shipped>, String>>,
    last: Arc<Mutex<Option<(Instant, Inspection)>>>,
}

impl Guardrails {
    /// Reads with this client. These kinds are listed in both charts.
    pub fn new(client: Client, kinds: &Kinds) -> Self {
        Self { client, shipped: Arc::new(shipped_with(kinds)), last: Arc::default() }
    }

    /// The state, at most 25 s old.
    pub async fn state(&self) -> GuardrailState {
        self.recent().await.state
    }

    async fn recent(&self) -> Inspection {
        // Held while reading, so that many askers cause one read.
        let mut last = self.last.lock().await;
        if let Some((at, found)) = &*last {
            let keep = if found.state.intact() { KEEP } else { KEEP_BAD };
            if at.elapsed() < keep {
                return found.clone();
            }
        }
        let found = inspect(&self.client, &self.shipped).await;
        *last = Some((Instant::now(), found.clone()));
        found
    }

    async fn now(&self) -> Inspection {
        let found = inspect(&self.client, &self.shipped).await;
        *self.last.lock().await = Some((Instant::now(), found.clone()));
        found
    }

    /// Since when the API server has surely seen to it that `approver`, `groups` and `requestedBy` are true: both policies
    /// are there as shipped, and nobody changed them since. At most 25 s old. An error says why nothing can be told.
    pub async fn names_true_since(&self) -> Result<Timestamp, String> {
        since(self.recent().await)
    }

    /// The same as it is now: for decisions that cannot be taken back.
    pub async fn names_true_since_now(&self) -> Result<Timestamp, String> {
        since(self.now().await)
    }

    /// The state as it is now: for decisions that cannot be taken back.
    pub async fn fresh(&self) -> GuardrailState {
        self.now().await.state
    }
}

fn since(found: Inspection) -> Result<Timestamp, String> {
    if let Some((_, why)) = found.state.problem() {
        return Err(why);
    }
    found.names_true_since.ok_or_else(|| "since when the guardrails are in place is not known".into())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn live(spec: Value) -> DynamicObject {
        let mut object = DynamicObject::new("standfast-latch", &ApiResource::erase::<ValidatingAdmissionPolicy>(&()));
        object.data = json!({ "spec": spec });
        object
    }

    fn latch() -> &'static Shipped {
        SHIPPED.as_ref().unwrap().iter().find(|s| s.kind == POLICY && s.name == LATCH_POLICY).unwrap()
    }

    fn binding() -> &'static Shipped {
        SHIPPED.as_ref().unwrap().iter().find(|s| s.kind == BINDING && s.name == LATCH_POLICY).unwrap()
    }

    #[test]
    fn the_order_of_the_kinds_means_nothing() {
        let policy = |kinds: &str| {
            let all = shipped_with(&kinds.parse().unwrap()).unwrap();
            all.into_iter().find(|s| s.kind == POLICY && s.name == LATCH_POLICY).unwrap()
        };
        let (one, other) = (policy("a.io/v1/A/as,b.io/v1/B/bs"), policy("b.io/v1/B/bs,a.io/v1/A/as"));
        assert_eq!(compare(&one, Some(&live(other.spec.clone()))), Look::Same);
        assert_eq!(compare(&one, Some(&live(latch().spec.clone()))), Look::Different);
    }

    #[test]
    fn every_policy_that_is_shipped_has_a_binding() {
        let all = SHIPPED.as_ref().unwrap();
        let names = |kind| all.iter().filter(|s| s.kind == kind).map(|s| s.name.as_str()).collect::<BTreeSet<_>>();
        assert!(!names(POLICY).is_empty());
        assert_eq!(names(POLICY), names(BINDING));
    }

    #[test]
    fn what_reads_back_with_defaults_is_the_same() {
        let mut spec = latch().spec.clone();
        spec["matchConditions"] = json!([]);
        spec["matchConstraints"]["objectSelector"] = json!({});
        spec["matchConstraints"]["excludeResourceRules"] = Value::Null;
        assert_eq!(compare(latch(), Some(&live(spec))), Look::Same);
        let mut spec = latch().spec.clone();
        spec.as_object_mut().unwrap().remove("failurePolicy");
        assert_eq!(compare(latch(), Some(&live(spec))), Look::Same);
    }

    #[rstest]
    #[case::gone_soft("/failurePolicy", json!("Ignore"))]
    #[case::condition_added("/matchConditions", json!([{"name": "never", "expression": "false"}]))]
    #[case::rules_excluded("/matchConstraints/excludeResourceRules", json!([{"apiGroups": ["*"]}]))]
    #[case::objects_excluded("/matchConstraints/objectSelector", json!({"matchLabels": {"a": "b"}}))]
    #[case::expression("/validations/0/expression", json!("true"))]
    #[case::unknown_field("/somethingNew", json!("x"))]
    fn an_edit_of_the_policy_is_seen(#[case] at: &str, #[case] value: Value) {
        let mut spec = latch().spec.clone();
        let (parent, field) = at.rsplit_once('/').unwrap();
        spec.pointer_mut(parent).unwrap().as_object_mut().unwrap().insert(field.into(), value);
        assert_eq!(compare(latch(), Some(&live(spec))), Look::Different);
    }

    #[rstest]
    #[case::warn_only("/validationActions", json!(["Warn"]))]
    #[case::other_parameters("/paramRef", json!({"name": "x", "parameterNotFoundAction": "Allow"}))]
    #[case::some_namespaces("/matchResources", json!({"namespaceSelector": {"matchLabels": {"a": "b"}}}))]
    fn an_edit_of_the_binding_is_seen(#[case] at: &str, #[case] value: Value) {
        let mut spec = binding().spec.clone();
        spec.as_object_mut().unwrap().insert(at[1..].into(), value);
        assert_eq!(compare(binding(), Some(&live(spec))), Look::Different);
    }

    /// A policy that was switched off for a moment is not as old as it says.
    #[test]
    fn a_policy_is_as_old_as_its_last_change() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let change = |second: i64, subresource: Option<&str>| json!({"time": at(second), "subresource": subresource});
        let meta = |changes: &[Value]| {
            let meta = json!({"creationTimestamp": at(100), "managedFields": changes});
            last_changed(&serde_json::from_value(meta).unwrap())
        };
        assert_eq!(meta(&[]), Some(at(100)));
        assert_eq!(meta(&[change(100, None), change(500, Some("status"))]), Some(at(100)));
        assert_eq!(meta(&[change(300, None), change(200, None)]), Some(at(300)));
        assert_eq!(last_changed(&ObjectMeta::default()), None);
        assert_eq!(enforced_since([Some(at(100)), Some(at(300)), Some(at(200))]), Some(at(310)));
        assert_eq!(enforced_since([Some(at(100)), None]), None, "one that is not there enforces nothing");
    }

    #[test]
    fn what_is_missing_wins_over_what_was_edited() {
        assert_eq!(compare(latch(), None), Look::Gone);
        let looks = [("a".into(), Look::Different), ("b".into(), Look::Gone), ("c".into(), Look::Same)];
        assert_eq!(summary(looks), GuardrailState::Missing(vec!["b".into()]));
        assert_eq!(summary([("a".into(), Look::Different)]), GuardrailState::Edited(vec!["a".into()]));
        assert_eq!(summary([("a".into(), Look::Same)]), GuardrailState::Intact);
    }

    #[rstest]
    #[case("kube-system", true)]
    #[case("trading", false)]
    fn some_namespaces_are_left_out(#[case] namespace: &str, #[case] excluded: bool) {
        assert_eq!(namespace_excluded(namespace), excluded);
    }
}
