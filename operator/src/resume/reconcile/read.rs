//! Asks both sides of a comparison.

use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use standfast_crds::v1alpha1::{BotView, Compared, JobAction, JobCheck, OrdersRead, PositionsRead};

use super::{compare::Line, lines, plan::PlanComparison};
use crate::{
    calls::{document::Document, extract, template},
    resume::context::{self, Context, DEADLINE, time_of},
    system::{checks::Asker, job_checks},
};

/// How long a query may take if it does not say.
const SQL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long asking both sides of a comparison may take.
pub(super) fn time_for(c: &PlanComparison) -> Duration {
    let job = |job: Option<&JobAction>| job.map_or(Duration::ZERO, |_| DEADLINE * 8);
    // Sent once more when the first one had no answer; of a list, several pages are read.
    let bot = &c.comparison.bot;
    let bot = bot.http.as_ref().map_or(Duration::ZERO, |http| time_of(http) * 2)
        + bot.sql.as_ref().map_or(Duration::ZERO, |sql| sql.timeout.map_or(SQL_TIMEOUT, |t| t.get()) + DEADLINE)
        + job(bot.job.as_ref());
    let orders =
        c.orders.iter().map(|r| r.http.as_ref().map_or(Duration::ZERO, |h| time_of(h) * 4) + job(r.job.as_ref()));
    let positions =
        c.positions.iter().map(|r| r.http.as_ref().map_or(Duration::ZERO, |h| time_of(h) * 4) + job(r.job.as_ref()));
    let balance =
        c.balance.iter().map(|r| r.http.as_ref().map_or(Duration::ZERO, |h| time_of(h) * 2) + job(r.job.as_ref()));
    bot.max(orders.chain(positions).chain(balance).max().unwrap_or_default()) + Duration::from_secs(2)
}

/// The bot's lines and the venue's, read at about the same time.
pub(super) async fn both(cx: &Context, c: &PlanComparison) -> Result<(Vec<Line>, Vec<Line>), String> {
    let since = match (c.comparison.compare, c.comparison.since) {
        (Compared::Fills, Some(back)) => Some(begin(Timestamp::now(), back.get())?),
        _ => None,
    };
    let (bot, venue) = tokio::join!(bot(cx, c, since), venue(cx, c, since));
    Ok((
        bot.map_err(|why| format!("the bot: {why}"))?,
        venue.map_err(|why| format!("venue {}: {why}", c.comparison.venue))?,
    ))
}

/// How far back fills are asked for.
fn begin(now: Timestamp, back: Duration) -> Result<Timestamp, String> {
    let back = SignedDuration::try_from(back).map_err(|e| e.to_string())?;
    now.checked_sub(back).map_err(|e| e.to_string())
}

async fn bot(cx: &Context, c: &PlanComparison, since: Option<Timestamp>) -> Result<Vec<Line>, String> {
    let (compared, view) = (c.comparison.compare, &c.comparison.bot);
    let answer = match view {
        BotView { sql: Some(sql), .. } => {
            cx.outside.checker.rows(&cx.namespace, sql).await.map_err(|e| e.to_string())?
        }
        BotView { http: Some(http), .. } => {
            let http = match since {
                Some(at) => template::with(http, "since", &context::since(at))?,
                None => http.clone(),
            };
            cx.outside.caller.read_document(&cx.namespace, &http).await.map_err(|e| e.to_string())?
        }
        BotView { job: Some(job), .. } => result(cx, &c.comparison.name, job).await?,
        _ => return Err("bot has neither sql nor http nor job".into()),
    };
    lines::of_bot(compared, view, &answer)
}

async fn venue(cx: &Context, c: &PlanComparison, since: Option<Timestamp>) -> Result<Vec<Line>, String> {
    let mut all = vec![];
    for (number, read) in (1..).zip(&c.positions) {
        all.extend(positions(cx, &format!("{}-positions-{number}", c.comparison.venue), read).await?);
    }
    for (number, read) in (1..).zip(&c.orders) {
        all.extend(orders(cx, &format!("{}-orders-{number}", c.comparison.venue), read, since).await?);
    }
    if let Some(read) = &c.balance {
        let number = match &read.job {
            Some(job) => {
                let told = result(cx, &format!("{}-balance", c.comparison.venue), job).await?;
                extract::job_number(read, told.root().value()).map_err(|e| e.to_string())?
            }
            None => cx.outside.caller.read_number(&cx.namespace, read).await.map_err(|e| e.to_string())?,
        };
        all.extend(lines::of_balance(&number)?);
    }
    Ok(all)
}

async fn positions(cx: &Context, name: &str, read: &PositionsRead) -> Result<Vec<Line>, String> {
    let found = match &read.job {
        Some(job) => extract::job_positions(read, result(cx, name, job).await?.root().value()),
        None => cx.outside.caller.read_positions(&cx.namespace, read).await,
    };
    let found = found.map_err(|e| e.to_string())?;
    if !found.listed {
        return Err("positions are only counted, so nothing can be compared".into());
    }
    lines::of_positions(&found.positions)
}

async fn orders(cx: &Context, name: &str, read: &OrdersRead, since: Option<Timestamp>) -> Result<Vec<Line>, String> {
    let found = match (&read.job, since) {
        (Some(job), _) => {
            extract::job_orders(read, result(cx, name, job).await?.root().value()).map_err(|e| e.to_string())?
        }
        (None, Some(at)) => cx.orders_since(read, at).await?,
        (None, None) => cx.outside.caller.read_orders(&cx.namespace, read).await.map_err(|e| e.to_string())?,
    };
    if !found.listed {
        return Err("orders are only counted, so nothing can be compared".into());
    }
    lines::of_orders(&found.orders)
}

/// What a Job said that ended within the last five minutes. Else one is begun, and its answer is waited for.
async fn result(cx: &Context, name: &str, job: &JobAction) -> Result<Document, String> {
    let system = cx.plan.system.owner_ref();
    let asker = Asker { namespace: &cx.namespace, system: &system, gate: true };
    let check = JobCheck { run: job.clone(), path: None, expect: None };
    job_checks::said(cx.outside.checker.client(), &asker, name, &check).await.map(Document::of)
}
