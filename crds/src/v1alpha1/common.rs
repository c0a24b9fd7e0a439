//! Types that several kinds share.

use std::{borrow::Cow, fmt, str::FromStr, time};

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The longest `message` that a status carries, in characters.
pub const MESSAGE_LIMIT: usize = 256;

/// A length of time as Go writes it: `500ms`, `90s`, `15m`, `1h30m`. Never negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration(time::Duration);

impl Duration {
    /// `seconds` seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(time::Duration::from_secs(seconds))
    }

    /// Ten years: longer is a mistake.
    const LONGEST: time::Duration = time::Duration::from_secs(10 * 365 * 24 * 3600);

    /// The same length as the standard library's type.
    pub const fn get(self) -> time::Duration {
        self.0
    }
}

impl From<time::Duration> for Duration {
    fn from(value: time::Duration) -> Self {
        Self(value)
    }
}

impl FromStr for Duration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a duration: write 500ms, 90s, 15m or 1h30m");
        let (mut total, mut rest) = (time::Duration::ZERO, text);
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
            let (number, unit) = rest.split_at(digits);
            let after = unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len());
            let seconds = match &unit[..after] {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return Err(wrong()),
            };
            let number: f64 = number.parse().map_err(|_| wrong())?;
            // Not every text that is no duration is refused by the API server: what is stored by other versions is not.
            let part = time::Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
            total = total
                .checked_add(part)
                .filter(|t| *t <= Self::LONGEST)
                .ok_or_else(|| format!("{text:?} is too long: a duration is at most {}", Self(Self::LONGEST)))?;
            rest = &unit[after..];
        }
        if text.is_empty() { Err(wrong()) } else { Ok(Self(total)) }
    }
}

impl fmt::Display for Duration {
    /// Whole units only, the largest first, as Go prints them; below one second in milliseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let (hours, minutes, seconds, rest) =
            (millis / 3_600_000, millis / 60_000 % 60, millis / 1_000 % 60, millis % 1_000);
        if millis == 0 {
            return f.write_str("0s");
        }
        for (value, unit) in [(hours, "h"), (minutes, "m"), (seconds, "s"), (rest, "ms")] {
            if value > 0 {
                write!(f, "{value}{unit}")?;
            }
        }
        Ok(())
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // A rule and not a pattern, so that people read what to write instead.
        let rule = r"self.matches('^([0-9]{1,6}(\\.[0-9]{1,6})?(ms|s|m|h))+$') && duration(self) <= duration('87600h')";
        let message = "a duration is written as 500ms, 90s, 15m or 1h30m, and at most ten years long";
        json_schema!({"type": "string", "maxLength": 32, "x-kubernetes-validations": [{"rule": rule, "message": message}]})
    }
}

/// A name of an object in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocalReference {
    /// The object's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// One key of a Secret in the same namespace. The Secret must carry the label `standfast.dev/use: "true"` and the
/// annotation `standfast.dev/allowed-hosts` that names the hosts it may be sent to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key in its data.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// How long a recovery may take or how much may be lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Objective {
    /// What is aimed at; missing it warns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Duration>,
    /// What must not be exceeded.
    pub maximum: Duration,
}

/// Sets a condition and keeps its `lastTransitionTime` unless the status flips. The message is cut to [`MESSAGE_LIMIT`].
pub fn set_condition(
    conditions: &mut Vec<Condition>,
    now: Timestamp,
    generation: Option<i64>,
    (type_, status, reason): (&str, &str, &str),
    message: impl Into<String>,
) {
    let mut new = Condition {
        type_: type_.into(),
        status: status.into(),
        reason: reason.into(),
        message: shorten(&message.into()),
        observed_generation: generation,
        last_transition_time: Time(now),
    };
    match conditions.iter_mut().find(|c| c.type_ == type_) {
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time = old.last_transition_time.clone();
            }
            *old = new;
        }
        None => conditions.push(new),
    }
}

/// The condition of this type, if there is one.
pub fn condition<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == type_)
}

/// Whether the condition of this type is there and `True`.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    condition(conditions, type_).is_some_and(|c| c.status == "True")
}

/// `text` on one line, cut to [`MESSAGE_LIMIT`] characters.
pub fn shorten(text: &str) -> String {
    let line = text.replace(['\n', '\r'], " ");
    if line.chars().count() <= MESSAGE_LIMIT {
        return line;
    }
    line.chars().take(MESSAGE_LIMIT - 1).chain(['…']).collect()
}

/// Schema of a field that takes any JSON value.
pub(crate) fn any_json(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"x-kubernetes-preserve-unknown-fields": true})
}

/// Schema of `conditions`: a list-map by type, as the API conventions ask.
pub(crate) fn conditions_schema(generator: &mut SchemaGenerator) -> Schema {
    let items = generator.subschema_for::<Condition>();
    json_schema!({
        "type": "array", "items": items, "maxItems": 32,
        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
        "description": "What is true of this object at the moment, one entry a question."
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written_as_go_does() {
        for (text, millis, written) in [
            ("500ms", 500, "500ms"),
            ("90s", 90_000, "1m30s"),
            ("1h30m", 5_400_000, "1h30m"),
            ("0s", 0, "0s"),
            ("1.5s", 1_500, "1s500ms"),
        ] {
            let duration: Duration = text.parse().unwrap();
            assert_eq!(duration.get().as_millis(), millis, "{text}");
            assert_eq!(duration.to_string(), written);
            assert_eq!(written.parse::<Duration>().unwrap(), duration);
        }
        let (long, longer) = ("9".repeat(31) + "h", "9".repeat(400) + "h");
        for text in ["5 minutes", "-3s", "", "1d", "12", "h", "1.2.3s", "3s 4m", "1e9h", "87601h", &long, &longer] {
            assert!(text.parse::<Duration>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_condition_keeps_its_transition_time_until_the_status_flips() {
        let (first, later) = (Timestamp::from_second(1).unwrap(), Timestamp::from_second(2).unwrap());
        let mut conditions = vec![];
        set_condition(&mut conditions, first, None, ("Ready", "False", "A"), "a");
        set_condition(&mut conditions, later, None, ("Ready", "False", "B"), "b");
        assert_eq!((conditions[0].last_transition_time.0, conditions[0].reason.as_str()), (first, "B"));
        set_condition(&mut conditions, later, None, ("Ready", "True", "C"), "line\nbreak".repeat(60));
        assert_eq!(conditions[0].last_transition_time.0, later);
        assert_eq!(conditions[0].message.chars().count(), MESSAGE_LIMIT);
        assert!(!conditions[0].message.contains('\n'));
    }
}
