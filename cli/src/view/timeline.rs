//! What happened during a halt, from its evidence.

use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use standfast_crds::{evidence, v1alpha1::TradingHalt};

use super::halt::{self, HaltView};
use crate::text::{Line, Style, between, row, table, took};

/// The course of a halt, for programs and for people.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Timeline {
    /// The halt as it is now.
    pub halt: HaltView,
    /// When that is.
    #[serde(skip)]
    pub now: Timestamp,
    /// What happened, oldest first.
    pub events: Vec<Happened>,
    /// Entries that found no room.
    pub dropped: i64,
    /// How long it took from the moment at which the halt committed itself, in seconds.
    pub durations: Vec<Took>,
    /// Whether every entry fits the one before: nothing was changed afterwards.
    pub intact: bool,
    /// Which entry does not.
    pub broken: Option<String>,
}

/// One thing that happened.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Happened {
    /// When.
    pub at: Timestamp,
    /// How long after the halt committed itself, in seconds.
    pub after_seconds: f64,
    /// What, in a word.
    pub event: String,
    /// What, in a sentence.
    pub message: String,
}

/// How long something took.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Took {
    /// What.
    pub what: &'static str,
    /// In seconds.
    pub seconds: f64,
}

impl Timeline {
    /// The course of a halt.
    pub fn of(halt: &TradingHalt, now: Timestamp) -> Self {
        let status = halt.status.clone().unwrap_or_default();
        let entries = &status.evidence.entries;
        let times = &status.times;
        let begun = times.committed_at.as_ref().map(|t| t.0).or(entries.first().map(|e| e.at.0));
        let seconds = |at: Timestamp| begun.map_or(0.0, |begun| between(begun, at).as_secs_f64());
        let events = entries.iter().map(|e| Happened {
            at: e.at.0,
            after_seconds: seconds(e.at.0),
            event: e.event.clone(),
            message: e.message.clone(),
        });
        let durations = [
            ("first cancel handed to the network", &times.first_cancel_sent_at),
            ("every trading workload scaled to zero", &times.scaled_at),
            ("a scale-up was refused: the latch holds", &times.latched_at),
            ("the last trading pod was gone", &times.pods_gone_at),
            ("zero open orders, proven", &times.zero_orders_at),
            ("no position left, proven", &times.flat_at),
            ("halted, everything proven", &times.halted_at),
            ("released", &times.released_at),
        ];
        let durations =
            durations.into_iter().filter_map(|(what, at)| Some(Took { what, seconds: seconds(at.as_ref()?.0) }));
        let broken = evidence::verify(&status.evidence).err();
        Self {
            halt: HaltView::of(halt, now),
            now,
            events: events.collect(),
            dropped: status.evidence.dropped,
            durations: durations.collect(),
            intact: broken.is_none(),
            broken,
        }
    }
}

/// The course of a halt.
pub fn lines(timeline: &Timeline) -> Vec<Line> {
    let view = &timeline.halt;
    let (style, word) = view.word();
    let title = Line::new().and(Style::Bold, &view.name).and(Style::Plain, format!("  halts {}  ", view.system));
    let by = view.requested_by.clone().unwrap_or_else(|| "not recorded".into());
    let mut lines = vec![
        title.and(style, word),
        row("why").and(Style::Plain, &view.reason),
        row("by").and(Style::Plain, by),
        row("requested").and_some(Style::Plain, view.requested_at.map(|t| format!("{t} (whole seconds)"))),
        Line::new(),
    ];
    if timeline.events.is_empty() {
        lines.push(
            Line::new().and(Style::Bad, "No operator has reacted to it: there is no evidence, and nothing is latched."),
        );
        return lines;
    }
    let cell = |text: &str| (Style::Dim, text.to_owned());
    let mut rows = vec![vec![cell("TIME (UTC)"), cell("AFTER"), cell("EVENT"), cell("WHAT")]];
    rows.extend(timeline.events.iter().map(|e| {
        let time = format!("{:.3}", e.at).trim_end_matches('Z').replace('T', " ");
        let after = std::time::Duration::try_from_secs_f64(e.after_seconds).unwrap_or_default();
        let plain = |text: String| (Style::Plain, text);
        vec![(Style::Dim, time), plain(took(after)), (Style::Bold, e.event.clone()), plain(e.message.clone())]
    }));
    lines.extend(table(&rows, 0));
    if timeline.dropped > 0 {
        lines.push(Line::new().and(Style::Warn, format!("{} more found no room", timeline.dropped)));
    }
    lines.push(Line::new());
    lines.push(Line::of("After the halt was committed:"));
    let rows: Vec<_> = timeline
        .durations
        .iter()
        .map(|t| {
            let length = std::time::Duration::try_from_secs_f64(t.seconds).unwrap_or_default();
            vec![(Style::Plain, t.what.to_owned()), (Style::Bold, took(length))]
        })
        .collect();
    lines.extend(table(&rows, 2));
    if !view.systems.is_empty() {
        lines.push(Line::new());
        lines.push(Line::of("Each system has a halt of its own, whose course is told by itself:"));
        lines.extend(halt::systems(view, timeline.now));
    }
    lines.push(Line::new());
    lines.push(match &timeline.broken {
        None => Line::of("The chain of hashes is intact: no entry was changed after it was written."),
        Some(why) => Line::new().and(Style::Bad, format!("THE EVIDENCE WAS CHANGED: {why}")),
    });
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::view::testing::{at, halt, plain, proven, time};

    fn with_evidence() -> TradingHalt {
        let mut halt = halt("stale", proven());
        let evidence = &mut halt.status.as_mut().unwrap().evidence;
        let mut previous: Option<String> = None;
        for (second, event, message) in [(0, "Committed", "1 workload"), (4, "Halted", "no trading pod runs")] {
            let at = serde_json::from_value(json!(time(second))).unwrap();
            let sha256 = evidence::hash(previous.as_deref(), &at, event, message);
            previous = Some(sha256.clone());
            let (event, message) = (event.into(), message.into());
            evidence.entries.push(standfast_crds::v1alpha1::EvidenceEntry { at, event, message, sha256 });
        }
        evidence.sha256 = previous;
        halt
    }

    /// S0-35
    #[test]
    fn s0_35_the_timeline_tells_times_and_whether_the_chain_is_intact() {
        let text = plain(&lines(&Timeline::of(&with_evidence(), at(10))));
        for part in [
            "stale  halts demo  HALTED",
            "2026-11-26 15:00:00.000  0.000 s  Committed  1 workload",
            "2026-11-26 15:00:04.000  4.000 s  Halted     no trading pod runs",
            "  zero open orders, proven                 4.000 s",
            "The chain of hashes is intact",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        let mut forged = with_evidence();
        forged.status.as_mut().unwrap().evidence.entries[1].message.push('!');
        let timeline = Timeline::of(&forged, at(10));
        assert!(!timeline.intact);
        assert!(plain(&lines(&timeline)).contains("THE EVIDENCE WAS CHANGED: entry 1 (Halted)"));
    }

    #[test]
    fn a_halt_that_nobody_saw_has_no_course() {
        let text = plain(&lines(&Timeline::of(&halt("stale", json!({})), at(10))));
        assert!(text.contains("No operator has reacted to it"), "{text}");
    }
}
