//! What is shown: pure functions from objects to views, which programs get as JSON, and from views to lines.

pub mod decision;
pub mod halt;
pub mod manual;
pub mod prepared;
pub mod resume;
pub mod system;
#[cfg(test)]
pub mod testing;
pub mod timeline;

use crate::text::Style;

/// A number that may not be known.
pub fn known(n: Option<i64>) -> String {
    n.map_or_else(|| "not known".into(), |n| n.to_string())
}

/// How the status of a condition is marked.
pub fn mark(status: &str) -> (Style, &'static str) {
    match status {
        "True" => (Style::Good, "done"),
        "False" => (Style::Warn, "not yet"),
        _ => (Style::Warn, "not known"),
    }
}
