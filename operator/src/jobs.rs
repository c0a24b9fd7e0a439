//! Jobs that run the user's own code: under a name that the caller chooses, so that one attempt is one Job whatever
//! crashes, and with as few rights as a Pod can have.

use std::time::Duration;

use futures::future::try_join_all;
use k8s_openapi::{
    api::{
        batch::v1::{Job, JobCondition, JobSpec},
        core::v1::{
            Capabilities, Container, EmptyDirVolumeSource, EnvVar, EnvVarSource, Pod, PodSecurityContext, PodSpec,
            PodTemplateSpec, ResourceRequirements, SeccompProfile, SecretKeySelector, SecurityContext, Volume,
            VolumeMount,
        },
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::OwnerReference},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, PostParams, Preconditions, PropagationPolicy},
    core::ObjectMeta,
};
use serde_json::Value;
use standfast_crds::v1alpha1::JobAction;
use tokio::time::timeout;

pub use crate::calls::extract::{job_orders, job_positions};
use crate::{
    calls::{Environment, secrets},
    outbound::CallError,
    scale::FIELD_MANAGER,
};

/// The label of every Job and its Pod.
pub const JOB_LABEL: &str = "standfast.dev/job";
/// How long a Job may run if its action does not say.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The longest that one call to the API server may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// The longest result that is read, in bytes; the kubelet keeps no more than 4096 of a container.
const RESULT_LIMIT: usize = 16 << 10;
/// The container's name.
const CONTAINER: &str = "action";

/// How far a Job is.
#[derive(Clone, Debug, PartialEq)]
pub enum JobState {
    /// Created, and neither succeeded nor failed yet.
    Running,
    /// Its program ended with exit code 0. That alone is no proof.
    Succeeded {
        /// Its termination message, if that is JSON.
        result: Option<Value>,
    },
    /// It failed; what the program did before is not known.
    Failed {
        /// Why, and where to look.
        message: String,
    },
    /// There is a Job of this name that is somebody else's. It is left alone.
    Foreign {
        /// Which, and what to do.
        message: String,
    },
}

/// A Job, when it was created, and when and how it ended.
#[derive(Clone, Debug, PartialEq)]
pub struct JobRun {
    /// How far it is.
    pub state: JobState,
    /// When it was created.
    pub begun: Option<Timestamp>,
    /// When it succeeded or failed.
    pub ended: Option<Timestamp>,
    /// With which code its program ended, if that is known.
    pub exit_code: Option<i32>,
}

/// Why the state of a Job is not known.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum JobError {
    /// The Job may not be created; there is none.
    #[error("{0}")]
    Refused(String),
    /// A call failed, perhaps after it took effect. Asking again under the same name is safe.
    #[error("{0}")]
    Failed(String),
}

/// What the user's code is told.
pub fn environment(system: &str, halt: &str, reason: &str) -> Environment {
    [("STANDFAST_SYSTEM", system), ("STANDFAST_HALT", halt), ("STANDFAST_REASON", reason)]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

/// Creates the Job unless it is there, and tells how far it is. It runs no longer than its action and `deadline` allow.
pub async fn ensure_job(
    client: &Client,
    namespace: &str,
    name: &str,
    owner: &OwnerReference,
    action: &JobAction,
    env: &Environment,
    deadline: Duration,
) -> Result<JobState, JobError> {
    if let Some(state) = job_state(client, namespace, name, owner).await? {
        return Ok(state);
    }
    if create_job(client, namespace, job(name, owner, action, env, deadline), action).await? {
        return Ok(JobState::Running);
    }
    let there = job_state(client, namespace, name, owner).await?;
    there.ok_or_else(|| JobError::Failed(format!("Job {namespace}/{name} came and went: it is tried again")))
}

/// Creates a Job of this action. Not so if there is one of its name.
pub async fn create_job(client: &Client, namespace: &str, wanted: Job, action: &JobAction) -> Result<bool, JobError> {
    let api: Api<Job> = Api::namespaced(client.clone(), namespace);
    let what = format!("Job {namespace}/{}", wanted.name_any());
    check_secrets(client, namespace, action).await?;
    let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
    match timeout(DEADLINE, api.create(&params, &wanted)).await {
        Ok(Ok(_)) => Ok(true),
        Ok(Err(kube::Error::Api(status))) if status.is_already_exists() => Ok(false),
        Ok(Err(error)) => Err(JobError::of(&what, "created", error)),
        Err(_) => Err(JobError::Failed(format!("{what} was not created within {DEADLINE:?}"))),
    }
}

/// How far the Job is, if there is one. Creates nothing.
pub async fn job_state(
    client: &Client,
    namespace: &str,
    name: &str,
    owner: &OwnerReference,
) -> Result<Option<JobState>, JobError> {
    Ok(job_run(client, namespace, name, owner).await?.map(|run| run.state))
}

/// How far the Job is and since when, if there is one. Creates nothing.
pub async fn job_run(
    client: &Client,
    namespace: &str,
    name: &str,
    owner: &OwnerReference,
) -> Result<Option<JobRun>, JobError> {
    let api: Api<Job> = Api::namespaced(client.clone(), namespace);
    let Some(found) = call(&format!("Job {namespace}/{name}"), "read", api.get_opt(name)).await? else {
        return Ok(None);
    };
    let (state, exit_code) = state(client, namespace, owner, &found).await?;
    let begun = found.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let ended = end(&found).and_then(|end| end.last_transition_time.as_ref()).map(|time| time.0);
    Ok(Some(JobRun { state, begun, ended, exit_code }))
}

/// Whether the Job could be created now: its Secrets, quotas, policies. Creates nothing.
pub async fn check_job(
    client: &Client,
    namespace: &str,
    name: &str,
    owner: &OwnerReference,
    action: &JobAction,
    env: &Environment,
) -> Result<(), JobError> {
    check_secrets(client, namespace, action).await?;
    check_keys(client, namespace, action).await?;
    let api: Api<Job> = Api::namespaced(client.clone(), namespace);
    let params = PostParams { dry_run: true, field_manager: Some(FIELD_MANAGER.into()) };
    let what = format!("Job {namespace}/{name} (as a trial)");
    match timeout(DEADLINE, api.create(&params, &job(name, owner, action, env, TIMEOUT))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(kube::Error::Api(status))) if status.is_already_exists() => Ok(()),
        Ok(Err(error)) => Err(JobError::of(&what, "created", error)),
        Err(_) => Err(JobError::Failed(format!("{what} was not created within {DEADLINE:?}"))),
    }
}

/// Deletes a Job that is `owner`'s, with its Pods, once its result is recorded.
pub async fn delete_job(client: &Client, namespace: &str, name: &str, owner: &OwnerReference) -> Result<(), JobError> {
    let api: Api<Job> = Api::namespaced(client.clone(), namespace);
    let what = format!("Job {namespace}/{name}");
    let Some(found) = call(&what, "read", api.get_opt(name)).await? else { return Ok(()) };
    if !owned(&found.metadata, owner) {
        return Ok(());
    }
    delete(&api, &what, &found).await
}

/// Deletes all Jobs of `owner` that have not ended, with their Pods: what they are for is not wanted any more. Those that
/// have ended stay, for people to look at.
pub async fn stop_jobs(client: &Client, namespace: &str, owner: &OwnerReference) -> Result<(), JobError> {
    let api: Api<Job> = Api::namespaced(client.clone(), namespace);
    let params = ListParams::default().labels(&format!("{JOB_LABEL}=true"));
    let what = format!("the list of Jobs of {} {namespace}/{}", owner.kind, owner.name);
    let jobs = call(&what, "read", api.list(&params)).await?.items;
    let (api, what) = (&api, |job: &Job| format!("Job {namespace}/{}", job.name_any()));
    let running = jobs.iter().filter(|job| owned(&job.metadata, owner) && end(job).is_none());
    try_join_all(running.map(|job| async move { delete(api, &what(job), job).await })).await.map(drop)
}

async fn delete(api: &Api<Job>, what: &str, found: &Job) -> Result<(), JobError> {
    let params = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Background),
        preconditions: Some(Preconditions { uid: found.uid(), resource_version: None }),
        ..DeleteParams::default()
    };
    match timeout(DEADLINE, api.delete(&found.name_any(), &params)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => Ok(()),
        Ok(Err(error)) => Err(JobError::of(what, "deleted", error)),
        Err(_) => Err(JobError::Failed(format!("{what} was not deleted within {DEADLINE:?}"))),
    }
}

impl JobError {
    fn of(what: &str, done: &str, error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if matches!(status.code, 400 | 403 | 404 | 422) => {
                Self::Refused(format!("{what} was not {done}: {}", status.message))
            }
            kube::Error::Api(status) => Self::Failed(format!("{what} was not {done}: {}", status.message)),
            other => Self::Failed(format!("{what} was not {done}: {other}")),
        }
    }
}

impl From<CallError> for JobError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused(why) | CallError::Declined(why) => Self::Refused(why),
            CallError::NotSent(why) | CallError::UnknownOutcome(why) => Self::Failed(why),
        }
    }
}

async fn call<T>(what: &str, done: &str, request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, JobError> {
    match timeout(DEADLINE, request).await {
        Ok(result) => result.map_err(|error| JobError::of(what, done, error)),
        Err(_) => Err(JobError::Failed(format!("{what} was not {done} within {DEADLINE:?}"))),
    }
}

/// The Pod may only be given Secrets that are meant for this use.
async fn check_secrets(client: &Client, namespace: &str, action: &JobAction) -> Result<(), JobError> {
    let mut names: Vec<&str> =
        action.env.iter().filter_map(|env| Some(env.secret_key_ref.as_ref()?.name.as_str())).collect();
    names.sort_unstable();
    names.dedup();
    try_join_all(names.into_iter().map(|name| secrets::check_for_jobs(client, namespace, name))).await?;
    Ok(())
}

/// A container whose key is missing would not start, and only show that at night.
async fn check_keys(client: &Client, namespace: &str, action: &JobAction) -> Result<(), JobError> {
    let references = action.env.iter().filter_map(|env| env.secret_key_ref.as_ref());
    try_join_all(references.map(|reference| secrets::check_key(client, namespace, reference))).await?;
    Ok(())
}

fn owned(metadata: &ObjectMeta, owner: &OwnerReference) -> bool {
    metadata.owner_references.iter().flatten().any(|found| found.uid == owner.uid)
}

/// How far a Job is, and the exit code of its program.
async fn state(
    client: &Client,
    namespace: &str,
    owner: &OwnerReference,
    job: &Job,
) -> Result<(JobState, Option<i32>), JobError> {
    let name = job.name_any();
    if !owned(&job.metadata, owner) {
        let message = format!(
            "Job {namespace}/{name} exists and does not belong to {} {}: look at it, and if it is not needed, run: \
             kubectl -n {namespace} delete job {name}",
            owner.kind, owner.name
        );
        return Ok((JobState::Foreign { message }, None));
    }
    let Some(end) = end(job) else { return Ok((JobState::Running, None)) };
    let pods = pods(client, namespace, job).await?;
    if end.type_ == "Complete" {
        return Ok((JobState::Succeeded { result: result(&pods) }, Some(0)));
    }
    let reason = match end.reason.as_deref() {
        Some("DeadlineExceeded") => "it did not finish in time".to_owned(),
        Some("BackoffLimitExceeded") | None => "its program failed".to_owned(),
        Some(other) => other.to_owned(),
    };
    let ended = pods.iter().filter_map(terminated).next_back();
    let code = ended.map_or_else(String::new, |state| {
        let why = state.reason.as_deref().filter(|reason| *reason != "Error").map(|reason| format!(", {reason}"));
        format!(" (exit code {}{})", state.exit_code, why.unwrap_or_default())
    });
    let message =
        format!("Job {namespace}/{name} failed: {reason}{code}; look with: kubectl -n {namespace} describe job {name}");
    Ok((JobState::Failed { message }, ended.map(|state| state.exit_code)))
}

/// The condition that a Job has ended with.
fn end(job: &Job) -> Option<&JobCondition> {
    let mut conditions = job.status.as_ref()?.conditions.iter().flatten().filter(|c| c.status == "True");
    conditions.find(|c| matches!(c.type_.as_str(), "Complete" | "Failed"))
}

/// The Pods of one Job.
async fn pods(client: &Client, namespace: &str, job: &Job) -> Result<Vec<Pod>, JobError> {
    let uid = job.uid().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let params = ListParams::default().labels(&format!("batch.kubernetes.io/controller-uid={uid}")).limit(10);
    let what = format!("the list of Pods of Job {namespace}/{}", job.name_any());
    let pods = call(&what, "read", api.list(&params)).await?;
    let owned = |pod: &Pod| pod.metadata.owner_references.iter().flatten().any(|owner| owner.uid == uid);
    Ok(pods.items.into_iter().filter(owned).collect())
}

fn terminated(pod: &Pod) -> Option<&k8s_openapi::api::core::v1::ContainerStateTerminated> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.iter().find(|status| status.name == CONTAINER)?.state.as_ref()?.terminated.as_ref()
}

/// What the program that succeeded reported.
fn result(pods: &[Pod]) -> Option<Value> {
    let ended = pods.iter().filter_map(terminated).filter(|state| state.exit_code == 0);
    let message = ended.max_by_key(|state| state.finished_at.as_ref().map(|time| time.0))?.message.as_ref()?;
    (message.len() <= RESULT_LIMIT).then(|| serde_json::from_str(message).ok()).flatten()
}

/// The Job as it is created.
pub fn job(name: &str, owner: &OwnerReference, action: &JobAction, env: &Environment, deadline: Duration) -> Job {
    let labels = Some([(JOB_LABEL.to_owned(), "true".to_owned())].into());
    let limit = action.timeout.map_or(TIMEOUT, |timeout| timeout.get()).min(deadline);
    let seconds = i64::try_from(limit.as_millis().div_ceil(1000)).unwrap_or(i64::MAX).max(1);
    Job {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: labels.clone(),
            owner_references: Some(vec![owner.clone()]),
            ..ObjectMeta::default()
        },
        spec: Some(JobSpec {
            active_deadline_seconds: Some(seconds),
            backoff_limit: Some(0),
            completions: Some(1),
            parallelism: Some(1),
            pod_replacement_policy: Some("Failed".into()),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels, ..ObjectMeta::default() }),
                spec: Some(pod(action, env)),
            },
            ..JobSpec::default()
        }),
        status: None,
    }
}

fn pod(action: &JobAction, env: &Environment) -> PodSpec {
    let words = |words: &[String]| (!words.is_empty()).then(|| words.to_vec());
    PodSpec {
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        restart_policy: Some("Never".into()),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: action.run_as_user,
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), ..SeccompProfile::default() }),
            ..PodSecurityContext::default()
        }),
        containers: vec![Container {
            name: CONTAINER.into(),
            image: Some(action.image.clone()),
            command: words(&action.command),
            args: words(&action.args),
            env: Some(variables(action, env)),
            resources: Some(ResourceRequirements {
                requests: Some(quantities(&[("cpu", "50m"), ("memory", "64Mi")])),
                limits: Some(quantities(&[("cpu", "1"), ("memory", "512Mi")])),
                ..ResourceRequirements::default()
            }),
            security_context: Some(SecurityContext {
                allow_privilege_escalation: Some(false),
                privileged: Some(false),
                read_only_root_filesystem: Some(true),
                capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
                ..SecurityContext::default()
            }),
            termination_message_policy: Some("File".into()),
            volume_mounts: Some(vec![VolumeMount {
                name: "tmp".into(),
                mount_path: "/tmp".into(),
                ..VolumeMount::default()
            }]),
            ..Container::default()
        }],
        volumes: Some(vec![Volume {
            name: "tmp".into(),
            empty_dir: Some(EmptyDirVolumeSource { size_limit: Some(Quantity("64Mi".into())), medium: None }),
            ..Volume::default()
        }]),
        ..PodSpec::default()
    }
}

fn quantities(list: &[(&str, &str)]) -> std::collections::BTreeMap<String, Quantity> {
    list.iter().map(|(name, value)| ((*name).to_owned(), Quantity((*value).to_owned()))).collect()
}

/// Ours first; the user's own may not replace them.
fn variables(action: &JobAction, env: &Environment) -> Vec<EnvVar> {
    // Kubernetes puts other variables in place of $(NAME), and $ in place of $$.
    let literal = |value: &str| Some(value.replace('$', "$$"));
    let ours =
        env.iter().map(|(name, value)| EnvVar { name: name.clone(), value: literal(value), ..EnvVar::default() });
    let theirs = action.env.iter().filter(|given| !env.contains_key(&given.name)).map(|given| EnvVar {
        name: given.name.clone(),
        value: given.value.as_deref().and_then(literal),
        value_from: given.secret_key_ref.as_ref().map(|reference| EnvVarSource {
            secret_key_ref: Some(SecretKeySelector {
                name: reference.name.clone(),
                key: reference.key.clone(),
                optional: Some(false),
            }),
            ..EnvVarSource::default()
        }),
    });
    ours.chain(theirs).collect()
}

#[cfg(test)]
#[path = "jobs_tests.rs"]
mod tests;
