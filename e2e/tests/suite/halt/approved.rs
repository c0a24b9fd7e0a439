//! Halts that close positions because people allow it, where the policy does not.

use anyhow::Result;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, PostParams},
};
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{Approval, ApprovalPhase, TradingHalt, TradingHaltStatus, halt_conditions as c};
use standfast_e2e::{
    venue::{NewOrder, Side},
    world::{KEY, Operator, merge},
};

use super::{message, says};
use crate::{plane::world, resume::approvals::Desk};

/// Dora asks for everything to be closed, which the policy does not allow: the bot is stopped, and its positions stay.
async fn kept(name: &str, policy: Value) -> Result<(Desk, Operator, TradingHalt)> {
    let desk = Desk::new(world(name).await?).await?;
    let world = &desk.world;
    world.venue.set_position(KEY, "AAPL", 10, 90);
    world.venue.place_order(KEY, &NewOrder::limit("AAPL", Side::Buy, 1, 50)).expect("accepted");
    world.system(&["bot"], json!({"haltPolicy": policy})).await?;
    let operator = world.operator().await?;
    let halts: Api<TradingHalt> = Api::namespaced(desk.client("dora").await?, &world.namespace);
    let halt = json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingHalt", "metadata": {"name": "out"},
        "spec": {"systemRef": {"name": "system"}, "reason": "prices are stale", "requestedBy": "dora",
            "positions": {"action": "CloseAll"}}});
    halts.create(&PostParams::default(), &serde_json::from_value(halt)?).await?;
    world.halted("out").await?;
    let halt = world.api::<TradingHalt>().get("out").await?;
    Ok((desk, operator, halt))
}

fn status(halt: &TradingHalt) -> TradingHaltStatus {
    halt.status.clone().unwrap_or_default()
}

/// Somebody decides about the halt as it stands.
async fn decide(desk: &Desk, user: &str, halt: &TradingHalt, but: Value) -> Result<()> {
    let mut spec = json!({
        "subject": {"kind": "TradingHalt", "name": "out", "uid": halt.uid()},
        "hash": status(halt).spec_hash, "decision": "Approve", "approver": user,
    });
    merge(&mut spec, but);
    let name = format!("of-{user}");
    let approval = json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "Approval", "metadata": {"name": name},
        "spec": spec});
    let approval: Approval = serde_json::from_value(approval)?;
    desk.approvals(user).await?.create(&PostParams::default(), &approval).await?;
    Ok(())
}

async fn flat(desk: &Desk) -> Result<TradingHaltStatus> {
    let closed = |s: &TradingHaltStatus| says(s, c::POSITIONS_CLOSED) == ("True", "Flat");
    desk.world.halt_until("out", "flat", closed).await?;
    desk.world.halted("out").await
}

/// Whoever asked for it does not decide, somebody else does; then it is in the status before anything is closed.
#[tokio::test]
async fn an_approval_allows_what_the_policy_does_not() -> Result<()> {
    let (desk, _operator, halt) = kept("allowed", json!({})).await?;
    let said = status(&halt);
    assert_eq!(says(&said, c::POSITIONS_CLOSED), ("False", "NotAllowed"));
    let wanting = message(&said, c::POSITIONS_CLOSED);
    assert!(wanting.ends_with("allowedPositionActions, and wanting Approvals: 1 of anybody"), "{wanting}");
    decide(&desk, "dora", &halt, json!({})).await?;
    let own = "dora asked for this TradingHalt, and nobody allows his own";
    desk.says("of-dora", ApprovalPhase::Void, own).await?;
    assert_eq!(desk.world.venue.requests("DELETE", "/v2/positions").len(), 0);
    decide(&desk, "anna", &halt, json!({})).await?;
    let said = flat(&desk).await?;
    assert_eq!(said.approvals.iter().map(|a| a.approver.as_str()).collect::<Vec<_>>(), ["anna"]);
    assert_eq!(desk.world.venue.closes(KEY)["AAPL"].orders, 1);
    desk.says("of-anna", ApprovalPhase::Used, "TradingHalt out closes positions with it").await?;
    let events: Vec<_> = said.evidence.entries.iter().map(|e| e.event.as_str()).collect();
    let place = |event: &str| events.iter().position(|e| *e == event);
    assert!(
        place("PositionsApproved").is_some() && place("PositionsApproved") < place("PositionsClosed"),
        "{events:?}"
    );
    // It was used: it cannot be withdrawn, and the policy need not allow it either.
    desk.approvals("anna").await?.delete("of-anna", &DeleteParams::default()).await?;
    desk.world.venue.set_position(KEY, "MSFT", 5, 90);
    desk.world.halt_until("out", "closed too", |s| s.open_positions == Some(0)).await?;
    desk.world.until("MSFT is closed", async || Ok(desk.world.venue.positions(KEY).is_empty().then_some(()))).await
}

/// Two of two groups; a rejection holds until it is withdrawn; what was about another halt of the name does not count.
#[tokio::test]
async fn the_policy_says_whose_approvals_a_halt_needs() -> Result<()> {
    let asked = json!([{"count": 1, "group": "board"}, {"count": 1}]);
    let (desk, _operator, halt) = kept("asked", json!({"positionApprovals": asked})).await?;
    decide(&desk, "bert", &halt, json!({"decision": "Reject", "comment": "prices will be back"})).await?;
    desk.world
        .halt_until("out", "rejected", |s| {
            message(s, c::POSITIONS_CLOSED).ends_with("it was rejected by bert: prices will be back")
        })
        .await?;
    decide(&desk, "anna", &halt, json!({})).await?;
    decide(&desk, "carl", &halt, json!({"groups": ["board"]})).await?;
    for name in ["of-anna", "of-carl"] {
        desk.says(name, ApprovalPhase::Valid, "TradingHalt out may count it").await?;
    }
    let other = json!({"subject": {"kind": "TradingHalt", "name": "out", "uid": "another"}});
    desk.approvals("carl").await?.delete("of-carl", &DeleteParams::default()).await?;
    decide(&desk, "carl", &halt, other).await?;
    desk.approvals("bert").await?.delete("of-bert", &DeleteParams::default()).await?;
    desk.world
        .halt_until("out", "one is wanting", |s| {
            message(s, c::POSITIONS_CLOSED)
                .contains("wanting Approvals: 1 of group board; Approval of-carl does not count")
        })
        .await?;
    assert_eq!(desk.world.venue.requests("DELETE", "/v2/positions").len(), 0);
    desk.approvals("carl").await?.delete("of-carl", &DeleteParams::default()).await?;
    // The command line tells the group that is asked for.
    let approve = ["approve", "out", "--halt", "--yes", "--as", "carl", "--as-group", "board", "--as-group", "desk"];
    let said = desk.world.run_standfast(&approve).await?;
    assert_eq!(said.code, Some(0), "{}", said.err);
    let said = flat(&desk).await?;
    let by: Vec<_> = said.approvals.iter().map(|a| (a.approver.as_str(), a.group.as_deref())).collect();
    assert_eq!(by, [("carl", Some("board")), ("anna", None)]);
    Ok(())
}
