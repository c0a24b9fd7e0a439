//! Somebody undid a part of a halt: it is done again, and the status names who it was.

use std::time::Duration;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry, jiff::Timestamp};
use kube::{Api, ResourceExt, api::DynamicObject};
use standfast_crds::v1alpha1::{
    TradingHalt, TradingHaltStatus, WorkloadKind, halt_conditions as c, is_true, set_condition,
};
use tokio::time::Instant;

use super::{HaltReconciler, act::EFFECT_DEADLINE, decide::ActiveWorkload, evidence, memory::Memory};
use crate::{
    client,
    scale::{FIELD_MANAGER, Size},
    workloads::Key,
};

/// How long a contention is shown after it last happened.
const SHOWN: Duration = Duration::from_secs(600);

/// Who last set the size of a workload, of all that did.
pub fn manager(fields: &[ManagedFieldsEntry], kind: WorkloadKind) -> Option<&str> {
    let field = match kind {
        WorkloadKind::CronJob => "/f:spec/f:suspend",
        WorkloadKind::Deployment | WorkloadKind::StatefulSet | WorkloadKind::Scalable(_) => "/f:spec/f:replicas",
        // As a whole: who takes one label out of it sets it. Nobody is recorded if nothing is left.
        WorkloadKind::DaemonSet => "/f:spec/f:template/f:spec/f:nodeSelector",
    };
    fields
        .iter()
        .filter(|e| e.subresource.as_deref() != Some("status") && e.manager.as_deref() != Some(FIELD_MANAGER))
        .filter(|e| e.fields_v1.as_ref().is_some_and(|f| f.0.pointer(field).is_some()))
        .max_by_key(|e| e.time.as_ref().map(|t| t.0))
        .and_then(|e| e.manager.as_deref())
}

impl HaltReconciler {
    /// Names who raised workloads that had been stopped. Only what got through the latch is contention.
    pub(super) async fn note_contention(
        &self,
        halt: &TradingHalt,
        status: &mut TradingHaltStatus,
        active: &[ActiveWorkload],
        memory: &mut Memory,
        now: Timestamp,
    ) {
        let generation = halt.metadata.generation;
        let raised = match memory.raised(active).filter(|_| status.times.scaled_at.is_some()) {
            // The cache may be behind our own change: only what is raised live was raised by somebody.
            Some(workload) => match self.scaler.read(&workload.key).await {
                Ok((size, _)) if size != Size::stopped(workload.key.kind) => Some(workload),
                // Not known is not raised. It is stopped in any case.
                Ok(_) | Err(_) => None,
            },
            None => None,
        };
        let recent = memory.contended.is_some_and(|at| at.elapsed() < SHOWN);
        match raised {
            Some(workload) => {
                let who = self.who_raised(&workload.key).await;
                let message = format!("{} was raised by {who} under the halt, and is stopped again", workload.key);
                memory.contended = Some(Instant::now());
                evidence::append(&mut status.evidence, now, "Contended", &message, false);
                set_condition(&mut status.conditions, now, generation, (c::CONTENDED, "True", "Raised"), message);
            }
            None if recent => {}
            None if memory.contended.is_none() && is_true(&status.conditions, c::CONTENDED) => {
                // Another process saw it; it is shown for as long as if this one had.
                memory.contended = Some(Instant::now());
            }
            None => {
                let message = "nobody undid a part of the halt of late";
                set_condition(&mut status.conditions, now, generation, (c::CONTENDED, "False", "Undisputed"), message);
            }
        }
    }

    async fn who_raised(&self, key: &Key) -> String {
        let Ok(resource) = self.workloads.kinds().resource(key.kind) else { return "somebody".into() };
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &key.namespace, &resource);
        let read = async { Ok(api.get_metadata(&key.name).await?.managed_fields().to_vec()) };
        match client::read(EFFECT_DEADLINE, format!("reading the field managers of {key}"), read).await {
            Ok(fields) => match manager(&fields, key.kind) {
                Some(manager) => format!("field manager {manager}"),
                None => "somebody whose field manager is not recorded".into(),
            },
            _ => "somebody (its field managers could not be read)".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_of_those_who_set_replicas_is_named_and_never_ourselves() {
        let fields: Vec<ManagedFieldsEntry> = serde_json::from_value(serde_json::json!([
            {"manager": "kubectl-client-side-apply", "time": "2026-01-01T00:00:00Z", "fieldsV1": {"f:spec": {"f:replicas": {}}}},
            {"manager": "standfast", "time": "2026-01-01T00:00:03Z", "subresource": "scale", "fieldsV1": {"f:spec": {"f:replicas": {}}}},
            {"manager": "argocd-controller", "time": "2026-01-01T00:00:02Z", "fieldsV1": {"f:spec": {"f:replicas": {}}}},
            {"manager": "kube-controller-manager", "time": "2026-01-01T00:00:04Z", "subresource": "status", "fieldsV1": {"f:status": {"f:replicas": {}}}},
            {"manager": "kubectl-edit", "time": "2026-01-01T00:00:05Z", "fieldsV1": {"f:metadata": {}}},
            {"manager": "flux", "time": "2026-01-01T00:00:01Z", "fieldsV1": {"f:spec": {"f:template": {"f:spec": {"f:nodeSelector": {}}}}}},
        ]))
        .unwrap();
        assert_eq!(manager(&fields, WorkloadKind::Deployment), Some("argocd-controller"));
        assert_eq!(manager(&fields, WorkloadKind::CronJob), None);
        assert_eq!(manager(&fields, WorkloadKind::DaemonSet), Some("flux"));
    }
}
