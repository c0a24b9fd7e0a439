//! Halts that come while a resume is under way: halting wins, wherever the resume is.

use anyhow::{Context, Result};
use rstest::rstest;
use serde_json::json;
use standfast_crds::v1alpha1::{HaltPhase, ResumePhase, TradingHaltStatus};
use standfast_e2e::{
    faults::{Fault as Lost, Faults, Strike},
    venue::{Action, Effect, Fault, What},
    world::{KEY, Operator, World},
};
use standfast_operator::client::{Clients, retry_reads};

use super::{assert_held, assert_trading, market_check, message, saying, status};
use crate::plane::world;

/// How far the resume is when the second halt comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// A check does not pass yet.
    Gates,
    /// The latch is being removed, and nobody answers.
    Releasing,
    /// The bot has its replicas, and no pod of it is ready.
    Restored,
    /// The venue was asked to accept orders, and has neither done so nor answered.
    Allowing,
    /// The venue accepts orders, and has not said so.
    Allowed,
}

/// Requests that allow trading, since a line of the ledger.
fn allowed(world: &World, since: u64) -> usize {
    let allows = |what: &What| match what {
        What::Request(r) => {
            r.effects.contains(&Effect::Suspended { suspended: false })
                || r.body.as_ref().is_some_and(|b| b["suspend_trade"] == json!(false))
        }
        _ => false,
    };
    world.venue.ledger_since(since).iter().filter(|e| allows(&e.what)).count()
}

/// An operator whose calls can be lost, but for its watches.
async fn operator(world: &World, faults: &Faults) -> Result<Operator> {
    let layers = faults.operator();
    let clients = move |plain: kube::Client| Clients {
        watch: plain.clone(),
        ..Clients::same(&retry_reads(layers.client(plain)), 64)
    };
    world.operator_of(clients, |transport| transport).await
}

/// Begins a resume of `stale` and waits until it is there.
async fn begun(world: &World, faults: &Faults, at: At) -> Result<()> {
    let hang = Fault::on("PATCH", "/v2/account/configurations", Action::Hang).times(1);
    match at {
        At::Gates => world.venue.set_market_open(false),
        At::Releasing => faults.arm(),
        At::Restored => world.node.set_idle(true),
        At::Allowing => drop(world.venue.fault(hang)),
        At::Allowed => drop(world.venue.fault(hang.after())),
    }
    world.resume("go-on", "stale").await?;
    match at {
        At::Gates => saying(world, "go-on", "check market is failing").await.map(drop),
        At::Releasing => world.until("the release is lost", async || Ok(faults.struck().then_some(()))).await,
        At::Restored => saying(world, "go-on", "waiting for ready pods of Deployment bot").await.map(drop),
        At::Allowing | At::Allowed => {
            let asked = || (allowed(world, 0) > 0).then_some(());
            world.until("the venue is asked to accept orders", async || Ok(asked())).await
        }
    }
}

#[rstest]
#[case::before_the_release(At::Gates)]
#[case::while_it_releases(At::Releasing)]
#[case::after_the_bot_was_restored(At::Restored)]
#[case::while_the_venue_is_asked(At::Allowing)]
#[case::when_the_venue_has_said_yes(At::Allowed)]
#[tokio::test]
async fn a_halt_during_a_resume_wins(#[case] at: At) -> Result<()> {
    let world = world("wins").await?;
    world.bot("bot", 2).await?;
    world.system(&["bot"], json!({"checks": market_check(&world)})).await?;
    let release = Strike { key: "DELETE configmaps/standfast-latch-stale#1".into(), fault: Lost::LostRequest };
    let faults = Faults::new((at == At::Releasing).then_some(release));
    let _operator = operator(&world, &faults).await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    begun(&world, &faults, at).await?;

    world.halt("worse", json!({"reason": "prices are stale, still"})).await?;
    let committed = |s: &TradingHaltStatus| s.latch.is_some();
    let worse = world.halt_until("worse", "committed", committed).await?;
    let since = world.venue.ledger().last().map_or(0, |e| e.seq + 1);
    world.venue.set_market_open(true);
    let ended = |r: &standfast_crds::v1alpha1::TradingResume| status(r).finished_at.is_some();
    let resume = world.resume_until("go-on", "the resume has ended", ended).await?;
    world.node.set_idle(false);
    let (phase, said) = (status(&resume).phase, message(&resume));
    match phase {
        // Times have whole seconds: at the gates the halt may count as one that came after the release was asked for.
        ResumePhase::Completed if at == At::Gates => assert_eq!(said, "released; the system is still halted by worse"),
        _ => assert_eq!((phase, said.as_str()), (ResumePhase::Failed, "halted again by worse")),
    }
    assert_held(&world, "worse").await?;
    assert_eq!(allowed(&world, since), 0, "the venue was asked to accept orders after {:?}", worse.times.committed_at);
    let stale = world.halt_status("stale").await?;
    assert_eq!((stale.phase, stale.latch.map(|l| l.held)), (HaltPhase::Released, Some(false)));

    // Nothing is lost: the second halt knows what was before the first.
    let record = world.halt_status("worse").await?.workloads.pop().context("no record")?;
    assert_eq!(record.replicas, Some(2), "what was before the first halt");
    world.resume("at-last", "worse").await?;
    world.resume_in("at-last", ResumePhase::Completed).await?;
    assert_trading(&world, 2).await?;
    assert!(!world.venue.suspended(KEY));
    Ok(())
}
