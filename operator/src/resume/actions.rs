//! Actions of the TradingSystem: requests whose answers count, and Jobs.

use std::time::Duration;

use standfast_crds::v1alpha1::{Action, JobAction, StepStatus};

use super::context::{Context, DEADLINE, Sent, time_of};
use crate::engine::{Acted, Observation};

/// The longest that a request may take that may be repeated.
pub(super) const LONGEST_CALL: Duration = crate::calls::caller::TIMEOUT_LIMIT;

/// How long the call of an action may take: that of a Job only creates it.
pub(super) fn time_for(action: &Action) -> Duration {
    // Reading the Secrets takes time too.
    action.http.as_ref().map_or(DEADLINE, |request| time_of(request) + DEADLINE)
}

/// What a sync's answer means: only 2xx is success. What may pass by itself is tried again, unless this was the last
/// try.
pub(super) fn synced(sent: Sent, last: bool) -> Acted {
    match sent {
        Sent::Answered(status @ 200..=299) => Acted::Done(format!("answered {status}")),
        Sent::Answered(status @ (408 | 425 | 429 | 500..=599)) if !last => Acted::Again(format!("answered {status}")),
        Sent::Answered(status) => Acted::Failed(format!("the sync answered {status}, wanted 200 to 299")),
        Sent::NotSent(why) => Acted::Again(why),
        Sent::Unknown(why) => Acted::Unknown(why),
    }
}

/// What a venue's answer to a call means that must not be made twice: 2xx is success, 4xx had no effect, anything else
/// is open.
pub(super) fn allowed(sent: Sent) -> Acted {
    match sent {
        Sent::Answered(status @ 200..=299) => Acted::Done(format!("answered {status}")),
        Sent::Answered(408) => Acted::Unknown("answered 408".into()),
        Sent::Answered(status @ 400..=499) => Acted::Again(format!("answered {status}")),
        Sent::Answered(status) => Acted::Unknown(format!("answered {status}")),
        Sent::NotSent(why) => Acted::Again(why),
        Sent::Unknown(why) => Acted::Unknown(why),
    }
}

/// Creates the Job of this attempt.
pub(super) async fn begin_job(_: &Context, _: &JobAction, _: &StepStatus) -> Acted {
    Acted::Failed("Jobs are not supported yet".into())
}

/// How far the Job of this attempt is.
pub(super) async fn observe_job(_: &Context, _: &JobAction, _: &StepStatus) -> Observation {
    Observation::NotDone("Jobs are not supported yet".into())
}
