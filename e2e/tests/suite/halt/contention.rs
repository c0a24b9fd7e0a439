//! Who would start a halted bot again, and what comes of it.

use anyhow::Result;
use k8s_openapi::api::{
    admissionregistration::v1::ValidatingAdmissionPolicyBinding, autoscaling::v2::HorizontalPodAutoscaler,
    core::v1::ConfigMap,
};
use kube::{Api, ResourceExt, api::DeleteParams};
use serde_json::json;
use standfast_crds::{
    guardrails::LATCH_POLICY,
    v1alpha1::{HaltPhase, TradingHaltStatus, halt_conditions as c},
};
use standfast_e2e::world::KEY;

use super::{message, rest, says, trading};
use crate::plane::Alone;

/// S0-33
#[tokio::test]
async fn s0_33_nobody_scales_a_halted_bot_up_while_no_operator_runs() -> Result<()> {
    let (world, operator) = trading("down", 2, json!({})).await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    operator.cut_off();
    for _ in 0..3 {
        let refused = world.scale("bot", 2, "somebody").await.expect_err("the latch refuses");
        assert!(refused.to_string().contains("create a TradingResume"), "{refused}");
    }
    assert_eq!((world.replicas("bot").await?, world.pods("bot").await?.len()), (0, 0));
    // The next operator finds everything as it was.
    let before = world.halt_status("stale").await?;
    let _operator = world.operator().await?;
    world.venue.clear_ledger();
    let looked = || (world.venue.requests("GET", "/v2/orders").len() > 3).then_some(());
    world.until("the new operator verifies", async || Ok(looked())).await?;
    let after = world.halted("stale").await?;
    assert_eq!(after.workloads, before.workloads);
    assert_eq!(after.times, before.times);
    Ok(())
}

#[tokio::test]
async fn a_second_manager_that_gets_through_is_named_and_scaled_down_again() -> Result<()> {
    let alone = Alone::new().await?;
    let world = alone.world("fight").await?;
    world.bot("bot", 2).await?;
    world.system(&["bot"], json!({})).await?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(world.client.clone());
    bindings.delete(LATCH_POLICY, &DeleteParams::default()).await?;
    world
        .until("the latch lets it through", async || Ok(world.scale("bot", 2, "argocd-controller").await.ok()))
        .await?;
    let contended = |s: &TradingHaltStatus| {
        says(s, c::CONTENDED) == ("True", "Raised") && message(s, c::CONTENDED).contains("argocd-controller")
    };
    world.halt_until("stale", "the other is named", contended).await?;
    world.until("scaled down again", async || Ok((world.replicas("bot").await? == 0).then_some(()))).await?;
    let again = |s: &TradingHaltStatus| s.phase == HaltPhase::Halted && s.running_pods == Some(0);
    let status = world.halt_until("stale", "halted again", again).await?;
    assert!(status.evidence.entries.iter().any(|e| e.event == "Contended"), "{status:#?}");
    assert_eq!(status.workloads[0].replicas, Some(2), "the recorded number, not the other's");
    Ok(())
}

#[tokio::test]
async fn an_autoscaler_is_left_alone_and_does_not_raise_a_halted_bot() -> Result<()> {
    let (world, _operator) = trading("hpa", 2, json!({})).await?;
    let before: HorizontalPodAutoscaler = world
        .create(json!({"metadata": {"name": "bot"}, "spec": {"minReplicas": 2, "maxReplicas": 5,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "bot"}}}))
        .await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    let disabled = async || {
        let hpa = world.api::<HorizontalPodAutoscaler>().get("bot").await?;
        let conditions = hpa.status.clone().and_then(|s| s.conditions).unwrap_or_default();
        let off =
            conditions.iter().any(|c| c.type_ == "ScalingActive" && c.reason.as_deref() == Some("ScalingDisabled"));
        Ok(off.then_some(hpa))
    };
    let after = world.until("the autoscaler has seen the zero", disabled).await?;
    assert_eq!((after.spec, after.metadata.generation), (before.spec, before.metadata.generation));
    assert_eq!(world.replicas("bot").await?, 0);
    let status = world.halted("stale").await?;
    assert_eq!(says(&status, c::CONTENDED).0, "False", "{}", message(&status, c::CONTENDED));
    Ok(())
}

#[tokio::test]
async fn a_held_halt_outlives_a_restart_of_the_api_server() -> Result<()> {
    let alone = Alone::new().await?;
    let world = alone.world("restart").await?;
    world.bot("bot", 2).await?;
    world.system(&["bot"], json!({})).await?;
    rest(&world.venue, "AAPL", 1)?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    alone.plane.kill_api_server()?;
    let id = world.venue.orders(KEY)[0].id.clone();
    world.venue.revive_order(KEY, &id).expect("revived");
    alone.plane.start_api_server().await?;
    // From its first answer on.
    let refused = world.until("an answer", async || match world.scale("bot", 2, "somebody").await {
        Err(kube::Error::Api(status)) => Ok(Some(status.message)),
        Err(error) => Err(error.into()),
        Ok(()) => anyhow::bail!("the latch let it through"),
    });
    let refused = refused.await?;
    assert!(refused.contains("prices are stale"), "{refused}");
    world
        .until("the order is cancelled again", async || Ok(world.venue.open_orders(KEY).is_empty().then_some(())))
        .await?;
    let status = world.halted("stale").await?;
    assert_eq!((status.workloads[0].replicas, world.replicas("bot").await?), (Some(2), 0));
    Ok(())
}

#[tokio::test]
async fn a_latch_that_was_removed_by_hand_is_put_back() -> Result<()> {
    let (world, _operator) = trading("latch", 1, json!({})).await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    let name = world.latches().await?[0].name_any();
    world.api::<ConfigMap>().delete(&name, &DeleteParams::default()).await?;
    world.until("the latch is back", async || Ok((world.latches().await?.len() == 1).then_some(()))).await?;
    Ok(())
}
