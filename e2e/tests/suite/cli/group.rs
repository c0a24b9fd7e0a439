//! Halting several systems by one command, and positions in words.

use anyhow::{Context, Result};
use kube::{ResourceExt, api::ListParams};
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{TradingHalt, TradingSystem};
use standfast_e2e::world::World;

use super::{first, halts, trading};

/// A second system, with a label.
async fn second(world: &World) -> Result<()> {
    world.bot("other", 1).await?;
    another(world, "other").await
}

async fn another(world: &World, name: &str) -> Result<()> {
    // They share an account: one that suspended it would keep the others from being resumed.
    let mut venue = world.venue_spec();
    for field in ["suspendTrading", "allowTrading", "tradingSuspended", "suspendBlocksClosing"] {
        venue.as_object_mut().context("no object")?.remove(field);
    }
    let spec = json!({"workloads": [{"kind": "Deployment", "name": name, "role": "Trading"}],
        "venues": [venue], "haltPolicy": {"verifyInterval": "100ms", "reverifyInterval": "500ms"}});
    let labels = json!({"desk": "fx"});
    world.create::<TradingSystem>(json!({"metadata": {"name": name, "labels": labels}, "spec": spec})).await.map(drop)
}

#[tokio::test]
async fn all_systems_are_halted_by_one_halt_and_told_line_by_line() -> Result<()> {
    let world = trading("cli-all").await?;
    second(&world).await?;
    let _operator = world.operator().await?;
    let dry = world.run_standfast(&["halt", "--all", "--reason", "test", "--dry-run", "-o", "json"]).await?;
    assert_eq!((dry.code, &dry.json()?["spec"]["systemSelector"]), (Some(0), &json!({})));
    assert!(dry.err.contains("It would halt other, system."), "{}", dry.err);
    assert_eq!(halts(&world).await?, Vec::<String>::new());

    let said = world.run_standfast(&["halt", "--all", "--reason", "prices are stale"]).await?;
    assert_eq!(said.code, Some(0));
    let made = world.api::<TradingHalt>().list(&ListParams::default()).await?.items;
    let group = made.iter().find(|h| h.spec.is_group()).context("no group")?.name_any();
    assert!(group.starts_with("all-") && made.len() == 3, "{made:?}");
    for system in ["other", "system"] {
        assert!(said.out.contains(&format!("{system} {group}-{system}: HALTED")), "{system}");
    }
    assert_eq!((world.replicas("bot").await?, world.replicas("other").await?), (0, 0));

    // The same again finds it, with each system for programs.
    let json = ["halt", "--all", "--reason", "prices are stale", "-o", "json"];
    let again = first(&world.run_standfast(&json).await?)?;
    assert_eq!(
        (&again["name"], &again["created"], &again["outcome"]),
        (&json!(group), &json!(false), &json!("Halted"))
    );
    let systems: Vec<_> = again["systems"].as_array().into_iter().flatten().map(|e| &e["system"]).collect();
    assert_eq!(systems, [&json!("other"), &json!("system")]);
    let course = world.run_standfast(&["explain", &group]).await?.out;
    for part in ["halts 2 systems", "HaltsMade", &format!("{group}-system"), "The chain of hashes is intact"] {
        assert!(course.contains(part), "{part}");
    }
    let status = world.run_standfast(&["status"]).await?.out;
    assert!(
        status.contains(&format!("TradingHalt {group}  HALTED, 2 systems, prices are stale, by admin")),
        "{status}"
    );

    // Somebody who has it halted again gets what trades by now halted: a system that was resumed, and a new one.
    assert_eq!(world.run_standfast(&["resume", "other"]).await?.code, Some(0));
    another(&world, "late").await?;
    world.bot("late", 1).await?;
    let more = first(&world.run_standfast(&json).await?)?;
    assert_eq!((&more["name"], &more["created"]), (&json!(format!("{group}-2")), &json!(true)));
    assert_eq!((&more["outcome"], more["systems"].as_array().map(Vec::len)), (&json!("Halted"), Some(3)));
    assert_eq!((world.replicas("late").await?, world.replicas("other").await?), (0, 0));
    Ok(())
}

#[tokio::test]
async fn systems_are_selected_by_labels_and_nothing_selected_halts_nothing() -> Result<()> {
    let world = trading("cli-labels").await?;
    second(&world).await?;
    let typo = world.run_standfast(&["halt", "-l", "desk=fz", "--reason", "test"]).await?;
    assert_eq!((typo.code, halts(&world).await?), (Some(1), vec![]));
    let why = "has the labels desk=fz: there are other (desk=fx), system (no labels)";
    assert!(typo.err.contains(why), "{}", typo.err);
    let alone = ["halt", "-l", "desk=fx", "--reason", "test", "--timeout", "6s"];
    let deaf = world.run_standfast(&alone).await?;
    assert_eq!(deaf.code, Some(1), "no operator runs");
    assert!(deaf.out.contains("NOTHING IS LATCHED") && deaf.out.contains("scale deployment other --replicas=0"));
    let _operator = world.operator().await?;
    let said = world.run_standfast(&["halt", "-l", "desk=fx", "--reason", "test"]).await?;
    assert_eq!(said.code, Some(0));
    assert_eq!((world.replicas("bot").await?, world.replicas("other").await?), (1, 0));
    Ok(())
}

/// Exit code 2: one of them holds, and is not proven.
#[tokio::test]
async fn one_system_that_cannot_be_proven_is_named_and_decides_the_exit_code() -> Result<()> {
    use standfast_e2e::venue::{Action, Fault};
    let world = trading("cli-all-ill").await?;
    second(&world).await?;
    world.venue.fault(Fault::on("GET", "/v2/orders", Action::status(500)));
    let _operator = world.operator().await?;
    let said = world.run_standfast(&["halt", "--all", "--reason", "test"]).await?;
    assert_eq!(said.code, Some(2));
    assert!(
        said.out.contains(": UNVERIFIED")
            && said.out.contains("NOT PROVEN; what happened: kubectl standfast explain all-")
    );
    Ok(())
}

#[tokio::test]
async fn which_positions_are_closed_is_told_in_words() -> Result<()> {
    let world = trading("cli-positions").await?;
    for (words, expected) in [
        (
            &["--positions", "CloseMatching", "--loss-below", "10", "--held-longer-than", "168h"][..],
            json!({"action": "CloseMatching",
                "closeMatching": {"unrealizedLossBelowPercent": "10", "heldLongerThan": "168h"}}),
        ),
        (
            &["--positions", "ReduceTo", "--exposure", "50"],
            json!({"action": "ReduceTo", "reduceTo": {"exposurePercent": "50"}}),
        ),
    ] {
        let args = [&["halt", "system", "--reason", "test", "--dry-run", "-o", "json"], words].concat();
        let said = world.run_standfast(&args).await?;
        assert_eq!((said.code, said.json()?["spec"]["positions"].clone()), (Some(0), expected));
    }
    let created = ["halt", "system", "--reason", "test", "--no-wait", "--positions", "ReduceTo", "--exposure", "50"];
    for made in [true, false] {
        let said = world.run_standfast(&[&created[..], &["-o", "json"]].concat()).await?;
        assert_eq!((said.code, first(&said)?["created"].clone()), (Some(0), Value::Bool(made)), "the same is the same");
    }
    let limit = ["halt", "system", "--reason", "test", "--dry-run", "--positions", "ReduceTo", "--exposure", "0.5"];
    let refused = world.run_standfast(&limit).await?;
    assert!(refused.code == Some(1) && refused.err.contains("from \"1\" to \"1000\""), "{}", refused.err);
    Ok(())
}
