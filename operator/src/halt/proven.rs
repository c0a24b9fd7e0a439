//! For how long a halt was proven, in sight of the operator: what the gate `cool-off` of a resume asks for.

use std::{borrow::Borrow, time::Duration};

use standfast_crds::v1alpha1::{self as crds, HaltPhase, TradingHalt, TradingHaltStatus, TradingResume};

use crate::{resume::ResumePlan, sight::InSight};

/// How often it is written while a resume waits for it.
const RECORD: Duration = Duration::from_secs(10);

/// What one look says of the proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Everything is proven.
    Proven,
    /// Nothing speaks against it, and not everything was read often enough by this process yet.
    Counting,
    /// It is not proven any more.
    Lost,
}

/// How long so far.
#[derive(Clone, Copy, Debug)]
pub struct ProvenFor(InSight);

impl ProvenFor {
    /// As another process left it.
    pub fn stored(status: &TradingHaltStatus) -> Self {
        Self(InSight::from(status.proven_for.map(crds::Duration::get).unwrap_or_default()))
    }

    /// What this look says: before the first proof of a process its counts are only begun, and that is no loss.
    pub fn seen(&self, status: &TradingHaltStatus) -> Seen {
        match status.phase {
            HaltPhase::Halted => Seen::Proven,
            HaltPhase::Verifying if !self.0.passing() => Seen::Counting,
            HaltPhase::Closing if !self.0.passing() && status.open_positions == Some(0) => Seen::Counting,
            _ => Seen::Lost,
        }
    }

    /// Takes note of a look.
    pub fn note(&mut self, seen: Seen, at: Duration, interval: Duration) {
        match seen {
            Seen::Proven => self.0.look(at, true, interval),
            Seen::Counting => {}
            Seen::Lost => self.0 = InSight::default(),
        }
    }

    /// For the status: whole milliseconds; none if the proof is lost or new.
    pub fn shown(&self) -> Option<crds::Duration> {
        let millis = u64::try_from(self.0.total().as_millis()).unwrap_or(u64::MAX);
        (millis > 0).then(|| Duration::from_millis(millis).into())
    }
}

/// The longest cool-off that a resume waits for and that this halt has not reached yet, as it is stored.
pub fn awaited(
    halt: &TradingHalt,
    stored: &TradingHaltStatus,
    resumes: &[impl Borrow<TradingResume>],
) -> Option<Duration> {
    let of_this = |r: &&TradingResume| {
        let status = r.status.as_ref();
        let pinned = status.is_some_and(|s| s.halt_uid.is_some() && s.halt_uid == halt.metadata.uid);
        pinned && status.is_some_and(|s| s.release_requested_at.is_none() && s.finished_at.is_none())
    };
    let wanted = |r: &TradingResume| ResumePlan::read(r).ok().and_then(|p| p.policy.cool_off).map(crds::Duration::get);
    let so_far = stored.proven_for.map(crds::Duration::get).unwrap_or_default();
    resumes.iter().map(Borrow::borrow).filter(of_this).filter_map(wanted).filter(|w| *w > so_far).max()
}

/// Whether it is written for a resume that waits: every ten seconds, and when there is enough of it.
pub fn due(stored: &TradingHaltStatus, new: &TradingHaltStatus, awaited: Option<Duration>) -> bool {
    let length = |s: &TradingHaltStatus| s.proven_for.map(crds::Duration::get).unwrap_or_default();
    let (before, now) = (length(stored), length(new));
    awaited.is_some_and(|wanted| now >= before + RECORD || (before < wanted && now >= wanted))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    use Seen::{Counting as C, Lost as L, Proven as P};

    /// Looks, each as the seconds since the one before and what was seen; `|` between processes.
    #[rstest]
    #[case::the_first_adds_nothing("5P", 0)]
    #[case::regular("0P 10P 10P 10P", 30)]
    #[case::a_gap_counts_two_intervals_at_most("0P 10P 3600P 10P", 40)]
    #[case::lost_begins_again("0P 10P 10L 10P 10P", 10)]
    #[case::lost_and_not_back("0P 10P 10L", 0)]
    #[case::a_restart_keeps_what_was_there("0P 10P 10P | 5P 10P", 30)]
    #[case::a_long_outage_adds_nothing("0P 10P | 7200P 10P", 20)]
    #[case::a_new_process_counts_first("0P 10P | 1C 1C 1P 10P", 20)]
    #[case::lost_while_nobody_looked("0P 10P | 60L 1P 10P", 10)]
    #[case::restarts_all_the_time_add_nothing("0P | 9P | 9P | 9P", 0)]
    fn time_in_which_it_was_seen(#[case] looks: &str, #[case] expected: u64) {
        let (mut status, mut now) = (TradingHaltStatus::default(), SECOND);
        for process in looks.split(" | ") {
            let mut proven = ProvenFor::stored(&status);
            for look in process.split(' ') {
                let (after, seen) = look.split_at(look.len() - 1);
                now += SECOND * after.parse().unwrap();
                let seen = match seen {
                    "P" => P,
                    "C" => C,
                    _ => L,
                };
                proven.note(seen, now, SECOND * 10);
                status.proven_for = proven.shown();
            }
        }
        assert_eq!(status.proven_for.map_or(0, |p| p.get().as_secs()), expected);
    }

    #[rstest]
    #[case::proven(HaltPhase::Halted, None, true, P)]
    #[case::counts_of_a_new_process(HaltPhase::Verifying, None, false, C)]
    #[case::the_same_later_is_a_loss(HaltPhase::Verifying, None, true, L)]
    #[case::flat_so_far(HaltPhase::Closing, Some(0), false, C)]
    #[case::positions_came_back(HaltPhase::Closing, Some(1), false, L)]
    #[case::positions_not_known(HaltPhase::Closing, None, false, L)]
    #[case::not_flat_any_more(HaltPhase::Closing, Some(0), true, L)]
    #[case::unverified(HaltPhase::Unverified, Some(0), false, L)]
    #[case::somebody_raised_a_workload(HaltPhase::Fencing, Some(0), false, L)]
    fn what_is_a_loss(
        #[case] phase: HaltPhase,
        #[case] positions: Option<i64>,
        #[case] proved: bool,
        #[case] seen: Seen,
    ) {
        let status = TradingHaltStatus { phase, open_positions: positions, ..TradingHaltStatus::default() };
        let mut proven = ProvenFor::stored(&status);
        if proved {
            proven.note(P, SECOND, SECOND);
        }
        assert_eq!(proven.seen(&status), seen);
    }

    #[rstest]
    #[case::nobody_waits("0s", "1h", None, false)]
    #[case::soon("1m", "1m9s", Some(300), false)]
    #[case::every_ten_seconds("1m", "1m10s", Some(300), true)]
    #[case::enough("1m58s", "2m", Some(120), true)]
    #[case::enough_before("2m", "2m1s", Some(120), false)]
    #[case::lost_is_said_by_other_means("1m", "0s", Some(120), false)]
    fn it_is_written_seldom(
        #[case] old: &str,
        #[case] new: &str,
        #[case] awaited: Option<u64>,
        #[case] expected: bool,
    ) {
        let status = |length: &str| TradingHaltStatus {
            proven_for: Some(length.parse().unwrap()),
            ..TradingHaltStatus::default()
        };
        assert_eq!(due(&status(old), &status(new), awaited.map(Duration::from_secs)), expected);
    }

    #[rstest]
    #[case::waits(json!({}), Some(600))]
    #[case::of_another_halt(json!({"haltUid": "other"}), None)]
    #[case::not_pinned(json!({"haltUid": null}), None)]
    #[case::asked_for(json!({"releaseRequestedAt": "2026-01-01T00:00:00.000000Z"}), None)]
    #[case::ended(json!({"finishedAt": "2026-01-01T00:00:00.000000Z"}), None)]
    fn who_waits(#[case] but: serde_json::Value, #[case] expected: Option<u64>) {
        let mut status = json!({"haltUid": "uid-stale", "plan": {
            "spec": {"haltRef": {"name": "stale"}, "requestedBy": "risk", "deadline": "1h"},
            "halt": {"name": "stale", "uid": "uid-stale"}, "system": {"name": "crypto", "uid": "uid-crypto"},
            "policy": {"coolOff": "10m"}, "checks": [], "venues": [], "workloads": []}});
        for (key, value) in but.as_object().unwrap() {
            status[key] = value.clone();
        }
        let resume: TradingResume = serde_json::from_value(json!({"apiVersion": "standfast.dev/v1alpha1",
            "kind": "TradingResume", "metadata": {"name": "go"}, "spec": {"haltRef": {"name": "stale"}, "requestedBy": "risk"},
            "status": status}))
        .unwrap();
        let halt: TradingHalt = serde_json::from_value(json!({"apiVersion": "standfast.dev/v1alpha1",
            "kind": "TradingHalt", "metadata": {"name": "stale", "uid": "uid-stale"},
            "spec": {"systemRef": {"name": "crypto"}, "reason": "a test"}}))
        .unwrap();
        let stored = |length| TradingHaltStatus { proven_for: length, ..TradingHaltStatus::default() };
        let resumes = [resume];
        assert_eq!(awaited(&halt, &stored(None), &resumes), expected.map(Duration::from_secs));
        let enough = stored(Some(crds::Duration::from_secs(600)));
        assert_eq!(awaited(&halt, &enough, &resumes), None, "it was reached");
    }
}
