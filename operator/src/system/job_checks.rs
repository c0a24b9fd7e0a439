//! Checks by a Job. The Job itself is what is remembered: of when it was last asked, and what the answer was. So a
//! restart, a second operator and a resume that asks for the same check do not make it run more often.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{api::batch::v1::Job, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::Client;
use serde_json::Value;
use sha2::{Digest, Sha256};
use standfast_crds::v1alpha1::{Check, CheckState, JobCheck};

use super::checks::{Asker, Told, compare};
use crate::{
    calls::document::{Document, Path},
    jobs::{self, JobRun, JobState},
};

/// The shortest time between the end of a Job and the beginning of the next one with the same question, and how old an
/// answer may be that opens a gate.
pub(super) const PAUSE: std::time::Duration = std::time::Duration::from_secs(300);
/// How often it is looked how far a Job is.
pub(super) const LOOK: std::time::Duration = std::time::Duration::from_secs(10);
/// The longest that a Job may run, whatever its action says.
const LONGEST: std::time::Duration = std::time::Duration::from_secs(600);
/// A Job that has not ended for this long is not waited for: nobody ends it.
const PATIENCE: SignedDuration = SignedDuration::from_secs(660);

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// There is no Job: begin one.
    Begin,
    /// The answer is too old: begin another one in its place.
    Again,
    /// It runs.
    Wait,
    /// It has run for longer than it may.
    Hangs,
    /// Its answer counts.
    Take,
    /// It ended in what is the future here.
    Ahead,
}

/// What is to be done, when an answer counts for `every`.
fn decide(run: Option<&JobRun>, every: SignedDuration, now: Timestamp) -> Next {
    let Some(run) = run else { return Next::Begin };
    if matches!(run.state, JobState::Running) {
        let hangs = run.begun.is_some_and(|begun| now.duration_since(begun) > PATIENCE);
        return if hangs { Next::Hangs } else { Next::Wait };
    }
    // Somebody else's Job has an end, or not: it is told whose it is.
    let Some(ended) = run.ended else { return Next::Take };
    let age = now.duration_since(ended);
    let skew = SignedDuration::try_from(PAUSE).unwrap_or(SignedDuration::MAX);
    match age {
        age if age < -skew => Next::Ahead,
        age if age < every => Next::Take,
        _ => Next::Again,
    }
}

/// The name of the Job: the same for the same question of the same system.
fn name(system: &OwnerReference, question: &str, job: &JobCheck) -> String {
    let asked = serde_json::to_string(&job.run).unwrap_or_default();
    let digest = Sha256::digest(format!("{}/{question}/{asked}", system.uid));
    let digest: String = digest.iter().take(6).map(|b| format!("{b:02x}")).collect();
    let plain: String = question.chars().take(32).collect();
    format!("standfast-check-{}-{digest}", plain.trim_end_matches('-'))
}

/// The answer of the last Job, if it counts. Else one is begun.
pub(super) async fn ask(client: &Client, asker: &Asker<'_>, check: &Check, job: &JobCheck) -> Told {
    let interval = check.interval.map_or(PAUSE, |interval| interval.get().max(PAUSE));
    match last(client, asker, &check.name, job, interval).await {
        Ok((name, run)) => answer(job, &name, &run, Timestamp::now()),
        Err(told) => told,
    }
}

/// What the last Job of this question said (JSON), if its answer counts. Else one is begun; the error says what is waited
/// for, or why it is not known.
pub(crate) async fn said(client: &Client, asker: &Asker<'_>, question: &str, job: &JobCheck) -> Result<Value, String> {
    match last(client, asker, question, job, PAUSE).await {
        Ok((_, JobRun { state: JobState::Succeeded { result: Some(value) }, .. })) => Ok(value),
        Ok((name, JobRun { state: JobState::Succeeded { result: None }, .. })) => {
            Err(format!("Job {name} succeeded, but its termination message is no JSON"))
        }
        Ok((_, JobRun { state: JobState::Failed { message } | JobState::Foreign { message }, .. })) => Err(message),
        Ok((name, JobRun { state: JobState::Running, .. })) => Err(format!("Job {name} has not ended yet")),
        Err(Told::Answer(_, why) | Told::Awaited(why)) => Err(why),
    }
}

/// The last Job of this question and its name, if its answer counts. Else one is begun.
async fn last(
    client: &Client,
    asker: &Asker<'_>,
    question: &str,
    job: &JobCheck,
    interval: std::time::Duration,
) -> Result<(String, JobRun), Told> {
    let name = name(asker.system, question, job);
    let every = if asker.gate { PAUSE } else { interval };
    let every = SignedDuration::try_from(every).unwrap_or(SignedDuration::MAX);
    let run = jobs::job_run(client, asker.namespace, &name, asker.system).await.map_err(|e| unknown(e.to_string()))?;
    match (decide(run.as_ref(), every, Timestamp::now()), run) {
        (Next::Take, Some(run)) => Ok((name, run)),
        (Next::Wait, _) => Err(Told::Awaited(format!("Job {name} has not ended yet"))),
        (Next::Hangs, _) => Err(unknown(format!(
            "Job {name} does not end: look with: kubectl -n {} describe job {name}",
            asker.namespace
        ))),
        (Next::Ahead, _) => {
            Err(unknown(format!("Job {name} ended in the future: synchronise the clocks of the cluster's nodes (NTP)")))
        }
        (next @ (Next::Begin | Next::Again | Next::Take), _) => {
            if next == Next::Again {
                let deleted = jobs::delete_job(client, asker.namespace, &name, asker.system).await;
                deleted.map_err(|e| unknown(e.to_string()))?;
            }
            Err(begin(client, asker, &name, job, interval).await)
        }
    }
}

async fn begin(client: &Client, asker: &Asker<'_>, name: &str, job: &JobCheck, interval: std::time::Duration) -> Told {
    let env = jobs::environment(&asker.system.name, "", "check");
    let mut wanted: Job = jobs::job(name, asker.system, &job.run, &env, LONGEST);
    if let Some(spec) = &mut wanted.spec {
        // What is not asked any more goes by itself. Until then its answer may be asked for.
        spec.ttl_seconds_after_finished = Some(i32::try_from(interval.as_secs() * 2).unwrap_or(i32::MAX));
    }
    match jobs::create_job(client, asker.namespace, wanted, &job.run).await {
        Ok(_) => Told::Awaited(format!("Job {name} was begun")),
        Err(error) => unknown(error.to_string()),
    }
}

fn unknown(why: String) -> Told {
    Told::Answer(CheckState::Unknown, why)
}

/// What a Job that ended says.
fn answer(check: &JobCheck, name: &str, run: &JobRun, now: Timestamp) -> Told {
    let (state, message) = match (&run.state, &check.expect) {
        (JobState::Succeeded { .. }, None) => (CheckState::Passing, format!("Job {name} succeeded")),
        (JobState::Succeeded { result: None }, Some(_)) => {
            (CheckState::Unknown, format!("Job {name} succeeded, but its termination message is no JSON"))
        }
        (JobState::Succeeded { result: Some(value) }, Some(expect)) => {
            let path = check.path.as_deref().unwrap_or("$");
            match value_at(value, path) {
                Ok(found) => compare(expect, &found, &format!(" at {path}"), now),
                Err(why) => (CheckState::Unknown, format!("Job {name}: {why}")),
            }
        }
        // Its exit is the answer. From 126 on it is not the program that says so: it was not found, or was killed.
        (JobState::Failed { message }, None) if matches!(run.exit_code, Some(1..=125)) => {
            (CheckState::Failing, message.clone())
        }
        (JobState::Failed { message } | JobState::Foreign { message }, _) => (CheckState::Unknown, message.clone()),
        (JobState::Running, _) => return Told::Awaited(format!("Job {name} has not ended yet")),
    };
    Told::Answer(state, message)
}

fn value_at(value: &Value, path: &str) -> Result<crate::calls::document::Scalar, String> {
    let path = Path::parse(path).map_err(|why| format!("path: {why}"))?;
    let document = Document::of(value.clone());
    let found = document.root().one(&path)?;
    found.ok_or_else(|| format!("its termination message has nothing at {path}"))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn run(state: JobState, begun: i64, ended: Option<i64>) -> JobRun {
        JobRun { state, begun: Some(at(begun)), ended: ended.map(at), exit_code: None }
    }

    fn done() -> JobState {
        JobState::Succeeded { result: None }
    }

    #[rstest]
    #[case(None, 300, Next::Begin)]
    #[case(Some(run(JobState::Running, 9_990, None)), 300, Next::Wait)]
    #[case(Some(run(JobState::Running, 9_000, None)), 300, Next::Hangs)]
    #[case(Some(run(done(), 9_700, Some(9_701))), 300, Next::Take)]
    #[case(Some(run(done(), 9_600, Some(9_700))), 300, Next::Again)]
    // One that runs for longer than the pause is still an answer.
    #[case(Some(run(done(), 9_400, Some(9_999))), 300, Next::Take)]
    #[case(Some(run(done(), 9_000, Some(9_100))), 3_600, Next::Take)]
    #[case(Some(run(done(), 9_000, Some(10_001))), 300, Next::Take)]
    #[case(Some(run(done(), 9_000, Some(10_301))), 300, Next::Ahead)]
    fn what_is_to_be_done(#[case] run: Option<JobRun>, #[case] every: i64, #[case] expected: Next) {
        assert_eq!(decide(run.as_ref(), SignedDuration::from_secs(every), at(10_000)), expected);
    }

    #[test]
    fn jobs_of_one_question_begin_no_more_often_than_the_pause() {
        // A cluster of one Job that takes 20 s; looked at every second for two hours, from two places.
        let (mut job, mut begun): (Option<JobRun>, Vec<i64>) = (None, vec![]);
        for second in 0..7_200 {
            if let Some(job) = job.as_mut().filter(|j| j.ended.is_none() && at(second - 20) >= j.begun.unwrap()) {
                *job = JobRun { state: done(), ended: Some(at(second)), ..job.clone() };
            }
            for every in [300, 3_600] {
                let next = decide(job.as_ref(), SignedDuration::from_secs(every), at(second));
                if matches!(next, Next::Begin | Next::Again) {
                    begun.push(second);
                    job = Some(run(JobState::Running, second, None));
                }
            }
        }
        assert!(begun.len() > 20 && begun.windows(2).all(|w| w[1] - w[0] >= 300), "{begun:?}");
    }

    #[test]
    fn names_tell_questions_apart() {
        let owner = |uid: &str| OwnerReference { uid: uid.into(), ..OwnerReference::default() };
        let check = |value: Value| serde_json::from_value::<Check>(value).unwrap();
        let named = |owner: &OwnerReference, check: &Check| name(owner, &check.name, check.job.as_ref().unwrap());
        let one = check(json!({"name": "books", "group": "data", "job": {"image": "bot:1"}}));
        let later = check(json!({"name": "books", "group": "data", "interval": "1h", "job": {"image": "bot:1"}}));
        let other = check(json!({"name": "books", "group": "data", "job": {"image": "bot:2"}}));
        assert!(named(&owner("1"), &one).starts_with("standfast-check-books-"));
        assert_eq!(named(&owner("1"), &one), named(&owner("1"), &later));
        assert_ne!(named(&owner("1"), &one), named(&owner("1"), &other));
        assert_ne!(named(&owner("1"), &one), named(&owner("2"), &one));
    }

    #[rstest]
    #[case(json!({}), done(), Some(0), CheckState::Passing, "succeeded")]
    #[case(json!({}), JobState::Failed { message: "failed".into() }, Some(3), CheckState::Failing, "failed")]
    #[case(json!({}), JobState::Failed { message: "killed".into() }, Some(137), CheckState::Unknown, "killed")]
    #[case(json!({}), JobState::Failed { message: "late".into() }, None, CheckState::Unknown, "late")]
    #[case(json!({}), JobState::Foreign { message: "somebody's".into() }, None, CheckState::Unknown, "somebody's")]
    #[case(json!({"expect": {"equals": 0}}), done(), Some(0), CheckState::Unknown, "is no JSON")]
    #[case(json!({"expect": {"equals": 0}}), said(json!(0)), Some(0), CheckState::Passing, "found 0 at $, wanted 0")]
    #[case(json!({"expect": {"equals": 0}, "path": "$.n"}), said(json!({"n": 2})), Some(0), CheckState::Failing, "found 2 at $.n, wanted 0")]
    #[case(json!({"expect": {"equals": 0}, "path": "$.n"}), said(json!({"m": 0})), Some(0), CheckState::Unknown, "nothing at $.n")]
    #[case(json!({"expect": {"equals": 0}}), JobState::Failed { message: "failed".into() }, Some(3), CheckState::Unknown, "failed")]
    fn ends_are_answers(
        #[case] mut check: Value,
        #[case] state: JobState,
        #[case] exit_code: Option<i32>,
        #[case] expected: CheckState,
        #[case] told: &str,
    ) {
        check["image"] = "bot:1".into();
        let check: JobCheck = serde_json::from_value(check).unwrap();
        let run = JobRun { state, begun: Some(at(1)), ended: Some(at(2)), exit_code };
        let Told::Answer(state, message) = answer(&check, "j", &run, at(3)) else { panic!("no answer") };
        assert!(state == expected && message.contains(told), "{state:?} {message}");
    }

    fn said(value: Value) -> JobState {
        JobState::Succeeded { result: Some(value) }
    }
}
