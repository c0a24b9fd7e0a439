//! Actions of the TradingSystem: requests whose answers count, and Jobs.

use std::time::Duration;

use sha2::{Digest, Sha256};
use standfast_crds::v1alpha1::{Action, JobAction, StepStatus};

use super::context::{Context, DEADLINE, Sent, time_of};
use crate::{
    engine::{Acted, Observation},
    jobs::{self, JobError, JobState},
};

/// The longest that a Job may run.
pub(super) const LONGEST_JOB: Duration = Duration::from_secs(3600);

/// The longest that a request may take that may be repeated.
pub(super) const LONGEST_CALL: Duration = crate::calls::caller::TIMEOUT_LIMIT;

/// How long the call of an action may take: that of a Job only creates it.
pub(super) fn time_for(action: &Action) -> Duration {
    // Reading the Secrets takes time too.
    action.http.as_ref().map_or(DEADLINE * 3, |request| time_of(request) + DEADLINE)
}

/// What a sync's answer means: only 2xx is success. What may pass by itself is tried again, unless this was the last
/// try.
pub(super) fn synced(sent: Sent, last: bool) -> Acted {
    match sent {
        Sent::Answered(status @ 200..=299) => Acted::Done(format!("answered {status}")),
        Sent::Answered(status @ (408 | 425 | 429 | 500..=599)) if !last => Acted::Again(format!("answered {status}")),
        Sent::Answered(status) => Acted::Failed(format!("the sync answered {status}, wanted 200 to 299")),
        Sent::Never(why) => Acted::Again(why),
        Sent::Unknown(why) => Acted::Unknown(why),
    }
}

/// What a venue's answer to a call means that must not be made twice: 2xx is success, a refusal had no effect, anything
/// else is open. So is what the call before it may have caused, or something on the way to the venue.
pub(super) fn allowed(sent: Sent) -> Acted {
    match sent {
        Sent::Answered(status @ 200..=299) => Acted::Done(format!("answered {status}")),
        Sent::Answered(status @ (404 | 408 | 409 | 410)) => Acted::Unknown(format!("answered {status}")),
        Sent::Answered(status @ 400..=499) => Acted::Again(format!("answered {status}")),
        Sent::Answered(status) => Acted::Unknown(format!("answered {status}")),
        Sent::Never(why) => Acted::Again(why),
        Sent::Unknown(why) => Acted::Unknown(why),
    }
}

/// The name of the Job of one attempt: follows from its operation id.
pub(super) fn job_name(entry: &StepStatus) -> String {
    let id = entry.operation_id.clone().unwrap_or_else(|| entry.name.clone());
    let hash: String = Sha256::digest(id.as_bytes()).iter().take(8).map(|b| format!("{b:02x}")).collect();
    let plain: String = entry.name.chars().map(|c| if c == '.' { '-' } else { c }).take(32).collect();
    format!("standfast-{}-{hash}", plain.trim_end_matches('-'))
}

/// Creates the Job of this attempt. It may run for as long as its action and `limit` allow.
pub(super) async fn begin_job(cx: &Context, action: &JobAction, entry: &StepStatus, limit: Duration) -> Acted {
    let name = job_name(entry);
    let reason = format!("resume {}", cx.name);
    let env = jobs::environment(&cx.plan.system.name, &cx.plan.halt.name, &reason);
    let outside = &cx.outside;
    match jobs::ensure_job(&outside.client, &cx.namespace, &name, &cx.owner, action, &env, limit).await {
        Ok(JobState::Foreign { message }) => Acted::Failed(message),
        Ok(_) => Acted::Started { message: format!("Job {name} was created"), external_ref: Some(name) },
        Err(JobError::Refused(why)) => Acted::Again(why),
        Err(JobError::Failed(why)) => Acted::Unknown(why),
    }
}

/// How far the Job of this attempt is. Looking makes none.
pub(super) async fn observe_job(cx: &Context, entry: &StepStatus) -> Observation {
    let name = job_name(entry);
    match jobs::job_state(&cx.outside.client, &cx.namespace, &name, &cx.owner).await {
        Ok(None) => Observation::NotDone(format!("there is no Job {name}")),
        Ok(Some(JobState::Running)) => Observation::InProgress(format!("Job {name} is running")),
        Ok(Some(JobState::Succeeded { .. })) => Observation::Done(format!("Job {name} succeeded")),
        Ok(Some(JobState::Failed { message } | JobState::Foreign { message })) => Observation::Failed(message),
        Err(JobError::Refused(why) | JobError::Failed(why)) => Observation::Unknown(why),
    }
}
