//! Which TradingSystems a TradingHalt of several systems is about.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Selects TradingSystems by their labels: all that is given must hold, and nothing given selects all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SystemSelector {
    /// Labels and their values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// Requirements on labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub match_expressions: Vec<SelectorRequirement>,
}

impl SystemSelector {
    /// Whether a system with these labels is selected.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|e| e.holds(labels))
    }

    /// Whether it selects every system.
    pub fn selects_all(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }
}

impl std::fmt::Display for SystemSelector {
    /// As `kubectl --selector` takes it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let labels = self.match_labels.iter().map(|(key, value)| format!("{key}={value}"));
        let expressions = self.match_expressions.iter().map(SelectorRequirement::to_string);
        f.write_str(&labels.chain(expressions).collect::<Vec<_>>().join(","))
    }
}

/// What is asked of a label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)", "values go with the operators In and NotIn, and are needed there: write {key: desk, operator: In, values: [fx]} or {key: desk, operator: Exists}"))]
pub struct SelectorRequirement {
    /// The label.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// What is asked of it.
    pub operator: SelectorOperator,
    /// The values of `In` and `NotIn`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub values: Vec<String>,
}

impl SelectorRequirement {
    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            SelectorOperator::In => value.is_some_and(|v| self.values.contains(v)),
            // As everywhere in Kubernetes, one without the label is not in.
            SelectorOperator::NotIn => value.is_none_or(|v| !self.values.contains(v)),
            SelectorOperator::Exists => value.is_some(),
            SelectorOperator::DoesNotExist => value.is_none(),
        }
    }
}

impl std::fmt::Display for SelectorRequirement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (key, values) = (&self.key, self.values.join(","));
        match self.operator {
            SelectorOperator::In => write!(f, "{key} in ({values})"),
            SelectorOperator::NotIn => write!(f, "{key} notin ({values})"),
            SelectorOperator::Exists => f.write_str(key),
            SelectorOperator::DoesNotExist => write!(f, "!{key}"),
        }
    }
}

/// What is asked of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SelectorOperator {
    /// It has one of the values.
    In,
    /// It has none of the values, or is not there.
    NotIn,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

/// Label of a TradingHalt that a halt of several systems made: the name of that one.
pub const HALT_GROUP: &str = "standfast.dev/halt-group";
/// Annotation beside it: its uid.
pub const HALT_GROUP_UID: &str = "standfast.dev/halt-group-uid";
/// The most systems that one halt selects.
pub const GROUP_LIMIT: usize = 100;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_selector_selects_as_everywhere_in_kubernetes() {
        let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let fx = labels(&[("desk", "fx"), ("region", "eu")]);
        for (selector, fx_matches, bare_matches, text) in [
            (json!({}), true, true, ""),
            (json!({"matchLabels": {"desk": "fx"}}), true, false, "desk=fx"),
            (json!({"matchLabels": {"desk": "fx", "region": "us"}}), false, false, "desk=fx,region=us"),
            (
                json!({"matchExpressions": [{"key": "desk", "operator": "In", "values": ["fx", "eq"]}]}),
                true,
                false,
                "desk in (fx,eq)",
            ),
            (
                json!({"matchExpressions": [{"key": "desk", "operator": "NotIn", "values": ["fx"]}]}),
                false,
                true,
                "desk notin (fx)",
            ),
            (json!({"matchExpressions": [{"key": "desk", "operator": "Exists"}]}), true, false, "desk"),
            (json!({"matchExpressions": [{"key": "desk", "operator": "DoesNotExist"}]}), false, true, "!desk"),
            (
                json!({"matchLabels": {"region": "eu"}, "matchExpressions": [{"key": "desk", "operator": "Exists"}]}),
                true,
                false,
                "region=eu,desk",
            ),
        ] {
            let read: SystemSelector = serde_json::from_value(selector.clone()).unwrap();
            assert_eq!((read.matches(&fx), read.matches(&BTreeMap::new())), (fx_matches, bare_matches), "{selector}");
            assert_eq!((read.to_string().as_str(), read.selects_all()), (text, text.is_empty()));
        }
    }
}
