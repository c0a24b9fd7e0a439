//! Hashes of JSON, the same for everybody who computes them.

use serde_json::Value;
use sha2::{Digest, Sha256};

/// SHA-256 of the RFC 8785 JSON of `value`, in hexadecimal: `planHash` of a resume, for example.
///
/// # Errors
///
/// A number that RFC 8785 cannot write.
pub fn of_json(value: &Value) -> Result<String, String> {
    let canonical = serde_jcs::to_vec(value).map_err(|e| format!("it cannot be hashed: {e}"))?;
    Ok(Sha256::digest(&canonical).iter().map(|b| format!("{b:02x}")).collect())
}
