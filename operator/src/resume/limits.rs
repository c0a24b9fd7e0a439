//! Limits of a stage: set from outside, and proven by what the bot itself says.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{StreamExt, future::join_all, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, ResourceExt, api::PostParams};
use standfast_crds::v1alpha1::{CheckState, ConfigMapKey, Limit, Stage, StepStatus, shorten};

use super::{
    context::{Context, DEADLINE, LEASED, PARALLEL, Sent, time_of},
    hold::Watched,
    ramp::{part, step_name},
};
use crate::{
    calls::{decimal::Decimal, document::Scalar, template},
    client,
    engine::{Acted, Definition, Observation, Step},
    scale::FIELD_MANAGER,
};

/// How long a stage's limits may take to be written, and to be told by the bot: a kubelet takes a minute or two to
/// bring a changed ConfigMap to its pods.
const LIMITS_TIMEOUT: Duration = Duration::from_secs(600);
/// ConfigMaps that may be written carry this label.
const USE_LABEL: &str = "standfast.dev/use";

/// Whether a bot that says `found` keeps to `wanted`. Numbers are compared as numbers.
pub fn same(wanted: &str, found: &Scalar) -> bool {
    match found {
        Scalar::Number(text) | Scalar::Text(text) => match (Decimal::parse(wanted), Decimal::parse(text)) {
            (Some(wanted), Some(found)) => wanted == found,
            _ => wanted == text,
        },
        Scalar::Bool(value) => wanted == value.to_string(),
        Scalar::Null => false,
    }
}

/// A value as the status shows it.
fn shown(found: &Scalar) -> String {
    let text = match found {
        Scalar::Null => "null".into(),
        Scalar::Bool(value) => value.to_string(),
        Scalar::Number(text) | Scalar::Text(text) => text.clone(),
    };
    text.chars().take(64).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A limit of a stage, and what the bot says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub name: String,
    /// What the stage asks for.
    pub wanted: String,
    /// What the bot says, and whether that is the same; or why that is not known.
    pub found: Result<(String, bool), String>,
}

impl Told {
    fn proven(&self) -> bool {
        matches!(self.found, Ok((_, true)))
    }

    /// As something that is watched. What the bot keeps to is no matter of several looks.
    pub fn watched(&self) -> Watched {
        let (state, message) = match &self.found {
            Ok((found, true)) => (CheckState::Passing, format!("the bot tells {found}")),
            Ok((found, false)) => (CheckState::Failing, format!("the bot tells {found}, wanted {}", self.wanted)),
            Err(why) => (CheckState::Unknown, why.clone()),
        };
        Watched { name: format!("limit {}", self.name), state, message, at_once: true }
    }
}

/// The limits of the plan with their values in a stage.
fn of<'a>(cx: &'a Context, stage: &'a Stage) -> Vec<(&'a Limit, &'a str)> {
    let value = |l: &'a Limit| stage.limits.get(&l.name).map(|v| (l, v.as_str()));
    cx.plan.limits.iter().filter_map(value).collect()
}

/// What the bot tells of the limits of a stage, asked now.
pub(super) async fn told(cx: &Context, stage: &Stage) -> Vec<Told> {
    let asked = of(cx, stage).into_iter().map(|(limit, wanted)| async move {
        let read = cx.outside.caller.read_value(&cx.namespace, &limit.read.http, &limit.read.path).await;
        let found = read.map(|found| (shown(&found), same(wanted, &found))).map_err(|e| e.to_string());
        Told { name: limit.name.clone(), wanted: wanted.to_owned(), found }
    });
    let asked: Vec<_> = asked.collect();
    stream::iter(asked).buffered(PARALLEL).collect().await
}

/// How long asking for the limits may take.
pub(super) fn time_to_ask(cx: &Context) -> Duration {
    // Sent once more when the first one had no answer.
    cx.plan.limits.iter().map(|l| time_of(&l.read.http) * 2).max().unwrap_or_default()
}

/// A ConfigMap that a limit may be written to.
async fn config_map(cx: &Context, key: &ConfigMapKey) -> Result<ConfigMap, String> {
    let api: Api<ConfigMap> = Api::namespaced(cx.outside.client.clone(), &cx.namespace);
    let what = format!("ConfigMap {}/{}", cx.namespace, key.name);
    let found = client::read(DEADLINE, format!("reading {what}"), api.get_opt(&key.name)).await;
    let found = found.map_err(|e| e.to_string())?.ok_or_else(|| format!("{what} does not exist: create it"))?;
    let labels = found.labels();
    if labels.get(USE_LABEL).is_none_or(|v| v != "true") || labels.contains_key("standfast.dev/latch") {
        return Err(format!("{what} must carry the label {USE_LABEL}: \"true\" before limits are written to it"));
    }
    if found.immutable == Some(true) {
        return Err(format!("{what} is immutable: limits cannot be written to it"));
    }
    Ok(found)
}

/// Why the limits of the plan could not be set, as far as that is known before anything starts.
pub(super) async fn unprepared(cx: &Context) -> Option<String> {
    let keys: Vec<_> = cx.plan.limits.iter().filter_map(|l| l.set.config_map.as_ref()).collect();
    let found = join_all(keys.into_iter().map(|key| config_map(cx, key))).await;
    found.into_iter().find_map(Result::err)
}

/// Writes the limits of a stage that the bot reads from ConfigMaps: before the pods of the stage start.
pub(super) struct Write {
    pub cx: Arc<Context>,
    pub stage: Stage,
}

impl Write {
    fn keys(&self) -> Vec<(&ConfigMapKey, &str)> {
        of(&self.cx, &self.stage).into_iter().filter_map(|(l, v)| l.set.config_map.as_ref().map(|k| (k, v))).collect()
    }

    /// The first one that has another value, as the ConfigMap that would have to be written.
    async fn missing(&self) -> Result<Option<ConfigMap>, String> {
        for (key, value) in self.keys() {
            let mut there = config_map(&self.cx, key).await?;
            if there.data.as_ref().and_then(|d| d.get(&key.key)).map(String::as_str) != Some(value) {
                // All keys of it at once.
                for (other, value) in self.keys().into_iter().filter(|(other, _)| other.name == key.name) {
                    there.data.get_or_insert_default().insert(other.key.clone(), value.to_owned());
                }
                return Ok(Some(there));
            }
        }
        Ok(None)
    }
}

#[async_trait]
impl Step for Write {
    fn definition(&self) -> Definition {
        Definition {
            within_lease: true,
            timeout: Some(LIMITS_TIMEOUT),
            look: DEADLINE * 2,
            ..Definition::new(step_name(&self.stage.name, part::LIMITS))
        }
    }

    async fn observe(&self, _: &StepStatus) -> Observation {
        if self.keys().is_empty() {
            return Observation::NotNeeded("the stage has no limit in a ConfigMap".into());
        }
        match self.missing().await {
            Ok(None) => Observation::Done("the ConfigMaps hold the limits".into()),
            Ok(Some(there)) => Observation::NotDone(format!("ConfigMap {} has other limits", there.name_any())),
            Err(why) => Observation::Unknown(why),
        }
    }

    async fn act(&self, _: &StepStatus) -> Acted {
        let cx = &self.cx;
        if let Err(why) = cx.unstopped().await {
            return Acted::Again(why);
        }
        let api: Api<ConfigMap> = Api::namespaced(cx.outside.client.clone(), &cx.namespace);
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        match self.missing().await {
            Ok(None) => Acted::Done("the ConfigMaps hold the limits".into()),
            Err(why) => Acted::Again(why),
            Ok(Some(mut map)) => {
                map.metadata.managed_fields = None;
                let name = map.name_any();
                let what = format!("writing ConfigMap {}/{name}", cx.namespace);
                match client::write(DEADLINE, what, api.replace(&name, &params, &map)).await {
                    Ok(_) => Acted::Started { message: format!("ConfigMap {name} was written"), external_ref: None },
                    Err(error) => Acted::Again(error.to_string()),
                }
            }
        }
    }
}

/// Proves the limits of a stage from the bot's own endpoint, and sends those that are set by HTTP and that it does not
/// keep to yet.
pub(super) struct Prove {
    pub cx: Arc<Context>,
    pub stage: Stage,
}

#[async_trait]
impl Step for Prove {
    fn definition(&self) -> Definition {
        Definition {
            within_lease: true,
            timeout: Some(LIMITS_TIMEOUT),
            look: time_to_ask(&self.cx) + Duration::from_secs(2),
            ..Definition::new(step_name(&self.stage.name, part::LIMITS_PROVEN))
        }
    }

    async fn observe(&self, _: &StepStatus) -> Observation {
        let told = told(&self.cx, &self.stage).await;
        let open: Vec<_> = told.iter().filter(|t| !t.proven()).collect();
        if told.is_empty() {
            return Observation::NotNeeded("the stage has no limits".into());
        }
        let Some(first) = open.first() else {
            let limits = told.iter().filter_map(|t| t.found.as_ref().ok().map(|(v, _)| format!("{} {v}", t.name)));
            let limits = limits.collect::<Vec<_>>().join(", ");
            return Observation::Done(shorten(&format!("the bot keeps to {limits}")));
        };
        let watched = first.watched();
        let text = shorten(&format!("{}: {}", watched.name, watched.message));
        let by_http = |t: &&Told| self.cx.plan.limits.iter().any(|l| l.name == t.name && l.set.http.is_some());
        if open.iter().any(by_http) { Observation::NotDone(text) } else { Observation::InProgress(text) }
    }

    async fn act(&self, _: &StepStatus) -> Acted {
        let cx = &self.cx;
        if let Err(why) = cx.unstopped().await {
            return Acted::Again(why);
        }
        let told = told(cx, &self.stage).await;
        let open = |l: &Limit| told.iter().any(|t| t.name == l.name && !t.proven());
        let to_set: Vec<_> = of(cx, &self.stage).into_iter().filter(|(l, _)| open(l)).collect();
        let calls = to_set.into_iter().filter_map(|(limit, value)| {
            let request = limit.set.http.as_ref()?;
            Some(async move {
                let sent = match template::with(request, "value", value) {
                    Ok(request) => cx.send(&request, LEASED).await,
                    Err(why) => Sent::Never(why),
                };
                match sent {
                    Sent::Answered(200..=299) => None,
                    Sent::Answered(status) => Some(format!("limit {}: the bot answered {status}", limit.name)),
                    Sent::Never(why) | Sent::Unknown(why) => Some(format!("limit {}: {why}", limit.name)),
                }
            })
        });
        // It sets a value: whatever came of it, the bot is asked, and then it may be sent once more.
        match join_all(calls).await.into_iter().flatten().next() {
            Some(why) => Acted::Again(why),
            None => Acted::Started { message: "the limits were sent".into(), external_ref: None },
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    #[rstest]
    #[case("0.5", json!("0.50"), true)]
    #[case("0.5", json!(0.5), true)]
    #[case("5e-1", json!("0.5"), true)]
    #[case("0.5", json!(0.6), false)]
    #[case("conservative", json!("conservative"), true)]
    #[case("conservative", json!("Conservative"), false)]
    #[case("true", json!(true), true)]
    #[case("1", json!(true), false)]
    #[case("null", json!(null), false)]
    #[case("0.5", json!("0.5%"), false)]
    fn a_limit_is_what_the_bot_says(#[case] wanted: &str, #[case] found: Value, #[case] expected: bool) {
        assert_eq!(same(wanted, &Scalar::of(&found).unwrap()), expected);
    }

    #[rstest]
    #[case(Ok(("2".into(), true)), CheckState::Passing)]
    #[case(Ok(("2".into(), false)), CheckState::Failing)]
    #[case(Err("no answer".into()), CheckState::Unknown)]
    fn another_value_counts_at_once_and_no_answer_as_an_unknown_check(
        #[case] found: Result<(String, bool), String>,
        #[case] expected: CheckState,
    ) {
        let watched = Told { name: "maxPositionPercent".into(), wanted: "0.5".into(), found }.watched();
        assert_eq!(
            (watched.state, watched.at_once, watched.name.as_str()),
            (expected, true, "limit maxPositionPercent")
        );
    }
}
