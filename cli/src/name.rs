//! Names that the client chooses, so that the same command again makes no second object.

use serde_json::Value;
use standfast_crds::hash;

/// Name of a halt of a system: the same for the same spec, whoever asks.
pub fn halt(system: &str, spec: &Value) -> String {
    let mut key = spec.clone();
    if let Some(fields) = key.as_object_mut() {
        fields.remove("requestedBy");
    }
    // Texts and nothing else: it cannot fail.
    let hash = hash::of_json(&key).unwrap_or_default();
    format!("{}-{}", cut(system, 180), hash.get(..8).unwrap_or("halt"))
}

/// Name of a resume of a halt.
pub fn resume(halt: &str, evaluate: bool) -> String {
    format!("{}-{}", cut(halt, 180), if evaluate { "evaluation" } else { "resume" })
}

/// `base`, `base-2`, `base-3` …: the first that is not `taken`.
pub fn free(base: &str, taken: impl Fn(&str) -> bool) -> String {
    let numbered = (2..).map(|n| format!("{base}-{n}"));
    std::iter::once(base.to_owned()).chain(numbered).find(|name| !taken(name)).unwrap_or_default()
}

/// Whether `name` is `base` or one of its numbered successors.
pub fn is_of(name: &str, base: &str) -> bool {
    name.strip_prefix(base).is_some_and(|rest| {
        rest.is_empty()
            || rest.strip_prefix('-').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    })
}

fn cut(name: &str, length: usize) -> &str {
    name.get(..length).unwrap_or(name).trim_end_matches(['-', '.'])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_same_halt_has_the_same_name_whoever_asks() {
        let spec = |reason: &str, by: &str| json!({"reason": reason, "requestedBy": by});
        let name = halt("demo", &spec("prices are stale", "alice"));
        assert!(name.starts_with("demo-") && name.len() == 13, "{name}");
        assert_eq!(name, halt("demo", &spec("prices are stale", "bob")));
        assert_ne!(name, halt("demo", &spec("prices are odd", "alice")));
        assert!(halt(&"x".repeat(253), &spec("y", "z")).len() <= 200);
        assert_eq!(resume("demo-1", false), "demo-1-resume");
    }

    #[test]
    fn names_that_are_taken_are_counted_on() {
        assert_eq!(free("a", |_| false), "a");
        assert_eq!(free("a", |n| n == "a" || n == "a-2"), "a-3");
        for (name, expected) in
            [("a", true), ("a-2", true), ("a-12", true), ("a-b", false), ("ab", false), ("a-", false)]
        {
            assert_eq!(is_of(name, "a"), expected, "{name}");
        }
    }
}
