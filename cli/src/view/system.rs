//! One TradingSystem on one screen.

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde::Serialize;
use standfast_crds::v1alpha1::{
    CheckState, CheckStatus, Problem, TradingHalt, TradingResume, TradingSystem, condition,
};

use super::{
    halt::{self, HaltView},
    known,
    manual::OPERATOR_PATIENCE,
    resume::ResumeView,
};
use crate::{
    cluster::Say,
    text::{Line, Style, age, between, clock, count, row, table},
};

/// How a system stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum State {
    /// No halt holds.
    #[default]
    Trading,
    /// No halt holds, and a resume brings it back.
    Resuming,
    /// A halt was asked for, and nothing is latched.
    Requested,
    /// A halt holds and was not proven yet.
    Halting,
    /// Every halt that holds is proven.
    Halted,
    /// A halt holds and is not proven any more, or cannot be.
    Unverified,
}

impl State {
    const fn word(self) -> (Style, &'static str) {
        match self {
            Self::Trading => (Style::Bold, "TRADING"),
            Self::Resuming => (Style::Warn, "RESUMING"),
            Self::Requested => (Style::Bad, "HALT REQUESTED, NOTHING LATCHED"),
            Self::Halting => (Style::Warn, "HALTING"),
            Self::Halted => (Style::Good, "HALTED"),
            Self::Unverified => (Style::Bad, "HALT UNVERIFIED"),
        }
    }
}

/// A system with its halts and its resume, for programs and for people.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SystemView {
    /// Its name.
    pub name: String,
    /// How it stands.
    pub state: State,
    /// Since when, if a halt holds.
    pub since: Option<Timestamp>,
    /// The halts that are not released.
    pub halts: Vec<HaltView>,
    /// The newest resume that has not ended.
    pub resume: Option<ResumeView>,
    /// How many checks pass, as `3/4`.
    pub checks_passing: Option<String>,
    /// The checks.
    pub checks: Vec<CheckStatus>,
    /// Whether an emergency halt would work; absent when not known.
    pub prepared: Option<bool>,
    /// What stands in the way of one.
    pub problems: Vec<Problem>,
    /// What to do next.
    pub next: Vec<String>,
}

/// What the condition `Prepared` says, if an operator looked at the spec as it is now.
pub fn prepared(system: &TradingSystem) -> Option<bool> {
    let condition = condition(&system.status.as_ref()?.conditions, "Prepared")?;
    let current = condition.observed_generation.is_none_or(|g| Some(g) == system.metadata.generation);
    match condition.status.as_str() {
        "True" if current => Some(true),
        "False" => Some(false),
        _ => None,
    }
}

/// Whether a halt halts this system, or is a halt of several that has not made the one for this system yet.
fn concerns(halt: &TradingHalt, system: &TradingSystem) -> bool {
    let name = system.name_any();
    let selects = || halt.spec.system_selector.as_ref().is_some_and(|s| s.matches(system.labels()));
    halt.spec.halts(&name) || (standfast_crds::held::about_to_halt(halt, &name) && selects())
}

impl SystemView {
    /// How a system stands, from all halts and resumes of its namespace.
    pub fn of(
        system: &TradingSystem,
        halts: &[TradingHalt],
        resumes: &[TradingResume],
        say: &Say,
        now: Timestamp,
    ) -> Self {
        let name = system.name_any();
        let own: Vec<HaltView> = halts.iter().filter(|h| concerns(h, system)).map(|h| HaltView::of(h, now)).collect();
        let released = |r: &TradingResume| own.iter().any(|h| h.name == r.spec.halt_ref.name);
        let mut under_way: Vec<ResumeView> =
            resumes.iter().filter(|r| released(r)).map(ResumeView::of).filter(|r| !r.ended).collect();
        under_way.sort_by_key(|r| r.requested_at);
        let resume = under_way.pop();
        let mut halts: Vec<HaltView> = own.into_iter().filter(|h| h.phase != "Released").collect();
        halts.sort_by_key(|h| h.requested_at);
        let held: Vec<&HaltView> = halts.iter().filter(|h| h.held).collect();
        let state = if held.iter().any(|h| !h.proven && (h.halted_at.is_some() || h.phase == "Unverified")) {
            State::Unverified
        } else if held.iter().any(|h| !h.proven) {
            State::Halting
        } else if !held.is_empty() {
            State::Halted
        } else if !halts.is_empty() {
            State::Requested
        } else if resume.is_some() {
            State::Resuming
        } else {
            State::Trading
        };
        let since = held.iter().filter_map(|h| h.latched_at).min();
        let status = system.status.clone().unwrap_or_default();
        let mut view = Self {
            name,
            state,
            since,
            halts,
            resume,
            checks_passing: status.checks_passing,
            checks: status.checks,
            prepared: prepared(system),
            problems: status.problems,
            next: vec![],
        };
        view.next = view.what_next(say);
        view
    }

    /// The halt that no operator has reacted to in time, where no other one holds.
    pub fn deaf(&self, now: Timestamp) -> Option<&str> {
        let late = |h: &&HaltView| !h.seen && h.requested_at.is_some_and(|at| between(at, now) >= OPERATOR_PATIENCE);
        self.halts.iter().find(late).filter(|_| self.state == State::Requested).map(|h| h.name.as_str())
    }

    fn what_next(&self, say: &Say) -> Vec<String> {
        let name = &self.name;
        let mut next: Vec<String> = self.resume.iter().flat_map(|r| r.next(say)).collect();
        match self.state {
            State::Requested => {
                next.push("stop trading by hand: nothing is latched".into());
                next.push("see why none runs: kubectl -n standfast-system get pods,leases,events".into());
            }
            State::Halting => next.push(format!("wait: {}", say.standfast(&format!("watch {name}")))),
            State::Unverified => {
                let worst = self.halts.iter().find(|h| h.held && !h.proven).map_or("", |h| h.name.as_str());
                next.push(format!("see what is not proven: {}", say.standfast(&format!("explain {worst}"))));
            }
            State::Halted if self.resume.is_none() => {
                let which = match self.halts.as_slice() {
                    [_] => String::new(),
                    halts => format!(" --halt {}", halts.first().map_or("", |h| h.name.as_str())),
                };
                next.push(format!("when it may trade again: {}", say.standfast(&format!("resume {name}{which}"))));
            }
            State::Resuming | State::Halted => {
                next.push(format!("see it come along: {}", say.standfast(&format!("watch {name}"))));
            }
            State::Trading if self.prepared != Some(true) => {
                next.push(format!("make ready for an emergency: {}", say.standfast(&format!("prepared {name}"))));
            }
            State::Trading => {
                next.push(format!("in an emergency: {}", say.standfast(&format!("halt {name} --reason '…'"))));
            }
        }
        next
    }

    fn prepared_in_words(&self) -> (Style, String) {
        match self.prepared {
            Some(true) => (Style::Good, "yes, an emergency halt would work".into()),
            Some(false) => {
                let first = self.problems.first().map_or_else(String::new, |p| format!(": {}", p.message));
                (Style::Bad, format!("NO, {}{first}", count(self.problems.len() as i64, "problem")))
            }
            None => (Style::Warn, "not known".into()),
        }
    }
}

/// A system on one screen. `halts` holds the objects behind the view.
pub fn lines(view: &SystemView, halts: &[TradingHalt], now: Timestamp) -> Vec<Line> {
    let (style, word) = view.state.word();
    let mut title = Line::new().and(Style::Bold, &view.name).and(Style::Plain, "  ").and(style, word);
    if let Some(since) = view.since {
        title = title.and(Style::Plain, format!(" for {}, since {}", age(since, now), clock(since, now)));
    }
    let mut lines = vec![title];
    for shown in &view.halts {
        let halt = halts.iter().find(|h| h.name_any() == shown.name);
        let (style, word) = shown.word();
        let title = row("halt").and(Style::Bold, &shown.name).and(Style::Plain, "  ").and(style, word);
        lines.push(title);
        lines.push(row("why").and(Style::Plain, &shown.reason).and(Style::Dim, halt::asked(shown, now)));
        if shown.held {
            let pods = known(shown.running_pods);
            lines.push(row("pods").and(Style::Plain, format!("{pods} running")));
            let venues = halt.and_then(|h| Some((h, &h.status.as_ref()?.venues)));
            lines.extend(venues.into_iter().flat_map(|(h, venues)| venues.iter().map(|v| halt::venue(v, h, now))));
            lines.push(halt::verified(shown, now));
        }
        if let Some(message) = shown.message.as_ref().filter(|_| !shown.proven) {
            lines.push(row("says").and(style, message));
        }
    }
    if let Some(resume) = &view.resume {
        let step = resume.step.as_ref().map_or_else(String::new, |s| format!(", at {s}"));
        let stage = resume.stage.as_ref().map_or_else(String::new, |s| format!(", stage {s}"));
        let approved = resume.approved.as_ref().map_or_else(String::new, |a| format!(", approvals {a}"));
        let text = format!("  {}{stage}{step}{approved}", resume.phase);
        lines.push(row("resume").and(Style::Bold, &resume.name).and(resume.style(), text));
    }
    if let Some(passing) = &view.checks_passing {
        let failing = view.checks.iter().filter(|c| c.state != CheckState::Passing).count();
        let style = if failing == 0 { Style::Good } else { Style::Bad };
        lines.push(row("checks").and(style, format!("{passing} pass")));
    }
    for check in view.checks.iter().filter(|c| c.state != CheckState::Passing) {
        let since = check.last_transition_time.as_ref().map(|t| format!("  for {}", age(t.0, now)));
        let word = if check.state == CheckState::Failing { "FAILS" } else { "UNKNOWN" };
        let line = row("").and(Style::Bad, format!("{word:<7}  {}  ", check.name));
        lines.push(line.and(Style::Plain, &check.message).and_some(Style::Dim, since));
    }
    let (style, text) = view.prepared_in_words();
    lines.push(row("prepared").and(style, text));
    lines.extend(view.next.iter().map(|next| row("next").and(Style::Bold, next)));
    lines
}

/// Several systems, one line each.
pub fn overview(views: &[SystemView], now: Timestamp) -> Vec<Line> {
    let titles = ["SYSTEM", "STATE", "FOR", "ORDERS", "POSITIONS", "CHECKS", "PREPARED", "WHY"];
    let mut rows = vec![titles.iter().map(|t| (Style::Dim, (*t).to_owned())).collect::<Vec<_>>()];
    for view in views {
        let (style, word) = view.state.word();
        let held: Vec<&HaltView> = view.halts.iter().filter(|h| h.held).collect();
        let most = |pick: fn(&HaltView) -> Option<i64>| match held.as_slice() {
            [] => "-".to_owned(),
            // Halts of one system read the same accounts. What one of them does not know is not known.
            held => {
                let numbers: Option<Vec<i64>> = held.iter().map(|h| pick(h)).collect();
                known(numbers.and_then(|n| n.into_iter().max()))
            }
        };
        let why: Vec<_> = view.halts.iter().map(|h| format!("{} ({})", h.reason, h.name)).collect();
        let prepared = match view.prepared {
            Some(true) => (Style::Good, "yes"),
            Some(false) => (Style::Bad, "NO"),
            None => (Style::Warn, "not known"),
        };
        let plain = |text: String| (Style::Plain, text);
        rows.push(vec![
            (Style::Bold, view.name.clone()),
            (style, word.into()),
            plain(view.since.map_or_else(|| "-".into(), |since| age(since, now))),
            plain(most(|h| h.open_orders)),
            plain(most(|h| h.open_positions)),
            plain(view.checks_passing.clone().unwrap_or_else(|| "-".into())),
            (prepared.0, prepared.1.into()),
            plain(why.join("; ")),
        ]);
    }
    table(&rows, 0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::view::testing::{at, halt, plain, proven, resume, say, system, time};

    fn well() -> Value {
        json!({"conditions": [{"type": "Prepared", "status": "True", "reason": "R", "message": "", "lastTransitionTime": at(0).to_string()}],
            "checksPassing": "1/2", "checks": [{"name": "db", "group": "data", "state": "Passing", "message": "1"},
            {"name": "feed", "group": "trading", "state": "Failing", "message": "lag 90 > 5", "lastTransitionTime": time(-60)}]})
    }

    fn view(halts: &[TradingHalt], resumes: &[TradingResume], now: i64) -> SystemView {
        SystemView::of(&system(well()), halts, resumes, &say(), at(now))
    }

    #[test]
    fn a_halt_of_several_systems_counts_until_it_has_made_the_halt_of_this_one() {
        let group = |selector: Value, status: Value| {
            let mut halt = halt("all", status);
            halt.spec.system_ref = None;
            halt.spec.system_selector = serde_json::from_value(selector).unwrap();
            halt
        };
        let (mine, other) = (json!({"system": "demo", "halt": "all-demo"}), json!({"matchLabels": {"desk": "fx"}}));
        let mut made = mine.clone();
        made["haltUid"] = "u".into();
        for (selector, status, expected) in [
            (json!({}), json!({}), State::Requested),
            (other, json!({}), State::Trading),
            (json!({}), json!({"phase": "Fencing", "systems": [mine]}), State::Requested),
            // Then that one tells.
            (json!({}), json!({"phase": "Fencing", "systems": [made]}), State::Trading),
        ] {
            let said = view(&[group(selector.clone(), status.clone())], &[], 10);
            assert_eq!(said.state, expected, "{selector} {status}");
        }
    }

    #[test]
    fn the_state_follows_from_what_holds_and_from_how_old_the_proof_is() {
        let with = |status: Value| halt("stale", status);
        let fencing = json!({"phase": "Fencing", "latch": {"held": true, "configMap": "x"}});
        let released = json!({"phase": "Released", "latch": {"held": false, "configMap": "x"}});
        let broken = json!({"phase": "Unverified", "latch": {"held": true, "configMap": "x"}});
        for (halts, resumes, now, expected) in [
            (vec![], vec![], 10, State::Trading),
            (vec![with(json!({}))], vec![], 10, State::Requested),
            (vec![with(fencing.clone())], vec![], 10, State::Halting),
            (vec![with(proven())], vec![], 10, State::Halted),
            (vec![with(proven())], vec![], 180, State::Unverified),
            (vec![with(broken)], vec![], 10, State::Unverified),
            (vec![with(proven()), halt("other", fencing)], vec![], 10, State::Halting),
            (vec![with(proven())], vec![resume(json!({"phase": "Checking"}))], 10, State::Halted),
            (vec![with(released.clone())], vec![resume(json!({"phase": "Ramping"}))], 10, State::Resuming),
            (vec![with(released)], vec![resume(json!({"phase": "Completed"}))], 10, State::Trading),
        ] {
            assert_eq!(view(&halts, &resumes, now).state, expected, "{halts:?} {now}");
        }
    }

    #[test]
    fn halts_of_other_systems_are_not_shown() {
        let mut other = halt("x", proven());
        other.spec.system_ref = Some(standfast_crds::v1alpha1::LocalReference { name: "other".into() });
        assert_eq!(view(&[other], &[], 10).state, State::Trading);
    }

    #[test]
    fn one_screen_says_what_holds_and_what_to_do() {
        let halts = [halt("stale", proven())];
        let text = plain(&lines(&view(&halts, &[], 192), &halts, at(192)));
        assert!(text.starts_with("demo  HALT UNVERIFIED for 3m11s, since 15:00:01 UTC\n"), "{text}");
        let text = plain(&lines(&view(&halts, &[], 10), &halts, at(10)));
        assert_eq!(
            text,
            "demo  HALTED for 9s, since 15:00:01 UTC
  halt        stale  HALTED
  why         prices are stale, by alice, 10s ago
  pods        0 running
  venue       alpaca  orders 0 open (at least 5 before), 2 kept on purpose, protective; positions 1 (AAPL 10)  read 6s ago
  verified    6s ago  counts until 15:03:00 UTC
  checks      1/2 pass
              FAILS    feed  lag 90 > 5  for 70s
  prepared    yes, an emergency halt would work
  next        when it may trade again: kubectl standfast resume demo -n fx
"
        );
    }

    #[test]
    fn several_systems_are_a_table() {
        let halts = [halt("stale", proven())];
        let text = plain(&overview(&[view(&halts, &[], 10), view(&[], &[], 10)], at(10)));
        assert_eq!(
            text,
            "SYSTEM  STATE    FOR  ORDERS  POSITIONS  CHECKS  PREPARED  WHY
demo    HALTED   9s   0       1          1/2     yes       prices are stale (stale)
demo    TRADING  -    -       -          1/2     yes\n"
        );
    }

    #[test]
    fn a_status_that_is_older_than_the_spec_does_not_count_as_prepared() {
        let mut edited =
            system(json!({"conditions": [{"type": "Prepared", "status": "True", "reason": "R", "message": "",
            "observedGeneration": 1, "lastTransitionTime": at(0).to_string()}]}));
        edited.metadata.generation = Some(1);
        assert_eq!(prepared(&edited), Some(true));
        edited.metadata.generation = Some(2);
        assert_eq!(prepared(&edited), None);
        assert_eq!(prepared(&system(Value::Null)), None);
    }

    #[test]
    fn only_a_halt_that_waits_for_too_long_calls_for_hands() {
        let unseen = || halt("stale", json!({}));
        assert_eq!(view(&[unseen()], &[], 4).deaf(at(4)), None);
        assert_eq!(view(&[unseen()], &[], 5).deaf(at(5)), Some("stale"));
        assert_eq!(view(&[unseen(), halt("other", proven())], &[], 5).deaf(at(5)), None, "another one holds");
    }

    #[test]
    fn each_state_says_what_to_do() {
        let state = |halts: &[TradingHalt], resumes: &[TradingResume]| view(halts, resumes, 10).next.join("\n");
        assert!(state(&[], &[]).contains("halt demo --reason"));
        assert!(state(&[halt("stale", json!({}))], &[]).contains("by hand"));
        let resume = resume(json!({"phase": "AwaitingApproval", "plan": {"policy": {"approvals": [{"count": 1}]}}}));
        let next = state(&[halt("stale", proven())], &[resume]);
        assert!(next.contains("1 approval of anybody: kubectl standfast approve stale-resume -n fx"), "{next}");
    }
}
