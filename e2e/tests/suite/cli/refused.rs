//! What does not work says what was attempted, and what to do.

use std::time::Instant;

use anyhow::Result;
use k8s_openapi::api::rbac::v1::Role;
use serde_json::json;

use super::{halts, trading};
use crate::plane::world;

/// HALT 2.5: a halt that no operator sees latches nothing, and people are told so after five seconds.
#[tokio::test]
async fn without_an_operator_the_commands_to_stop_by_hand_are_told_after_five_seconds() -> Result<()> {
    let world = trading("cli-deaf").await?;
    let begun = Instant::now();
    let said = world.run_standfast(&["halt", "system", "--reason", "test", "--timeout", "7s"]).await?;
    assert_eq!(said.code, Some(1));
    assert!(begun.elapsed().as_secs() >= 7);
    let namespace = &world.namespace;
    for part in [
        "NOTHING IS LATCHED: no operator has reacted to TradingHalt system-",
        &format!("kubectl -n {namespace} scale deployment bot --replicas=0"),
        "cancel all orders at the venue alpaca",
        "/v2/orders)",
        "NOT HALTED",
    ] {
        assert!(said.out.contains(part), "{part}");
    }
    let early = world.run_standfast(&["halt", "system", "--reason", "test", "--timeout", "2s"]).await?;
    assert!(!early.out.contains("NOTHING IS LATCHED:"), "an operator may still react");
    let status = world.run_standfast(&["status", "system"]).await?;
    assert!(status.out.contains("HALT REQUESTED, NOTHING LATCHED") && status.out.contains("--replicas=0"));
    Ok(())
}

/// A name that is mistyped halts nothing and leaves nothing behind.
#[tokio::test]
async fn an_unknown_system_is_told_the_names_there_are() -> Result<()> {
    let world = trading("cli-unknown").await?;
    for command in [
        &["halt", "sistem", "--reason", "test"][..],
        &["resume", "sistem"],
        &["status", "sistem"],
        &["prepared", "sistem"],
    ] {
        let said = world.run_standfast(command).await?;
        assert_eq!(said.code, Some(1), "{command:?}");
        let expected = format!("TradingSystem sistem not found in namespace {}: there is system", world.namespace);
        assert!(said.err.contains(&expected), "{command:?}");
    }
    assert_eq!(halts(&world).await?, Vec::<String>::new());
    let said = world.run_standfast(&["explain", "nothing"]).await?;
    assert!(said.err.contains("TradingHalt nothing not found") && said.err.contains("there is none"));
    Ok(())
}

/// Who may not, is told which role may. Who may halt may not resume.
#[tokio::test]
async fn a_user_without_the_right_is_told_the_role() -> Result<()> {
    let world = trading("cli-forbidden").await?;
    let said = world.run_standfast(&["halt", "system", "--reason", "test", "--as", "bob"]).await?;
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("--clusterrole=standfast-responder"));
    world
        .create::<Role>(json!({"metadata": {"name": "responder"}, "rules": [
            {"apiGroups": ["standfast.dev"], "resources": ["tradingsystems", "tradingresumes"], "verbs": ["get", "list", "watch"]},
            {"apiGroups": ["standfast.dev"], "resources": ["tradinghalts"], "verbs": ["get", "list", "watch", "create"]}]}))
        .await?;
    world.bind("bob", "Role", "responder").await?;
    let _operator = world.operator().await?;
    // The binding is seen by the API server a moment later.
    let said = world
        .until("bob may halt", async || {
            let said =
                world.run_standfast(&["halt", "system", "--reason", "test", "--as", "bob", "-o", "json"]).await?;
            Ok((said.code == Some(0)).then_some(said))
        })
        .await?;
    assert_eq!(said.json()?["halts"][0]["requestedBy"], json!("bob"));
    let said = world.run_standfast(&["resume", "system", "--as", "bob"]).await?;
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("--clusterrole=standfast-risk"));
    // A mistyped name: bob may not delete what he created, and is told so.
    let said = world.run_standfast(&["halt", "sistem", "--reason", "test", "--as", "bob"]).await?;
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("could not be removed") && said.err.contains("delete tradinghalt sistem-"));
    Ok(())
}

#[tokio::test]
async fn what_needs_no_cluster_asks_none_and_a_cluster_that_is_not_there_is_named() -> Result<()> {
    let world = world("cli-nowhere").await?;
    let mut command = world.standfast(&["completion", "bash"])?;
    let output = command.env("KUBECONFIG", "/nowhere").output().await?;
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("kubectl-standfast"));
    let output = world.standfast(&["status", "--context", "nowhere"])?.output().await?;
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.starts_with("error: reading the kubeconfig") && said.contains("nowhere"), "{said}");
    let output = world.standfast(&["halt"])?.output().await?;
    assert_eq!(output.status.code(), Some(1), "2 says that a halt is not proven, and nothing else");
    Ok(())
}
