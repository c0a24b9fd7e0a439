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
use compare::{BREAK_LIMIT, in_words, remaining};
use plan::PlanComparison;

/// How often books are compared while they differ.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long the running bot has until its books agree.
const LIVE_TIMEOUT: Duration = Duration::from_secs(600);

/// What was last found out, for the status. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub(super) struct Ledger(Arc<Mutex<Option<Found>>>);

/// What a look found.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    /// While the halt holds.
    Halted {
        /// What nobody accepted.
        open: Vec<Break>,
        /// What these people accepted.
        accepted: Vec<Break>,
        by: Vec<CountedApproval>,
        /// Nobody else's approval is asked for: those of another look do not stay.
        alone: bool,
    },
    /// After the release: what was accepted for it, and by whom, stays as it was used.
    Live(Vec<Break>),
}

impl Ledger {
    fn note(&self, found: Found) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
    }

    /// Puts what was found into a status. Who accepted breaks has approved, and is used up with the others.
    pub fn show(&self, status: &mut TradingResumeStatus) {
        let found = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match found {
            None => {}
            Some(Found::Live(open)) => status.breaks = open,
            Some(Found::Halted { open, accepted, by, alone }) => {
                (status.breaks, status.accepted_breaks) = (open, accepted);
                if alone {
                    status.approvals.clear();
                }
                let new = |a: &CountedApproval| !status.approvals.iter().any(|known| known.uid == a.uid);
                let more: Vec<_> = by.into_iter().filter(new).collect();
                status.approvals.extend(more);
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

/// Compares while the halt holds, and asks who accepts what differs.
pub(super) async fn look(cx: &Context) -> Observation {
    let all = wanted(cx, When::Halted).len();
    if all == 0 {
        return Observation::NotNeeded("the resumePolicy compares nothing here".into());
    }
    let found = match breaks(cx, When::Halted).await {
        Ok(found) => found,
        // What was found before may be true still; nobody can accept what is not known.
        Err(why) => return Observation::InProgress(shorten(&why)),
    };
    let alone = cx.plan.policy.approvals.is_empty();
    if found.is_empty() {
        cx.ledger.note(Found::Halted { open: vec![], accepted: vec![], by: vec![], alone });
        return Observation::Done(format!("{all} of {all} comparisons agree"));
    }
    match approvals::accepted(cx, &found).await {
        Ok(by) => {
            let names: Vec<_> = by.iter().map(|a| a.approver.as_str()).collect();
            let said = format!("accepted by {}: {}", names.join(", "), in_words(&found));
            cx.ledger.note(Found::Halted { open: vec![], accepted: found, by, alone });
            Observation::Done(shorten(&said))
        }
        Err(why) => {
            let said = format!("{}; {why}", in_words(&found));
            cx.ledger.note(Found::Halted { open: found, accepted: vec![], by: vec![], alone });
            Observation::InProgress(shorten(&said))
        }
    }
}

/// Compares what the running bot says. Approvals were used up by the release: beyond what was accepted for it, nobody accepts
/// anything any more.
async fn look_live(cx: &Context) -> Observation {
    let all = wanted(cx, When::Live).len();
    match breaks(cx, When::Live).await {
        Err(why) => Observation::InProgress(shorten(&why)),
        Ok(found) => {
            let found = remaining(&found, &cx.accepted);
            let said = in_words(&found);
            let agree = found.is_empty();
            cx.ledger.note(Found::Live(found));
            if agree {
                Observation::Done(format!("{all} of {all} comparisons agree"))
            } else {
                Observation::InProgress(said)
            }
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
        look(&self.0).await
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
                None => look_live(cx).await,
            },
            Err(why) => Observation::InProgress(why),
        }
    }

    async fn act(&self, _: &StepStatus) -> Acted {
        Acted::Started { message: String::new(), external_ref: None }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn a_break(symbol: &str) -> Break {
        serde_json::from_value(json!({"venue": "alpaca", "symbol": symbol, "kind": "Position", "difference": "1"}))
            .unwrap()
    }

    fn approval(uid: &str) -> Value {
        json!({"name": uid, "uid": uid, "approver": uid, "decision": "Approve", "at": "2026-01-01T00:00:00.000000Z"})
    }

    fn shown(found: Found, before: Value) -> Value {
        let mut status: TradingResumeStatus = serde_json::from_value(before).unwrap();
        let ledger = Ledger::default();
        ledger.note(found);
        ledger.show(&mut status);
        let uids: Vec<_> = status.approvals.iter().map(|a| a.uid.as_str()).collect();
        json!({"open": status.breaks.len(), "accepted": status.accepted_breaks.len(), "by": uids})
    }

    fn accepted(by: &str, alone: bool) -> Found {
        let by = vec![serde_json::from_value(approval(by)).unwrap()];
        Found::Halted { open: vec![], accepted: vec![a_break("A")], by, alone }
    }

    #[test]
    fn whoever_accepts_is_counted_once_and_beside_the_others() {
        let before = json!({"approvals": [approval("bert")]});
        assert_eq!(
            shown(accepted("carl", false), before.clone()),
            json!({"open": 0, "accepted": 1, "by": ["bert", "carl"]})
        );
        assert_eq!(shown(accepted("bert", false), before), json!({"open": 0, "accepted": 1, "by": ["bert"]}));
    }

    #[test]
    fn who_has_withdrawn_is_not_said_to_have_accepted() {
        let before = json!({"approvals": [approval("bert")], "acceptedBreaks": [a_break("A")]});
        assert_eq!(shown(accepted("carl", true), before.clone()), json!({"open": 0, "accepted": 1, "by": ["carl"]}));
        let open = Found::Halted { open: vec![a_break("A")], accepted: vec![], by: vec![], alone: true };
        assert_eq!(shown(open, before), json!({"open": 1, "accepted": 0, "by": []}));
    }

    #[test]
    fn what_was_accepted_for_the_release_stays_on_record() {
        let before = json!({"approvals": [approval("bert")], "acceptedBreaks": [a_break("A")]});
        assert_eq!(shown(Found::Live(vec![]), before.clone()), json!({"open": 0, "accepted": 1, "by": ["bert"]}));
        assert_eq!(shown(Found::Live(vec![a_break("B")]), before), json!({"open": 1, "accepted": 1, "by": ["bert"]}));
    }
}
