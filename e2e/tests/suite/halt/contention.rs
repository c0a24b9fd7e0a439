//! Who would start a halted bot again, and what comes of it.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, bail};
use k8s_openapi::api::{
    admissionregistration::v1::ValidatingAdmissionPolicyBinding, autoscaling::v2::HorizontalPodAutoscaler,
    core::v1::ConfigMap,
};
use kube::{Api, ResourceExt, api::DeleteParams};
use serde_json::json;
use standfast_crds::{
    guardrails::{self, LATCH_POLICY},
    v1alpha1::{HaltPhase, ResumePhase, TradingHaltStatus, halt_conditions as c},
};
use standfast_e2e::{
    controlplane::apply_all,
    world::{KEY, World},
};

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

/// A bot of two replicas on a control plane of its own, on which the latch does not work any more.
async fn without_latch(name: &str) -> Result<(Alone, World)> {
    let alone = Alone::new().await?;
    let world = alone.world(name).await?;
    world.bot("bot", 2).await?;
    world.system(&["bot"], json!({})).await?;
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(world.client.clone());
    bindings.delete(LATCH_POLICY, &DeleteParams::default()).await?;
    Ok((alone, world))
}

/// Whoever is quicker than the first look after the stop does not become the number to go back to.
#[tokio::test]
async fn a_bot_that_is_raised_at_once_goes_back_to_the_recorded_number() -> Result<()> {
    let (_alone, world) = without_latch("quick").await?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    world.until("stopped", async || Ok((world.replicas("bot").await? == 0).then_some(()))).await?;
    world.until("raised", async || Ok(world.scale("bot", 9, "argocd-controller").await.ok())).await?;
    let named = |s: &TradingHaltStatus| message(s, c::CONTENDED).contains("argocd-controller");
    let status = world.halt_until("stale", "he is named", named).await?;
    assert_eq!(status.workloads[0].replicas, Some(2));
    world.until("stopped again", async || Ok((world.replicas("bot").await? == 0).then_some(()))).await
}

#[tokio::test]
async fn a_second_manager_that_gets_through_is_named_and_scaled_down_again() -> Result<()> {
    let (_alone, world) = without_latch("fight").await?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
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

/// Somebody does not give up, and the latch does not work.
#[tokio::test]
async fn a_manager_that_fights_again_and_again_ends_at_zero_each_time() -> Result<()> {
    let (_alone, world) = without_latch("fights").await?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    let told = |s: &TradingHaltStatus| s.evidence.entries.iter().filter(|e| e.event == "Contended").count();
    let mut before = 0;
    for round in 1..=5 {
        // Another number each time, so that a record that follows the fight shows.
        let raised = async || Ok(world.scale("bot", 2 + round, "argocd-controller").await.ok());
        world.until("it gets through", raised).await?;
        let seen =
            |s: &TradingHaltStatus| told(s) > before && s.phase == HaltPhase::Halted && s.running_pods == Some(0);
        let status = world.halt_until("stale", &format!("stopped again, round {round}"), seen).await?;
        assert_eq!((world.replicas("bot").await?, world.pods("bot").await?.len()), (0, 0), "round {round}");
        assert_eq!(says(&status, c::CONTENDED), ("True", "Raised"));
        let text = "was raised by field manager argocd-controller under the halt, and is stopped again";
        assert!(message(&status, c::CONTENDED).ends_with(text), "{}", message(&status, c::CONTENDED));
        assert_eq!(status.workloads[0].replicas, Some(2), "round {round}");
        before = told(&status);
    }
    apply_all(&world.client, guardrails::MANIFEST).await?;
    world.resume("go-on", "stale").await?;
    world.resume_in("go-on", ResumePhase::Completed).await?;
    assert_eq!(world.replicas("bot").await?, 2);
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

/// What the API server answers to somebody who tries to raise the bot without end.
#[derive(Default)]
struct Tries {
    /// Refusals, in the order in which they came.
    refusals: Mutex<Vec<String>>,
    /// How often nobody answered.
    unanswered: AtomicUsize,
}

impl Tries {
    /// Ends when one gets through.
    async fn go_on(&self, world: &World) {
        loop {
            match world.scale("bot", 2, "somebody").await {
                Ok(()) => return,
                Err(kube::Error::Api(status)) => self.refusals.lock().unwrap().push(status.message),
                Err(_) => drop(self.unanswered.fetch_add(1, Ordering::SeqCst)),
            }
            // Only so that the others get on, too.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn by_the_latch(&self) -> usize {
        self.refusals.lock().unwrap().iter().filter(|r| r.contains("prices are stale")).count()
    }
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
    let tries = Tries::default();
    let restarted = async {
        let nobody = || (tries.unanswered.load(Ordering::SeqCst) > 0).then_some(());
        world.until("nobody answers", async || Ok(nobody())).await?;
        assert_eq!(*tries.refusals.lock().unwrap(), Vec::<String>::new());
        alone.plane.start_api_server().await?;
        let cancelled = || world.venue.open_orders(KEY).is_empty().then_some(());
        world.until("the order is cancelled again", async || Ok(cancelled())).await?;
        let seen = tries.by_the_latch();
        let more = || (tries.by_the_latch() > seen + 10).then_some(());
        world.until("the latch refuses, again and again", async || Ok(more())).await
    };
    // From the first answer of the server on, none gets through.
    tokio::select! {
        () = tries.go_on(&world) => bail!("the latch let one through, after {:#?}", tries.refusals.lock().unwrap()),
        done = restarted => done?,
    }
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
