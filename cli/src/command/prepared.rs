//! `prepared`: would an emergency halt work now?

use k8s_openapi::api::coordination::v1::Lease;
use serde_json::json;
use standfast_crds::v1alpha1::TradingSystem;

use super::{Context, DONE, FAILED, now};
use crate::{
    failure::Failure,
    screen::Stream,
    text::{Line, Style},
    view::prepared::{self, Operator, PreparedView},
};

/// Name of the Lease of the operator.
const LEASE: &str = "standfast";

/// Shows what stands in the way.
pub async fn run(context: &Context, system: Option<&str>, operator_namespace: &str) -> Result<u8, Failure> {
    let lease = context.cluster.glance::<Lease>(operator_namespace, LEASE);
    let systems = async {
        match system {
            Some(name) => Ok((vec![context.system(name).await?], vec![])),
            None => context.cluster.list::<TradingSystem>().await.map(|l| (l.items, l.odd)),
        }
    };
    let (lease, systems) = futures::join!(lease, systems);
    let (systems, odd) = systems?;
    let operator = Operator::of(lease.as_ref(), operator_namespace, now());
    let views: Vec<_> = systems.iter().map(PreparedView::of).collect();
    let all = prepared::all(&views, &operator) && odd.is_empty();
    if views.is_empty() && odd.is_empty() {
        return Err(Failure::new(format!("there is no TradingSystem in namespace {}", context.cluster.namespace))
            .hint("another namespace is chosen with -n"));
    }
    let result = json!({"prepared": all, "systems": views, "operator": operator, "unreadable": odd});
    context.show(&result, || prepared::lines(&views, &operator))?;
    Stream::Err.print(&odd.iter().map(|o| Line::new().and(Style::Bad, o)).collect::<Vec<_>>());
    Ok(if all { DONE } else { FAILED })
}
