//! Kinds with a scale subresource that the charts list: halted, held and resumed as the built-in ones are.

use anyhow::{Context, Result};
use k8s_openapi::{
    api::{autoscaling::v1::Scale, core::v1::Pod},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{ResumePhase, TradingSystem, TradingSystemStatus, halt_conditions as c, is_true};
use standfast_e2e::{
    controlplane::apply_all,
    world::{World, phase},
};
use standfast_operator::kinds::Kinds;

use crate::{charts, plane::Alone};

/// The kinds, as the charts are told of them: one whose selector is where the chart expects it, one whose is elsewhere.
const LISTED: &str = r#"scalableKinds=[
    {"group": "e2e.standfast.dev", "version": "v1", "kind": "Fleet", "plural": "fleets", "selectorPath": ".status.labels"},
    {"group": "e2e.standfast.dev", "version": "v1", "kind": "Ship", "plural": "ships"}]"#;

/// A definition of such a kind. Nothing of its objects has a default.
fn definition(kind: &str, plural: &str) -> Value {
    let anything = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
    "metadata": {"name": format!("{plural}.e2e.standfast.dev")},
    "spec": {"group": "e2e.standfast.dev", "scope": "Namespaced",
        "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
        "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": anything, "status": anything}}},
            "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas",
                "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.labels"}}}]}})
}

/// The two kinds, and a guardrail that knows them.
async fn install(alone: &Alone) -> Result<Kinds> {
    let client = alone.plane.client().await?;
    for (kind, plural) in [("Fleet", "fleets"), ("Ship", "ships")] {
        apply_all(&client, &definition(kind, plural).to_string()).await?;
    }
    apply_all(&client, &charts::definitions(&[LISTED])?.expect("made")).await?;
    charts::variable(&[LISTED], "STANDFAST_SCALABLE_KINDS")?.parse().map_err(anyhow::Error::msg)
}

fn api(world: &World, kinds: &Kinds, kind: &str) -> Result<Api<DynamicObject>> {
    let resource = kinds.resource(kind.parse().map_err(anyhow::Error::msg)?).map_err(anyhow::Error::msg)?;
    Ok(Api::namespaced_with(world.client.clone(), &world.namespace, &resource))
}

/// An object whose controller has told its selector.
async fn bot(world: &World, api: &Api<DynamicObject>, kind: &str) -> Result<()> {
    let object = json!({"apiVersion": "e2e.standfast.dev/v1", "kind": kind, "metadata": {"name": "bot"},
        "spec": {"replicas": 2, "image": "a"}});
    let created = async || Ok(api.create(&PostParams::default(), &serde_json::from_value(object.clone())?).await.ok());
    world.until("the kind is served", created).await?;
    let status = json!({"status": {"replicas": 2, "labels": "app=bot"}});
    api.patch_status("bot", &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}

/// Does what its controller would do: as many pods as replicas.
async fn settle(world: &World, wanted: usize) -> Result<()> {
    let pods = world.pods("bot").await?;
    for pod in pods.iter().skip(wanted) {
        world.api::<Pod>().delete(&pod.name_any(), &DeleteParams::default()).await?;
    }
    for number in pods.len()..wanted {
        let spec = json!({"terminationGracePeriodSeconds": 1, "containers": [{"name": "bot", "image": "bot"}]});
        let metadata = json!({"name": format!("bot-{number}"), "labels": {"app": "bot"}});
        let created = async || Ok(world.create::<Pod>(json!({"metadata": metadata, "spec": spec})).await.ok());
        world.until("its pod is made", created).await?;
    }
    let running = async || {
        let pods = world.pods("bot").await?;
        Ok((pods.len() == wanted && pods.iter().all(|p| phase(p) == "Running")).then_some(()))
    };
    world.until(&format!("{wanted} pods run"), running).await
}

async fn replicas(api: &Api<DynamicObject>) -> Result<i32> {
    let scale: Scale = api.get_scale("bot").await?;
    Ok(scale.spec.and_then(|s| s.replicas).unwrap_or(0))
}

fn prepared(status: &TradingSystemStatus) -> Option<&Condition> {
    status.conditions.iter().find(|c| c.type_ == "Prepared")
}

async fn ask(world: &World, workload: Value) -> Result<TradingSystem> {
    world.system(&[], json!({"workloads": [workload]})).await
}

/// S1-16, S1-35
#[tokio::test]
async fn s1_16_a_listed_kind_is_stopped_held_and_brought_back_by_its_scale() -> Result<()> {
    let alone = Alone::new().await?;
    let mut world = alone.world("fleet-kind").await?;
    world.kinds = install(&alone).await?;
    let fleets = api(&world, &world.kinds, "Fleet")?;
    bot(&world, &fleets, "Fleet").await?;
    settle(&world, 2).await?;
    let named = json!({"apiVersion": "e2e.standfast.dev/v1", "kind": "Fleet", "name": "bot", "role": "Trading"});
    ask(&world, named).await?;
    let _operator = world.operator().await?;
    let known = |s: &TradingSystemStatus| prepared(s).is_some_and(|c| c.status == "True");
    world.system_until("system", "an emergency halt would work", known).await?;

    world.halt("stale", json!({})).await?;
    world.until("it is asked to stop", async || Ok((replicas(&fleets).await? == 0).then_some(()))).await?;
    settle(&world, 0).await?;
    let status = world.halted("stale").await?;
    let record = &status.workloads[0];
    assert_eq!((record.kind.as_str(), record.name.as_str(), record.replicas), ("Fleet", "bot", Some(2)));
    assert_eq!(json!(record.match_labels), json!({"app": "bot"}));
    assert!(is_true(&status.conditions, c::LATCHED));

    let params = PatchParams::default();
    let one = json!({"spec": {"replicas": 1}});
    let mut refused = vec![fleets.patch_scale("bot", &params, &Patch::Merge(one.clone())).await.err()];
    // Without replicas, whoever runs them decides how many.
    for raise in [one, json!({"spec": {"replicas": null}})] {
        refused.push(fleets.patch("bot", &params, &Patch::Merge(raise)).await.err());
    }
    let pod = json!({"metadata": {"name": "mine", "labels": {"app": "bot"}}, "spec": {"containers": [{"name": "c", "image": "c"}]}});
    refused.push(world.api::<Pod>().create(&PostParams::default(), &serde_json::from_value(pod)?).await.err());
    for (number, refused) in refused.into_iter().enumerate() {
        let refused = refused.with_context(|| format!("the latch let number {number} through"))?;
        assert!(refused.to_string().contains("prices are stale"), "{number}: {refused}");
    }
    fleets.patch("bot", &params, &Patch::Merge(json!({"spec": {"image": "b"}}))).await?;

    world.resume("go-on", "stale").await?;
    world.until("it is brought back", async || Ok((replicas(&fleets).await? == 2).then_some(()))).await?;
    let waits = |r: &standfast_crds::v1alpha1::TradingResume| {
        let steps = r.status.iter().flat_map(|s| &s.steps);
        steps.filter_map(|s| s.message.as_deref()).any(|m| m == "waiting for ready pods of Fleet bot")
    };
    world.resume_until("go-on", "its pods are waited for", waits).await?;
    settle(&world, 2).await?;
    world.resume_in("go-on", ResumePhase::Completed).await?;
    Ok(())
}

/// What a halt could not do is told before there is one.
#[tokio::test]
async fn a_kind_that_is_not_listed_and_one_that_is_listed_wrongly_are_told() -> Result<()> {
    let alone = Alone::new().await?;
    let mut world = alone.world("odd-kind").await?;
    world.kinds = install(&alone).await?;
    let ships = api(&world, &world.kinds, "Ship")?;
    bot(&world, &ships, "Ship").await?;
    ask(&world, json!({"apiVersion": "e2e.standfast.dev/v1", "kind": "Ship", "name": "bot", "role": "Trading"}))
        .await?;
    let spec = json!({"venues": [world.venue_spec()], "workloads": [
        {"apiVersion": "e2e.standfast.dev/v2", "kind": "Ship", "name": "bot", "role": "Trading"},
        {"apiVersion": "e2e.standfast.dev/v1", "kind": "Ghost", "name": "bot", "role": "Trading"},
        {"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "name": "bot", "role": "Trading"}]});
    world.create::<TradingSystem>(json!({"metadata": {"name": "other"}, "spec": spec})).await?;
    let operator = world.operator().await?;
    let says = |texts: &'static [&'static str]| {
        move |s: &TradingSystemStatus| {
            let told = |text: &&str| s.problems.iter().any(|p| p.message.contains(*text));
            prepared(s).is_some_and(|c| c.status == "False") && texts.iter().all(told)
        }
    };
    let moved = says(&["its scale selects pods by app=bot, which is not at the selectorPath that scalableKinds"]);
    world.system_until("system", "the selector is looked for elsewhere", moved).await?;
    let unlisted = says(&[
        "e2e.standfast.dev/v2 Ship is not listed in scalableKinds of the charts",
        "argoproj.io/v1alpha1 Rollout is not listed in scalableKinds of the charts",
    ]);
    world.system_until("other", "both are told", unlisted).await?;
    drop(operator);

    // The two charts are told different things, and one of a kind that the cluster does not have.
    world.kinds = "e2e.standfast.dev/v1/Ghost/ghosts".parse().map_err(anyhow::Error::msg)?;
    let _operator = world.operator().await?;
    let differs =
        says(&["differ from what was shipped: install the standfast-crds chart again, with the scalableKinds"]);
    world.system_until("system", "the guardrails are not those of this operator", differs).await?;
    let unseen = says(&["Ghost bot not found in namespace"]);
    world.system_until("other", "there is none", unseen).await?;
    Ok(())
}
