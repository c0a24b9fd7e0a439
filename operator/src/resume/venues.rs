//! The last steps: the bot's own endpoint, the venues, and a look at the whole.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use standfast_crds::v1alpha1::{Action, JobAction, StateRead, StepStatus, TradingHalt};

use super::{
    actions,
    context::{Context, DEADLINE, LEASED, Sent, time_for, time_of},
    gates,
    plan::PlanVenue,
    restore::{READY_TIMEOUT, ready, restored, stopped_by},
    status::step,
};
use crate::{
    engine::{Acted, Definition, Observation, Step},
    held,
};

/// How long a venue may take to accept orders again.
const ALLOW_TIMEOUT: Duration = Duration::from_secs(300);
/// How often the bot's endpoint is tried.
const APPLICATION_TRIES: i64 = 3;

fn join(names: &[String]) -> String {
    names.join(", ")
}

/// Asks the bot to go on: best effort.
pub(super) struct ApplicationResume(pub Arc<Context>);

#[async_trait]
impl Step for ApplicationResume {
    fn definition(&self) -> Definition {
        Definition {
            within_lease: true,
            look: Duration::from_secs(1),
            call: DEADLINE,
            ..Definition::new(step::APPLICATION_RESUME)
        }
    }

    async fn observe(&self, _: &StepStatus) -> Observation {
        match &self.0.plan.application_resume {
            None => Observation::NotNeeded("the TradingSystem declares no applicationHalt.resume".into()),
            Some(_) => Observation::Unknown("no answer of the bot is known".into()),
        }
    }

    async fn act(&self, entry: &StepStatus) -> Acted {
        let Some(request) = &self.0.plan.application_resume else { return Acted::NotNeeded(String::new()) };
        if entry.attempts > APPLICATION_TRIES {
            return Acted::NotNeeded("best effort, given up: it takes too long".into());
        }
        let halts = match self.0.unstopped().await {
            Ok(halts) => halts,
            Err(why) => return Acted::Again(why),
        };
        let by = gates::still_held(&halts, &self.0.plan);
        if !by.is_empty() {
            return Acted::NotNeeded(format!("still halted by {}", join(&by)));
        }
        let why = match self.0.send(request, LEASED).await {
            Sent::Answered(status @ 200..=299) => return Acted::Done(format!("the bot answered {status}")),
            Sent::Answered(status) => format!("the bot answered {status}"),
            Sent::Never(why) | Sent::Unknown(why) => why,
        };
        if entry.attempts < APPLICATION_TRIES {
            return Acted::Again(why);
        }
        Acted::NotNeeded(format!("best effort, given up: {why}"))
    }
}

/// Makes one venue accept orders again: one of its actions. Never twice in one attempt.
pub(super) struct AllowTrading {
    cx: Arc<Context>,
    name: String,
    venue: String,
    action: Option<Action>,
    /// Tells whether the venue refuses orders, when this action alone decides that.
    read: Option<StateRead>,
}

impl AllowTrading {
    /// One step for each action of each venue.
    pub fn all(cx: &Arc<Context>) -> Vec<Self> {
        let mut steps = vec![];
        for venue in &cx.plan.venues {
            // What is read tells of all actions together: of several, it tells of none.
            let read = venue.trading_suspended.as_ref().filter(|_| venue.allow_trading.len() == 1);
            let step = |name: String, action: Option<&Action>| Self {
                cx: Arc::clone(cx),
                name,
                venue: venue.name.clone(),
                action: action.cloned(),
                read: read.cloned(),
            };
            let name = format!("{}{}", step::ALLOW_TRADING, venue.name);
            match venue.allow_trading.as_slice() {
                [] => steps.push(step(name, None)),
                [one] => steps.push(step(name, Some(one))),
                // Names of venues have no dots.
                more => steps.extend((1..).zip(more).map(|(n, a)| step(format!("{name}.{n}"), Some(a)))),
            }
        }
        steps
    }

    fn job(&self) -> Option<&JobAction> {
        self.action.as_ref()?.job.as_ref()
    }
}

/// Whether a venue refuses orders, if it says so.
pub(super) async fn suspended(cx: &Context, read: Option<&StateRead>) -> Option<Result<bool, String>> {
    let answer = cx.outside.caller.read_state(&cx.namespace, read?).await;
    Some(answer.map_err(|error| error.to_string()))
}

fn holders(cx: &Context, halts: &[TradingHalt], venue: &str) -> Vec<String> {
    let names = held::venue_holders(halts, &cx.plan.system.name, venue, Some(&cx.plan.halt.uid));
    names.into_iter().map(str::to_owned).collect()
}

#[async_trait]
impl Step for AllowTrading {
    fn definition(&self) -> Definition {
        // A read is sent once more when it had no answer.
        let read = self.read.as_ref().map_or(DEADLINE, |r| time_of(&r.http) * 2);
        Definition {
            repeatable: false,
            timeout: Some(ALLOW_TIMEOUT),
            look: read + if self.job().is_some() { DEADLINE * 3 } else { Duration::from_secs(1) },
            // Shorter than a lease lasts: two leaders must not call at the same time.
            call: DEADLINE,
            ..Definition::new(self.name.clone())
        }
    }

    async fn observe(&self, entry: &StepStatus) -> Observation {
        let Some(action) = &self.action else {
            return Observation::NotNeeded("the venue declares no allowTrading".into());
        };
        // A call that was acknowledged is not made again: what is missing takes its time.
        let acknowledged = entry.deadline.is_none();
        match (suspended(&self.cx, self.read.as_ref()).await, &action.job) {
            (Some(Ok(false)), _) => Observation::Done("the venue accepts orders".into()),
            (read, Some(_)) => match (actions::observe_job(&self.cx, entry).await, read) {
                (Observation::Done(_), Some(_)) => {
                    Observation::InProgress("the Job is done, and the venue still refuses orders".into())
                }
                // What its program did before it failed, only the venue can tell.
                (Observation::Failed(why), None) => Observation::Indeterminate(why),
                (Observation::Failed(why), Some(Err(unread))) => Observation::Unknown(format!("{why}; {unread}")),
                (seen, _) => seen,
            },
            (Some(Ok(true)), None) if acknowledged => Observation::InProgress("the venue still refuses orders".into()),
            (Some(Ok(true)), None) => Observation::NotDone("the venue refuses orders".into()),
            (Some(Err(why)), None) => Observation::Unknown(why),
            (None, None) => Observation::Unknown("there is no tradingSuspended that tells of this action alone".into()),
        }
    }

    async fn act(&self, entry: &StepStatus) -> Acted {
        let halts = match self.cx.unstopped().await {
            Ok(halts) => halts,
            Err(why) => return Acted::Again(why),
        };
        let by = holders(&self.cx, &halts, &self.venue);
        if !by.is_empty() {
            return Acted::NotNeeded(format!("still halted by {}", join(&by)));
        }
        match &self.action {
            None => Acted::NotNeeded(String::new()),
            Some(Action { job: Some(job), .. }) => actions::begin_job(&self.cx, job, entry, ALLOW_TIMEOUT).await,
            Some(Action { http: Some(request), .. }) => {
                match actions::allowed(self.cx.send(request, LEASED).await) {
                    // Proven by the read.
                    Acted::Done(message) if self.read.is_some() => Acted::Started { message, external_ref: None },
                    acted => acted,
                }
            }
            Some(_) => Acted::Failed("allowTrading has neither http nor job".into()),
        }
    }
}

/// Looks at the whole once more.
pub(super) struct Verify(pub Arc<Context>);

#[async_trait]
impl Step for Verify {
    fn definition(&self) -> Definition {
        let look = time_for(self.0.plan.exit_checks()).max(Duration::from_secs(20));
        Definition { timeout: Some(READY_TIMEOUT), look, ..Definition::new(step::VERIFY) }
    }

    async fn observe(&self, _: &StepStatus) -> Observation {
        let cx = &self.0;
        let halts = match cx.halts().await {
            Ok(halts) => halts,
            Err(why) => return Observation::InProgress(why),
        };
        if let Some(why) = stopped_by(cx, &halts) {
            return Observation::InProgress(why);
        }
        let by = gates::still_held(&halts, &cx.plan);
        let started = restored(cx, &halts, 100);
        if !started.is_empty()
            && let Err(why) = ready(cx, &started).await
        {
            return Observation::InProgress(why);
        }
        for PlanVenue { name: venue, trading_suspended, allow_trading, .. } in &cx.plan.venues {
            if allow_trading.is_empty() || !holders(cx, &halts, venue).is_empty() {
                continue;
            }
            match suspended(cx, trading_suspended.as_ref()).await {
                None | Some(Ok(false)) => {}
                Some(Ok(true)) => return Observation::InProgress(format!("venue {venue} refuses orders")),
                Some(Err(why)) => return Observation::InProgress(format!("venue {venue}: {why}")),
            }
        }
        if !by.is_empty() {
            return Observation::Done(format!("released; the system is still halted by {}", join(&by)));
        }
        match gates::all_pass(&cx.ask(cx.plan.exit_checks()).await) {
            Ok(_) => Observation::Done("trading again".into()),
            Err(why) => Observation::InProgress(why),
        }
    }

    async fn act(&self, _: &StepStatus) -> Acted {
        Acted::Started { message: String::new(), external_ref: None }
    }
}
