//! `halt`: creates a TradingHalt for each system, or one for several, and waits until it is proven. The create is the
//! second request; only who asks is found out before.

mod target;

use std::time::{Duration, Instant};

use futures::future::join_all;
use kube::ResourceExt;
use serde::Serialize;
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{HaltPhase, TradingHalt, TradingHaltSpec, TradingResume, TradingSystem};
use target::Target;

use super::{Context, DONE, FAILED, INTERRUPTED, LOOK, now};
use crate::{
    args,
    cluster::{Listed, Say},
    failure::Failure,
    name,
    screen::Live,
    text::{Line, Style, took},
    view::{
        halt::{self, HaltView},
        manual::{self, OPERATOR_PATIENCE},
        resume,
    },
};

/// How often a halt is looked at.
const PACE: Duration = Duration::from_millis(250);
/// How long finding out who asks, or whether there is such a system, may hold up a halt.
const WHO: Duration = Duration::from_secs(2);
/// How long the create is tried when the API server does not answer.
const INSISTENCE: Duration = Duration::from_secs(60);
/// How long a halt must be `Unverified` before that is the answer: a single read that failed is no more than that.
const UNVERIFIED_FOR: Duration = Duration::from_secs(10);

/// How it ended for one halt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Outcome {
    /// Created; nobody waited.
    Requested,
    /// Halted, proven.
    Halted,
    /// It holds, and is not proven.
    Unverified,
    /// Nothing holds.
    Failed,
}

/// A halt that is waited for.
struct Pursued {
    target: Target,
    /// `None`: not created, for this reason.
    halt: Result<TradingHalt, Failure>,
    /// This command created it, and did not find it.
    created: bool,
    found: Vec<TradingSystem>,
    since: Instant,
    unverified_since: Option<Instant>,
    trouble: Option<String>,
    outcome: Option<Outcome>,
}

/// Halts systems.
pub async fn run(context: &Context, args: &args::Halt) -> Result<u8, Failure> {
    let begun = Instant::now();
    let cluster = &context.cluster;
    let targets = Target::of(args);
    if args.name.is_some() && targets.len() > 1 {
        return Err(Failure::new("--name names one TradingHalt: halt the systems one by one, or leave it out"));
    }
    let positions = target::positions(args)?;
    let me = tokio::time::timeout(WHO, cluster.whoami()).await;
    // Halting is more urgent than knowing who asks.
    let me = me.ok().and_then(Result::ok).map(|me| me.user);
    let mut live = Live::new(context.people());
    if me.is_none() {
        let text = "who you are could not be found out: the halt is asked for without spec.requestedBy";
        live.leave(&[Line::new().and(Style::Warn, text)]);
    }
    let specs: Vec<Value> = targets.iter().map(|t| spec(args, t, &positions, me.as_deref())).collect();
    if args.dry_run {
        for (target, spec) in targets.iter().zip(&specs) {
            let systems = target.systems(context).await?;
            if systems.as_ref().is_some_and(Vec::is_empty) {
                return Err(target.nothing(context).await);
            }
            if let (Target::Several(_), Some(systems)) = (target, &systems) {
                let names: Vec<String> = systems.iter().map(ResourceExt::name_any).collect();
                live.leave(&[Line::of(format!("It would halt {}.", names.join(", ")))]);
            }
            let name = args.name.clone().unwrap_or_else(|| name::halt(target.stem(), spec));
            if cluster.create::<TradingHalt>(&name, spec, true).await?.is_none() {
                live.leave(&[Line::of(format!("TradingHalt {name} exists already."))]);
            }
            context.would_create::<TradingHalt>(&name, spec)?;
        }
        return Ok(DONE);
    }
    let pursue = targets.iter().zip(&specs).map(|(target, spec)| pursue(context, args, target, spec));
    let mut pursued = join_all(pursue).await;
    let by = me.map_or_else(String::new, |me| format!(", by {me}"));
    live.leave(&pursued.iter().filter_map(|p| p.announce(&cluster.namespace, &by, begun)).collect::<Vec<_>>());
    for p in &mut pursued {
        match &p.halt {
            Err(failure) => {
                crate::screen::fail(failure);
                p.outcome = Some(Outcome::Failed);
            }
            Ok(_) if args.no_wait => p.outcome = Some(Outcome::Requested),
            Ok(_) => {}
        }
    }
    let interrupted = wait(context, &mut pursued, args.timeout, &mut live).await;
    report(context, &pursued)?;
    if interrupted {
        let text = "Interrupted: what was asked for goes on without this command.";
        live.leave(&[Line::of(text)]);
        return Ok(INTERRUPTED);
    }
    Ok(code(pursued.iter().filter_map(|p| p.outcome)))
}

/// The worst of all: nothing holds, then not proven.
fn code(outcomes: impl Iterator<Item = Outcome>) -> u8 {
    let mut code = DONE;
    for outcome in outcomes {
        code = match (outcome, code) {
            (Outcome::Failed, _) | (_, FAILED) => FAILED,
            (Outcome::Unverified, _) => LOOK,
            (Outcome::Requested | Outcome::Halted, code) => code,
        };
    }
    code
}

fn spec(args: &args::Halt, target: &Target, positions: &Value, me: Option<&str>) -> Value {
    let mut spec = json!({"reason": args.reason, "orders": {"cancel": args.cancel}, "positions": positions});
    let (field, value) = target.field();
    spec[field] = value;
    if let Some(me) = me {
        spec["requestedBy"] = me.into();
    }
    spec
}

/// Whether a halt asks for what is asked for now, whoever asked.
fn same(halt: &TradingHalt, spec: &Value) -> bool {
    let asked = |spec: TradingHaltSpec| TradingHaltSpec { requested_by: None, ..spec };
    serde_json::from_value(spec.clone()).is_ok_and(|spec| asked(spec) == asked(halt.spec.clone()))
}

fn released(halt: &TradingHalt) -> bool {
    halt.status.as_ref().is_some_and(|s| s.phase == HaltPhase::Released)
}

/// The halt that the same command made before, if it may be taken for this one: it asks for the same, and nothing is
/// about to release it.
fn made_before<'a>(
    halts: &'a [TradingHalt],
    resumes: &[TradingResume],
    systems: &[String],
    base: &str,
    spec: &Value,
) -> Option<&'a TradingHalt> {
    let releasing =
        |name: &str| resumes.iter().any(|r| r.spec.halt_ref.name == name && !r.spec.dry_run && !resume::ended(r));
    let going = |h: &TradingHalt| releasing(&h.name_any()) || !target::covers(h, systems, releasing);
    halts.iter().find(|h| {
        name::is_of(&h.name_any(), base)
            && same(h, spec)
            && !released(h)
            && h.metadata.deletion_timestamp.is_none()
            && !going(h)
    })
}

/// Creates the halt of one system, or finds the one that the same command made before. Its system is read at the same
/// time: a name that is mistyped halts nothing.
async fn pursue(context: &Context, args: &args::Halt, target: &Target, spec: &Value) -> Pursued {
    // Its systems are only looked at: that must not hold anything up.
    let found = tokio::time::timeout(WHO, target.systems(context));
    let (made, found) = futures::join!(create(context, args, target, spec), found);
    // None: not known, or not readable.
    let found = found.ok().and_then(Result::ok).flatten();
    let (halt, created) = match made {
        Ok((halt, created)) if found.as_ref().is_some_and(Vec::is_empty) => {
            (Err(nothing_to_halt(context, target, &halt, created).await), false)
        }
        Ok((halt, created)) => (Ok(halt), created),
        Err(failure) => (Err(failure), false),
    };
    Pursued { created, found: found.unwrap_or_default(), ..Pursued::new(target.clone(), halt) }
}

async fn nothing_to_halt(context: &Context, target: &Target, halt: &TradingHalt, created: bool) -> Failure {
    let (cluster, name) = (&context.cluster, halt.name_any());
    let failure = target.nothing(context).await;
    let mut text = format!("{}; nothing is halted", failure.message);
    if created && let Err(why) = cluster.delete::<TradingHalt>(&name, halt.uid()).await {
        let command = cluster.say.kubectl(&format!("delete tradinghalt {name}"));
        text += &format!(
            ". TradingHalt {name} was created and could not be removed ({}): it would halt what comes later and fits; \
             somebody who may delete it runs: {command}",
            why.message
        );
    }
    Failure { message: text, ..failure }
}

async fn create(
    context: &Context,
    args: &args::Halt,
    target: &Target,
    spec: &Value,
) -> Result<(TradingHalt, bool), Failure> {
    let cluster = &context.cluster;
    let base = args.name.clone().unwrap_or_else(|| name::halt(target.stem(), spec));
    let mut wanted = base.clone();
    let (until, mut pause) = (Instant::now() + INSISTENCE, Duration::from_millis(200));
    loop {
        let failure = match cluster.create::<TradingHalt>(&wanted, spec, false).await {
            Ok(Some(halt)) => return Ok((halt, true)),
            Ok(None) => match futures::try_join!(
                cluster.list::<TradingHalt>(),
                cluster.list::<TradingResume>(),
                target.names(context)
            ) {
                Ok((halts, resumes, systems)) => {
                    match taken((&halts, &resumes.items, &systems), (&base, args.name.is_some()), spec)? {
                        Taken::Before(halt) => return Ok((*halt, false)),
                        Taken::Next(name) => {
                            wanted = name;
                            continue;
                        }
                    }
                }
                Err(failure) => failure,
            },
            Err(failure) => failure,
        };
        if !failure.passing {
            return Err(failure);
        }
        if Instant::now() > until {
            return Err(failure.hint(format!(
                "whether TradingHalt {wanted} was created is not known: cancel the orders at the venues by hand, and run \
                 the same command again as soon as the API server answers; it makes no second halt"
            )));
        }
        let text =
            format!("{}: trying again; the name {wanted} makes sure that there is no second halt", failure.message);
        context.people().print(&[Line::new().and(Style::Warn, text)]);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

/// What a name that is taken means.
enum Taken {
    /// The same command made that halt before.
    Before(Box<TradingHalt>),
    /// This name is free.
    Next(String),
}

/// There is a halt with the name `base`. If that one name is the user's choice, no other one is taken.
fn taken(
    (halts, resumes, systems): (&Listed<TradingHalt>, &[TradingResume], &[String]),
    (base, chosen): (&str, bool),
    spec: &Value,
) -> Result<Taken, Failure> {
    let own: Vec<TradingHalt> = halts.items.iter().filter(|h| !chosen || h.name_any() == base).cloned().collect();
    if let Some(halt) = made_before(&own, resumes, systems, base, spec) {
        return Ok(Taken::Before(Box::new(halt.clone())));
    }
    let odd = |name: &str| halts.odd.iter().any(|o| o.contains(&format!(" {name}:")));
    if !chosen {
        let taken = |name: &str| odd(name) || halts.items.iter().any(|h| h.name_any() == name);
        return Ok(Taken::Next(name::free(base, taken)));
    }
    let why = match own.first() {
        Some(halt) if !same(halt, spec) => "asks for something else",
        Some(halt) if released(halt) => "is released",
        Some(halt) if halt.spec.is_group() => "does not hold every system that is to be halted now",
        Some(_) => "is about to be released or deleted",
        None if odd(base) => "cannot be read",
        // Gone in between.
        None => return Ok(Taken::Next(base.into())),
    };
    Err(Failure::new(format!("TradingHalt {base} exists and {why}: nothing new is halted"))
        .hint("give another --name, or leave it out"))
}

impl Pursued {
    fn new(target: Target, halt: Result<TradingHalt, Failure>) -> Self {
        Self {
            target,
            halt,
            created: false,
            found: vec![],
            since: Instant::now(),
            unverified_since: None,
            trouble: None,
            outcome: None,
        }
    }

    fn announce(&self, namespace: &str, by: &str, begun: Instant) -> Option<Line> {
        let name = self.halt.as_ref().ok()?.name_any();
        Some(if self.created {
            Line::of(format!("TradingHalt {namespace}/{name} created within {}{by}", took(begun.elapsed())))
        } else {
            Line::of(format!(
                "TradingHalt {namespace}/{name} exists already and asks for the same: no second one is made"
            ))
        })
    }

    fn deaf(&self) -> bool {
        let seen = self.halt.as_ref().is_ok_and(|h| HaltView::of(h, now()).seen);
        !seen && self.since.elapsed() >= OPERATOR_PATIENCE
    }

    /// Looks at the halt once more.
    async fn look(&mut self, context: &Context) {
        let Ok(halt) = &self.halt else { return };
        match context.cluster.get::<TradingHalt>(&halt.name_any()).await {
            Ok(Some(read)) if read.uid() == halt.uid() => {
                (self.halt, self.trouble) = (Ok(read), None);
            }
            Ok(_) => {
                self.trouble = Some("it was deleted".into());
                self.outcome = Some(Outcome::Failed);
            }
            Err(failure) => self.trouble = Some(failure.message),
        }
        self.judge(false);
    }

    /// What can be said by now; at the end of patience something must be said.
    fn judge(&mut self, last: bool) {
        let Ok(halt) = &self.halt else { return };
        let view = HaltView::of(halt, now());
        if view.phase == "Unverified" {
            self.unverified_since.get_or_insert_with(Instant::now);
        } else {
            self.unverified_since = None;
        }
        let lasting = self.unverified_since.is_some_and(|since| since.elapsed() >= UNVERIFIED_FOR);
        self.outcome = self.outcome.or(match view.phase.as_str() {
            _ if self.trouble.is_none() && view.proven => Some(Outcome::Halted),
            "Releasing" | "Released" => Some(Outcome::Failed),
            // What could not be read may hold.
            _ if lasting || (last && (view.held || self.trouble.is_some())) => Some(Outcome::Unverified),
            _ if last => Some(Outcome::Failed),
            _ => None,
        });
    }

    fn lines(&self, say: &Say) -> Vec<Line> {
        let Ok(halt) = &self.halt else { return vec![] };
        let mut lines = halt::lines(halt, now());
        if let Some(trouble) = &self.trouble {
            lines.push(Line::new().and(Style::Bad, format!("  not known at the moment: {trouble}")));
        }
        if self.deaf() {
            lines.extend(manual::lines(&self.found, &halt.name_any(), say));
        }
        lines
    }

    fn news(&self, say: &Say) -> Vec<String> {
        let Ok(halt) = &self.halt else { return vec![] };
        let mut news = HaltView::of(halt, now()).news(now());
        news.extend(self.trouble.iter().map(|t| format!("{}: not known at the moment: {t}", self.target)));
        if self.deaf() {
            news.extend(manual::lines(&self.found, &halt.name_any(), say).iter().map(Line::plain));
        }
        news
    }
}

/// Waits until every halt has an outcome. Tells whether it was interrupted.
async fn wait(context: &Context, pursued: &mut [Pursued], patience: Duration, live: &mut Live) -> bool {
    let say = &context.cluster.say;
    let until = Instant::now() + patience;
    loop {
        let open = pursued.iter_mut().filter(|p| p.outcome.is_none());
        let looks: Vec<_> = open.map(|p| p.look(context)).collect();
        if looks.is_empty() {
            return false;
        }
        join_all(looks).await;
        if Instant::now() >= until {
            pursued.iter_mut().for_each(|p| p.judge(true));
        }
        let picture: Vec<Line> = pursued.iter().flat_map(|p| p.lines(say)).collect();
        let news: Vec<String> = pursued.iter().flat_map(|p| p.news(say)).collect();
        live.show(&picture, &news);
        if pursued.iter().all(|p| p.outcome.is_some()) {
            return false;
        }
        tokio::select! {
            () = tokio::time::sleep(PACE) => {}
            _ = tokio::signal::ctrl_c() => return true,
        }
    }
}

fn report(context: &Context, pursued: &[Pursued]) -> Result<(), Failure> {
    let halts: Vec<Value> = pursued
        .iter()
        .map(|p| match &p.halt {
            Ok(halt) => {
                let mut view = serde_json::to_value(HaltView::of(halt, now())).unwrap_or_default();
                (view["created"], view["outcome"]) = (p.created.into(), json!(p.outcome));
                view
            }
            Err(failure) => json!({"system": p.target.to_string(), "outcome": p.outcome, "message": failure.message}),
        })
        .collect();
    context.show(&json!({"namespace": context.cluster.namespace, "halts": halts}), || {
        let say = &context.cluster.say;
        pursued
            .iter()
            .filter_map(|p| {
                let name = p.halt.as_ref().ok()?.name_any();
                Some(match p.outcome? {
                    Outcome::Requested => {
                        Line::of(format!("see it come along: {}", say.standfast(&p.target.command("watch"))))
                    }
                    Outcome::Halted => {
                        Line::of(format!("when it may trade again: {}", say.standfast(&p.target.command("resume"))))
                    }
                    Outcome::Unverified => Line::new().and(
                        Style::Bad,
                        format!("NOT PROVEN; what happened: {}", say.standfast(&format!("explain {name}"))),
                    ),
                    Outcome::Failed => Line::new().and(Style::Bad, format!("NOT HALTED by TradingHalt {name}")),
                })
            })
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::view::testing::{halt, proven, resume};

    fn wanted() -> Value {
        json!({"systemRef": {"name": "demo"}, "reason": "prices are stale", "orders": {"cancel": "All"},
            "positions": {"action": "Keep"}, "requestedBy": "bob"})
    }

    #[test]
    fn a_retry_finds_the_halt_unless_something_releases_it() {
        let released = || json!({"phase": "Released"});
        let base = "demo-1";
        for (halts, resumes, expected) in [
            (vec![], vec![], None),
            (vec![halt("demo-1", json!({}))], vec![], Some("demo-1")),
            (vec![halt("demo-1", proven())], vec![], Some("demo-1")),
            (vec![halt("demo-1", released())], vec![], None),
            (vec![halt("demo-1", released()), halt("demo-1-2", proven())], vec![], Some("demo-1-2")),
            (vec![halt("other", proven())], vec![], None),
            (vec![halt("stale", proven())], vec![resume(json!({"phase": "Checking"}))], None),
        ] {
            let found = made_before(&halts, &resumes, &[], base, &wanted()).map(ResourceExt::name_any);
            assert_eq!(found.as_deref(), expected);
        }
        // `resume` releases the halt `stale`.
        let halts = [halt("stale", proven())];
        for (phase, expected) in [("Checking", None), ("AwaitingApproval", None), ("Failed", Some("stale"))] {
            let found = made_before(&halts, &[resume(json!({"phase": phase}))], &[], "stale", &wanted());
            assert_eq!(found.map(ResourceExt::name_any).as_deref(), expected, "{phase}");
        }
    }

    #[test]
    fn a_name_that_the_user_chose_is_the_only_one_that_is_tried() {
        let told = |halts: Vec<TradingHalt>, odd: &[&str], resumes: &[TradingResume], chosen| {
            let halts = Listed { items: halts, odd: odd.iter().map(|o| (*o).to_owned()).collect() };
            match taken((&halts, resumes, &[]), ("stale", chosen), &wanted()) {
                Ok(Taken::Before(halt)) => format!("found {}", halt.name_any()),
                Ok(Taken::Next(name)) => format!("next {name}"),
                Err(failure) => failure.message,
            }
        };
        let released = || halt("stale", json!({"phase": "Released"}));
        let releasing = [resume(json!({"phase": "Releasing"}))];
        assert_eq!(told(vec![halt("stale", proven())], &[], &[], true), "found stale");
        assert_eq!(told(vec![released()], &[], &[], false), "next stale-2");
        assert_eq!(told(vec![released(), halt("stale-2", proven())], &[], &[], false), "found stale-2");
        assert_eq!(told(vec![halt("stale", proven())], &["TradingHalt stale-2: x"], &releasing, false), "next stale-3");
        assert_eq!(told(vec![], &[], &[], true), "next stale", "gone in between");
        for (halts, odd, resumes, why) in [
            (vec![released(), halt("stale-2", proven())], &[][..], &[][..], "is released"),
            (vec![halt("stale", proven())], &[], &releasing, "is about to be released or deleted"),
            (vec![], &["TradingHalt stale: x"], &[], "cannot be read"),
        ] {
            assert_eq!(
                told(halts, odd, resumes, true),
                format!("TradingHalt stale exists and {why}: nothing new is halted")
            );
        }
    }

    #[test]
    fn only_a_halt_that_asks_for_the_same_is_the_same() {
        let there = halt("demo-1", proven());
        assert!(same(&there, &wanted()), "whoever asked");
        for (at, other) in
            [("/reason", "x"), ("/orders/cancel", "None"), ("/positions/action", "CloseAll"), ("/systemRef/name", "x")]
        {
            let mut spec = wanted();
            *spec.pointer_mut(at).unwrap() = other.into();
            assert!(!same(&there, &spec), "{at}");
        }
    }

    #[test]
    fn an_outcome_says_no_more_than_was_read() {
        let fencing = || json!({"phase": "Fencing", "latch": {"held": true, "configMap": "x"}});
        let until = |at: Timestamp| {
            let mut status = proven();
            status["verifiedUntil"] = json!(format!("{at:.6}"));
            status
        };
        let fresh = || until(now() + Duration::from_secs(60));
        for (status, trouble, last, expected) in [
            (json!({}), None, false, None),
            (json!({}), None, true, Some(Outcome::Failed)),
            (json!({}), Some("no answer"), true, Some(Outcome::Unverified)),
            (fencing(), None, false, None),
            (fencing(), None, true, Some(Outcome::Unverified)),
            (fresh(), None, false, Some(Outcome::Halted)),
            (fresh(), Some("no answer"), false, None),
            (until(Timestamp::UNIX_EPOCH), None, false, None),
            (json!({"phase": "Unverified", "latch": {"held": true, "configMap": "x"}}), None, false, None),
            (json!({"phase": "Released"}), None, false, Some(Outcome::Failed)),
        ] {
            let mut pursued = Pursued::new(Target::One("demo".into()), Ok(halt("stale", status.clone())));
            pursued.trouble = trouble.map(str::to_owned);
            pursued.judge(last);
            assert_eq!(pursued.outcome, expected, "{status} {trouble:?} {last}");
        }
        let mut lasting = Pursued::new(Target::One("demo".into()), Ok(halt("stale", json!({"phase": "Unverified"}))));
        lasting.unverified_since = Instant::now().checked_sub(UNVERIFIED_FOR);
        lasting.judge(false);
        assert_eq!(lasting.outcome, Some(Outcome::Unverified));
    }

    #[test]
    fn the_exit_code_is_that_of_the_worst() {
        use Outcome as O;
        for (outcomes, expected) in [
            (vec![O::Halted], 0),
            (vec![O::Requested], 0),
            (vec![O::Halted, O::Unverified], 2),
            (vec![O::Unverified, O::Failed], 1),
            (vec![O::Failed, O::Unverified, O::Halted], 1),
        ] {
            assert_eq!(code(outcomes.into_iter()), expected);
        }
    }
}
