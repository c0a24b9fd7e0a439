//! What the operator must be allowed to do for a halt, and whether it is.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::{Api, Client, api::PostParams};
use standfast_crds::v1alpha1::{JobAction, Problem, TradingSystemSpec, WorkloadKind};
use tokio::time::Instant;

use super::{
    prepared::{Survey, read, some_at_once},
    spec::{self, problem},
};
use crate::{kinds::Kinds, workloads::View};

/// How long a permission that was there is taken to be there.
const PERMISSION_KEEP: Duration = Duration::from_secs(300);
/// Something that the operator must be allowed to do in a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Permission {
    verb: &'static str,
    group: Cow<'static, str>,
    resource: Cow<'static, str>,
    subresource: &'static str,
}

/// Asks for permissions, and remembers for a while those that were there.
pub(super) struct Permissions {
    client: Client,
    kinds: Kinds,
    allowed: Mutex<HashMap<(String, Permission), Instant>>,
}

impl Permissions {
    pub fn new(client: Client, kinds: Kinds) -> Self {
        Self { client, kinds, allowed: Mutex::default() }
    }

    /// Which of the permissions that a halt of this system needs are missing.
    pub async fn survey(&self, namespace: &str, spec: &TradingSystemSpec, trading: &[View]) -> Survey {
        let wanted = needed(spec, trading, &self.kinds);
        let questions = wanted.iter().map(|p| async move { (p, self.permitted(namespace, p).await) });
        let mut survey = Survey::default();
        for (permission, answer) in some_at_once(questions).await {
            match answer {
                Ok(true) => {}
                Ok(false) => survey.problems.push(permission.missing(namespace)),
                Err(error) => survey.unknown.push(error),
            }
        }
        survey
    }

    async fn permitted(&self, namespace: &str, permission: &Permission) -> Result<bool, String> {
        let key = (namespace.to_owned(), permission.clone());
        let lock = || self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        if lock().get(&key).is_some_and(|at| at.elapsed() < PERMISSION_KEEP) {
            return Ok(true);
        }
        let api: Api<SelfSubjectAccessReview> = Api::all(self.client.clone());
        let review = permission.review(namespace);
        let what = format!("asking whether the operator may {permission}");
        let answer = read(&what, api.create(&PostParams::default(), &review)).await?;
        let allowed = answer.status.is_some_and(|s| s.allowed);
        let mut known = lock();
        known.retain(|_, at| at.elapsed() < PERMISSION_KEEP);
        if allowed {
            known.insert(key, Instant::now());
        }
        Ok(allowed)
    }
}

impl std::fmt::Display for Permission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        if !self.subresource.is_empty() {
            write!(f, "/{}", self.subresource)?;
        }
        Ok(())
    }
}

impl Permission {
    fn new(
        verb: &'static str,
        group: impl Into<Cow<'static, str>>,
        resource: impl Into<Cow<'static, str>>,
        subresource: &'static str,
    ) -> Self {
        Self { verb, group: group.into(), resource: resource.into(), subresource }
    }

    fn review(&self, namespace: &str) -> SelfSubjectAccessReview {
        let text = |t: &str| (!t.is_empty()).then(|| t.to_owned());
        SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    namespace: text(namespace),
                    verb: text(self.verb),
                    group: Some(self.group.to_string()),
                    resource: text(&self.resource),
                    subresource: text(self.subresource),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        }
    }

    fn missing(&self, namespace: &str) -> Problem {
        problem(
            "PermissionMissing",
            format!(
                "the operator may not {self} in namespace {namespace}: install the standfast chart with this namespace \
                 in its scope, or bind the operator's role there"
            ),
        )
    }
}

/// What halting this system needs.
fn needed(spec: &TradingSystemSpec, trading: &[View], kinds: &Kinds) -> Vec<Permission> {
    let mut wanted = vec![
        Permission::new("update", "standfast.dev", "tradinghalts", "status"),
        Permission::new("release", "standfast.dev", "tradinghalts", ""),
        // For a halt of several systems.
        Permission::new("create", "standfast.dev", "tradinghalts", ""),
        Permission::new("create", "", "configmaps", ""),
        Permission::new("get", "", "configmaps", ""),
        Permission::new("update", "", "configmaps", ""),
        Permission::new("delete", "", "configmaps", ""),
        Permission::new("list", "", "pods", ""),
    ];
    let has = |kind: WorkloadKind| {
        trading.iter().any(|v| v.key.kind == kind) || spec.workloads.iter().any(|w| w.kind == kind)
    };
    for (kind, resource) in [(WorkloadKind::Deployment, "deployments"), (WorkloadKind::StatefulSet, "statefulsets")] {
        if has(kind) {
            wanted.push(Permission::new("get", "apps", resource, "scale"));
            wanted.push(Permission::new("patch", "apps", resource, "scale"));
        }
    }
    for kind in kinds.scalable().iter().filter(|k| has(k.kind)) {
        for verb in ["get", "patch"] {
            wanted.push(Permission::new(verb, kind.group.clone(), kind.plural.clone(), "scale"));
        }
    }
    if has(WorkloadKind::CronJob) {
        wanted.push(Permission::new("patch", "batch", "cronjobs", ""));
        wanted.push(Permission::new("list", "batch", "jobs", ""));
        wanted.push(Permission::new("patch", "batch", "jobs", ""));
    }
    if has(WorkloadKind::DaemonSet) {
        wanted.push(Permission::new("get", "apps", "daemonsets", ""));
        wanted.push(Permission::new("patch", "apps", "daemonsets", ""));
    }
    if !spec::jobs(spec).is_empty() {
        wanted.push(Permission::new("create", "batch", "jobs", ""));
    }
    let given_to_jobs = |job: &JobAction| job.env.iter().any(|env| env.secret_key_ref.is_some());
    if spec::requests(spec).iter().any(|(_, r)| r.http.auth.is_some())
        || spec::jobs(spec).iter().any(|(_, job)| given_to_jobs(job))
    {
        wanted.push(Permission::new("get", "", "secrets", ""));
    }
    wanted
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn permissions_are_those_that_the_system_needs() {
        let spec: TradingSystemSpec = serde_json::from_value(json!({
            "workloads": [
                {"kind": "Deployment", "name": "bot", "role": "Trading"},
                {"kind": "CronJob", "name": "rebalance", "role": "Trading"},
                {"kind": "DaemonSet", "name": "probe", "role": "Trading"},
                {"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "name": "canary", "role": "Trading"},
            ],
            "venues": [{
                "name": "alpaca",
                "cancelOrders": [{"http": {"method": "DELETE", "url": "https://venue.example/v2/orders", "auth": {"headers": [
                    {"name": "Authorization", "secretKeyRef": {"name": "alpaca", "key": "token"}},
                ]}}}],
                "openOrders": [{"job": {"image": "bot"}}],
            }],
        }))
        .unwrap();
        let kinds = "argoproj.io/v1alpha1/Rollout/rollouts,apps.kruise.io/v1alpha1/CloneSet/clonesets".parse().unwrap();
        let wanted: Vec<_> = needed(&spec, &[], &kinds).iter().map(ToString::to_string).collect();
        for needed in [
            "patch deployments/scale",
            "patch cronjobs",
            "patch daemonsets",
            "patch rollouts/scale",
            "patch jobs",
            "create jobs",
            "get secrets",
            "release tradinghalts",
            "create tradinghalts",
        ] {
            assert!(wanted.iter().any(|w| w == needed), "{needed}");
        }
        assert!(!wanted.iter().any(|w| w.contains("statefulsets") || w.contains("clonesets")));
        let review = Permission::new("patch", "apps", "deployments", "scale").review("trading");
        let attributes = review.spec.resource_attributes.unwrap();
        assert_eq!(attributes.subresource.as_deref(), Some("scale"));
        let problem = Permission::new("patch", "apps", "deployments", "scale").missing("trading");
        assert!(problem.message.starts_with("the operator may not patch deployments/scale in namespace trading"));
    }
}
