//! The control planes that the tests of this process share: one for all, and one for what concerns a whole cluster.

use std::sync::Arc;

use anyhow::Result;
use standfast_e2e::{
    controlplane::{ControlPlane, apply_all},
    world::World,
};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

static PLANE: OnceCell<Arc<ControlPlane>> = OnceCell::const_new();

/// The control plane, started for the first who asks.
pub async fn plane() -> Result<&'static Arc<ControlPlane>> {
    PLANE
        .get_or_try_init(|| async {
            let _ = tracing_subscriber::fmt()
                .with_env_filter(tracing_subscriber::EnvFilter::new(
                    std::env::var("RUST_LOG").unwrap_or_else(|_| "off".into()),
                ))
                .with_test_writer()
                .try_init();
            Ok(Arc::new(ControlPlane::start().await?))
        })
        .await
}

/// A world of its own.
pub async fn world(name: &str) -> Result<World> {
    World::new(plane().await?, name).await
}

/// A control plane for tests that change what the whole cluster shares, one after the other.
pub struct Alone {
    /// The control plane.
    pub plane: Arc<ControlPlane>,
    _turn: MutexGuard<'static, ()>,
}

impl Alone {
    /// Waits for its turn. Whatever the test before did to the guardrails is undone.
    pub async fn new() -> Result<Self> {
        static PLANE: OnceCell<Arc<ControlPlane>> = OnceCell::const_new();
        static TURN: Mutex<()> = Mutex::const_new(());
        let turn = TURN.lock().await;
        let plane = PLANE.get_or_try_init(async || anyhow::Ok(Arc::new(ControlPlane::start().await?))).await?;
        apply_all(&plane.client().await?, standfast_crds::guardrails::MANIFEST).await?;
        Ok(Self { plane: Arc::clone(plane), _turn: turn })
    }

    /// A world of its own.
    pub async fn world(&self, name: &str) -> Result<World> {
        World::new(&self.plane, name).await
    }
}
