//! The evidence of a halt: an append-only chain of hashes in its status.

use std::borrow::Borrow;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};
use serde_json::json;
use sha2::{Digest, Sha256};
pub use standfast_crds::evidence::{hash, verify};
use standfast_crds::v1alpha1::{Evidence, EvidenceEntry, TradingHalt, TradingHaltStatus, shorten};

/// How many entries a status holds. The last two are kept free for the release.
pub const ENTRY_LIMIT: usize = 200;

/// Appends an entry. Without room it is only counted, unless it is the `last` one.
pub fn append(evidence: &mut Evidence, now: Timestamp, event: &str, message: &str, last: bool) {
    if evidence.entries.len() >= if last { ENTRY_LIMIT } else { ENTRY_LIMIT - 2 } {
        evidence.dropped += 1;
        return;
    }
    let (at, message) = (MicroTime(now), shorten(message));
    let previous = evidence.sha256.as_deref().or(evidence.previous_sha256.as_deref());
    let sha256 = hash(previous, &at, event, &message);
    evidence.sha256 = Some(sha256.clone());
    evidence.entries.push(EvidenceEntry { at, event: event.into(), message, sha256 });
}

/// What a halt goes back to and what it found, in one line: SHA-256 over the RFC 8785 JSON of kind, name, replicas and
/// suspension of each workload, and the counts before at each venue. It is an entry of the chain, so that none of these
/// can be changed unnoticed either.
pub fn ledger(status: &TradingHaltStatus) -> String {
    let workloads: Vec<_> = status
        .workloads
        .iter()
        .map(|w| json!({"kind": w.kind, "name": w.name, "replicas": w.replicas, "suspended": w.suspended}))
        .collect();
    let venues: Vec<_> = status
        .venues
        .iter()
        .map(|v| json!({"name": v.name, "ordersBefore": v.orders_before, "positionsBefore": v.positions_before}))
        .collect();
    let text = serde_jcs::to_string(&json!({"workloads": workloads, "venues": venues})).unwrap_or_default();
    let sha256: String = Sha256::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
    format!("{} workloads, {} venues, sha256 {sha256}", workloads.len(), venues.len())
}

/// Head of the chain of the system's newest other halt: what a new halt continues.
pub fn head(halts: &[impl Borrow<TradingHalt>], system: &str, but: Option<&str>) -> Option<String> {
    halts
        .iter()
        .map(Borrow::borrow)
        .filter(|h| h.spec.halts(system) && h.metadata.uid.as_deref() != but)
        .filter_map(|h| {
            let status = h.status.as_ref()?;
            Some((status.times.committed_at.as_ref()?.0, status.evidence.sha256.clone()?))
        })
        .max()
        .map(|(_, sha256)| sha256)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(entries: usize) -> Evidence {
        let mut evidence = Evidence { previous_sha256: Some("ab".into()), ..Evidence::default() };
        for n in 0..entries {
            append(&mut evidence, Timestamp::from_second(n as i64).unwrap(), "Tested", &format!("entry {n}"), false);
        }
        evidence
    }

    /// S0-35
    #[test]
    fn s0_35_a_changed_entry_breaks_the_chain() {
        let evidence = chain(4);
        assert_eq!(verify(&evidence), Ok(()));
        for n in 0..4 {
            let mut forged = evidence.clone();
            forged.entries[n].message.push('!');
            assert!(verify(&forged).is_err(), "entry {n}");
            let mut cut = evidence.clone();
            cut.entries.remove(n);
            assert!(verify(&cut).is_err(), "without entry {n}");
        }
        let mut other = evidence;
        other.previous_sha256 = None;
        assert!(verify(&other).is_err(), "the chain of the halt before is part of it");
    }

    /// S0-35
    #[test]
    fn s0_35_the_ledger_tells_when_a_recorded_size_or_count_was_changed() {
        let status: TradingHaltStatus = serde_json::from_value(json!({
            "workloads": [{"kind": "Deployment", "name": "bot", "replicas": 3}],
            "venues": [{"name": "alpaca", "ordersBefore": 7, "positionsBefore": 2, "openOrders": 7}]}))
        .unwrap();
        let said = ledger(&status);
        assert!(said.starts_with("1 workloads, 1 venues, sha256 "), "{said}");
        let mut moved = status.clone();
        moved.venues[0].open_orders = Some(0);
        assert_eq!(ledger(&moved), said, "what changes by itself is not part of it");
        let mut forged = status.clone();
        forged.workloads[0].replicas = Some(30);
        assert_ne!(ledger(&forged), said);
        let mut forged = status;
        forged.venues[0].orders_before = Some(6);
        assert_ne!(ledger(&forged), said);
    }

    #[test]
    fn a_full_chain_counts_what_it_drops_and_keeps_room_for_the_release() {
        let mut evidence = chain(ENTRY_LIMIT + 5);
        assert_eq!((evidence.entries.len(), evidence.dropped), (ENTRY_LIMIT - 2, 7));
        append(&mut evidence, Timestamp::UNIX_EPOCH, "ReleaseIntended", "by x", true);
        append(&mut evidence, Timestamp::UNIX_EPOCH, "Released", "by x", true);
        assert_eq!(evidence.entries.len(), ENTRY_LIMIT);
        assert_eq!(verify(&evidence), Ok(()));
    }
}
