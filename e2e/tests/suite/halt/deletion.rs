//! Who may delete a halt, or what belongs to it, and what comes of it.

use anyhow::{Result, ensure};
use k8s_openapi::api::{core::v1::Namespace, rbac::v1::Role};
use kube::{
    Api,
    api::{DeleteParams, ListParams},
};
use serde_json::json;
use standfast_crds::v1alpha1::{
    HaltPhase, ResumePhase, TradingHalt, TradingHaltStatus, TradingSystem, condition, halt_conditions as c,
};
use standfast_e2e::{
    venue::{Action, Fault},
    world::{KEY, World, phase},
};

use super::{close_all, may_close, message, says, trading};
use crate::plane::world;

/// Somebody of the built-in role `edit` who may also delete halts and systems.
async fn editor(world: &World) -> Result<kube::Client> {
    world.bind("editor", "ClusterRole", "edit").await?;
    world
        .create::<Role>(json!({"metadata": {"name": "halter"}, "rules": [{"apiGroups": ["standfast.dev"],
            "resources": ["tradingsystems", "tradinghalts"], "verbs": ["get", "list", "create", "delete"]}]}))
        .await?;
    world.bind("editor", "Role", "halter").await?;
    let client = world.client_as("editor", &[]).await?;
    let halts: Api<TradingHalt> = Api::namespaced(client.clone(), &world.namespace);
    world.until("the role works", async || Ok(halts.list(&ListParams::default()).await.ok())).await?;
    Ok(client)
}

/// Whether somebody may delete a halt now.
async fn may_delete(halts: &Api<TradingHalt>, name: &str) -> Result<bool> {
    match halts.delete(name, &DeleteParams::default().dry_run()).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.message.contains("deleting it would not resume trading") => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[tokio::test]
async fn a_halt_that_latched_is_not_deleted_in_any_phase_before_its_release() -> Result<()> {
    let (world, _operator) = trading("delete", 1, may_close()).await?;
    let halts: Api<TradingHalt> = Api::namespaced(editor(&world).await?, &world.namespace);
    world.halt("unknown", json!({"systemRef": {"name": "nobody"}})).await?;
    world.halt_until("unknown", "told why", |s| says(s, c::HALTED).1 == "SystemNotFound").await?;
    assert!(may_delete(&halts, "unknown").await?, "it holds nothing");

    world.node.set_stubborn(true);
    world.venue.set_position(KEY, "AAPL", 10, 90);
    world.venue.set_market_open(false);
    world.halt("out", close_all()).await?;
    let mut seen = vec![];
    for phase in [HaltPhase::Fencing, HaltPhase::Closing, HaltPhase::Unverified, HaltPhase::Halted] {
        match phase {
            HaltPhase::Closing => world.node.set_stubborn(false),
            HaltPhase::Unverified => drop(world.venue.fault(Fault::any("/v2/", Action::status(503)))),
            HaltPhase::Halted => {
                world.venue.clear_faults();
                world.venue.set_market_open(true);
            }
            _ => {}
        }
        world.halt_until("out", phase.as_str(), |s| s.phase == phase && s.latch.is_some()).await?;
        if may_delete(&halts, "out").await? {
            seen.push(phase);
        }
    }
    // A second one is read back very slowly.
    let slow = json!({"spec": {"haltPolicy": {"verifyInterval": "1h"}}});
    world.patch::<TradingSystem>("system", slow).await?;
    world.halt("stop", json!({})).await?;
    world.halt_until("stop", "it is being read back", |s| s.phase == HaltPhase::Verifying).await?;
    if may_delete(&halts, "stop").await? {
        seen.push(HaltPhase::Verifying);
    }
    assert_eq!(seen, [], "phases in which it could be deleted");
    world.resume("go-on", "out").await?;
    world.halt_until("out", "released", |s| s.phase == HaltPhase::Released).await?;
    assert!(may_delete(&halts, "out").await?, "it is released");
    Ok(())
}

#[tokio::test]
async fn a_halted_system_is_not_deleted() -> Result<()> {
    let (world, _operator) = trading("system", 1, json!({})).await?;
    let systems: Api<TradingSystem> = Api::namespaced(editor(&world).await?, &world.namespace);
    systems.delete("system", &DeleteParams::default().dry_run()).await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    let refused = systems.delete("system", &DeleteParams::default()).await.expect_err("the policy refuses");
    let text = "this TradingSystem is halted; before deleting it, create a TradingResume with spec.haltRef.name: stale";
    assert!(refused.to_string().contains(text), "{refused}");
    Ok(())
}

#[tokio::test]
async fn a_namespace_with_a_held_halt_can_be_deleted() -> Result<()> {
    let (world, _operator) = trading("gone", 1, json!({})).await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    let namespaces: Api<Namespace> = Api::all(world.client.clone());
    namespaces.delete(&world.namespace, &DeleteParams::default()).await?;
    let gone = async || Ok(namespaces.get_opt(&world.namespace).await?.is_none().then_some(()));
    world.until("the namespace is gone", gone).await
}

/// What a latch keeps refusing, and says.
async fn refused(world: &World) -> Result<()> {
    let refused = world.scale("bot", 2, "somebody").await.expect_err("the latch refuses");
    assert!(refused.to_string().contains("halted by Standfast (prices are stale)"), "{refused}");
    Ok(())
}

/// What docs/operations.md has people do, where a venue cannot tell whether orders are open.
#[tokio::test]
async fn break_glass_releases_what_can_never_be_proven_and_only_with_its_latch() -> Result<()> {
    let world = world("glass").await?;
    world.bot("bot", 2).await?;
    let mut venue = world.venue_spec();
    venue["openOrders"] = json!([]);
    world.system(&["bot"], json!({"venues": [venue]})).await?;
    let operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    let unknown = |s: &TradingHaltStatus| s.phase == HaltPhase::Unverified && s.running_pods == Some(0);
    world.halt_until("stale", "unverified", unknown).await?;
    let kubectl = async |command: &str| {
        let (done, said) = world.kubectl(&command.split(' ').collect::<Vec<_>>(), "").await?;
        ensure!(done, "{command}: {said}");
        Ok(said)
    };

    kubectl("delete tradinghalt stale").await?;
    // The halt is gone, and its latch holds: what to go back to stands there.
    let held = kubectl("get configmaps -l standfast.dev/latch=held -o name").await?;
    assert_eq!(held, "configmap/standfast-latch-stale");
    let latch = world.latches().await?.pop().and_then(|l| l.data).unwrap_or_default();
    assert_eq!(latch.get("Deployment.bot").map(String::as_str), Some("2"));
    refused(&world).await?;
    world.resume("go-on", "stale").await?;
    let failed = world.resume_in("go-on", ResumePhase::Failed).await?;
    let conditions = failed.status.map(|s| s.conditions).unwrap_or_default();
    let said = condition(&conditions, "Completed").map(|c| c.message.clone()).unwrap_or_default();
    let namespace = &world.namespace;
    assert_eq!(said, format!("there is no TradingHalt stale in namespace {namespace}: none holds"));
    // Neither does an operator that comes back remove it.
    operator.cut_off();
    let _operator = world.operator().await?;
    world.halt("idle", json!({"systemRef": {"name": "nobody"}})).await?;
    world.halt_until("idle", "the next operator is at work", |s| says(s, c::HALTED).1 == "SystemNotFound").await?;
    refused(&world).await?;

    kubectl("delete configmap standfast-latch-stale").await?;
    let started = async || Ok(world.scale("bot", 2, "somebody").await.ok());
    world.until("the bot can be started", started).await?;
    world
        .until("it runs", async || {
            let running = world.pods("bot").await?.iter().filter(|p| phase(p) == "Running").count();
            Ok((running == 2).then_some(()))
        })
        .await?;
    assert_eq!((world.replicas("bot").await?, world.latches().await?.len()), (2, 0));
    Ok(())
}

/// Without its system nobody can tell how to verify a halt: it says so, and holds.
#[tokio::test]
async fn a_halt_whose_system_was_deleted_is_unverified_and_holds_until_it_is_there_again() -> Result<()> {
    let (world, _operator) = trading("orphan", 2, may_close()).await?;
    world.halt("stale", close_all()).await?;
    world.halted("stale").await?;
    let system = world.api::<TradingSystem>().get("system").await?;
    // The administrator holds the verb `release`.
    world.api::<TradingSystem>().delete("system", &DeleteParams::default()).await?;
    let unknown = |s: &TradingHaltStatus| s.phase == HaltPhase::Unverified;
    let status = world.halt_until("stale", "unverified", unknown).await?;
    let gone = format!("TradingSystem system not found in namespace {}: there is none", world.namespace);
    for type_ in [c::ORDERS_CANCELLED, c::POSITIONS_CLOSED, c::VERIFIED, c::HALTED] {
        assert_eq!(says(&status, type_), ("Unknown", "SystemUnreadable"), "{type_}");
        assert_eq!(message(&status, type_), gone, "{type_}");
    }
    assert!(status.latch.is_some_and(|l| l.held));
    assert_eq!(status.workloads[0].replicas, Some(2));
    refused(&world).await?;

    let again = json!({"metadata": {"name": "system"}, "spec": system.spec});
    world.create::<TradingSystem>(again).await?;
    world.halted("stale").await?;
    refused(&world).await?;
    world.resume("go-on", "stale").await?;
    world.resume_in("go-on", ResumePhase::Completed).await?;
    assert_eq!(world.replicas("bot").await?, 2);
    Ok(())
}
