//! What a plan may come to: what its world looks like in the end, and in which order it got there.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use standfast_e2e::faults::{Fault, Outcome, Recorded};

use super::{
    Plan, Scenario,
    stage::{BOTS, FAILURES, Run},
};

/// What a world looks like when all is over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct End {
    pub halt: String,
    pub resume: String,
    /// What each bot is set to.
    pub replicas: BTreeMap<String, i32>,
    /// What the halt says that they go back to.
    pub recorded: BTreeMap<String, i64>,
    pub latches: usize,
    pub open_orders: usize,
    pub positions: BTreeMap<String, String>,
    pub suspended: bool,
    /// For each symbol: closing orders, and how much of them was filled.
    pub closes: BTreeMap<String, (usize, String)>,
    /// How often the venue was told to accept orders again.
    pub allowed: usize,
    pub autoscaler: String,
    /// Who let trading return, and through what.
    pub gates: String,
}

impl End {
    /// Why this must not be, whether a person was asked for or not: something was done twice, or forgotten.
    pub fn harm(&self, clean: &Self) -> Option<String> {
        let known = self.recorded.iter().all(|(bot, replicas)| clean.recorded.get(bot) == Some(replicas));
        let nothing = (0, "0".to_owned());
        let twice = self.closes.iter().find(|(symbol, (orders, filled))| {
            let (most, all) = clean.closes.get(*symbol).unwrap_or(&nothing);
            let number = |text: &str| text.parse::<f64>().unwrap_or(f64::MAX).abs();
            orders > most || number(filled) > number(all)
        });
        match () {
            () if !known => Some(format!("a replica count was lost: {:?}", self.recorded)),
            () if twice.is_some() => Some(format!("closed twice: {:?}", self.closes)),
            () if self.allowed > clean.allowed => Some(format!("trading was allowed {} times", self.allowed)),
            () if self.latches == 0 && self.halt != "Released" => Some("the latch is gone".into()),
            () => None,
        }
    }
}

/// What a plan may come to: the end of the clean run; or a person is asked for where an outcome cannot be known, and
/// no harm was done.
pub fn judge(plan: &Plan, run: &Run, clean: &End) -> Result<()> {
    let Some(why) = &run.asks else {
        ensure!(run.end == *clean, "ends as {:#?}\nwanted {clean:#?}", run.end);
        return Ok(());
    };
    if let Some(harm) = run.end.harm(clean) {
        bail!("asks for a person ({why}), and {harm}");
    }
    let fault = plan.strike.as_ref().map(|s| s.fault);
    let unknown = fault.is_some_and(Fault::leaves_the_outcome_open);
    let refused =
        fault == Some(Fault::Conflict) && plan.strike.as_ref().is_some_and(|s| s.key.starts_with("POST /sync"));
    ensure!(unknown || refused, "asks for a person without need: {why}");
    Ok(())
}

/// What the order of the calls must be, whatever went wrong.
pub fn in_order(scenario: Scenario, calls: &[Recorded]) -> Result<()> {
    let index = |found: &dyn Fn(&Recorded) -> bool| calls.iter().position(found);
    if !scenario.resumes() {
        return Ok(());
    }
    let is = |call: &Recorded, kind: &str| call.armed && call.kind.starts_with(kind);
    if let Some(release) = index(&|c| is(c, "DELETE configmaps/standfast-latch-") && c.outcome != Outcome::NotSent) {
        let before = &calls[..release];
        let checks: Vec<_> = before.iter().filter(|c| is(c, "GET /health")).collect();
        let answered = checks.iter().filter(|c| c.outcome.took_effect()).count();
        let heard = checks.last().is_some_and(|c| c.outcome.was_heard());
        ensure!(heard && answered > FAILURES as usize, "released although the last check did not pass");
        let synced = before.iter().any(|c| is(c, "POST /sync") && c.outcome.was_heard());
        ensure!(synced, "released although no sync succeeded");
    }
    let allow = r#"PATCH /v2/account/configurations {"suspend_trade":false}"#;
    if let Some(allow) = index(&|c| is(c, allow) && c.outcome != Outcome::NotSent) {
        for (bot, _) in BOTS {
            let scale = format!("PATCH deployments/{bot}/scale");
            // One that was under way when the process ended may have arrived; what is not restored shows at the end.
            let sent = |c: &Recorded| c.outcome.took_effect() || matches!(c.outcome, Outcome::Open | Outcome::Failed);
            let restored = calls[..allow].iter().any(|c| c.armed && c.kind == scale && sent(c));
            ensure!(restored, "the venue accepts orders again before {bot} was restored");
        }
    }
    Ok(())
}
