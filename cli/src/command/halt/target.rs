//! What a halt halts: one system, or several by their labels; and what it does to positions.

use std::fmt;

use kube::ResourceExt;
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{HaltPhase, PositionAction, SystemSelector, TradingHalt, TradingSystem};

use super::Context;
use crate::{args, failure::Failure};

/// What one TradingHalt halts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// The system of this name.
    One(String),
    /// All that are selected; the operator makes a halt for each.
    Several(SystemSelector),
}

impl Target {
    /// What is asked for: each system that is named, once, or all that are selected.
    pub fn of(args: &args::Halt) -> Vec<Self> {
        if args.all || args.selector.is_some() {
            let match_labels = args.selector.clone().unwrap_or_default();
            return vec![Self::Several(SystemSelector { match_labels, ..SystemSelector::default() })];
        }
        let mut seen = std::collections::BTreeSet::new();
        args.systems.iter().filter(|s| seen.insert(*s)).cloned().map(Self::One).collect()
    }

    /// The field of the halt's spec that says it.
    pub fn field(&self) -> (&'static str, Value) {
        match self {
            Self::One(name) => ("systemRef", json!({ "name": name })),
            Self::Several(selector) => ("systemSelector", json!(selector)),
        }
    }

    /// What the halt's name begins with.
    pub fn stem(&self) -> &str {
        match self {
            Self::One(name) => name,
            Self::Several(selector) if selector.selects_all() => "all",
            Self::Several(_) => "selected",
        }
    }

    /// The systems that it halts as things stand. `None`: at least one that cannot be read may be among them.
    pub async fn systems(&self, context: &Context) -> Result<Option<Vec<TradingSystem>>, Failure> {
        match self {
            Self::One(name) => Ok(Some(context.cluster.get(name).await?.into_iter().collect())),
            Self::Several(selector) => {
                let listed = context.cluster.list::<TradingSystem>().await?;
                let chosen: Vec<_> = listed.items.into_iter().filter(|s| selector.matches(s.labels())).collect();
                Ok((!chosen.is_empty() || listed.odd.is_empty()).then_some(chosen))
            }
        }
    }

    /// Names of the systems that a halt of several has to hold.
    pub async fn names(&self, context: &Context) -> Result<Vec<String>, Failure> {
        let Self::Several(_) = self else { return Ok(vec![]) };
        Ok(self.systems(context).await?.unwrap_or_default().iter().map(ResourceExt::name_any).collect())
    }

    /// There is nothing of the kind to halt.
    pub async fn nothing(&self, context: &Context) -> Failure {
        let Self::Several(selector) = self else { return context.no_such::<TradingSystem>(&self.to_string()).await };
        let namespace = &context.cluster.namespace;
        if selector.selects_all() {
            return Failure::new(format!("there is no TradingSystem in namespace {namespace}"));
        }
        let there = match context.cluster.list::<TradingSystem>().await {
            Ok(listed) => {
                let labels = |s: &TradingSystem| {
                    let labels: Vec<_> = s.labels().iter().map(|(key, value)| format!("{key}={value}")).collect();
                    format!(
                        "{} ({})",
                        s.name_any(),
                        if labels.is_empty() { "no labels".into() } else { labels.join(",") }
                    )
                };
                super::super::there_are(&listed.items.iter().map(labels).collect::<Vec<_>>())
            }
            Err(failure) => failure.message,
        };
        Failure::new(format!("no TradingSystem in namespace {namespace} has the labels {selector}: {there}"))
            .hint("another namespace is chosen with -n, another cluster with --context")
    }

    /// What the user may do next about it.
    pub fn command(&self, verb: &str) -> String {
        match (self, verb) {
            (Self::One(name), _) => format!("{verb} {name}"),
            (Self::Several(_), "resume") => "resume SYSTEM".into(),
            (Self::Several(_), _) => verb.into(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(name) => f.write_str(name),
            Self::Several(selector) if selector.selects_all() => f.write_str("all systems"),
            Self::Several(selector) => write!(f, "systems with {selector}"),
        }
    }
}

/// Whether a halt of several systems holds, or will hold, each of these: a system that was created after it, or one whose
/// halt was or is being released, would trade on. A halt of one system always covers it.
pub(super) fn covers(halt: &TradingHalt, systems: &[String], releasing: impl Fn(&str) -> bool) -> bool {
    let chosen = halt.status.as_ref().map(|s| s.systems.as_slice()).unwrap_or_default();
    if !halt.spec.is_group() || chosen.is_empty() {
        return true;
    }
    systems
        .iter()
        .all(|name| chosen.iter().any(|e| e.system == *name && e.phase != HaltPhase::Released && !releasing(&e.halt)))
}

/// What happens to positions, as the halt's spec says it.
pub(super) fn positions(args: &args::Halt) -> Result<Value, Failure> {
    use PositionAction as P;
    let goes = |flag: &str, with: &str| Failure::new(format!("{flag} goes with --positions {with}"));
    let matching = args.loss_below.is_some() || args.held_longer_than.is_some();
    let mut positions = json!({"action": args.positions});
    match args.positions {
        P::CloseMatching if !matching => {
            return Err(Failure::new(
                "--positions CloseMatching needs --loss-below PERCENT, --held-longer-than DURATION, or both",
            ));
        }
        P::ReduceTo if args.exposure.is_none() => {
            return Err(Failure::new("--positions ReduceTo needs --exposure PERCENT"));
        }
        action => {
            if matching && action != P::CloseMatching {
                let flag = if args.loss_below.is_some() { "--loss-below" } else { "--held-longer-than" };
                return Err(goes(flag, "CloseMatching"));
            }
            if args.exposure.is_some() && action != P::ReduceTo {
                return Err(goes("--exposure", "ReduceTo"));
            }
        }
    }
    if let Some(percent) = &args.loss_below {
        positions["closeMatching"]["unrealizedLossBelowPercent"] = percent.as_str().into();
    }
    if let Some(age) = &args.held_longer_than {
        positions["closeMatching"]["heldLongerThan"] = json!(age);
    }
    if let Some(percent) = &args.exposure {
        positions["reduceTo"] = json!({ "exposurePercent": percent });
    }
    Ok(positions)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::view::testing::halt;

    fn args(more: &[&str]) -> args::Halt {
        let words = ["x", "halt", "--reason", "r"].iter().chain(more);
        match args::Cli::try_parse_from(words).unwrap().command {
            args::Command::Halt(halt) => halt,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_halted_is_each_name_once_or_a_selector() {
        let one = |name: &str| Target::One(name.into());
        assert_eq!(Target::of(&args(&["a", "b", "a"])), [one("a"), one("b")]);
        for (more, field, stem, text) in [
            (&["a"][..], json!({"name": "a"}), "a", "a"),
            (&["--all"], json!({}), "all", "all systems"),
            (&["-l", "desk=fx"], json!({"matchLabels": {"desk": "fx"}}), "selected", "systems with desk=fx"),
        ] {
            let [target] = Target::of(&args(more)).try_into().unwrap();
            assert_eq!((target.field().1, target.stem(), target.to_string().as_str()), (field, stem, text));
        }
    }

    #[test]
    fn positions_are_told_in_words() {
        for (more, expected) in [
            (&[][..], Ok(json!({"action": "Keep"}))),
            (&["--positions", "CloseAll"], Ok(json!({"action": "CloseAll"}))),
            (
                &["--positions", "CloseMatching", "--loss-below", "10", "--held-longer-than", "168h"],
                Ok(json!({"action": "CloseMatching",
                    "closeMatching": {"unrealizedLossBelowPercent": "10", "heldLongerThan": "168h"}})),
            ),
            (
                &["--positions", "ReduceTo", "--exposure", "50"],
                Ok(json!({"action": "ReduceTo", "reduceTo": {"exposurePercent": "50"}})),
            ),
            (&["--positions", "CloseMatching"], Err("--loss-below PERCENT, --held-longer-than DURATION")),
            (&["--positions", "ReduceTo"], Err("needs --exposure PERCENT")),
            (&["--loss-below", "10"], Err("--loss-below goes with --positions CloseMatching")),
            (
                &["--positions", "ReduceTo", "--exposure", "5", "--held-longer-than", "1h"],
                Err("--held-longer-than goes"),
            ),
            (&["--positions", "CloseAll", "--exposure", "5"], Err("--exposure goes with --positions ReduceTo")),
        ] {
            let words: Vec<_> = ["bot"].iter().chain(more).copied().collect();
            match (positions(&args(&words)), expected) {
                (Ok(said), expected) => assert_eq!(Ok(said), expected, "{more:?}"),
                (Err(failure), Err(part)) => assert!(failure.message.contains(part), "{}", failure.message),
                (Err(failure), Ok(_)) => panic!("{more:?}: {}", failure.message),
            }
        }
    }

    #[test]
    fn a_halt_of_several_is_the_same_only_while_it_holds_all_of_them() {
        let group = |systems: Value| {
            let mut halt = halt("all-1", json!({ "systems": systems }));
            (halt.spec.system_ref, halt.spec.system_selector) = (None, Some(SystemSelector::default()));
            halt
        };
        let both = json!([{"system": "a", "halt": "all-1-a", "phase": "Halted"}, {"system": "b", "halt": "all-1-b"}]);
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let never = |_: &str| false;
        assert!(covers(&group(both.clone()), &names(&["a", "b"]), never));
        assert!(covers(&group(both.clone()), &names(&["a"]), never), "one that is gone by now");
        assert!(!covers(&group(both.clone()), &names(&["a", "b", "new"]), never));
        assert!(!covers(&group(both), &names(&["a", "b"]), |halt| halt == "all-1-a"), "about to be released");
        let released = json!([{"system": "a", "halt": "all-1-a", "phase": "Released"}]);
        assert!(!covers(&group(released), &names(&["a"]), never));
        assert!(covers(&group(json!([])), &names(&["a"]), never), "not seen yet: it will select them");
        assert!(covers(&halt("one", json!({})), &[], never));
    }
}
