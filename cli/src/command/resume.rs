//! `resume`: creates the TradingResume of a halt, or goes on with the one that is under way, and shows its gates.

use std::time::{Duration, Instant};

use kube::ResourceExt;
use serde_json::{Value, json};
use standfast_crds::{
    held,
    v1alpha1::{ResumePhase, TradingHalt, TradingResume, TradingSystem},
};

use super::{Context, DONE, FAILED, INTERRUPTED, LOOK, WAITING, now, there_are};
use crate::{
    args,
    failure::Failure,
    name,
    screen::Live,
    text::{Line, Style},
    view::{
        manual::OPERATOR_PATIENCE,
        resume::{self, ResumeView},
    },
};

/// How often a resume is looked at.
const PACE: Duration = Duration::from_millis(500);

/// Resumes trading.
pub async fn run(context: &Context, args: &args::Resume) -> Result<u8, Failure> {
    let cluster = &context.cluster;
    let (me, system, halts, resumes) = futures::join!(
        cluster.whoami(),
        cluster.get::<TradingSystem>(&args.system),
        cluster.list::<TradingHalt>(),
        cluster.list::<TradingResume>()
    );
    // Without its system a halt is not released, whoever asks.
    if system?.is_none() {
        return Err(context.no_such::<TradingSystem>(&args.system).await);
    }
    let (me, halts, resumes) = (me?, halts?.items, resumes?.items);
    let mut live = Live::new(context.people());
    let resume = match choose(&args.system, args.halt.as_deref(), args.evaluate, &halts, &resumes)? {
        Chosen::UnderWay(resume) => {
            live.leave(&[Line::of(format!(
                "TradingResume {} is under way: no second one is made.",
                resume.name_any()
            ))]);
            resume.clone()
        }
        Chosen::Release(halt) => {
            let spec = json!({"haltRef": {"name": halt.name_any(), "uid": halt.uid()}, "requestedBy": me.user,
                "dryRun": args.evaluate});
            let taken = |name: &str| resumes.iter().any(|r| r.name_any() == name);
            let base = args.name.clone();
            let name = base.unwrap_or_else(|| name::free(&name::resume(&halt.name_any(), args.evaluate), taken));
            let Some(resume) = cluster.create::<TradingResume>(&name, &spec, args.dry_run).await? else {
                return Err(Failure::new(format!("TradingResume {name} exists already")).hint(format!(
                    "give another --name, leave it out, or see it: {}",
                    cluster.say.standfast(&format!("status {}", args.system))
                )));
            };
            if args.dry_run {
                context.would_create::<TradingResume>(&name, &spec)?;
                return Ok(DONE);
            }
            let what = if args.evaluate { "evaluates the release of" } else { "releases" };
            let text = format!("TradingResume {}/{name} created; it {what} {}", cluster.namespace, halt.name_any());
            live.leave(&[Line::of(text)]);
            resume
        }
    };
    if args.no_wait {
        return finish(context, &resume, DONE);
    }
    wait(context, resume, args.timeout, &mut live).await
}

/// What is to be done.
#[derive(Debug)]
enum Chosen<'a> {
    /// A resume is under way, and is looked at.
    UnderWay(&'a TradingResume),
    /// This halt is released.
    Release(&'a TradingHalt),
}

/// The halt that is released: the one that is named, or the only one that holds. A resume that is under way for it is
/// taken up.
fn choose<'a>(
    system: &str,
    named: Option<&str>,
    evaluate: bool,
    halts: &'a [TradingHalt],
    resumes: &'a [TradingResume],
) -> Result<Chosen<'a>, Failure> {
    let own: Vec<&TradingHalt> = halts.iter().filter(|h| h.spec.halts(system)).collect();
    let under_way = |halt: &TradingHalt| {
        let of = |r: &&TradingResume| {
            let uid = &r.spec.halt_ref.uid;
            r.spec.halt_ref.name == halt.name_any() && (uid.is_none() || *uid == halt.uid())
        };
        let mut found = resumes.iter().filter(of).filter(|r| r.spec.dry_run == evaluate && !resume::ended(r));
        found.next_back()
    };
    let holding: Vec<&TradingHalt> = own.iter().filter(|h| held::holds(h)).copied().collect();
    let names: Vec<String> = holding.iter().map(|h| h.name_any()).collect();
    let halt = match (named, holding.as_slice()) {
        (Some(name), _) => own.iter().find(|h| h.name_any() == name).copied().ok_or_else(|| {
            Failure::new(format!("{system} has no TradingHalt {name}: of those that hold, {}", there_are(&names)))
        })?,
        (None, [one]) => one,
        (None, []) => {
            // What was released and is still coming back.
            return own
                .iter()
                .find_map(|h| under_way(h))
                .map(Chosen::UnderWay)
                .ok_or_else(|| Failure::new(format!("no halt of {system} holds: there is nothing to resume")));
        }
        (None, several) => {
            let text =
                format!("{} halts hold {system}, and a resume releases one: {}", several.len(), names.join(", "));
            return Err(Failure::new(text).hint("name one with --halt"));
        }
    };
    match under_way(halt) {
        Some(resume) => Ok(Chosen::UnderWay(resume)),
        None if held::holds(halt) => Ok(Chosen::Release(halt)),
        None => {
            Err(Failure::new(format!("TradingHalt {} does not hold: there is nothing to release", halt.name_any())))
        }
    }
}

/// The exit code of a resume that has ended.
fn code(phase: ResumePhase) -> u8 {
    match phase {
        ResumePhase::Completed | ResumePhase::Evaluated => DONE,
        ResumePhase::ReHalted | ResumePhase::Indeterminate => LOOK,
        _ => FAILED,
    }
}

async fn wait(
    context: &Context,
    mut resume: TradingResume,
    patience: Option<Duration>,
    live: &mut Live,
) -> Result<u8, Failure> {
    let cluster = &context.cluster;
    let (name, begun) = (resume.name_any(), Instant::now());
    loop {
        let mut trouble = None;
        match cluster.get::<TradingResume>(&name).await {
            Ok(Some(read)) if read.uid() == resume.uid() => resume = read,
            Ok(_) => return Err(Failure::new(format!("TradingResume {name} was deleted"))),
            Err(failure) => trouble = Some(format!("not known at the moment: {}", failure.message)),
        }
        let view = ResumeView::of(&resume);
        let unseen = resume.status.is_none() && begun.elapsed() >= OPERATOR_PATIENCE;
        let deaf =
            unseen.then(|| "no operator has reacted: kubectl -n standfast-system get pods,leases,events".to_owned());
        let more: Vec<String> = trouble.into_iter().chain(deaf).collect();
        let mut picture = resume::lines(&resume, &cluster.say, now());
        picture.extend(more.iter().map(|m| Line::new().and(Style::Bad, m)));
        let news = [vec![view.progress()], view.next(&cluster.say), more].concat();
        live.show(&picture, &news);
        if view.ended {
            let phase = resume.status.as_ref().map(|s| s.phase).unwrap_or_default();
            return finish(context, &resume, code(phase));
        }
        if patience.is_some_and(|p| begun.elapsed() >= p) {
            live.leave(&[Line::of("It goes on without this command.")]);
            return finish(context, &resume, WAITING);
        }
        tokio::select! {
            () = tokio::time::sleep(PACE) => {}
            _ = tokio::signal::ctrl_c() => {
                live.leave(&[Line::of("Interrupted: the resume goes on without this command.")]);
                return finish(context, &resume, INTERRUPTED);
            }
        }
    }
}

fn finish(context: &Context, resume: &TradingResume, code: u8) -> Result<u8, Failure> {
    let mut result = serde_json::to_value(ResumeView::of(resume)).unwrap_or(Value::Null);
    result["exitCode"] = code.into();
    context.show(&result, Vec::new)?;
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::testing::{halt, object, proven};

    fn resume(name: &str, of: &str, phase: &str) -> TradingResume {
        let spec = json!({"haltRef": {"name": of}, "requestedBy": "alice"});
        object("TradingResume", name, spec, json!({"phase": phase}))
    }

    fn chosen(named: Option<&str>, halts: &[TradingHalt], resumes: &[TradingResume]) -> String {
        match choose("demo", named, false, halts, resumes) {
            Ok(Chosen::Release(halt)) => format!("release {}", halt.name_any()),
            Ok(Chosen::UnderWay(resume)) => format!("see {}", resume.name_any()),
            Err(failure) => failure.message,
        }
    }

    #[test]
    fn the_only_halt_that_holds_is_released_and_a_resume_under_way_is_taken_up() {
        let released = || halt("old", json!({"phase": "Released"}));
        let one = [released(), halt("stale", proven())];
        let two = [halt("a", proven()), halt("b", proven())];
        assert_eq!(chosen(None, &one, &[]), "release stale");
        assert_eq!(chosen(None, &one, &[resume("r", "stale", "Checking")]), "see r");
        assert_eq!(chosen(None, &one, &[resume("r", "stale", "Failed")]), "release stale");
        assert_eq!(chosen(None, &two, &[]), "2 halts hold demo, and a resume releases one: a, b");
        assert_eq!(chosen(Some("b"), &two, &[]), "release b");
        assert_eq!(chosen(Some("c"), &two, &[]), "demo has no TradingHalt c: of those that hold, there are a, b");
        assert_eq!(chosen(Some("old"), &one, &[]), "TradingHalt old does not hold: there is nothing to release");
        assert_eq!(chosen(None, &[released()], &[]), "no halt of demo holds: there is nothing to resume");
        assert_eq!(chosen(None, &[released()], &[resume("r", "old", "Ramping")]), "see r");
    }

    #[test]
    fn every_end_has_its_exit_code() {
        use ResumePhase as P;
        for (phase, expected) in [
            (P::Completed, 0),
            (P::Evaluated, 0),
            (P::Failed, 1),
            (P::Rejected, 1),
            (P::Aborted, 1),
            (P::ReHalted, 2),
            (P::Indeterminate, 2),
        ] {
            assert_eq!(code(phase), expected, "{phase:?}");
        }
    }
}
