//! Kinds of workload.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Kinds of workload that can be halted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum WorkloadKind {
    Deployment,
    StatefulSet,
    CronJob,
    DaemonSet,
    /// One with a scale subresource, which the operator is told of by its chart.
    Scalable(KindName),
}

impl WorkloadKind {
    /// The kinds that need not be listed anywhere.
    pub const BUILT_IN: [Self; 4] = [Self::Deployment, Self::StatefulSet, Self::CronJob, Self::DaemonSet];

    /// The kind's name.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Deployment => "Deployment",
            Self::StatefulSet => "StatefulSet",
            Self::CronJob => "CronJob",
            Self::DaemonSet => "DaemonSet",
            Self::Scalable(name) => name.as_str(),
        }
    }

    /// Whether it runs as a whole or not at all: it has no replicas.
    pub const fn is_switched(self) -> bool {
        match self {
            Self::CronJob | Self::DaemonSet => true,
            Self::Deployment | Self::StatefulSet | Self::Scalable(_) => false,
        }
    }
}

impl fmt::Display for WorkloadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for WorkloadKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let built_in = Self::BUILT_IN.into_iter().find(|kind| kind.as_str() == text);
        built_in.map_or_else(|| text.parse().map(Self::Scalable), Ok)
    }
}

impl Serialize for WorkloadKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for WorkloadKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for WorkloadKind {
    fn schema_name() -> Cow<'static, str> {
        "WorkloadKind".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "maxLength": KindName::LIMIT, "pattern": "^[A-Z][A-Za-z0-9]*$"})
    }
}

/// Name of a kind that is not built in. It is copied as the built-in ones are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KindName([u8; Self::LIMIT]);

impl KindName {
    /// The longest name that is taken. Kubernetes allows more, but the longest ones that are known have 32 letters.
    const LIMIT: usize = 39;

    /// The name.
    pub fn as_str(&self) -> &str {
        let length = self.0.iter().position(|b| *b == 0).unwrap_or(Self::LIMIT);
        std::str::from_utf8(&self.0[..length]).unwrap_or_default()
    }
}

impl fmt::Debug for KindName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for KindName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = text.starts_with(|c: char| c.is_ascii_uppercase())
            && text.bytes().all(|b| b.is_ascii_alphanumeric())
            && text.len() <= Self::LIMIT;
        if !named {
            return Err(format!("{text:?} is not the name of a kind, such as Rollout"));
        }
        let mut name = [0; Self::LIMIT];
        name[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Self(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_written_by_their_names() {
        for name in ["Deployment", "StatefulSet", "CronJob", "DaemonSet", "Rollout", &"K".repeat(39)] {
            let kind: WorkloadKind = name.parse().unwrap();
            assert_eq!((kind.as_str(), kind.to_string()), (name, name.to_owned()));
            assert_eq!(serde_json::from_value::<WorkloadKind>(serde_json::to_value(kind).unwrap()).unwrap(), kind);
            assert_eq!(matches!(kind, WorkloadKind::Scalable(_)), !WorkloadKind::BUILT_IN.contains(&kind));
        }
        for wrong in ["", "rollout", "Roll-out", "Röllout", &"K".repeat(40)] {
            assert!(wrong.parse::<WorkloadKind>().is_err(), "{wrong}");
        }
    }
}
