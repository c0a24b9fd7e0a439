//! Halts of several systems, each with an account of its own at the paper venue.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{core::v1::Secret, rbac::v1::Role};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{
    Approval, HALT_GROUP, HaltPhase, ResumePhase, TradingHalt, TradingHaltStatus, TradingSystem, condition,
    halt_conditions as c,
};
use standfast_e2e::{
    faults::{Fault, Faults, Strike},
    venue::{NewOrder, Side},
    world::World,
};

use super::{message, says};
use crate::plane::world;

/// A system with a bot, an account and open orders of its own. Without `credentials` its Secret is missing.
async fn desk(world: &World, name: &str, labels: Value, credentials: bool) -> Result<()> {
    world.deployment(name, 1).await?;
    let (key, secret) = (format!("PK-{name}"), format!("secret-of-{name}"));
    world.venue.account(&key, &secret);
    for price in 0..3 {
        let order = NewOrder::limit("AAPL", Side::Buy, 1, 50 + price);
        world.venue.place_order(&key, &order).map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
    }
    if credentials {
        world
            .create::<Secret>(json!({
                "metadata": {"name": format!("alpaca-{name}"), "labels": {"standfast.dev/use": "true"},
                    "annotations": {"standfast.dev/allowed-hosts": "127.0.0.1"}},
                "stringData": {"key-id": key, "secret-key": secret}}))
            .await?;
    }
    // The credentials are named, not the venue.
    let venue = world.venue_spec().to_string().replace(r#""name":"alpaca"}"#, &format!(r#""name":"alpaca-{name}"}}"#));
    let venue: Value = serde_json::from_str(&venue)?;
    let spec = json!({"workloads": [{"kind": "Deployment", "name": name, "role": "Trading"}], "venues": [venue],
        "haltPolicy": {"verifyInterval": "100ms", "reverifyInterval": "500ms"}});
    world.create::<TradingSystem>(json!({"metadata": {"name": name, "labels": labels}, "spec": spec})).await?;
    Ok(())
}

/// Halts all systems that are selected.
async fn halt_all(world: &World, name: &str, selector: Value) -> Result<TradingHalt> {
    let spec = json!({"systemSelector": selector, "reason": "prices are stale", "requestedBy": "admin"});
    world.create(json!({"metadata": {"name": name}, "spec": spec})).await
}

/// The halts that a group made, by system.
async fn made_by(world: &World, group: &str) -> Result<Vec<TradingHalt>> {
    let labelled = ListParams::default().labels(&format!("{HALT_GROUP}={group}"));
    let mut halts = world.api::<TradingHalt>().list(&labelled).await?.items;
    halts.sort_by_key(|h| h.spec.system().to_owned());
    Ok(halts)
}

fn told(status: &TradingHaltStatus) -> Vec<(&str, &str)> {
    status.systems.iter().map(|e| (e.system.as_str(), e.phase.as_str())).collect()
}

#[tokio::test]
async fn a_halt_of_three_systems_halts_each_and_is_released_with_the_last() -> Result<()> {
    let world = world("group").await?;
    for name in ["eq", "fx", "fut"] {
        desk(&world, name, json!({}), true).await?;
    }
    let _operator = world.operator().await?;
    halt_all(&world, "all", json!({})).await?;
    let (done, said) = world.kubectl(&["wait", "halt/all", "--for=condition=Halted", "--timeout=100s"], "").await?;
    assert!(done, "{said}");
    let status = world.halt_status("all").await?;
    assert_eq!(told(&status), [("eq", "Halted"), ("fut", "Halted"), ("fx", "Halted")]);
    assert_eq!((status.open_orders, status.running_pods, &status.latch), (Some(0), Some(0), &None));
    assert_eq!(says(&status, c::READY).0, "True");
    let halts = made_by(&world, "all").await?;
    assert_eq!(halts.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["all-eq", "all-fut", "all-fx"]);
    for halt in &halts {
        let (system, status) = (halt.spec.system(), halt.status.clone().unwrap_or_default());
        assert!(world.venue.open_orders(&format!("PK-{system}")).is_empty(), "{system}");
        assert_eq!(world.replicas(system).await?, 0, "{system}");
        assert_eq!(status.evidence.requested_by, "admin", "who asked for all of them");
        assert_eq!(halt.metadata.owner_references, None);
    }
    assert_eq!(world.latches().await?.len(), 3);
    let (_, said) = world.kubectl(&["get", "halt", "all"], "").await?;
    let row = said.lines().nth(1).unwrap_or_default();
    assert!(row.starts_with("all    3 systems   Halted   0        0      0"), "{said}");

    // It holds nothing itself: a resume of it fails at once, and says which to release.
    world.resume("wrong", "all").await?;
    let failed = world.resume_in("wrong", ResumePhase::Failed).await?;
    let why = failed.status.iter().flat_map(|s| &s.conditions).map(|c| c.message.clone()).collect::<String>();
    assert!(why.contains("TradingHalt all holds nothing itself") && why.contains("all-eq, all-fut, all-fx"), "{why}");
    let uid = world.api::<TradingHalt>().get("all").await?.uid();
    let subject = json!({"kind": "TradingHalt", "name": "all", "uid": uid});
    let approval = json!({"metadata": {"name": "yes"}, "spec": {"subject": subject, "hash": "0".repeat(64), "decision": "Approve", "approver": "admin"}});
    world.create::<Approval>(approval).await?;
    world
        .until("the approval is void", async || {
            let status = world.api::<Approval>().get("yes").await?.status.unwrap_or_default();
            let said = condition(&status.conditions, "Ready").map(|c| c.message.clone()).unwrap_or_default();
            Ok(said.contains("all-eq, all-fut, all-fx").then_some(()))
        })
        .await?;

    world.resume("fx-again", "all-fx").await?;
    let status = world.halt_until("all", "partly released", |s| s.phase == HaltPhase::Releasing).await?;
    assert_eq!(told(&status), [("eq", "Halted"), ("fut", "Halted"), ("fx", "Released")]);
    assert_eq!((says(&status, c::HALTED), says(&status, c::READY).0), (("False", "PartlyReleased"), "True"));
    for system in ["eq", "fut"] {
        world.resume(&format!("{system}-again"), &format!("all-{system}")).await?;
    }
    let status = world.halt_until("all", "released", |s| s.phase == HaltPhase::Released).await?;
    assert_eq!(message(&status, c::RELEASED), "all 3 halts were released");
    world
        .until("all trade again", async || {
            let mut replicas = vec![];
            for system in ["eq", "fx", "fut"] {
                replicas.push(world.replicas(system).await?);
            }
            Ok((replicas == [1, 1, 1]).then_some(()))
        })
        .await
}

/// Between the write of the intent and the creation of the halts: the next operator makes those that are missing. A name
/// that somebody else has taken does not matter.
#[tokio::test]
async fn an_operator_that_ends_before_it_made_a_halt_is_carried_on() -> Result<()> {
    let world = cut_off("group-before", "fx", Fault::CutBefore).await?;
    ensure!(world.halt_status("all-fx").await.is_err(), "all-fx was made");
    carried_on(&world).await
}

/// The same where one was made and nobody heard of it: it is not made twice.
#[tokio::test]
async fn an_operator_that_ends_after_it_made_a_halt_is_carried_on() -> Result<()> {
    let world = cut_off("group-after", "eq", Fault::CutAfter).await?;
    let made = world.api::<TradingHalt>().get("all-eq").await?.uid();
    carried_on(&world).await?;
    assert_eq!(world.api::<TradingHalt>().get("all-eq").await?.uid(), made);
    Ok(())
}

/// Three systems, and a halt of them whose operator was cut off when it made the halt of this one.
async fn cut_off(name: &str, system: &str, fault: Fault) -> Result<World> {
    let world = world(name).await?;
    for name in ["eq", "fx", "fut"] {
        desk(&world, name, json!({}), true).await?;
    }
    let foreign = json!({"metadata": {"name": "all-fut"}, "spec": {"systemRef": {"name": "nothing"}, "reason": "x"}});
    world.create::<TradingHalt>(foreign).await?;
    let faults = Faults::new(Some(Strike { key: format!("POST tradinghalts/all-{system}#1"), fault }));
    let layers = faults.operator();
    let operator = world.operator_with(move |client| layers.client(client), |transport| transport).await?;
    faults.arm();
    halt_all(&world, "all", json!({})).await?;
    faults.cut().await;
    operator.cut_off();
    let status = world.halt_status("all").await?;
    let intended: Vec<_> = status.systems.iter().map(|e| (e.halt.as_str(), e.halt_uid.as_deref())).collect();
    assert_eq!(intended, [("all-eq", None), ("all-fut", None), ("all-fx", None)], "the intent comes first");
    Ok(world)
}

/// Another operator comes to the end, with one halt for each system.
async fn carried_on(world: &World) -> Result<()> {
    let _operator = world.operator().await?;
    let status = world.halted("all").await?;
    let halts = made_by(world, "all").await?;
    assert_eq!(halts.iter().map(|h| h.spec.system()).collect::<Vec<_>>(), ["eq", "fut", "fx"]);
    let second = status.systems[1].halt.clone();
    assert!(second.starts_with("all-fut-"), "{second}");
    let mut names: Vec<_> = halts.iter().map(ResourceExt::name_any).collect();
    names.sort();
    assert_eq!(names, ["all-eq", &second, "all-fx"]);
    Ok(())
}

#[tokio::test]
async fn one_system_that_cannot_be_proven_keeps_the_group_from_being_halted() -> Result<()> {
    let world = world("group-ill").await?;
    desk(&world, "eq", json!({}), true).await?;
    desk(&world, "fx", json!({}), true).await?;
    desk(&world, "ill", json!({}), false).await?;
    let _operator = world.operator().await?;
    halt_all(&world, "all", json!({})).await?;
    let status = world
        .halt_until("all", "unverified, with the others halted", |s| {
            told(s) == [("eq", "Halted"), ("fx", "Halted"), ("ill", "Unverified")]
        })
        .await?;
    assert_eq!((status.phase, status.times.halted_at.clone()), (HaltPhase::Unverified, None));
    assert_eq!((says(&status, c::HALTED).0, says(&status, c::STALLED).0), ("Unknown", "True"));
    assert!(message(&status, c::HALTED).starts_with("2 of 3 systems are halted; ill Unverified: "), "{status:#?}");
    assert_eq!(status.open_orders, None, "of one it is not known");
    Ok(())
}

/// One of the halts cannot be made: the others are not held up, it is named, and tried again.
#[tokio::test]
async fn a_halt_that_cannot_be_made_is_named_and_tried_again() -> Result<()> {
    let world = world("group-refused").await?;
    desk(&world, "eq", json!({}), true).await?;
    desk(&world, "fx", json!({}), true).await?;
    let group = halt_all(&world, "all", json!({})).await?;
    let key = standfast_crds::hash::of_json(&json!([group.uid(), "fx"])).map_err(anyhow::Error::msg)?;
    let second = format!("all-fx-{}", &key[..8]);
    // Both names are taken by halts of others.
    for name in ["all-fx", &second] {
        let foreign = json!({"metadata": {"name": name}, "spec": {"systemRef": {"name": "nothing"}, "reason": "x"}});
        world.create::<TradingHalt>(foreign).await?;
    }
    let _operator = world.operator().await?;
    world.halted("all-eq").await?;
    let why = format!("fx its halt is not made: TradingHalts all-fx and {second} exist and are not of this halt");
    let named = |s: &TradingHaltStatus| message(s, c::HALTED).contains(&why) && told(s)[0] == ("eq", "Halted");
    let status = world.halt_until("all", "named", named).await?;
    assert_eq!((status.phase, says(&status, c::STALLED).0), (HaltPhase::Fencing, "True"));
    world.api::<TradingHalt>().delete(&second, &DeleteParams::default()).await?;
    let status = world.halted("all").await?;
    assert_eq!(status.systems[1].halt, second);
    Ok(())
}

#[tokio::test]
async fn systems_are_selected_by_their_labels_and_once() -> Result<()> {
    let world = world("group-labels").await?;
    desk(&world, "eq", json!({"desk": "equities"}), true).await?;
    let _operator = world.operator().await?;
    halt_all(&world, "fx-only", json!({"matchLabels": {"desk": "fx"}})).await?;
    let status =
        world.halt_until("fx-only", "told why", |s| says(s, c::HALTED) == ("False", "NothingSelected")).await?;
    assert_eq!((status.phase, says(&status, c::STALLED).0), (HaltPhase::Pending, "True"));
    let why = message(&status, c::HALTED);
    assert!(why.ends_with("selects nothing by desk=fx in this namespace: there are eq (desk=equities)"), "{why}");
    desk(&world, "fx", json!({"desk": "fx"}), true).await?;
    let status = world.halted("fx-only").await?;
    assert_eq!(told(&status), [("fx", "Halted")]);
    // It is chosen once.
    desk(&world, "late", json!({"desk": "fx"}), true).await?;
    world.system_until("late", "looked at", |s| s.cancel_path.is_some()).await?;
    assert_eq!(told(&world.halt_status("fx-only").await?), [("fx", "Halted")]);
    assert_eq!((world.replicas("late").await?, world.replicas("eq").await?), (1, 1));
    // Nothing is latched by the group: it may be deleted, and its halts stay.
    world.api::<TradingHalt>().delete("fx-only", &DeleteParams::default()).await?;
    assert_eq!(world.halt_status("fx-only-fx").await?.phase, HaltPhase::Halted);
    Ok(())
}

/// Who asked for a group is passed on by the operator, known by the verb `release`; nobody else names somebody else, and
/// nobody else makes a halt look like one of a group.
#[tokio::test]
async fn only_the_operator_passes_on_who_asked_and_marks_halts_of_a_group() -> Result<()> {
    let world = world("group-forged").await?;
    let may = |verbs: Value| json!({"apiGroups": ["standfast.dev"], "verbs": verbs, "resources": ["tradinghalts"]});
    for (role, verbs) in [("halter", json!(["create", "get", "patch"])), ("releaser", json!(["release"]))] {
        world.create::<Role>(json!({"metadata": {"name": role}, "rules": [may(verbs)]})).await?;
    }
    for (user, roles) in [("carl", &["halter"][..]), ("operator", &["halter", "releaser"])] {
        for role in roles {
            world.bind(user, "Role", role).await?;
        }
    }
    let halt = |by: &str, label: bool, uid: bool| {
        let mut halt = json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingHalt", "metadata": {"name": "x"},
            "spec": {"systemRef": {"name": "fx"}, "reason": "x", "requestedBy": by}});
        if label {
            halt["metadata"]["labels"] = json!({"standfast.dev/halt-group": "all"});
        }
        if uid {
            halt["metadata"]["annotations"] = json!({"standfast.dev/halt-group-uid": "u"});
        }
        halt
    };
    let params = PostParams { dry_run: true, ..PostParams::default() };
    let ask = async |user: &str, halt: &Value| -> Result<String> {
        let api: Api<TradingHalt> = Api::namespaced(world.client_as(user, &[]).await?, &world.namespace);
        let asked = api.create(&params, &serde_json::from_value(halt.clone())?).await;
        Ok(asked.err().map(|e| e.to_string()).unwrap_or_default())
    };
    for user in ["carl", "operator"] {
        let role_works = async || Ok(ask(user, &halt(user, false, false)).await?.is_empty().then_some(()));
        world.until("the roles work", role_works).await?;
    }
    let (name, mark) = ("spec.requestedBy must be the user", "only the operator sets them");
    for (user, halt, refusal) in [
        ("operator", halt("anna", true, true), None),
        ("operator", halt("anna", true, false), Some(name)),
        ("operator", halt("anna", false, false), Some(name)),
        ("carl", halt("anna", true, true), Some(name)),
        ("carl", halt("carl", true, true), Some(mark)),
        ("carl", halt("carl", true, false), Some(mark)),
        ("carl", halt("carl", false, true), Some(mark)),
        ("carl", halt("carl", false, false), None),
    ] {
        let said = ask(user, &halt).await?;
        match refusal {
            None => assert_eq!(said, "", "{user} {halt}"),
            Some(part) => assert!(said.contains(part), "{user} {halt}: {said}"),
        }
    }
    // Neither afterwards, and what is there may be changed otherwise.
    world.create::<TradingHalt>(halt("admin", false, false)).await?;
    let patch = |patch: Value| kube::api::Patch::Merge(patch);
    let carl: Api<TradingHalt> = Api::namespaced(world.client_as("carl", &[]).await?, &world.namespace);
    let params = kube::api::PatchParams::default();
    let marked = patch(json!({"metadata": {"labels": {"standfast.dev/halt-group": "all"}}}));
    let refused = carl.patch("x", &params, &marked).await.err().context("the label was set")?;
    assert!(refused.to_string().contains(mark), "{refused}");
    carl.patch("x", &params, &patch(json!({"metadata": {"labels": {"shift": "night"}}}))).await?;
    Ok(())
}
