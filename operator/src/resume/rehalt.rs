//! Halts a system again whose resume was aborted or deleted after the release, or went wrong in a stage.

use std::time::Duration;

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, PostParams},
};
use serde_json::json;
use standfast_crds::v1alpha1::{TradingHalt, TradingResume, shorten};

use super::{context::DEADLINE, plan::Subject, ramp};
use crate::{client, scale::FIELD_MANAGER};

/// uid of the resume that a halt was created for.
pub const RESUME_UID: &str = "standfast.dev/resume-uid";
/// Name of the released halt whose record tells what to go back to, where a workload still stands at zero.
pub const BASELINES_FROM: &str = "standfast.dev/baselines-from";

/// Present when the record of that halt counts even where a workload runs: the resume had brought back only a part.
pub const PARTLY_BACK: &str = "standfast.dev/partly-back";
/// How long the halt waits for the operator's own name. It is made without it, too.
const WHO: Duration = Duration::from_secs(1);

/// Why it is halted again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Somebody ended the resume: `aborted` or `deleted`.
    Ended(&'static str),
    /// Something that is watched went wrong, in words.
    Regression(String),
}

impl Why {
    fn suffix(&self) -> &'static str {
        match self {
            Self::Ended(_) => "abort",
            Self::Regression(_) => "regression",
        }
    }
}

/// The names that the halt may have, best first. All of them follow from the resume.
pub(super) fn names(resume: &TradingResume, why: &Why) -> [String; 2] {
    let (name, uid) = (resume.name_any(), resume.uid().unwrap_or_default());
    let uid: String = uid.chars().take(8).collect();
    let cut = |suffix: String| TradingHalt::fitting_name(&name, &suffix);
    let suffix = why.suffix();
    [cut(format!("-{suffix}")), cut(format!("-{suffix}-{uid}"))]
}

/// The halt that ends a resume. It belongs to nobody: it stays when the resume is deleted. Fields that are not set are
/// left out: the policy about `requestedBy` takes null for a name.
pub(super) fn halt(resume: &TradingResume, of: &Subject, name: &str, why: &Why) -> DynamicObject {
    let mut annotations = vec![
        (RESUME_UID.to_owned(), resume.uid().unwrap_or_default()),
        (BASELINES_FROM.to_owned(), of.halt.name.clone()),
    ];
    if resume.status.as_ref().is_some_and(|s| ramp::partly_back(&s.steps)) {
        annotations.push((PARTLY_BACK.to_owned(), "true".to_owned()));
    }
    let reason = shorten(&match why {
        Why::Ended(how) => format!("resume {} was {how}", resume.name_any()),
        Why::Regression(what) => format!("resume {} went wrong: {what}", resume.name_any()),
    });
    let mut halt = DynamicObject::new(name, &ApiResource::erase::<TradingHalt>(&()))
        .data(json!({"spec": {"systemRef": {"name": of.system.name}, "reason": reason}}));
    halt.metadata.namespace = resume.namespace();
    halt.metadata.annotations = Some(annotations.into_iter().collect());
    halt
}

/// Creates the halt unless it is there, and tells its name.
pub(super) async fn ensure(client: &Client, resume: &TradingResume, of: &Subject, why: &Why) -> Result<String, String> {
    let namespace = resume.namespace().unwrap_or_default();
    let resource = ApiResource::erase::<TradingHalt>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &namespace, &resource);
    let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
    let by = own_name(client).await;
    for name in names(resume, why) {
        let what = format!("TradingHalt {namespace}/{name}");
        let mut halt = halt(resume, of, &name, why);
        if let Some(by) = &by {
            halt.data["spec"]["requestedBy"] = by.as_str().into();
        }
        match client::write(DEADLINE, format!("creating {what}"), api.create(&params, &halt)).await {
            Ok(_) => return Ok(name),
            Err(error) if error.is_already_exists() => {}
            Err(error) => return Err(error.to_string()),
        }
        let there = client::read(DEADLINE, format!("reading {what}"), api.get_opt(&name)).await;
        let there = there.map_err(|e| e.to_string())?.ok_or_else(|| format!("{what} came and went"))?;
        if there.annotations().get(RESUME_UID) == resume.metadata.uid.as_ref() {
            return Ok(name);
        }
    }
    Err(format!("{} exist in {namespace} and are of other resumes", names(resume, why).join(" and ")))
}

/// The user that the API server knows this operator as. Recorded, so that a resume whose policy excludes whoever asked
/// for the halt can be decided about: of a halt without it nobody knows who did.
async fn own_name(client: &Client) -> Option<String> {
    let api: Api<SelfSubjectReview> = Api::all(client.clone());
    let (params, review) = (PostParams::default(), SelfSubjectReview::default());
    let answer = client::write(WHO, "asking who this operator is", api.create(&params, &review)).await;
    answer.ok()?.status?.user_info?.username
}
