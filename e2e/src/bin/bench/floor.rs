//! What the same path costs at least: a bare client without caches, records or proof.

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt};
use kube::{
    ResourceExt,
    api::{Patch, PatchParams, WatchEvent, WatchParams},
};
use serde_json::json;
use standfast_crds::v1alpha1::TradingHalt;
use tokio::{sync::oneshot, task::JoinHandle};

use crate::rig::{KEY, Rig};

/// Watches halts of `namespace`; for each, one status write and one request to the venue.
pub async fn start(rig: &Rig, namespace: &str) -> Result<JoinHandle<Result<()>>> {
    let halts: kube::Api<TradingHalt> = rig.api(namespace);
    let url = rig.venue.url();
    let http = reqwest::Client::builder().no_proxy().build()?;
    // A warm connection, as the operator has one.
    http.get(format!("{url}/healthz")).send().await?;
    let mut version = halts.list(&Default::default()).await?.metadata.resource_version.context("no version")?;
    let (ready, started) = oneshot::channel();
    let task = tokio::spawn(async move {
        let mut ready = Some(ready);
        // A watch ends after some minutes, and goes on where it was.
        loop {
            let mut events = halts.watch(&WatchParams::default(), &version).await?.boxed();
            if let Some(ready) = ready.take() {
                let _ = ready.send(());
            }
            while let Some(event) = events.try_next().await? {
                match event {
                    WatchEvent::Added(halt) => {
                        let name = halt.name_any();
                        let status = json!({"status": {"phase": "Fencing"}});
                        halts.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await?;
                        let cancel = http.delete(format!("{url}/v2/orders?tag={name}"));
                        cancel.header("APCA-API-KEY-ID", KEY).header("APCA-API-SECRET-KEY", "secret").send().await?;
                        version = halt.resource_version().context("no version")?;
                    }
                    WatchEvent::Modified(halt) => version = halt.resource_version().context("no version")?,
                    WatchEvent::Bookmark(mark) => version = mark.metadata.resource_version,
                    WatchEvent::Deleted(_) => {}
                    WatchEvent::Error(error) => bail!("the floor's watch failed: {error:?}"),
                }
            }
        }
    });
    started.await?;
    Ok(task)
}
