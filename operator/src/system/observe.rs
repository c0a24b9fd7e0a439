//! What is known of a trading system without asking anybody: from caches, and from what was asked before.

use std::collections::BTreeSet;

use kube::ResourceExt;
use standfast_crds::v1alpha1::{TradingHalt, TradingSystem, TradingSystemSpec, Venue, Workload, WorkloadRole};

use super::decide::{SharedAccount, SharedWorkload};
use crate::{
    cache::Cache,
    controller::Guarded,
    outbound::guard,
    workloads::{View, Workloads},
};

/// The halts that name this system.
pub(super) fn halts_of(halts: &Cache<Guarded<TradingHalt>>, namespace: &str, name: &str) -> Vec<TradingHalt> {
    let halts = halts.read_namespace(namespace);
    halts.iter().filter(|h| h.spec.halts(name)).map(|h| TradingHalt::clone(h)).collect()
}

/// Workloads of a namespace that two of its systems name, where one of both trades with it.
pub(super) fn shared_workloads(
    workloads: &Workloads,
    systems: &[&TradingSystem],
    system: &TradingSystem,
    trading: &[View],
) -> Vec<SharedWorkload> {
    let namespace = system.namespace().unwrap_or_default();
    let mine: BTreeSet<_> = trading.iter().map(|v| v.key.clone()).collect();
    let mine_at_all = claimed(workloads, &namespace, &system.spec);
    let mut found = BTreeSet::new();
    for other in systems.iter().filter(|o| o.name_any() != system.name_any()) {
        let (trades, _) = workloads.trading(&namespace, &other.spec.workloads);
        let trades: BTreeSet<_> = trades.into_iter().map(|v| v.key).collect();
        let named = claimed(workloads, &namespace, &other.spec);
        let shared = mine.intersection(&named).chain(mine_at_all.intersection(&trades));
        found.extend(
            shared
                .map(|key| SharedWorkload { workload: format!("{} {}", key.kind, key.name), other: other.name_any() }),
        );
    }
    found.into_iter().collect()
}

/// All workloads that a system names, in whatever role.
fn claimed(workloads: &Workloads, namespace: &str, spec: &TradingSystemSpec) -> BTreeSet<crate::workloads::Key> {
    let entries: Vec<_> =
        spec.workloads.iter().map(|w| Workload { role: WorkloadRole::Trading, ..w.clone() }).collect();
    workloads.trading(namespace, &entries).0.into_iter().map(|v| v.key).collect()
}

/// Accounts that another system, of whatever namespace, names too.
pub(super) fn shared_accounts<'a>(
    systems: impl IntoIterator<Item = &'a TradingSystem>,
    system: &TradingSystem,
) -> Vec<SharedAccount> {
    let mut found = BTreeSet::new();
    let identity = |s: &TradingSystem| (s.namespace().unwrap_or_default(), s.name_any());
    for other in systems {
        if identity(other) == identity(system) {
            continue;
        }
        for venue in &system.spec.venues {
            if let Some(account) = venue.account.as_ref()
                && other.spec.venues.iter().any(|v| same_account(v, venue))
            {
                let (namespace, name) = identity(other);
                found.insert(SharedAccount { account: account.clone(), other: format!("{namespace}/{name}") });
            }
        }
    }
    found.into_iter().collect()
}

/// One account name may be used at two exchanges: it is the same one at a venue of the same name or host.
fn same_account(a: &Venue, b: &Venue) -> bool {
    a.account.is_some() && a.account == b.account && (a.name == b.name || !hosts(a).is_disjoint(&hosts(b)))
}

fn hosts(venue: &Venue) -> BTreeSet<String> {
    let actions = venue.cancel_orders.iter().filter_map(|a| a.http.as_ref());
    let reads = venue.open_orders.iter().filter_map(|r| r.http.as_ref());
    actions.chain(reads).filter_map(|r| guard::parse(&r.url).ok()?.host_str().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn system(namespace: &str, name: &str, venue: &str, account: Option<&str>, host: &str) -> TradingSystem {
        serde_json::from_value(json!({
            "apiVersion": "standfast.dev/v1alpha1", "kind": "TradingSystem",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "workloads": [{"kind": "Deployment", "name": "bot", "role": "Trading"}],
                "venues": [{
                    "name": venue, "account": account,
                    "cancelOrders": [{"http": {"method": "DELETE", "url": format!("https://{host}/v2/orders")}}],
                }],
            },
        }))
        .unwrap()
    }

    #[rstest]
    #[case(system("other", "bot", "alpaca", Some("PA1"), "h2"), true)]
    #[case(system("other", "bot", "paper", Some("PA1"), "h1"), true)]
    #[case(system("trading", "second", "alpaca", Some("PA1"), "h1"), true)]
    #[case(system("other", "bot", "kraken", Some("PA1"), "h2"), false)]
    #[case(system("other", "bot", "alpaca", Some("PA2"), "h1"), false)]
    #[case(system("other", "bot", "alpaca", None, "h1"), false)]
    #[case(system("trading", "bot", "alpaca", Some("PA1"), "h1"), false)]
    fn accounts_are_compared(#[case] other: TradingSystem, #[case] shared: bool) {
        let mine = system("trading", "bot", "alpaca", Some("PA1"), "h1");
        let found = shared_accounts([&other, &mine], &mine);
        assert_eq!(!found.is_empty(), shared, "{found:?}");
    }
}
