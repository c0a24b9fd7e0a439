//! `approve` and `reject`: shows what is decided about, asks, and creates the Approval that carries its hash.

use std::{
    io::{self, BufRead, IsTerminal},
    time::{Duration, Instant},
};

use k8s_openapi::jiff::SignedDuration;
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{
    Approval, ApprovalPhase, Decision, TradingHalt, TradingResume, TradingSystem, condition,
};

use super::{Context, DONE, FAILED, now};
use crate::{
    args,
    failure::Failure,
    text::{Line, Style},
    view::{
        decision::{self, Shown},
        resume,
    },
};

/// How long an operator is given to say whether the approval counts.
const PATIENCE: Duration = Duration::from_secs(5);

/// Approves or rejects.
pub async fn run(context: &Context, args: &args::Decide, decided: Decision) -> Result<u8, Failure> {
    let cluster = &context.cluster;
    let (me, subject) = futures::join!(cluster.whoami(), subject(context, args));
    let (me, (shown, mut lines)) = (me?, subject?);
    if args.accept_breaks && decided == Decision::Reject {
        return Err(Failure::new("--accept-breaks goes with approve: a rejection accepts nothing"));
    }
    if args.accept_breaks && shown.breaks.is_empty() {
        return Err(Failure::new(format!("{} {} has no breaks to accept", shown.kind, shown.name)));
    }
    lines.extend(decision::question(&shown, decided, &me, args.accept_breaks));
    context.people().print(&lines);
    let expires = args.expires.map(|length| {
        let length = SignedDuration::try_from(length).unwrap_or(SignedDuration::MAX);
        now().checked_add(length).map_err(|e| Failure::new(format!("--expires: {e}")))
    });
    let expires = expires.transpose()?;
    let made = shown.approval(decided, &me, args.accept_breaks, args.comment.as_deref(), expires);
    let (name, spec) = made.map_err(Failure::new)?;
    if !args.dry_run && !args.yes && !asked(context, decided, &shown).await? {
        context.people().print(&[Line::of("Nothing was decided.")]);
        return Ok(FAILED);
    }
    let created = cluster.create::<Approval>(&name, &spec, args.dry_run).await?;
    if args.dry_run {
        context.would_create::<Approval>(&name, &spec)?;
        return Ok(DONE);
    }
    let text = match created {
        Some(_) => format!("Approval {}/{name} created.", cluster.namespace),
        None => format!("Approval {}/{name} exists already: you have decided so before.", cluster.namespace),
    };
    context.people().print(&[Line::of(text)]);
    report(context, &name, created.is_some()).await
}

/// What is decided about, and its lines.
async fn subject(context: &Context, args: &args::Decide) -> Result<(Shown, Vec<Line>), Failure> {
    let (cluster, name) = (&context.cluster, args.subject.as_str());
    if args.halt {
        let Some(halt) = cluster.get::<TradingHalt>(name).await? else {
            return Err(context.no_such::<TradingHalt>(name).await);
        };
        let Some(system) = &halt.spec.system_ref else {
            return Err(Failure::new(format!(
                "TradingHalt {name} halts several systems: approve the halts that it made"
            )));
        };
        let system = cluster.get::<TradingSystem>(&system.name).await?;
        let shown = decision::of_halt(&halt, system.as_ref()).map_err(Failure::new)?;
        return Ok((shown, decision::plan(&json!(halt.spec))));
    }
    let Some(resume) = cluster.get::<TradingResume>(name).await? else {
        return Err(context.no_such::<TradingResume>(name).await);
    };
    let shown = decision::of_resume(&resume).map_err(Failure::new)?;
    let plan = resume.status.as_ref().and_then(|s| s.plan.clone()).unwrap_or(Value::Null);
    let mut lines = decision::plan(&plan);
    lines.extend(resume::lines(&resume, &cluster.say, now()).into_iter().filter(|l| !l.plain().starts_with("  next ")));
    Ok((shown, lines))
}

/// Asks on the terminal. The answer must be written out.
async fn asked(context: &Context, decided: Decision, shown: &Shown) -> Result<bool, Failure> {
    let verb = if decided == Decision::Approve { "approve" } else { "reject" };
    if !io::stdin().is_terminal() {
        return Err(Failure::new(format!(
            "nobody can be asked: the input is no terminal; to {verb} all the same, add --yes"
        )));
    }
    let text = format!("To {verb} {} {}, write {verb} and press Enter:", shown.kind, shown.name);
    context.people().print(&[Line::new().and(Style::Bold, text)]);
    let answer = tokio::task::spawn_blocking(|| {
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer).map(|_| answer)
    });
    let answer = answer.await.map_err(|e| Failure::new(format!("reading the answer: {e}")))?;
    let answer = answer.map_err(|e| Failure::new(format!("reading the answer: {e}")))?;
    Ok(answer.trim().eq_ignore_ascii_case(verb))
}

/// Says whether it counts, as soon as an operator knows.
async fn report(context: &Context, name: &str, created: bool) -> Result<u8, Failure> {
    let begun = Instant::now();
    let approval = loop {
        let Some(approval) = context.cluster.get::<Approval>(name).await? else {
            return Err(Failure::new(format!("Approval {name} was withdrawn: it is not there any more")));
        };
        let known = approval.status.as_ref().is_some_and(|s| s.phase != ApprovalPhase::Pending);
        if known || begun.elapsed() >= PATIENCE {
            break approval;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    };
    let status = approval.status.clone().unwrap_or_default();
    let message = condition(&status.conditions, "Ready").map(|c| c.message.clone());
    let void = matches!(status.phase, ApprovalPhase::Void | ApprovalPhase::Expired);
    let result = json!({"name": name, "created": created, "phase": status.phase, "message": message,
        "spec": approval.spec});
    context.show(&result, || {
        let said = message.as_ref().map_or_else(String::new, |m| format!(": {m}"));
        vec![match status.phase {
            ApprovalPhase::Pending => Line::of("No operator has said yet whether it counts."),
            ApprovalPhase::Valid => Line::new().and(Style::Good, "It counts").and(Style::Plain, said),
            ApprovalPhase::Used => Line::new().and(Style::Good, "It was counted").and(Style::Plain, said),
            ApprovalPhase::Void => Line::new().and(Style::Bad, "IT DOES NOT COUNT").and(Style::Plain, said),
            ApprovalPhase::Expired => Line::new().and(Style::Bad, "IT HAS EXPIRED").and(Style::Plain, said),
        }]
    })?;
    Ok(if void { FAILED } else { DONE })
}
