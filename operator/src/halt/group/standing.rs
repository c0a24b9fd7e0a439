//! How the halts of several systems stand, and what may be said of all of them. Pure.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};
use kube::ResourceExt;
use standfast_crds::v1alpha1::{
    HaltPhase, SystemHalt, TradingHalt, TradingHaltStatus, condition, halt_conditions as c, set_condition, shorten,
};

use super::NAMED;
use crate::halt::{evidence, record};

/// How one of the halts stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is still to be made.
    Wanted,
    /// Somebody deleted it, and it was not released before.
    Deleted,
    /// It is there.
    There(HaltPhase),
    /// It was released.
    Released,
}

/// What was found of one of the halts.
#[derive(Debug)]
pub(super) enum Member {
    /// It is there.
    There(Box<TradingHalt>),
    /// It is not there yet; and why, if it could not be made.
    NotMade(Option<String>),
    /// It was there, and was deleted.
    Gone,
    /// It was there, and could not be read.
    Unread(String),
}

impl Member {
    pub(super) fn status(&self) -> Option<&TradingHaltStatus> {
        match self {
            Self::There(halt) => halt.status.as_ref(),
            Self::NotMade(_) | Self::Gone | Self::Unread(_) => None,
        }
    }
}

/// What the status says of one of the halts, and how it stands.
pub(super) fn show(entry: &SystemHalt, member: &Member, now: Timestamp) -> (SystemHalt, Standing) {
    let mut entry = entry.clone();
    let (standing, why) = match member {
        Member::There(halt) => return show_halt(entry, halt, now),
        // What is known of it does not change any more.
        Member::Gone | Member::Unread(_) if entry.phase == HaltPhase::Released => return (entry, Standing::Released),
        Member::NotMade(why) => (Standing::Wanted, why.clone()),
        Member::Gone => (Standing::Deleted, Some(format!("TradingHalt {} was deleted", entry.halt))),
        Member::Unread(why) => (Standing::There(HaltPhase::Unverified), Some(why.clone())),
    };
    (entry.open_orders, entry.running_pods, entry.verified_until) = (None, None, None);
    entry.message = why.map(|why| shorten(&why));
    (entry, standing)
}

pub(super) fn show_halt(mut entry: SystemHalt, halt: &TradingHalt, now: Timestamp) -> (SystemHalt, Standing) {
    let status = halt.status.clone().unwrap_or_default();
    let said = condition(&status.conditions, c::HALTED).map(|c| c.message.clone()).filter(|m| !m.is_empty());
    (entry.halt_uid, entry.phase, entry.message) = (halt.uid(), status.phase, said.map(|m| shorten(&m)));
    (entry.open_orders, entry.running_pods) = (status.open_orders, status.running_pods);
    entry.verified_until = status.verified_until.clone();
    let fresh = status.verified_until.as_ref().is_some_and(|until| now < until.0);
    let standing = match status.phase {
        HaltPhase::Released => Standing::Released,
        HaltPhase::Halted if !fresh => {
            entry.message = Some("the last proof is too old to count".into());
            Standing::There(HaltPhase::Unverified)
        }
        // Seen, and its system is not there any more.
        HaltPhase::Pending if !status.conditions.is_empty() => Standing::There(HaltPhase::Unverified),
        HaltPhase::Pending => Standing::There(HaltPhase::Fencing),
        HaltPhase::Halted => {
            // The phase says the rest.
            entry.message = kept(&status);
            Standing::There(HaltPhase::Halted)
        }
        phase => Standing::There(phase),
    };
    (entry, standing)
}

/// What a halt that is proven says of positions that were to be closed and were kept.
fn kept(status: &TradingHaltStatus) -> Option<String> {
    let positions = condition(&status.conditions, c::POSITIONS_CLOSED).filter(|c| c.status != "True")?;
    Some(shorten(if positions.message.is_empty() { "positions were kept" } else { &positions.message }))
}

/// What may be said of all of them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) phase: HaltPhase,
    /// Status and reason of the condition `Halted`.
    pub(super) halted: (&'static str, &'static str),
    pub(super) message: String,
    /// Something does not get better by waiting.
    pub(super) stuck: bool,
}

/// Judges a group by its halts: it is as well as the worst of them.
pub(super) fn judge(halts: &[(SystemHalt, Standing)]) -> Verdict {
    let all = halts.len();
    let count = |wanted: Standing| halts.iter().filter(|(_, s)| *s == wanted).count();
    let (halted, released) = (count(Standing::There(HaltPhase::Halted)), count(Standing::Released));
    let (wanted, deleted) = (count(Standing::Wanted), count(Standing::Deleted));
    let is = |phase| count(Standing::There(phase)) > 0;
    let (phase, verdict) = if released == all {
        (HaltPhase::Released, ("False", "Released"))
    } else if wanted > 0 {
        (HaltPhase::Fencing, ("False", "HaltsNotMade"))
    } else if deleted > 0 {
        (HaltPhase::Unverified, ("Unknown", "HaltDeleted"))
    } else if is(HaltPhase::Unverified) {
        (HaltPhase::Unverified, ("Unknown", "Unverified"))
    } else if let Some(phase) =
        [HaltPhase::Fencing, HaltPhase::Closing, HaltPhase::Verifying].into_iter().find(|p| is(*p))
    {
        (phase, ("False", phase.as_str()))
    } else if released > 0 {
        (HaltPhase::Releasing, ("False", "PartlyReleased"))
    } else {
        (HaltPhase::Halted, ("True", "Proven"))
    };
    let mut message = match phase {
        HaltPhase::Released => format!("all {all} halts were released"),
        HaltPhase::Halted => format!("all {all} systems are halted, each proven by its own halt"),
        _ if released > 0 => format!("{halted} of {all} systems are halted, {released} released"),
        _ => format!("{halted} of {all} systems are halted"),
    };
    // The worst first: what comes last may be cut off.
    let rank = |standing: Standing| match standing {
        Standing::Wanted => 0,
        Standing::Deleted => 1,
        Standing::There(HaltPhase::Unverified) => 2,
        Standing::There(HaltPhase::Halted) | Standing::Released => 9,
        Standing::There(_) => 3,
    };
    let mut troubles: Vec<_> = halts.iter().filter(|(_, s)| rank(*s) < 9).collect();
    troubles.sort_by_key(|(_, s)| rank(*s));
    if phase != HaltPhase::Released {
        for (entry, standing) in troubles {
            let what = match (standing, &entry.message) {
                (Standing::Wanted, None) => "its halt is being made".to_owned(),
                (Standing::Wanted, Some(why)) => format!("its halt is not made: {why}"),
                (Standing::There(phase), Some(why)) if !why.is_empty() => format!("{}: {why}", phase.as_str()),
                (Standing::There(phase), _) => phase.as_str().to_owned(),
                (_, why) => why.clone().unwrap_or_default(),
            };
            message += &format!("; {} {what}", entry.system);
        }
    }
    let kept: Vec<_> = halts
        .iter()
        .filter(|(e, s)| *s == Standing::There(HaltPhase::Halted) && e.message.is_some())
        .map(|(e, _)| e.system.as_str())
        .collect();
    if !kept.is_empty() {
        let some = kept.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
        let more = if kept.len() > NAMED { format!(" and {} more", kept.len() - NAMED) } else { String::new() };
        message += &format!("; positions were kept at: {some}{more}: see status.systems");
    }
    let refused = halts.iter().any(|(e, s)| *s == Standing::Wanted && e.message.is_some());
    Verdict { phase, halted: verdict, message: shorten(&message), stuck: refused }
}

/// Puts what is known of the halts into the status, with what follows from it: totals, times, evidence, kstatus.
pub(super) fn apply(
    status: &mut TradingHaltStatus,
    halts: Vec<(SystemHalt, Standing)>,
    members: &[Member],
    generation: Option<i64>,
    now: Timestamp,
) {
    let verdict = judge(&halts);
    let before = status.phase;
    let made = |entries: &[SystemHalt]| entries.iter().all(|e| e.halt_uid.is_some());
    let made_before = made(&status.systems);
    let standings: Vec<_> = halts.iter().map(|(_, s)| *s).collect();
    status.systems = halts.into_iter().map(|(entry, _)| entry).collect();
    if made(&status.systems) && !made_before {
        let names: Vec<_> = status.systems.iter().map(|e| e.halt.as_str()).collect();
        let text = format!("{} halts are there: {}", names.len(), names.join(", "));
        evidence::append(&mut status.evidence, now, "HaltsMade", &text, false);
    }
    let (value, reason) = verdict.halted;
    set_condition(&mut status.conditions, now, generation, (c::HALTED, value, reason), verdict.message.clone());
    if verdict.phase != before {
        let at = Some(MicroTime(now));
        match verdict.phase {
            HaltPhase::Halted => {
                status.times.halted_at = status.times.halted_at.take().or(at);
                evidence::append(&mut status.evidence, now, "Halted", &verdict.message, false);
            }
            HaltPhase::Unverified => evidence::append(&mut status.evidence, now, "Unverified", &verdict.message, false),
            HaltPhase::Released => {
                status.times.released_at = at;
                evidence::append(&mut status.evidence, now, "Released", &verdict.message, true);
                let condition = (c::RELEASED, "True", "Released");
                set_condition(&mut status.conditions, now, generation, condition, verdict.message.clone());
            }
            _ => {}
        }
    }
    status.phase = verdict.phase;
    status.observed_generation = generation;
    // What is released is not halted any more, and its numbers are old.
    let held: Vec<Option<&TradingHaltStatus>> = standings
        .iter()
        .zip(members)
        .filter(|(s, _)| **s != Standing::Released)
        .map(|(_, member)| member.status())
        .collect();
    let total =
        |pick: fn(&TradingHaltStatus) -> Option<i64>| held.iter().map(|s| s.and_then(pick)).sum::<Option<i64>>();
    if verdict.phase != HaltPhase::Released {
        status.open_orders = total(|s| s.open_orders);
        status.kept_orders = total(|s| s.kept_orders);
        status.open_positions = total(|s| s.open_positions);
        status.running_pods = total(|s| s.running_pods);
    }
    if verdict.phase == HaltPhase::Halted {
        let earliest = |pick: fn(&TradingHaltStatus) -> Option<Timestamp>| {
            held.iter().map(|s| s.and_then(pick)).min().flatten().map(MicroTime)
        };
        status.last_verified_at = earliest(|s| s.last_verified_at.as_ref().map(|t| t.0));
        status.verified_until = earliest(|s| s.verified_until.as_ref().map(|t| t.0));
    }
    record::kstatus_of(status, generation, now, verdict.stuck);
}

/// Whether the status tells more than how far halts are that are being carried out.
pub(super) fn urgent(old: &TradingHaltStatus, new: &TradingHaltStatus) -> bool {
    let facts = |s: &TradingHaltStatus| {
        // Why one could not be made is told at once: it is known again only when that is tried again.
        let why = |e: &SystemHalt| e.message.clone().filter(|_| e.halt_uid.is_none());
        let halts: Vec<_> = s.systems.iter().map(|e| (e.halt.clone(), e.halt_uid.clone(), why(e))).collect();
        (s.phase, halts)
    };
    facts(old) != facts(new)
}

/// Whether `new` is worth a write.
pub(super) fn differs(old: &TradingHaltStatus, new: &TradingHaltStatus) -> bool {
    let plain = |status: &TradingHaltStatus| {
        let mut status = status.clone();
        status.systems.iter_mut().for_each(|e| e.verified_until = None);
        status
    };
    record::differs(&plain(old), &plain(new)) || record::heartbeat_due(old, new)
}
