//! Which approvals count, and for which slots: no clock, no calls. For whatever asks for approvals.

use std::collections::BTreeMap;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};
use kube::ResourceExt;
use standfast_crds::v1alpha1::{Approval, ApprovalRequirement, CountedApproval, Decision, SubjectKind};

/// How the user names of service accounts begin.
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// What is decided about, at the state that is to be decided about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Its kind.
    pub kind: SubjectKind,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// The hash of what was shown.
    pub hash: String,
}

/// Somebody whose decision does not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excluded {
    /// His user name.
    pub user: String,
    /// What he did and why it matters: `asked for TradingHalt stale, and the resumePolicy excludes whoever did`.
    pub because: String,
}

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Each must be met, and one person fills one slot of all.
    pub requirements: Vec<ApprovalRequirement>,
    /// Whose decision does not count.
    pub excluded: Vec<Excluded>,
}

/// Why an approval does not count, whatever is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// Its time is over.
    Expired(String),
    /// It is about something else, was withdrawn, or nobody saw to it that it is its approver's.
    Void(String),
}

impl Unfit {
    /// Why, in words.
    pub fn why(&self) -> &str {
        match self {
            Self::Expired(why) | Self::Void(why) => why,
        }
    }
}

/// The name of a kind.
pub const fn kind_name(kind: SubjectKind) -> &'static str {
    match kind {
        SubjectKind::TradingResume => "TradingResume",
        SubjectKind::TradingHalt => "TradingHalt",
    }
}

/// Why an approval does not count for this subject, whatever is asked for. `since` is when names became true: what is
/// not younger was not seen by the guardrails.
pub fn unfit(approval: &Approval, subject: &Subject, since: Timestamp, now: Timestamp) -> Option<Unfit> {
    let (of, what) = (&approval.spec.subject, format!("{} {}", kind_name(subject.kind), subject.name));
    if of.kind != subject.kind || of.name != subject.name {
        return Some(Unfit::Void(format!("it is about {} {}, not {what}", kind_name(of.kind), of.name)));
    }
    if of.uid != subject.uid {
        let (there, meant) = (&subject.uid, &of.uid);
        return Some(Unfit::Void(format!("{what} is another one now: its uid is {there}, not {meant}")));
    }
    if approval.spec.hash != subject.hash {
        let (there, shown) = (short(&subject.hash), short(&approval.spec.hash));
        return Some(Unfit::Void(format!("{what} has the hash {there}, and what was decided about had {shown}")));
    }
    if approval.metadata.deletion_timestamp.is_some() {
        return Some(Unfit::Void("it is being deleted".into()));
    }
    if approval.metadata.creation_timestamp.as_ref().is_none_or(|t| t.0 <= since) {
        return Some(Unfit::Void(
            "it was created before the guardrails about names were in place as they are now: create it again".into(),
        ));
    }
    let over = approval.spec.expires_at.as_ref().filter(|t| t.0 <= now)?;
    Some(Unfit::Expired(format!("it expired at {}", over.0)))
}

/// Enough of a hash to tell it from others.
fn short(hash: &str) -> String {
    hash.chars().take(12).chain(['…']).collect()
}

/// Why the approver may fill no slot of these rules.
pub fn ineligible(approval: &Approval, rules: &Rules) -> Option<String> {
    let spec = &approval.spec;
    if let Some(excluded) = rules.excluded.iter().find(|e| e.user == spec.approver) {
        return Some(format!("{} {}", spec.approver, excluded.because));
    }
    if rules.requirements.is_empty() {
        return Some("no approval is asked for".into());
    }
    let mut groups = vec![];
    for requirement in rules.requirements.iter().filter(|r| r.service_accounts || !of_service_account(approval)) {
        match &requirement.group {
            Some(group) if !approval.spec.groups.contains(group) => groups.push(group.as_str()),
            Some(_) | None => return None,
        }
    }
    Some(if groups.is_empty() {
        format!("{} is a service account, and those do not count", spec.approver)
    } else {
        format!("spec.groups names none of the groups that are asked for: {}", groups.join(", "))
    })
}

fn of_service_account(approval: &Approval) -> bool {
    approval.spec.approver.starts_with(SERVICE_ACCOUNT)
}

fn fits(approval: &Approval, requirement: &ApprovalRequirement) -> bool {
    requirement.group.as_ref().is_none_or(|group| approval.spec.groups.contains(group))
        && (requirement.service_accounts || !of_service_account(approval))
}

/// Somebody who may decide has decided against it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The decision.
    pub by: CountedApproval,
    /// Why.
    pub comment: Option<String>,
}

impl Rejection {
    /// By whom and why, in words.
    pub fn said(&self) -> String {
        let why = self.comment.as_ref().map(|c| format!(": {c}")).unwrap_or_default();
        format!("rejected by {}{why}", self.by.approver)
    }
}

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// The approvals that fill a slot.
    pub counted: Vec<CountedApproval>,
    /// How many slots there are.
    pub needed: usize,
    /// What is still asked for, in words; empty when every slot is filled.
    pub missing: Vec<String>,
    /// A rejection ends it.
    pub rejected: Option<Rejection>,
    /// Approvals of this subject that do not count, and why.
    pub unfit: Vec<(String, String)>,
}

impl Count {
    /// Every slot is filled, and nobody rejected it.
    pub fn met(&self) -> bool {
        self.rejected.is_none() && self.missing.is_empty()
    }

    /// How many of the slots are filled: `1/2`.
    pub fn tally(&self) -> String {
        format!("{}/{}", self.counted.len(), self.needed)
    }

    /// What is still asked for, in words, and the first approval that does not count.
    pub fn wanting(&self) -> String {
        let unfit = self.unfit.first().map(|(name, why)| format!("; Approval {name} does not count: {why}"));
        format!("{}{}", self.missing.join(" and "), unfit.unwrap_or_default())
    }
}

/// Counts the approvals of a subject. Slots are filled by a maximum matching, so that nobody who may fill several
/// takes the one slot of somebody else; among equals the earlier approval is counted. Approvals of other subjects are
/// left out.
pub fn count(subject: &Subject, rules: &Rules, approvals: &[Approval], since: Timestamp, now: Timestamp) -> Count {
    let ours = |a: &&Approval| a.spec.subject.kind == subject.kind && a.spec.subject.name == subject.name;
    let mut approvals: Vec<_> = approvals.iter().filter(ours).collect();
    approvals.sort_by_key(|a| (a.metadata.creation_timestamp.as_ref().map(|t| t.0), a.name_any()));
    let mut count = Count::default();
    let mut people: Vec<Vec<&Approval>> = vec![];
    let mut known = BTreeMap::<&str, usize>::new();
    for approval in approvals {
        let hindrance = unfit(approval, subject, since, now).map(|u| u.why().to_owned());
        if let Some(why) = hindrance.or_else(|| ineligible(approval, rules)) {
            count.unfit.push((approval.name_any(), why));
        } else if approval.spec.decision == Decision::Reject {
            let by = counted(approval, None);
            count.rejected.get_or_insert(Rejection { by, comment: approval.spec.comment.clone() });
        } else {
            let person = *known.entry(&approval.spec.approver).or_insert(people.len());
            if person == people.len() {
                people.push(vec![]);
            }
            people[person].push(approval);
        }
    }
    // Those that ask for a group come first: what is missing then reads as what is hard to get.
    let mut requirements: Vec<_> = rules.requirements.iter().collect();
    requirements.sort_by_key(|r| (r.group.is_none(), r.service_accounts));
    let slots: Vec<_> = requirements.iter().flat_map(|r| std::iter::repeat_n(*r, r.count as usize)).collect();
    let fills = |person: usize, slot: usize| people[person].iter().find(|a| fits(a, slots[slot])).copied();
    let filled = matching(people.len(), slots.len(), &|person, slot| fills(person, slot).is_some());
    count.needed = slots.len();
    let mut open = vec![];
    for (slot, person) in filled.into_iter().enumerate() {
        match person.and_then(|person| fills(person, slot)) {
            Some(approval) => count.counted.push(counted(approval, slots[slot].group.clone())),
            None => open.push(slots[slot].group.as_deref()),
        }
    }
    count.missing = open.chunk_by(|a, b| a == b).map(missing).collect();
    count
}

fn missing(alike: &[Option<&str>]) -> String {
    match alike.first().copied().flatten() {
        Some(group) => format!("{} of group {group}", alike.len()),
        None => format!("{} of anybody", alike.len()),
    }
}

fn counted(approval: &Approval, group: Option<String>) -> CountedApproval {
    let created = approval.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0);
    CountedApproval {
        name: approval.name_any(),
        uid: approval.uid().unwrap_or_default(),
        approver: approval.spec.approver.clone(),
        decision: approval.spec.decision,
        group,
        at: MicroTime(created),
    }
}

/// The person of each slot, by augmenting paths (Kuhn): as many slots as can be are filled, and a person who has one
/// keeps having one.
fn matching(people: usize, slots: usize, fits: &dyn Fn(usize, usize) -> bool) -> Vec<Option<usize>> {
    let mut filled = vec![None; slots];
    for person in 0..people {
        place(person, &mut filled, &mut vec![false; slots], fits);
    }
    filled
}

fn place(person: usize, filled: &mut [Option<usize>], tried: &mut [bool], fits: &dyn Fn(usize, usize) -> bool) -> bool {
    // A free one first: whoever has a slot keeps it as long as nobody needs it.
    if let Some(free) = (0..filled.len()).find(|slot| filled[*slot].is_none() && fits(person, *slot)) {
        filled[free] = Some(person);
        return true;
    }
    for slot in 0..filled.len() {
        let Some(other) = filled[slot].filter(|_| !tried[slot] && fits(person, slot)) else { continue };
        tried[slot] = true;
        if place(other, filled, tried, fits) {
            filled[slot] = Some(person);
            return true;
        }
    }
    false
}

#[cfg(test)]
#[path = "count_tests.rs"]
mod tests;
