//! The gate `reconcile`: the bot's view of its account is compared with the venues'. While they differ by more than is
//! tolerated, nothing is resumed, until they agree or enough people accept exactly these breaks.

pub mod compare;
mod lines;
pub mod plan;
mod read;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt, stream};
use standfast_crds::v1alpha1::{Break, CountedApproval, StepStatus, TradingResumeStatus, shorten};

use super::{
    approvals,
    context::{Context, PARALLEL},
    restore::stopped_by,
    status::step,
};
use crate::engine::{Acted, Definition, Observation, Step};
use compare::{BREAK_LIMIT, in_words};
use plan::PlanComparison;

/// How often books are compared while they differ.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long the running bot has until its books agree.
const LIVE_TIMEOUT: Duration = Duration::from_secs(600);

/// What was last found out, for the status. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub(super) struct Ledger(Arc<Mutex<Option<Found>>>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Found {
    open: Vec<Break>,
    accepted: Vec<Break>,
    by: Vec<CountedApproval>,
}

impl Ledger {
    fn note(&self, found: Found) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
    }

    /// Puts what was found into a status. Who accepted breaks has approved, and is used up with the others.
    pub fn show(&self, status: &mut TradingResumeStatus) {
        let Some(found) = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone() else { return };
        (status.breaks, status.accepted_breaks) = (found.open, found.accepted);
        for by in found.by {
            if !status.approvals.iter().any(|known| known.uid == by.uid) {
                status.approvals.push(by);
            }
        }
    }
}

/// Which comparisons a look is about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// Those whose bot side is there while the bot is stopped.
    Halted,
    /// Those that the running bot answers.
    Live,
}

fn wanted(cx: &Context, when: When) -> Vec<&PlanComparison> {
    cx.plan.reconciliation.iter().filter(|c| c.live == (when == When::Live)).collect()
}

/// Whether anything is compared then.
pub(super) fn any(cx: &Context, when: When) -> bool {
    !wanted(cx, when).is_empty()
}

/// How long one look may take.
pub(super) fn time_to_look(cx: &Context, when: When) -> Duration {
    let longest = wanted(cx, when).into_iter().map(read::time_for).max().unwrap_or_default();
    (longest + approvals::LOOK).min(Duration::from_secs(180))
}

/// All breaks now. The error names the comparison, and why its sides are not known.
async fn breaks(cx: &Context, when: When) -> Result<Vec<Break>, String> {
    let looks = wanted(cx, when).into_iter().map(|c| async move {
        let found = read::both(cx, c).await.and_then(|(bot, venue)| compare::breaks(&c.comparison, &bot, &venue));
        found.map_err(|why| format!("{} cannot be compared: {why}", c.comparison.name))
    });
    let looks: Vec<_> = looks.collect();
    let found: Vec<Result<Vec<Break>, String>> = stream::iter(looks).buffered(PARALLEL).collect().await;
    let mut all = found.into_iter().collect::<Result<Vec<_>, _>>()?.concat();
    all.sort();
    all.dedup();
    if all.len() > BREAK_LIMIT {
        return Err(format!("there are {} breaks, more than a status can list ({BREAK_LIMIT})", all.len()));
    }
    Ok(all)
}

/// Compares, and asks who accepts what differs.
pub(super) async fn look(cx: &Context, when: When) -> Observation {
    let all = wanted(cx, when).len();
    if all == 0 {
        return Observation::NotNeeded("the resumePolicy compares nothing here".into());
    }
    let found = match breaks(cx, when).await {
        Ok(found) => found,
        // What was found before may be true still; nobody can accept what is not known.
        Err(why) => return Observation::InProgress(shorten(&why)),
    };
    if found.is_empty() {
        cx.ledger.note(Found::default());
        return Observation::Done(format!("{all} of {all} comparisons agree"));
    }
    match approvals::accepted(cx, &found).await {
        Ok(by) => {
            let names: Vec<_> = by.iter().map(|a| a.approver.as_str()).collect();
            let said = format!("accepted by {}: {}", names.join(", "), in_words(&found));
            cx.ledger.note(Found { accepted: found, by, ..Found::default() });
            Observation::Done(shorten(&said))
        }
        Err(why) => {
            let said = format!("{}; {why}", in_words(&found));
            cx.ledger.note(Found { open: found, ..Found::default() });
            Observation::InProgress(shorten(&said))
        }
    }
}

/// The books agree while the bot is stopped.
pub(super) struct Reconcile(pub Arc<Context>);

#[async_trait]
impl Step for Reconcile {
    fn definition(&self) -> Definition {
        Definition {
            look: time_to_look(&self.0, When::Halted),
            interval: INTERVAL,
            until: Some(self.0.until),
            ..Definition::new(step::RECONCILE)
        }
    }

    async fn observe(&self, _: &StepStatus) -> Observation {
        look(&self.0, When::Halted).await
    }

    async fn act(&self, _: &StepStatus) -> Acted {
        Acted::Started { message: String::new(), external_ref: None }
    }
}

/// The books of the running bot agree: what leads out of the first stage.
pub(super) struct ReconcileLive(pub Arc<Context>);

#[async_trait]
impl Step for ReconcileLive {
    fn definition(&self) -> Definition {
        Definition {
            look: time_to_look(&self.0, When::Live),
            interval: INTERVAL,
            timeout: Some(LIVE_TIMEOUT),
            ..Definition::new(step::RECONCILE_LIVE)
        }
    }

    async fn observe(&self, _: &StepStatus) -> Observation {
        let cx = &self.0;
        match cx.halts().await {
            Ok(halts) => match stopped_by(cx, &halts) {
                Some(by) => Observation::InProgress(by),
                None => look(cx, When::Live).await,
            },
            Err(why) => Observation::InProgress(why),
        }
    }

    async fn act(&self, _: &StepStatus) -> Acted {
        Acted::Started { message: String::new(), external_ref: None }
    }
}
