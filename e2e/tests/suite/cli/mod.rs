//! The command line as people and scripts run it: the program that was built, against a real API server.

mod approve;
mod group;
mod refused;
mod requests;
mod terminal;

use anyhow::{Context, Result, anyhow};
use kube::api::ListParams;
use serde_json::{Value, json};
use standfast_crds::v1alpha1::TradingHalt;
use standfast_e2e::{
    venue::{Action, Fault, NewOrder, Side},
    world::{KEY, Said, World},
};

use crate::plane::world;

/// A bot with an open order, and a system that watches over it.
pub async fn trading(name: &str) -> Result<World> {
    let world = world(name).await?;
    world.bot("bot", 1).await?;
    world.venue.place_order(KEY, &NewOrder::limit("AAPL", Side::Buy, 1, 1)).map_err(|e| anyhow!("{e:?}"))?;
    world.system(&["bot"], json!({})).await?;
    Ok(world)
}

/// The halt that a result speaks of.
fn first(said: &Said) -> Result<Value> {
    let result = said.json()?;
    result["halts"].get(0).cloned().with_context(|| format!("no halt: {result}"))
}

async fn halts(world: &World) -> Result<Vec<String>> {
    let halts = world.api::<TradingHalt>().list(&ListParams::default()).await?;
    Ok(halts.items.into_iter().filter_map(|h| h.metadata.name).collect())
}

/// The path of an emergency: halt, look, explain, resume. The same halt again makes no second one while the first one
/// is not released, and another one afterwards.
#[tokio::test]
async fn a_system_is_halted_shown_explained_and_resumed() -> Result<()> {
    let world = trading("cli").await?;
    let _operator = world.operator().await?;
    world.system_until("system", "prepared", |s| s.cancel_path.is_some()).await?;
    let halt = ["halt", "system", "--reason", "prices are stale", "-o", "json"];
    let said = world.run_standfast(&halt).await?;
    assert_eq!(said.code, Some(0));
    let shown = first(&said)?;
    assert_eq!((&shown["outcome"], &shown["created"]), (&json!("Halted"), &json!(true)));
    assert_eq!((&shown["proven"], &shown["openOrders"], &shown["runningPods"]), (&json!(true), &json!(0), &json!(0)));
    assert_eq!((&shown["requestedBy"], &shown["reason"]), (&json!("admin"), &json!("prices are stale")));
    let name = shown["name"].as_str().context("no name")?.to_owned();
    assert_eq!(world.replicas("bot").await?, 0);

    let again = first(&world.run_standfast(&halt).await?)?;
    assert_eq!((&again["name"], &again["created"], &again["outcome"]), (&json!(name), &json!(false), &json!("Halted")));
    assert_eq!(halts(&world).await?, std::slice::from_ref(&name));

    let status = world.run_standfast(&["status", "-o", "json"]).await?.json()?;
    assert_eq!((&status["systems"][0]["name"], &status["systems"][0]["state"]), (&json!("system"), &json!("Halted")));
    let text = world.run_standfast(&["status", "system"]).await?.out;
    for part in
        ["system  HALTED for ", "prices are stale, by admin", "orders 0 open", "kubectl standfast resume system -n "]
    {
        assert!(text.contains(part), "{part}");
    }
    assert!(!text.contains('\x1b'), "no colours where there is no terminal");

    let course = world.run_standfast(&["explain", &name, "-o", "json"]).await?.json()?;
    assert_eq!((&course["intact"], &course["events"][0]["event"]), (&json!(true), &json!("Committed")));
    let course = world.run_standfast(&["explain", &name]).await?.out;
    assert!(course.contains("zero open orders, proven") && course.contains("The chain of hashes is intact"));

    let said = world.run_standfast(&["resume", "system", "-o", "json"]).await?;
    let resume = said.json()?;
    assert_eq!((said.code, &resume["phase"], &resume["requestedBy"]), (Some(0), &json!("Completed"), &json!("admin")));
    assert_eq!(resume["name"], json!(format!("{name}-resume")));
    assert_eq!(world.replicas("bot").await?, 1);
    let status = world.run_standfast(&["status", "system", "-o", "yaml"]).await?;
    assert!(status.out.contains("state: Trading"));
    let said = world.run_standfast(&["resume", "system"]).await?;
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("no halt of system holds"));

    let second = first(&world.run_standfast(&halt).await?)?;
    assert_eq!((&second["name"], &second["created"]), (&json!(format!("{name}-2")), &json!(true)));
    Ok(())
}

/// Exit code 2: it holds, and is not proven.
#[tokio::test]
async fn a_halt_that_cannot_be_proven_says_so() -> Result<()> {
    let world = trading("cli-unverified").await?;
    world.venue.fault(Fault::on("GET", "/v2/orders", Action::status(500)));
    let _operator = world.operator().await?;
    let said = world.run_standfast(&["halt", "system", "--reason", "test"]).await?;
    assert_eq!(said.code, Some(2));
    assert!(
        said.out.contains("UNVERIFIED") && said.out.contains("NOT PROVEN; what happened: kubectl standfast explain")
    );
    let status = world.run_standfast(&["status", "system", "-o", "json"]).await?.json()?;
    assert_eq!(status["systems"][0]["state"], json!("Unverified"));
    Ok(())
}

#[tokio::test]
async fn several_halts_hold_and_each_is_named_to_be_released() -> Result<()> {
    let world = trading("cli-two").await?;
    let _operator = world.operator().await?;
    for (name, reason) in [("one", "first"), ("two", "second")] {
        let said = world.run_standfast(&["halt", "system", "--reason", reason, "--name", name]).await?;
        assert_eq!(said.code, Some(0));
    }
    let taken = world.run_standfast(&["halt", "system", "--reason", "other", "--name", "one"]).await?;
    assert_eq!(taken.code, Some(1));
    assert!(taken.err.contains("TradingHalt one exists and asks for something else: nothing new is halted"));
    let said = world.run_standfast(&["resume", "system"]).await?;
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("2 halts hold system") && said.err.contains("--halt"));
    assert_eq!(world.run_standfast(&["resume", "system", "--halt", "one"]).await?.code, Some(0));
    assert_eq!(world.replicas("bot").await?, 0, "the other one holds");
    Ok(())
}

/// What would be asked for is shown, and nothing is created.
#[tokio::test]
async fn a_dry_run_creates_nothing() -> Result<()> {
    let world = trading("cli-dry").await?;
    let said = world.run_standfast(&["halt", "system", "--reason", "test", "--dry-run", "-o", "json"]).await?;
    assert_eq!(said.code, Some(0));
    let object = said.json()?;
    assert_eq!((&object["kind"], &object["spec"]["requestedBy"]), (&json!("TradingHalt"), &json!("admin")));
    assert_eq!(halts(&world).await?, Vec::<String>::new());
    let refused = world.run_standfast(&["halt", "system", "--reason", "two\nlines", "--dry-run"]).await?;
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("the reason is one line"));
    Ok(())
}

#[tokio::test]
async fn prepared_tells_by_its_exit_code_whether_a_halt_would_work() -> Result<()> {
    let world = trading("cli-prepared").await?;
    let unseen = world.run_standfast(&["prepared", "system"]).await?;
    assert_eq!(unseen.code, Some(1));
    assert!(unseen.out.contains("no operator has looked at it"));
    let _operator = world.operator().await?;
    world.system_until("system", "prepared", |s| standfast_crds::v1alpha1::is_true(&s.conditions, "Prepared")).await?;
    let said = world.run_standfast(&["prepared", "-o", "json"]).await?;
    assert_eq!((said.code, &said.json()?["prepared"]), (Some(0), &json!(true)));
    world
        .patch::<standfast_crds::v1alpha1::TradingSystem>(
            "system",
            json!({"spec": {"workloads":
        [{"kind": "Deployment", "name": "typo", "role": "Trading"}]}}),
        )
        .await?;
    world.system_until("system", "not prepared", |s| s.problems.iter().any(|p| p.reason == "WorkloadNotFound")).await?;
    let said = world.run_standfast(&["prepared"]).await?;
    assert_eq!(said.code, Some(1));
    assert!(said.out.contains("WorkloadNotFound: Deployment typo not found"));
    Ok(())
}
