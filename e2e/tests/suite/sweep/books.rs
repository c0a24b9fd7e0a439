//! What stands beside the bots and answers for them.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::Result;
use axum::{Json, Router, routing};
use serde_json::json;
use tokio::task::JoinSet;

use super::gated::{self, Limits};

/// The bots' books and limits, a check that can fail, and a sync.
#[derive(Default)]
pub struct Books {
    /// How many answers are still to be failures.
    pub failures: AtomicU32,
    /// What the bots tell.
    pub limits: Arc<Limits>,
}

impl Books {
    pub async fn serve(self: Arc<Self>, tasks: &mut JoinSet<()>) -> Result<String> {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let limits = Arc::clone(&self.limits);
        let health = async move || {
            let left = self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
            Json(json!({"ok": left.is_err()}))
        };
        let app = Router::new()
            .route("/health", routing::get(health))
            .route("/sync", routing::post(async || Json(json!({}))))
            .route("/positions", routing::get(async || Json(gated::positions())))
            .route("/limits", routing::get(async move || Json(json!({"size": limits.told()}))));
        tasks.spawn(async move { drop(axum::serve(listener, app).await) });
        Ok(url)
    }
}
