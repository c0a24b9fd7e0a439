//! Halts where something does not do what it should: pods, nodes, venues, and the TradingSystem itself.

use std::time::{Duration, Instant};

use anyhow::Result;
use k8s_openapi::{
    api::events::v1::Event, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
};
use rstest::rstest;
use serde_json::json;
use standfast_crds::v1alpha1::{
    HaltPhase, ResumePhase, TradingHalt, TradingHaltStatus, TradingResume, TradingSystem, condition,
    halt_conditions as c,
};
use standfast_e2e::{
    controlplane::{free_port, install},
    faults::Faults,
    venue::{Action, Fault},
    world::{KEY, SECRET},
};
use standfast_operator::client::Clients;

use super::{message, rest, says, trading};
use crate::plane::{Alone, world};

/// S1-29, S1-30
#[tokio::test]
async fn s1_29_s1_30_cancelling_does_not_wait_for_pods_that_never_end() -> Result<()> {
    let (world, _operator) = trading("stubborn", 1, json!({"haltPolicy": {"stopGracePeriod": "1s"}})).await?;
    rest(&world.venue, "AAPL", 3)?;
    world.node.set_stubborn(true);
    world.halt("stale", json!({})).await?;
    let late = |s: &TradingHaltStatus| says(s, c::WORKLOADS_STOPPED) == ("False", "PodsStillRunning");
    let status = world.halt_until("stale", "the pods are late", late).await?;
    assert_eq!((status.phase, status.running_pods), (HaltPhase::Unverified, Some(1)));
    assert_eq!(world.venue.open_orders(KEY).len(), 0);
    assert!(world.venue.suspended(KEY));
    // A pod that lives may still place orders: what is read now proves nothing.
    assert_eq!((says(&status, c::ORDERS_CANCELLED).0, status.times.halted_at.clone()), ("False", None));
    assert_eq!(message(&status, c::HALTED), "1 pods of trading workloads are left after 1s");
    world.node.set_stubborn(false);
    world.halted("stale").await?;
    Ok(())
}

#[tokio::test]
async fn a_pod_whose_node_does_not_answer_is_never_taken_for_stopped() -> Result<()> {
    let (world, _operator) = trading("node", 1, json!({})).await?;
    world.node.set_stubborn(true);
    world.halt("stale", json!({})).await?;
    let cut_off = |s: &TradingHaltStatus| says(s, c::WORKLOADS_STOPPED) == ("False", "NodeUnreachable");
    let status = world.halt_until("stale", "the node does not answer", cut_off).await?;
    assert_eq!((status.phase, status.times.halted_at.clone()), (HaltPhase::Unverified, None));
    let text = message(&status, c::WORKLOADS_STOPPED);
    assert!(text.contains("on node pretended") && text.contains("look at the node"), "{text}");
    assert_eq!(world.pods("bot").await?.len(), 1, "nobody deletes it by force");
    Ok(())
}

/// The defect 1 of the plans' scripts: a cancel that failed is not said to be done. S0-33
#[rstest]
#[case::answers_500("ill-500", Action::Reply { status: 500, body: format!(r#"{{"message": "{SECRET}"}}"#), headers: vec![] })]
#[case::answers_garbage("ill-json", Action::Garbage)]
#[case::never_answers("ill-hang", Action::Hang)]
#[case::cuts_the_connection("ill-drop", Action::Drop)]
#[tokio::test]
async fn s0_33_a_venue_that_is_ill_makes_a_halt_unverified_until_it_is_well(
    #[case] name: &str,
    #[case] ill: Action,
) -> Result<()> {
    let (world, _operator) = trading(name, 1, json!({})).await?;
    rest(&world.venue, "AAPL", 3)?;
    world.venue.fault(Fault::any("/v2/", ill));
    world.halt("stale", json!({})).await?;
    let unknown = |s: &TradingHaltStatus| s.phase == HaltPhase::Unverified && s.running_pods == Some(0);
    let status = world.halt_until("stale", "unverified", unknown).await?;
    assert_eq!(says(&status, c::ORDERS_CANCELLED), ("Unknown", "OrdersNotRead"));
    assert_eq!((status.open_orders, status.times.halted_at.clone()), (None, None));
    let shown = serde_json::to_string(&status)?;
    assert!(!shown.contains(SECRET), "{shown}");
    world.venue.clear_faults();
    world.halted("stale").await?;
    assert_eq!(world.venue.open_orders(KEY), vec![]);
    Ok(())
}

/// S0-33
#[tokio::test]
async fn s0_33_an_order_that_the_venue_fails_to_cancel_is_listed_and_tried_again() -> Result<()> {
    let (world, _operator) = trading("ill-207", 1, json!({})).await?;
    rest(&world.venue, "AAPL", 2)?;
    rest(&world.venue, "MSFT", 1)?;
    world.venue.fault(Fault::on("DELETE", "/v2/orders", Action::partial(&["MSFT"])));
    world.halt("stale", json!({})).await?;
    let listed = |s: &TradingHaltStatus| {
        let symbols: Vec<_> = s.venues.iter().flat_map(|v| &v.orders).map(|o| o.symbol.as_deref()).collect();
        s.open_orders == Some(1) && symbols == [Some("MSFT")] && s.running_pods == Some(0)
    };
    world.halt_until("stale", "the order is listed", listed).await?;
    let tries = world.venue.requests("DELETE", "/v2/orders").len();
    let again = || (world.venue.requests("DELETE", "/v2/orders").len() > tries + 2).then_some(());
    world.until("it is tried again", async || Ok(again())).await?;
    let status = world.halt_status("stale").await?;
    assert_eq!((status.phase, status.times.halted_at.clone()), (HaltPhase::Fencing, None));
    world.venue.clear_faults();
    world.halted("stale").await?;
    assert_eq!(world.venue.open_orders(KEY), vec![]);
    Ok(())
}

/// S0-33
#[tokio::test]
async fn s0_33_an_order_that_reappears_is_cancelled_again() -> Result<()> {
    let (world, _operator) = trading("revive", 1, json!({})).await?;
    rest(&world.venue, "AAPL", 1)?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    let id = world.venue.orders(KEY)[0].id.clone();
    world.venue.revive_order(KEY, &id).expect("revived");
    world.until("cancelled again", async || Ok(world.venue.open_orders(KEY).is_empty().then_some(()))).await?;
    // It was seen: the proof was lost, and was given again.
    let proven = |s: &TradingHaltStatus| {
        let times = s.evidence.entries.iter().filter(|e| e.event == "OrdersCancelled").count();
        s.phase == HaltPhase::Halted && times == 2
    };
    world.halt_until("stale", "proven again", proven).await?;
    Ok(())
}

#[tokio::test]
async fn a_wrong_address_is_repaired_under_the_halt() -> Result<()> {
    let world = world("repair").await?;
    world.bot("bot", 1).await?;
    let mut wrong = world.venue_spec();
    let url = format!("http://127.0.0.1:{}/v2/orders", free_port()?);
    wrong["openOrders"][0]["http"]["url"] = url.clone().into();
    wrong["cancelOrders"][0]["http"]["url"] = url.into();
    world.system(&["bot"], json!({"venues": [wrong]})).await?;
    rest(&world.venue, "AAPL", 1)?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    world.halt_until("stale", "unverified", |s| s.phase == HaltPhase::Unverified).await?;
    world.patch::<TradingSystem>("system", json!({"spec": {"venues": [world.venue_spec()]}})).await?;
    world.halted("stale").await?;
    assert_eq!(world.venue.open_orders(KEY), vec![]);
    Ok(())
}

#[tokio::test]
async fn a_venue_that_is_removed_under_the_halt_is_unknown_and_never_satisfied() -> Result<()> {
    let (world, _operator) = trading("removed", 1, json!({})).await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    let mut other = world.venue_spec();
    other["name"] = "other".into();
    world.patch::<TradingSystem>("system", json!({"spec": {"venues": [other]}})).await?;
    let unknown = |s: &TradingHaltStatus| s.phase == HaltPhase::Unverified;
    let status = world.halt_until("stale", "unverified", unknown).await?;
    assert_eq!(says(&status, c::ORDERS_CANCELLED), ("Unknown", "VenueRemoved"));
    let names: Vec<_> = status.venues.iter().map(|v| v.name.as_str()).collect();
    assert_eq!(names, ["alpaca", "other"], "venues only grow");
    Ok(())
}

/// Watches die without a word, as where a firewall forgets a connection: a halt is noticed all the same, and so is what
/// becomes of the workloads. Within 15 s is the aim.
#[tokio::test]
async fn a_halt_is_committed_within_seconds_although_every_watch_is_dead() -> Result<()> {
    let world = world("deaf").await?;
    world.bot("bot", 1).await?;
    world.system(&["bot"], json!({})).await?;
    let faults = Faults::new(None);
    let layers = faults.operator();
    let clients = move |plain: Client| Clients { watch: layers.watches(plain.clone()), ..Clients::same(&plain, 64) };
    let _operator = world.operator_of(clients, |transport| transport).await?;
    let all =
        ["tradingsystems", "tradinghalts", "tradingresumes", "deployments", "statefulsets", "cronjobs", "daemonsets"];
    let watched = || all.iter().all(|kind| faults.watched().contains(*kind)).then_some(());
    world.until("everything is watched", async || Ok(watched())).await?;
    faults.kill_watches();
    let created = Instant::now();
    world.halt("stale", json!({})).await?;
    world.halt_until("stale", "committed", |s| s.times.committed_at.is_some()).await?;
    let committed = created.elapsed();
    world.halted("stale").await?;
    eprintln!("with dead watches committed after {committed:?}, halted after {:?}", created.elapsed());
    assert!(committed < Duration::from_secs(30), "committed only after {committed:?}");
    Ok(())
}

/// An object of another version's schema, which this operator cannot read: it is told, and stops nobody else.
#[tokio::test]
async fn a_halt_that_cannot_be_read_is_told_and_left_alone_and_others_work() -> Result<()> {
    let alone = Alone::new().await?;
    let world = alone.world("odd").await?;
    world.bot("bot", 2).await?;
    world.system(&["bot"], json!({})).await?;
    let crds: Api<CustomResourceDefinition> = Api::all(world.client.clone());
    let cancel = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/orders/properties/cancel/enum/-";
    let wider = serde_json::from_value(json!([{"op": "add", "path": cancel, "value": "Everything"}]))?;
    crds.patch("tradinghalts.standfast.dev", &PatchParams::default(), &Patch::Json::<()>(wider)).await?;
    let halts: Api<DynamicObject> =
        Api::namespaced_with(world.client.clone(), &world.namespace, &ApiResource::erase::<TradingHalt>(&()));
    let spec = json!({"systemRef": {"name": "system"}, "reason": "odd", "orders": {"cancel": "Everything"}});
    let odd = serde_json::from_value(json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingHalt",
        "metadata": {"name": "odd"}, "spec": spec}))?;
    let stored = async || Ok(halts.create(&PostParams::default(), &odd).await.ok());
    world.until("the wider schema is served", stored).await?;
    install(&world.client).await?;

    let _operator = world.telling_operator().await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    let told = async || {
        let mut events = world.api::<Event>().list(&ListParams::default()).await?.items;
        events.retain(|e| e.regarding.as_ref().is_some_and(|r| r.name.as_deref() == Some("odd")));
        Ok(events.pop())
    };
    let event = world.until("it is told that it cannot be read", told).await?;
    assert_eq!((event.type_.as_deref(), event.reason.as_deref()), (Some("Warning"), Some("Unreadable")));
    let note = event.note.unwrap_or_default();
    assert!(note.contains("Everything"), "it says why: {note}");
    assert_eq!(halts.get("odd").await?.data.get("status"), None, "it is left alone");

    // It might hold what is to be released.
    world.resume("go-on", "stale").await?;
    let waits = format!("TradingHalt {}/odd cannot be read, it may hold", world.namespace);
    let says = |r: &TradingResume| {
        let conditions = r.status.iter().flat_map(|s| s.conditions.clone()).collect::<Vec<_>>();
        condition(&conditions, "Completed").is_some_and(|c| c.message.contains(&waits))
    };
    world.resume_until("go-on", "the resume waits", says).await?;
    world.halted("stale").await?;
    halts.delete("odd", &DeleteParams::default()).await?;
    world.resume_in("go-on", ResumePhase::Completed).await?;
    assert_eq!(world.replicas("bot").await?, 2);
    Ok(())
}
