//! The kinds of workload that can be halted: the built-in ones, and those with a scale subresource that the charts list
//! (`scalableKinds`).
//!
//! A kind is known by its name alone: two listed kinds never have the same one. The replicas of all of them stand at
//! `.spec.replicas`, so that the guardrails need no more than a rule for each.

use std::{collections::BTreeSet, fmt, str::FromStr, sync::Arc};

use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, StatefulSet},
    batch::v1::CronJob,
};
use kube::api::ApiResource;
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{Workload, WorkloadKind};

use crate::args;

/// Where most kinds have the text form of what selects their pods.
const SELECTOR_PATH: &str = ".status.selector";
/// Kinds of the guardrails that are not [`WorkloadKind::BUILT_IN`].
const TAKEN: [&str; 3] = ["ReplicaSet", "Job", "Pod"];

/// A kind with a scale subresource.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scalable {
    /// The kind.
    pub kind: WorkloadKind,
    /// Its group.
    pub group: String,
    /// Its version.
    pub version: String,
    /// Its name in paths.
    pub plural: String,
    /// What its `labelSelectorPath` says, as a JSON Pointer.
    selector: String,
}

impl Scalable {
    /// Its group and version, as objects carry them.
    pub fn api_version(&self) -> String {
        format!("{}/{}", self.group, self.version)
    }

    /// What to call in the API server.
    pub fn resource(&self) -> ApiResource {
        ApiResource {
            group: self.group.clone(),
            version: self.version.clone(),
            api_version: self.api_version(),
            kind: self.kind.to_string(),
            plural: self.plural.clone(),
        }
    }

    /// The text form of what selects the pods of such an object.
    pub fn selector<'a>(&self, object: &'a Value) -> Option<&'a str> {
        object.pointer(&self.selector)?.as_str()
    }

    /// The rule by which the latch sees it.
    fn rule(&self) -> Value {
        json!({"apiGroups": [self.group], "apiVersions": [self.version], "operations": ["CREATE", "UPDATE"],
            "scope": "Namespaced", "resources": [self.plural, format!("{}/scale", self.plural)]})
    }
}

impl FromStr for Scalable {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| format!("{text:?}: {what}; write it like argoproj.io/v1alpha1/Rollout/rollouts");
        let (named, path) = text.split_once(':').unwrap_or((text, SELECTOR_PATH));
        let [group, version, kind, plural] = named.split('/').collect::<Vec<_>>()[..] else {
            return Err(wrong("not a group, a version, a kind and its plural"));
        };
        for part in [group, version, plural] {
            args::dns_subdomain(part).map_err(|why| wrong(&why))?;
        }
        let kind: WorkloadKind = kind.parse().map_err(|why: String| wrong(&why))?;
        if WorkloadKind::BUILT_IN.contains(&kind) || TAKEN.contains(&kind.as_str()) {
            return Err(wrong(&format!("there is a built-in kind {kind}")));
        }
        let fields: Vec<_> = path.split('.').collect();
        let name = |field: &&str| !field.is_empty() && field.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if fields.len() < 2 || !fields[0].is_empty() || !fields[1..].iter().all(name) {
            return Err(wrong(&format!("{path:?} is not a path such as {SELECTOR_PATH}")));
        }
        let (group, version, plural) = (group.into(), version.into(), plural.into());
        Ok(Self { kind, group, version, plural, selector: fields.join("/") })
    }
}

/// The kinds with a scale subresource that the operator is told of. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kinds(Arc<[Scalable]>);

impl Kinds {
    /// All of them, in the order of the chart.
    pub fn scalable(&self) -> &[Scalable] {
        &self.0
    }

    /// The listed kind.
    pub fn get(&self, kind: WorkloadKind) -> Option<&Scalable> {
        self.0.iter().find(|s| s.kind == kind)
    }

    /// What to call in the API server for a kind. An error for one that is neither built in nor listed.
    pub fn resource(&self, kind: WorkloadKind) -> Result<ApiResource, String> {
        match kind {
            WorkloadKind::Deployment => Ok(ApiResource::erase::<Deployment>(&())),
            WorkloadKind::StatefulSet => Ok(ApiResource::erase::<StatefulSet>(&())),
            WorkloadKind::CronJob => Ok(ApiResource::erase::<CronJob>(&())),
            WorkloadKind::DaemonSet => Ok(ApiResource::erase::<DaemonSet>(&())),
            WorkloadKind::Scalable(_) => self.get(kind).map(Scalable::resource).ok_or_else(|| self.unlisted(kind, "")),
        }
    }

    /// Whether the kind that a TradingSystem names can be halted, or why not.
    pub fn check(&self, workload: &Workload) -> Result<(), String> {
        let WorkloadKind::Scalable(_) = workload.kind else { return Ok(()) };
        let wanted = workload.api_version.as_deref().unwrap_or_default();
        match self.get(workload.kind) {
            Some(listed) if listed.api_version() == wanted => Ok(()),
            _ => Err(self.unlisted(workload.kind, wanted)),
        }
    }

    fn unlisted(&self, kind: WorkloadKind, api_version: &str) -> String {
        let listed: Vec<_> = self.0.iter().map(|s| format!("{} {}", s.api_version(), s.kind)).collect();
        let listed = if listed.is_empty() { "none is".into() } else { format!("listed are {}", listed.join(", ")) };
        let named = format!("{api_version} {kind}");
        format!(
            "{} is not listed in scalableKinds of the charts standfast and standfast-crds: {listed}",
            named.trim_start()
        )
    }

    /// The rules by which the latch sees them.
    pub fn rules(&self) -> impl Iterator<Item = Value> {
        self.0.iter().map(Scalable::rule)
    }
}

impl FromStr for Kinds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all: Vec<Scalable> = args::parts(text)?.map(str::parse).collect::<Result<_, _>>()?;
        let mut seen = BTreeSet::new();
        match all.iter().find(|s| !seen.insert(s.kind)) {
            Some(twice) => Err(format!("two kinds are called {}: a kind is known by its name", twice.kind)),
            None => Ok(Self(all.into())),
        }
    }
}

impl fmt::Display for Kinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: Vec<_> = self.0.iter().map(|s| format!("{} {}", s.api_version(), s.kind)).collect();
        f.write_str(&kinds.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn a_listed_kind_can_be_halted_by_its_name_and_version() {
        let kinds: Kinds =
            "argoproj.io/v1alpha1/Rollout/rollouts, apps.kruise.io/v1alpha1/CloneSet/clonesets:.status.labelSelector"
                .parse()
                .unwrap();
        let [rollout, clone_set] = kinds.scalable() else { panic!() };
        let object = json!({"status": {"selector": "app=a", "labelSelector": "app=b"}});
        assert_eq!((rollout.selector(&object), clone_set.selector(&object)), (Some("app=a"), Some("app=b")));
        assert_eq!(kinds.resource(rollout.kind).unwrap(), rollout.resource());
        assert_eq!(kinds.resource(WorkloadKind::CronJob).unwrap().plural, "cronjobs");
        let check = |api_version: &str, kind: &str| {
            let workload = json!({"apiVersion": api_version, "kind": kind, "name": "bot", "role": "Trading"});
            kinds.check(&serde_json::from_value(workload).unwrap())
        };
        assert_eq!(check("argoproj.io/v1alpha1", "Rollout"), Ok(()));
        for (api_version, kind) in [("argoproj.io/v1", "Rollout"), ("argoproj.io/v1alpha1", "Workflow")] {
            let why = check(api_version, kind).unwrap_err();
            let said = format!(
                "{api_version} {kind} is not listed in scalableKinds of the charts standfast and standfast-crds: \
                 listed are argoproj.io/v1alpha1 Rollout, apps.kruise.io/v1alpha1 CloneSet"
            );
            assert_eq!(why, said);
        }
    }

    #[rstest]
    #[case("argoproj.io/v1alpha1/Rollout", "not a group, a version, a kind and its plural")]
    #[case("argoproj.io/v1alpha1/rollout/rollouts", "is not the name of a kind")]
    #[case("*/v1alpha1/Rollout/rollouts", "is not a valid name")]
    #[case("argoproj.io/v1alpha1/Rollout/*", "is not a valid name")]
    #[case("apps.kruise.io/v1beta1/StatefulSet/statefulsets", "there is a built-in kind StatefulSet")]
    #[case("x.io/v1/Pod/pods", "there is a built-in kind Pod")]
    #[case("a.io/v1/A/as:status", "is not a path such as .status.selector")]
    #[case("a.io/v1/A/as:.a[0]", "is not a path such as .status.selector")]
    #[case("a.io/v1/A/as,b.io/v1/A/as", "two kinds are called A")]
    fn wrong_kinds_are_explained(#[case] text: &str, #[case] why: &str) {
        let said = text.parse::<Kinds>().unwrap_err();
        assert!(said.contains(why), "{said}");
    }
}
