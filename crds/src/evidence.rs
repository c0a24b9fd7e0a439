//! The chain of hashes in the status of a halt: who writes it and who checks it compute the same.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use serde_json::json;

use crate::{hash as sha256, v1alpha1::Evidence};

/// Hash of one entry and of the one before it: SHA-256 over the RFC 8785 JSON of
/// `{previousSha256, at, event, message}`, in hexadecimal.
pub fn hash(previous: Option<&str>, at: &MicroTime, event: &str, message: &str) -> String {
    let entry = json!({"previousSha256": previous, "at": at, "event": event, "message": message});
    // Canonical JSON of strings cannot fail; an empty text would make the chain fail to verify, which is right.
    sha256::of_json(&entry).unwrap_or_default()
}

/// Whether every entry fits the one before it, and the head is the last one.
pub fn verify(evidence: &Evidence) -> Result<(), String> {
    let mut previous = evidence.previous_sha256.clone();
    for (index, entry) in evidence.entries.iter().enumerate() {
        let expected = hash(previous.as_deref(), &entry.at, &entry.event, &entry.message);
        if expected != entry.sha256 {
            return Err(format!("entry {index} ({}) was changed after it was written", entry.event));
        }
        previous = Some(expected);
    }
    if !evidence.entries.is_empty() && evidence.sha256 != previous {
        return Err("the head of the chain is not its last entry".into());
    }
    Ok(())
}
