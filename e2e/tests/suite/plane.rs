//! The control planes that the tests of this process share: one for all, and one for what concerns a whole cluster.

use std::{env, fs::File, sync::Arc};

use anyhow::Result;
use standfast_e2e::{
    controlplane::{ControlPlane, install},
    folders,
    world::World,
};
use tokio::sync::{Mutex, MutexGuard, OnceCell};
use tracing_subscriber::EnvFilter;

static PLANE: OnceCell<Arc<ControlPlane>> = OnceCell::const_new();

/// The control plane, started for the first who asks.
pub async fn plane() -> Result<&'static Arc<ControlPlane>> {
    tell_where_logs_are()?;
    PLANE.get_or_try_init(start).await
}

/// A world of its own.
pub async fn world(name: &str) -> Result<World> {
    world_on(plane().await?, name).await
}

async fn world_on(plane: &Arc<ControlPlane>, name: &str) -> Result<World> {
    let world = World::new(plane, name).await?;
    eprintln!("its namespace is {}", world.namespace);
    Ok(world)
}

/// What a test says is shown when it fails.
fn tell_where_logs_are() -> Result<()> {
    eprintln!("logs of the operators and of the control plane are in {}", folders::logs()?.display());
    Ok(())
}

/// Starts a control plane. The operators of this process log to a file beside the logs of its components.
async fn start() -> Result<Arc<ControlPlane>> {
    let log = File::options().create(true).append(true).open(folders::logs()?.join("operator.log"))?;
    let filter = EnvFilter::new(env::var("RUST_LOG").unwrap_or_else(|_| "info".into()));
    // For the second control plane this was done.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(log).try_init();
    Ok(Arc::new(ControlPlane::start().await?))
}

/// A control plane for tests that change what the whole cluster shares, one after the other.
pub struct Alone {
    /// The control plane.
    pub plane: Arc<ControlPlane>,
    _turn: MutexGuard<'static, ()>,
}

impl Alone {
    /// Waits for its turn. Whatever the test before did to the CRDs and the guardrails is undone.
    pub async fn new() -> Result<Self> {
        static PLANE: OnceCell<Arc<ControlPlane>> = OnceCell::const_new();
        static TURN: Mutex<()> = Mutex::const_new(());
        tell_where_logs_are()?;
        let turn = TURN.lock().await;
        let plane = PLANE.get_or_try_init(start).await?;
        install(&plane.client().await?).await?;
        Ok(Self { plane: Arc::clone(plane), _turn: turn })
    }

    /// A world of its own.
    pub async fn world(&self, name: &str) -> Result<World> {
        world_on(&self.plane, name).await
    }
}
