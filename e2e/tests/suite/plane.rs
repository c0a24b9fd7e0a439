//! The one control plane that all tests of this process share.

use std::sync::Arc;

use anyhow::Result;
use standfast_e2e::{controlplane::ControlPlane, world::World};
use tokio::sync::OnceCell;

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
