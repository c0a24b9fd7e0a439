//! Approvals as the command line makes them: bound to what was shown.

use anyhow::Result;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use standfast_crds::{
    hash,
    v1alpha1::{Approval, TradingResume},
};
use standfast_e2e::world::World;

use crate::plane::world;

/// A resume that waits for approvals, as an operator would have left it.
async fn waiting(name: &str) -> Result<(World, Value)> {
    let world = world(name).await?;
    world.resume("back", "stale").await?;
    let plan = json!({"halt": {"name": "stale", "uid": "u"},
        "policy": {"approvals": [{"count": 1, "group": "risk"}, {"count": 1, "group": "owners"}]}});
    let status = json!({"phase": "AwaitingApproval", "plan": plan, "planHash": hash::of_json(&plan).unwrap(),
        "approved": "0/2", "breaks": [{"venue": "alpaca", "symbol": "AAPL", "kind": "Position", "difference": "-3"}]});
    let patch = Patch::Merge(json!({"status": status}));
    world.api::<TradingResume>().patch_status("back", &PatchParams::default(), &patch).await?;
    Ok((world, status))
}

/// The Approvals that there are. A kind that was installed a moment ago cannot be listed yet.
async fn approvals(world: &World) -> Result<Vec<Approval>> {
    let list = async || Ok(Some(world.api::<Approval>().list(&ListParams::default()).await?.items));
    world.until("approvals can be listed", list).await
}

/// The Approval carries the hash of what was shown, the user's own name, and of their groups only those
/// that are asked for.
#[tokio::test]
async fn what_was_shown_is_approved_by_who_looked_at_it() -> Result<()> {
    let (world, status) = waiting("cli-approve").await?;
    let approve = [
        "approve",
        "back",
        "--accept-breaks",
        "--yes",
        "--comment",
        "looked at it",
        "--as",
        "bob",
        "--as-group",
        "risk",
        "--as-group",
        "system:masters",
        "-o",
        "json",
    ];
    let said = world.run_standfast(&approve).await?;
    assert_eq!(said.code, Some(0));
    assert!(said.err.contains("AAPL Position") && said.err.contains("you accept these breaks"));
    let made = approvals(&world).await?;
    assert_eq!(made.len(), 1);
    let spec = &made[0].spec;
    assert_eq!((spec.approver.as_str(), &spec.groups), ("bob", &vec!["risk".to_owned()]));
    assert_eq!((json!(spec.hash), json!(spec.breaks)), (status["planHash"].clone(), status["breaks"].clone()));
    assert_eq!((spec.subject.name.as_str(), spec.comment.as_deref()), ("back", Some("looked at it")));
    let resume = world.api::<TradingResume>().get("back").await?;
    assert_eq!(Some(&spec.subject.uid), resume.metadata.uid.as_ref());

    let again = world.run_standfast(&approve).await?;
    assert_eq!((again.code, &again.json()?["created"]), (Some(0), &json!(false)));
    assert_eq!(approvals(&world).await?.len(), 1, "the same decision again makes no second one");
    Ok(())
}

#[tokio::test]
async fn nothing_is_approved_that_was_not_shown_or_not_confirmed() -> Result<()> {
    let (world, _) = waiting("cli-unsure").await?;
    let said = world.run_standfast(&["approve", "back"]).await?;
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("the input is no terminal") && said.out.contains("these breaks are not accepted"));
    let forged = Patch::Merge(json!({"status": {"planHash": "0".repeat(64)}}));
    world.api::<TradingResume>().patch_status("back", &PatchParams::default(), &forged).await?;
    let said = world.run_standfast(&["approve", "back", "--yes"]).await?;
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("is not the one whose hash is in its status"));
    assert!(approvals(&world).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_resume_can_be_rejected() -> Result<()> {
    let (world, _) = waiting("cli-reject").await?;
    let said = world.run_standfast(&["reject", "back", "--yes", "--comment", "not yet", "-o", "json"]).await?;
    assert_eq!((said.code, &said.json()?["spec"]["decision"]), (Some(0), &json!("Reject")));
    Ok(())
}
