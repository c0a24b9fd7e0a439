//! Who may delete a halt, or what belongs to it, and what comes of it.

use anyhow::Result;
use k8s_openapi::api::{core::v1::Namespace, rbac::v1::Role};
use kube::{
    Api,
    api::{DeleteParams, ListParams},
};
use serde_json::json;
use standfast_crds::v1alpha1::{HaltPhase, TradingHalt, TradingSystem, halt_conditions as c};
use standfast_e2e::{
    venue::{Action, Fault},
    world::{KEY, World},
};

use super::{close_all, may_close, says, trading};

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
