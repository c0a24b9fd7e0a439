//! Halts on a real API server, against the paper venue.

use anyhow::Result;
use serde_json::json;
use standfast_crds::v1alpha1::HaltPhase;
use standfast_e2e::{
    venue::{NewOrder, Side},
    world::KEY,
};
use standfast_operator::halt::evidence;

use crate::plane::world;

/// S0-32, S0-33, S1-16, S1-29, S1-30, S3-16
#[tokio::test]
async fn s0_33_a_halt_cancels_stops_and_proves_it() -> Result<()> {
    let world = world("halt").await?;
    world.bot("bot", 3).await?;
    world.system(&["bot"], json!({})).await?;
    for n in 0..5 {
        world.venue.place_order(KEY, &NewOrder::limit("AAPL", Side::Buy, 1, 50 + n)).expect("accepted");
    }
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    let status = world.halt_until("stale", "halted", |s| s.phase == HaltPhase::Halted).await?;
    assert_eq!((status.open_orders, status.running_pods), (Some(0), Some(0)));
    assert_eq!(world.venue.open_orders(KEY).len(), 0);
    assert_eq!(world.replicas("bot").await?, 0);
    assert!(world.venue.suspended(KEY));
    evidence::verify(&status.evidence).expect("the chain holds");
    let refused = world.scale("bot", 3, "somebody").await.expect_err("the latch refuses");
    assert!(refused.to_string().contains("prices are stale"), "{refused}");
    Ok(())
}
