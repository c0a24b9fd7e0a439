//! Approvals by people of several roles, and what they may not do. Cool-off.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::{
    api::admissionregistration::v1::ValidatingAdmissionPolicyBinding,
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use rstest::rstest;
use serde_json::{Value, json};
use standfast_crds::{
    guardrails::APPROVAL_POLICY,
    v1alpha1::{Approval, ApprovalPhase, HaltPhase, ResumePhase, TradingHalt, TradingResume, condition},
};
use standfast_e2e::{
    controlplane::{apply_all, install},
    world::{Operator, World, merge},
};

use super::{assert_held, assert_trading, message, saying, status};
use crate::{
    charts,
    plane::{Alone, world},
};

/// Who is who: their roles of the chart, and their groups.
const PEOPLE: [(&str, &[&str], &[&str]); 6] = [
    ("anna", &["standfast-risk"], &["desk"]),
    ("bert", &["standfast-risk"], &["desk"]),
    ("carl", &["standfast-risk"], &["desk", "board"]),
    // She halts, and may approve what others resume.
    ("dora", &["standfast-risk", "standfast-responder"], &["desk", "board"]),
    ("rita", &["standfast-responder"], &["board"]),
    ("vera", &["standfast-view"], &["board"]),
];

/// A world with people in it.
pub(crate) struct Desk {
    pub world: World,
}

impl Desk {
    pub(crate) async fn new(world: World) -> Result<Self> {
        let made = charts::template("standfast-system", &[])?.map_err(anyhow::Error::msg)?;
        let documents: Vec<Value> = serde_saphyr::from_multiple(&made)?;
        for role in documents.iter().filter(|d| d["kind"] == "ClusterRole") {
            apply_all(&world.client, &role.to_string()).await?;
        }
        for (user, roles, _) in PEOPLE {
            for role in roles {
                world.bind(user, "ClusterRole", role).await?;
            }
        }
        let desk = Self { world };
        for (user, ..) in PEOPLE {
            let approvals = desk.approvals(user).await?;
            let works = async || Ok(approvals.list(&ListParams::default()).await.ok());
            desk.world.until(&format!("the roles of {user} work"), works).await?;
        }
        desk.settled().await?;
        desk.world.bot("bot", 2).await?;
        Ok(desk)
    }

    pub(crate) async fn client(&self, user: &str) -> Result<Client> {
        let groups = PEOPLE.iter().find(|p| p.0 == user).map_or(&[][..], |p| p.2);
        self.world.client_as(user, groups).await
    }

    pub(crate) async fn approvals(&self, user: &str) -> Result<Api<Approval>> {
        Ok(Api::namespaced(self.client(user).await?, &self.world.namespace))
    }

    /// Waits until the guardrails are in place for so long that what people sign counts.
    async fn settled(&self) -> Result<()> {
        let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(self.world.client.clone());
        let old = async || {
            let made = bindings.get(APPROVAL_POLICY).await?.metadata.creation_timestamp.context("no time")?.0;
            Ok((Timestamp::now().duration_since(made) > SignedDuration::from_secs(12)).then_some(()))
        };
        self.world.until("the guardrails have settled", old).await
    }

    /// Dora halts, proven; nobody has asked for a resume.
    pub(crate) async fn halted(&self, policy: Value) -> Result<Operator> {
        self.world.system(&["bot"], json!({"resumePolicy": policy})).await?;
        let operator = self.world.operator().await?;
        let halts: Api<TradingHalt> = Api::namespaced(self.client("dora").await?, &self.world.namespace);
        let halt = json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingHalt", "metadata": {"name": "stale"},
            "spec": {"systemRef": {"name": "system"}, "reason": "prices are stale", "requestedBy": "dora"}});
        halts.create(&PostParams::default(), &serde_json::from_value(halt)?).await?;
        self.world.halted("stale").await?;
        Ok(operator)
    }

    pub(crate) async fn ask_as(&self, user: &str) -> Result<TradingResume, kube::Error> {
        let client = self.client(user).await.map_err(|e| kube::Error::Service(e.into()))?;
        let resumes: Api<TradingResume> = Api::namespaced(client, &self.world.namespace);
        let resume = json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "TradingResume", "metadata": {"name": "go"},
            "spec": {"haltRef": {"name": "stale"}, "requestedBy": user}});
        let resume = serde_json::from_value(resume).map_err(kube::Error::SerdeError)?;
        resumes.create(&PostParams::default(), &resume).await
    }

    /// Anna asks for a resume, which waits for approvals.
    async fn asked(&self) -> Result<TradingResume> {
        self.ask_as("anna").await?;
        self.world.resume_in("go", ResumePhase::AwaitingApproval).await
    }

    /// Somebody decides about a resume as it stands; `but` is merged into the spec.
    pub(crate) async fn decide(
        &self,
        user: &str,
        name: &str,
        about: &TradingResume,
        but: Value,
    ) -> Result<Approval, kube::Error> {
        let mut spec = json!({
            "subject": {"kind": "TradingResume", "name": about.name_any(), "uid": about.uid()},
            "hash": status(about).plan_hash, "decision": "Approve", "approver": user,
        });
        merge(&mut spec, but);
        let object = json!({"apiVersion": "standfast.dev/v1alpha1", "kind": "Approval", "metadata": {"name": name},
            "spec": spec});
        let object = serde_json::from_value(object).map_err(kube::Error::SerdeError)?;
        let approvals = self.approvals(user).await.map_err(|e| kube::Error::Service(e.into()))?;
        approvals.create(&PostParams::default(), &object).await
    }

    /// Waits until an approval says what is expected of it.
    pub(crate) async fn says(&self, name: &str, phase: ApprovalPhase, text: &str) -> Result<()> {
        let seen = std::sync::Mutex::new(None);
        let said = self
            .world
            .until(&format!("Approval {name} is {phase:?}: {text}"), async || {
                let status = self.world.api::<Approval>().get(name).await?.status.unwrap_or_default();
                let ready = condition(&status.conditions, "Ready").map(|c| c.message.clone()).unwrap_or_default();
                let done = status.phase == phase && ready.contains(text);
                *seen.lock().map_err(|_| anyhow::anyhow!("poisoned"))? = Some(status);
                Ok(done.then_some(()))
            })
            .await;
        said.with_context(|| format!("{:?}", seen.lock().ok().and_then(|s| s.clone())))
    }

    async fn approved(&self, tally: &str) -> Result<TradingResume> {
        let wanted = |r: &TradingResume| status(r).approved.as_deref() == Some(tally);
        self.world.resume_until("go", &format!("{tally} approved"), wanted).await
    }
}

fn refusal<T: std::fmt::Debug>(answer: Result<T, kube::Error>) -> String {
    match answer {
        Err(kube::Error::Api(status)) => status.message.clone(),
        other => format!("not refused: {other:?}"),
    }
}

const TWO: fn() -> Value = || json!({"approvals": [{"count": 2}], "excludeRequesters": ["Halt", "Resume"]});

/// S1-14: two people who asked for neither, and only they, let trading resume.
#[tokio::test]
async fn s1_14_two_people_approve_and_trading_resumes() -> Result<()> {
    let desk = Desk::new(world("approve").await?).await?;
    let _operator = desk.halted(TWO()).await?;
    let resume = desk.asked().await?;
    saying(&desk.world, "go", "approvals: 0 of 2 approvals, wanting 2 of anybody").await?;
    desk.decide("dora", "of-dora", &resume, json!({})).await?;
    let own = "dora asked for TradingHalt stale, and the resumePolicy excludes whoever did";
    desk.says("of-dora", ApprovalPhase::Void, own).await?;
    desk.decide("anna", "of-anna", &resume, json!({})).await?;
    let own = "anna asked for this TradingResume, and the resumePolicy excludes whoever did";
    desk.says("of-anna", ApprovalPhase::Void, own).await?;
    desk.decide("bert", "of-bert", &resume, json!({"comment": "prices are back"})).await?;
    desk.says("of-bert", ApprovalPhase::Valid, "TradingResume go counts it").await?;
    // Nobody counts twice.
    desk.decide("bert", "of-bert-again", &resume, json!({})).await?;
    let resume = desk.approved("1/2").await?;
    assert_eq!(status(&resume).phase, ResumePhase::AwaitingApproval);
    assert_held(&desk.world, "stale").await?;
    desk.decide("carl", "of-carl", &resume, json!({"groups": ["board"]})).await?;
    let done = desk.world.resume_in("go", ResumePhase::Completed).await?;
    assert_trading(&desk.world, 2).await?;
    let used: Vec<_> = status(&done).approvals.into_iter().map(|a| (a.name, a.approver)).collect();
    assert_eq!(used, [("of-bert".into(), "bert".into()), ("of-carl".into(), "carl".into())]);
    assert_eq!(status(&done).approved.as_deref(), Some("2/2"));
    for name in ["of-bert", "of-carl"] {
        desk.says(name, ApprovalPhase::Used, "TradingResume go released its halt with it").await?;
    }
    desk.says("of-bert-again", ApprovalPhase::Void, "TradingResume go has ended without it").await?;
    // Withdrawn after its use, it changes nothing.
    desk.approvals("bert").await?.delete("of-bert", &DeleteParams::default()).await?;
    let after = desk.world.api::<TradingResume>().get("go").await?;
    assert_eq!(status(&after).approvals.len(), 2);
    assert_trading(&desk.world, 2).await?;
    let (_, shown) = desk.world.kubectl(&["get", "approval"], "").await?;
    eprintln!("{shown}");
    assert!(shown.contains("Approve") && shown.contains("carl") && shown.contains("Used"), "{shown}");
    Ok(())
}

/// What people who may not decide, or not like this, are told.
#[tokio::test]
async fn attempts_to_decide_as_somebody_else_are_refused() -> Result<()> {
    let desk = Desk::new(world("attempts").await?).await?;
    let _operator = desk.halted(TWO()).await?;
    let resume = desk.asked().await?;
    let attempt = async |user, but| Ok::<_, anyhow::Error>(refusal(desk.decide(user, "attempt", &resume, but).await));
    let denied = |why: &str| {
        format!(
            "ValidatingAdmissionPolicy 'standfast-approval' with binding 'standfast-approval' denied request: {why}"
        )
    };
    for (user, but, why) in [
        ("bert", json!({"approver": "carl"}), denied("spec.approver must be the user who creates the object: bert")),
        (
            "bert",
            json!({"groups": ["desk", "board"]}),
            denied("spec.groups may only name groups of the user who creates the object: bert is not in board"),
        ),
        ("rita", json!({"groups": ["board"]}), "User \"rita\" cannot create resource \"approvals\"".into()),
        ("vera", json!({"groups": ["board"]}), "User \"vera\" cannot create resource \"approvals\"".into()),
        ("bert", json!({"hash": "none"}), "spec.hash".into()),
        (
            "bert",
            json!({"decision": "Reject",
                "breaks": [{"venue": "a", "symbol": "b", "kind": "Position", "difference": "1"}]}),
            "a rejection needs none".into(),
        ),
    ] {
        let said = attempt(user, but).await?;
        assert!(said.contains(&why), "{said}");
        eprintln!("{user}: {said}");
    }
    // A responder does not resume either.
    let said = refusal(desk.ask_as("rita").await);
    assert!(said.contains("User \"rita\" cannot create resource \"tradingresumes\""), "{said}");
    // What was decided stays as it is, for everybody, and its status is the operator's.
    desk.decide("bert", "of-bert", &resume, json!({})).await?;
    let edit = Patch::Merge(json!({"spec": {"approver": "carl"}}));
    let said = refusal(desk.approvals("bert").await?.patch("of-bert", &PatchParams::default(), &edit).await);
    assert!(said.contains("User \"bert\" cannot patch resource \"approvals\""), "{said}");
    for edit in [json!({"approver": "carl"}), json!({"groups": ["board"]}), json!({"hash": "0".repeat(64)})] {
        let edited = desk.world.patch::<Approval>("of-bert", json!({"spec": edit})).await;
        let said = refusal(edited);
        assert!(said.contains("an Approval never changes: delete it to withdraw it, and create another one"), "{said}");
    }
    let used = Patch::Merge(json!({"status": {"phase": "Used"}}));
    let said = refusal(desk.approvals("bert").await?.patch_status("of-bert", &PatchParams::default(), &used).await);
    assert!(said.contains("User \"bert\" cannot patch resource \"approvals/status\""), "{said}");
    let resumes: Api<TradingResume> = Api::namespaced(desk.client("bert").await?, &desk.world.namespace);
    let counted = Patch::Merge(json!({"status": {"approved": "2/2"}}));
    let said = refusal(resumes.patch_status("go", &PatchParams::default(), &counted).await);
    assert!(said.contains("cannot patch resource \"tradingresumes/status\""), "{said}");
    // A rejection cannot be taken away by those whom it hinders.
    desk.decide("dora", "no", &resume, json!({"decision": "Reject"})).await?;
    let said = refusal(desk.approvals("anna").await?.delete("no", &DeleteParams::default()).await);
    assert!(said.contains(&denied("a rejection is withdrawn only by who made it: dora")), "{said}");
    desk.approvals("dora").await?.delete("no", &DeleteParams::default()).await?;
    assert_held(&desk.world, "stale").await
}

/// What is not about this resume, as it is, does not count.
#[tokio::test]
async fn an_approval_counts_for_one_resume_as_it_was_shown() -> Result<()> {
    let desk = Desk::new(world("bound").await?).await?;
    let _operator = desk.halted(json!({"approvals": [{"count": 1, "group": "board"}, {"count": 1}]})).await?;
    let first = desk.asked().await?;
    desk.decide("carl", "of-carl", &first, json!({"groups": ["board"]})).await?;
    desk.approved("1/2").await?;
    // Another resume of the same name, with the same plan.
    desk.world.api::<TradingResume>().delete("go", &DeleteParams::default()).await?;
    desk.says("of-carl", ApprovalPhase::Void, "there is no TradingResume go in namespace").await?;
    let second = desk.asked().await?;
    assert_eq!(status(&first).plan_hash, status(&second).plan_hash);
    desk.approvals("anna").await?.delete("of-carl", &DeleteParams::default()).await?;
    desk.decide("carl", "reused", &first, json!({"groups": ["board"]})).await?;
    desk.says("reused", ApprovalPhase::Void, "TradingResume go is another one now: its uid is").await?;
    // Of something else than what is there.
    desk.decide("dora", "changed", &second, json!({"groups": ["board"], "hash": "0".repeat(64)})).await?;
    desk.says("changed", ApprovalPhase::Void, "and what was decided about had 000000000000…").await?;
    desk.decide("dora", "late", &second, json!({"expiresAt": "2026-01-01T00:00:00Z"})).await?;
    desk.says("late", ApprovalPhase::Expired, "it expired at 2026-01-01T00:00:00Z").await?;
    assert_eq!(status(&desk.approved("0/2").await?).phase, ResumePhase::AwaitingApproval);
    // Without the group, it fills the slot of anybody; withdrawn, it does not.
    desk.decide("bert", "of-bert", &second, json!({})).await?;
    assert_eq!(
        message(&saying(&desk.world, "go", "1 of 2 approvals by bert").await?).split(';').next(),
        Some("approvals: 1 of 2 approvals by bert, wanting 1 of group board")
    );
    desk.approvals("bert").await?.delete("of-bert", &DeleteParams::default()).await?;
    desk.approved("0/2").await?;
    assert_held(&desk.world, "stale").await?;
    desk.decide("bert", "of-bert", &second, json!({})).await?;
    desk.decide("dora", "of-dora", &second, json!({"groups": ["board"]})).await?;
    desk.world.resume_in("go", ResumePhase::Completed).await?;
    assert_trading(&desk.world, 2).await
}

/// Whoever may approve in one namespace approves nothing in another one.
#[tokio::test]
async fn nobody_approves_in_another_namespace() -> Result<()> {
    let desk = Desk::new(world("here").await?).await?;
    let _operator = desk.halted(json!({"approvals": [{"count": 1}]})).await?;
    let resume = desk.asked().await?;
    let there = Desk { world: world("there").await? };
    let _there = there.world.operator().await?;
    there.world.bind("erik", "ClusterRole", "standfast-risk").await?;
    let approvals = there.approvals("erik").await?;
    there.world.until("his role works", async || Ok(approvals.list(&ListParams::default()).await.ok())).await?;
    let said = refusal(desk.decide("erik", "of-erik", &resume, json!({})).await);
    assert!(said.contains("User \"erik\" cannot create resource \"approvals\""), "{said}");
    there.decide("erik", "of-erik", &resume, json!({})).await?;
    let nowhere = format!("there is no TradingResume go in namespace {}", there.world.namespace);
    there.says("of-erik", ApprovalPhase::Void, &nowhere).await?;
    // Later than that it was counted once more.
    desk.decide("bert", "no-group", &resume, json!({"expiresAt": "2026-01-01T00:00:00Z"})).await?;
    saying(&desk.world, "go", "Approval no-group does not count").await?;
    assert_eq!(status(&desk.approved("0/1").await?).phase, ResumePhase::AwaitingApproval);
    assert_held(&desk.world, "stale").await
}

/// One person who may decide rejects it, at the gate of the approvals and behind it.
#[rstest]
#[case::while_others_are_asked(false)]
#[case::while_a_check_fails(true)]
#[tokio::test]
async fn a_rejection_ends_the_resume(#[case] behind: bool) -> Result<()> {
    let desk = Desk::new(world("reject").await?).await?;
    let policy = json!({"approvals": [{"count": 1}], "coolOff": if behind { "10m" } else { "0s" }});
    let _operator = desk.halted(policy).await?;
    let resume = desk.asked().await?;
    if behind {
        desk.decide("bert", "yes", &resume, json!({})).await?;
        desk.world.resume_in("go", ResumePhase::CoolingOff).await?;
    }
    desk.decide("carl", "no", &resume, json!({"decision": "Reject", "comment": "not before noon"})).await?;
    let ended = desk.world.resume_in("go", ResumePhase::Rejected).await?;
    let said = message(&ended);
    assert!(said.starts_with("not released: ") && said.ends_with("rejected by carl: not before noon"), "{said}");
    assert_eq!(status(&ended).approvals.iter().map(|a| a.name.as_str()).collect::<Vec<_>>(), ["no"]);
    desk.says("no", ApprovalPhase::Used, "TradingResume go ended with it").await?;
    assert_held(&desk.world, "stale").await
}

/// Withdrawn between its gate and the release, an approval does not count.
#[tokio::test]
async fn an_approval_that_is_withdrawn_before_the_release_holds_it() -> Result<()> {
    let desk = Desk::new(world("withdrawn").await?).await?;
    desk.world.venue.set_market_open(false);
    let checks = super::market_check(&desk.world);
    let _operator = desk.halted(json!({"approvals": [{"count": 1}]})).await?;
    desk.world.patch::<standfast_crds::v1alpha1::TradingSystem>("system", json!({"spec": {"checks": checks}})).await?;
    let resume = desk.asked().await?;
    desk.decide("bert", "yes", &resume, json!({})).await?;
    saying(&desk.world, "go", "check market is failing").await?;
    desk.approvals("bert").await?.delete("yes", &DeleteParams::default()).await?;
    desk.approved("0/1").await?;
    desk.world.venue.set_market_open(true);
    let resume = saying(&desk.world, "go", "request-release: 0 of 1 approvals, wanting 1 of anybody").await?;
    assert_eq!(status(&resume).phase, ResumePhase::AwaitingApproval);
    assert_held(&desk.world, "stale").await?;
    desk.decide("carl", "yes", &resume, json!({})).await?;
    desk.world.resume_in("go", ResumePhase::Completed).await?;
    assert_trading(&desk.world, 2).await
}

/// What was signed while nobody saw to it that names are true never counts.
#[tokio::test]
async fn an_approval_from_before_the_policy_does_not_count() -> Result<()> {
    let alone = Alone::new().await?;
    let desk = Desk::new(alone.world("forged").await?).await?;
    let _operator = desk.halted(json!({"approvals": [{"count": 1}]})).await?;
    let resume = desk.asked().await?;
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(desk.world.client.clone());
    bindings.delete(APPROVAL_POLICY, &DeleteParams::default()).await?;
    let forged = async || Ok(desk.decide("bert", "forged", &resume, json!({"approver": "carl"})).await.ok());
    desk.world.until("nobody sees to names", forged).await?;
    saying(&desk.world, "go", "no approval counts while ValidatingAdmissionPolicyBinding/standfast-approval not found")
        .await?;
    install(&desk.world.client).await?;
    let old = "it was created before the guardrails about names were in place as they are now: create it again";
    desk.says("forged", ApprovalPhase::Void, old).await?;
    saying(
        &desk.world,
        "go",
        &format!("0 of 1 approvals, wanting 1 of anybody; Approval forged does not count: {old}"),
    )
    .await?;
    assert_held(&desk.world, "stale").await?;
    desk.settled().await?;
    desk.decide("carl", "of-carl", &resume, json!({})).await?;
    desk.world.resume_in("go", ResumePhase::Completed).await?;
    assert_trading(&desk.world, 2).await
}

/// A halt of which nobody knows who asked for it is not resumed where whoever did is excluded.
#[tokio::test]
async fn a_requester_who_is_not_recorded_cannot_be_excluded() -> Result<()> {
    let desk = Desk::new(world("nobody").await?).await?;
    desk.world.system(&["bot"], json!({"resumePolicy": TWO()})).await?;
    let _operator = desk.world.operator().await?;
    desk.world.halt("stale", json!({})).await?;
    desk.world.halted("stale").await?;
    desk.ask_as("anna").await?;
    let resume = desk.world.resume_in("go", ResumePhase::Failed).await?;
    let said = message(&resume);
    assert!(said.starts_with("not released: approvals: who asked for TradingHalt stale is not recorded"), "{said}");
    assert_held(&desk.world, "stale").await
}

/// The cool-off is time in which the halt was seen to be proven: neither an operator that is away nor a loss of the
/// proof shortens it.
#[tokio::test]
async fn a_cool_off_survives_the_operator_and_begins_again_when_the_proof_is_lost() -> Result<()> {
    let world = world("cool").await?;
    world.bot("bot", 1).await?;
    world.system(&["bot"], json!({"resumePolicy": {"coolOff": "12s"}})).await?;
    let operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    world.resume("go", "stale").await?;
    world.resume_in("go", ResumePhase::CoolingOff).await?;
    let proven = |s: &standfast_crds::v1alpha1::TradingHaltStatus| s.proven_for.map(|p| p.get()).unwrap_or_default();
    // Written after ten seconds; what a crash loses is less than that.
    let before = world.halt_until("stale", "proven for a while", |s| proven(s) >= Duration::from_secs(10)).await?;
    operator.cut_off();
    let kept = world.halt_status("stale").await?;
    assert_eq!(kept.proven_for, before.proven_for);
    let _operator = world.operator().await?;
    let resume = world.resume_in("go", ResumePhase::Completed).await?;
    let cooled = status(&resume).steps.into_iter().find(|s| s.name == "cool-off").and_then(|s| s.message);
    assert_eq!(cooled.as_deref(), Some("TradingHalt stale was proven for 12s without interruption"));
    let halt = world.halt_status("stale").await?;
    assert!(proven(&halt) >= Duration::from_secs(12) && halt.phase == HaltPhase::Released, "{:?}", halt.proven_for);
    // The next one, of which the proof is lost in between.
    world.halt("again", json!({})).await?;
    world.halted("again").await?;
    world.resume("go-again", "again").await?;
    world.halt_until("again", "proven for a while", |s| proven(s) >= Duration::from_secs(10)).await?;
    world.venue.fault(standfast_e2e::venue::Fault::any("/v2/", standfast_e2e::venue::Action::status(503)));
    let lost = world.halt_until("again", "not proven any more", |s| s.phase == HaltPhase::Unverified).await?;
    assert_eq!(lost.proven_for, None);
    world.venue.clear_faults();
    world.resume_in("go-again", ResumePhase::Completed).await?;
    let times = world.halt_status("again").await?.times;
    let (halted, released) = (times.halted_at.context("not halted")?.0, times.released_at.context("not released")?.0);
    assert!(released.duration_since(halted) >= SignedDuration::from_secs(22), "ten seconds did not count");
    Ok(())
}
