//! Approvals: which of them count ([`count`](mod@count)), and what their own status says ([`standing`]). That status
//! is for people: whatever asks for approvals reads and counts them itself, live.

pub mod count;
pub mod standing;

use std::{ops::Deref, sync::Arc, time::Duration};

use async_trait::async_trait;
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    runtime::{controller::Action, reflector::ObjectRef},
};
use serde_json::json;
use standfast_crds::v1alpha1::{
    Approval, ApprovalPhase, ApprovalStatus, SubjectKind, TradingHalt, TradingResume, TradingSystem,
};

use crate::{
    cache::Cache,
    client::{self, Class},
    controller::{Failure, Guarded, Reconcile},
    events::Events,
    guardrails::Guardrails,
    leader::Leadership,
    scale::FIELD_MANAGER,
};
use count::Subject;
use standing::{Around, standing};

/// The longest that one call to the API server may take.
const DEADLINE: Duration = Duration::from_secs(4);
/// After somebody changed the approval in between.
const SOON: Duration = Duration::from_millis(200);
/// How often one that may still be counted is looked at: nobody tells of guardrails, and of time.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// The approvals of a subject, live. One of them that cannot be read might be a rejection: that is an error.
pub async fn of_subject(client: &Client, namespace: &str, subject: &Subject) -> Result<Vec<Approval>, String> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &ApiResource::erase::<Approval>(&()));
    let what = format!("listing Approvals in {namespace}");
    let all = client::read(DEADLINE, what, client::list_all(&api)).await.map_err(|e| e.to_string())?;
    let ours = all.into_iter().filter(|a| a.data.pointer("/spec/subject/name").is_none_or(|n| *n == *subject.name));
    ours.map(|approval| {
        let name = approval.name_any();
        let unread = |e| format!("Approval {namespace}/{name} cannot be read, it may be a rejection: {e}");
        approval.try_parse().map_err(unread)
    })
    .collect()
}

/// Says of each Approval whether it counts.
pub struct ApprovalReconciler {
    client: Client,
    halts: Cache<Guarded<TradingHalt>>,
    systems: Cache<Guarded<TradingSystem>>,
    guardrails: Guardrails,
    leadership: Leadership,
    events: Events,
}

impl ApprovalReconciler {
    /// `client` reaches the API server; halts tell who asked for them, systems what a halt needs approvals for.
    pub fn new(
        client: Client,
        (halts, systems): (Cache<Guarded<TradingHalt>>, Cache<Guarded<TradingSystem>>),
        guardrails: Guardrails,
        leadership: Leadership,
        events: Events,
    ) -> Self {
        Self { client, halts, systems, guardrails, leadership, events }
    }

    /// The resume that an approval is about, live. What cannot be read is said by its own controller.
    async fn resume(&self, namespace: &str, approval: &Approval) -> Result<Option<TradingResume>, Failure> {
        let subject = &approval.spec.subject;
        if subject.kind != SubjectKind::TradingResume {
            return Ok(None);
        }
        let api: Api<TradingResume> = Api::namespaced(self.client.clone(), namespace);
        let what = format!("reading TradingResume {namespace}/{}", subject.name);
        client::read(DEADLINE, what, api.get_opt(&subject.name)).await.map_err(|e| Failure(e.to_string()))
    }

    /// Writes the status over the version that was read.
    async fn write(&self, approval: &Approval, status: &ApprovalStatus) -> Result<Option<()>, Failure> {
        let (namespace, name) = (approval.namespace().unwrap_or_default(), approval.name_any());
        let what = format!("Approval {namespace}/{name}");
        self.leadership.check(DEADLINE).map_err(|e| Failure::new(&what, e))?;
        let api: Api<Approval> = Api::namespaced(self.client.clone(), &namespace);
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        let meta = json!({"resourceVersion": approval.resource_version(), "uid": approval.uid()});
        let patch = Patch::Merge(json!({"metadata": meta, "status": status}));
        match client::write(DEADLINE, format!("writing the status of {what}"), api.patch_status(&name, &params, &patch))
            .await
        {
            Ok(_) => Ok(Some(())),
            Err(error) if matches!(error.class(), Class::Conflict | Class::NotFound) => Ok(None),
            Err(error) => Err(Failure(error.to_string())),
        }
    }
}

#[async_trait]
impl Reconcile for ApprovalReconciler {
    type Kind = Approval;
    const NAME: &'static str = "approval";
    const RETRY_LIMIT: Duration = Duration::from_secs(30);

    async fn reconcile(&self, approval: Arc<Approval>) -> Result<Action, Failure> {
        let namespace = approval.namespace().unwrap_or_default();
        let resume = self.resume(&namespace, &approval).await?;
        let (halts, systems) = (self.halts.read_namespace(&namespace), self.systems.read_namespace(&namespace));
        let since = self.guardrails.names_true_since().await;
        let now = Timestamp::now();
        let (halts, systems): (Vec<_>, Vec<_>) =
            (halts.iter().map(Deref::deref).collect(), systems.iter().map(Deref::deref).collect());
        let around = Around { resume: resume.as_ref(), halts: &halts, systems: &systems };
        let status = standing(&approval, around, since.as_ref().copied().map_err(String::as_str), now);
        if approval.status.as_ref() != Some(&status) && self.write(&approval, &status).await?.is_none() {
            return Ok(Action::requeue(SOON));
        }
        if !matches!(status.phase, ApprovalPhase::Pending | ApprovalPhase::Valid) {
            return Ok(Action::await_change());
        }
        let left = approval.spec.expires_at.as_ref().and_then(|t| Duration::try_from(t.0.duration_since(now)).ok());
        Ok(Action::requeue(left.unwrap_or(LOOK_AGAIN).clamp(SOON, LOOK_AGAIN)))
    }

    async fn undecodable(&self, object: &ObjectRef<Guarded<Approval>>, error: &str) {
        self.events.unreadable(object.clone().into(), error);
    }
}
