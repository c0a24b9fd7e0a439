//! Lines for people: styles, tables, ages. Pure; nothing is printed here.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

/// How a piece of text looks where colours are on. Words carry the meaning, colours only repeat it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    #[default]
    Plain,
    Bold,
    Dim,
    Good,
    Warn,
    Bad,
}

impl Style {
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Good => "1;32",
            Self::Warn => "1;33",
            Self::Bad => "1;31",
        }
    }
}

/// One line, in pieces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    pieces: Vec<(Style, String)>,
    /// Where a line that is too long goes on, in columns.
    hang: usize,
}

impl Line {
    /// An empty line.
    pub fn new() -> Self {
        Self::default()
    }

    /// A line of plain text.
    pub fn of(text: impl AsRef<str>) -> Self {
        Self::new().and(Style::Plain, text)
    }

    /// Adds a piece. What cannot be printed is left out: statuses hold what venues answered.
    pub fn and(mut self, style: Style, text: impl AsRef<str>) -> Self {
        self.pieces.push((style, clean(text.as_ref())));
        self
    }

    /// The same, where there is something to add.
    pub fn and_some(self, style: Style, text: Option<impl AsRef<str>>) -> Self {
        match text {
            Some(text) => self.and(style, text),
            None => self,
        }
    }

    /// The text alone.
    pub fn plain(&self) -> String {
        let text: String = self.pieces.iter().map(|(_, text)| text.as_str()).collect();
        text.trim_end().to_owned()
    }

    /// The line as it is printed, in as many rows as it takes where a row has `width` columns.
    pub fn rows(&self, colours: bool, width: Option<usize>) -> Vec<String> {
        let chars: Vec<(Style, char)> =
            self.pieces.iter().flat_map(|(style, text)| text.chars().map(|c| (*style, c))).collect();
        let Some(width) = width.filter(|w| *w > 0) else { return vec![paint(&chars, colours)] };
        let hang = if self.hang * 2 > width { 0 } else { self.hang };
        let mut rows: Vec<String> = vec![];
        let mut rest = chars.as_slice();
        loop {
            let indent = if rows.is_empty() { 0 } else { hang };
            let fits = fitting(rest, width - indent);
            // Broken at a space if there is one; the space itself is not shown.
            let space = (fits < rest.len()).then(|| rest[..=fits].iter().rposition(|(_, c)| *c == ' '));
            let end = space.flatten().filter(|at| *at > 0).unwrap_or(fits);
            rows.push(" ".repeat(indent) + &paint(&rest[..end], colours));
            rest = &rest[end..];
            while rest.first().is_some_and(|(_, c)| *c == ' ') {
                rest = &rest[1..];
            }
            if rest.is_empty() {
                return rows;
            }
        }
    }
}

/// How many of these fit into so many columns, at least one. Whatever is not ASCII may take two columns.
fn fitting(chars: &[(Style, char)], width: usize) -> usize {
    let mut used = 0;
    for (n, (_, c)) in chars.iter().enumerate() {
        used += if c.is_ascii() { 1 } else { 2 };
        if used > width {
            return n.max(1);
        }
    }
    chars.len()
}

fn paint(chars: &[(Style, char)], colours: bool) -> String {
    let end = chars.iter().rposition(|(_, c)| *c != ' ').map_or(0, |n| n + 1);
    let (mut text, mut now) = (String::new(), Style::Plain);
    for (style, c) in &chars[..end] {
        if colours && *style != now {
            if now != Style::Plain {
                text.push_str("\x1b[0m");
            }
            if *style != Style::Plain {
                text.push_str(&format!("\x1b[{}m", style.code()));
            }
            now = *style;
        }
        text.push(*c);
    }
    if now != Style::Plain {
        text.push_str("\x1b[0m");
    }
    text
}

/// Without what would steer a terminal or turn the direction of the text around.
fn clean(text: &str) -> String {
    let steers = |c: &char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().filter(|c| !steers(c)).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Width of the labels of [`row`].
const LABEL: usize = 10;

/// The beginning of a line with a label.
pub fn row(label: &str) -> Line {
    Line { hang: LABEL + 4, ..Line::new().and(Style::Dim, format!("  {label:<LABEL$}  ")) }
}

/// Lines with aligned columns; the last column is free. Longer ones than the screen go on below their last column.
pub fn table(rows: &[Vec<(Style, String)>], indent: usize) -> Vec<Line> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |n: usize| rows.iter().filter_map(|r| r.get(n)).map(|(_, t)| clean(t).chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|n| width(n).unwrap_or(0)).collect();
    let hang = indent + widths.iter().take(columns.saturating_sub(1)).map(|w| w + 2).sum::<usize>();
    let line = |cells: &Vec<(Style, String)>| {
        let mut line = Line { hang, ..Line::of(" ".repeat(indent)) };
        for (n, (style, text)) in cells.iter().enumerate() {
            line = line.and(*style, text);
            if n + 1 < cells.len() {
                line = line.and(Style::Plain, " ".repeat(widths[n] + 2 - clean(text).chars().count()));
            }
        }
        line
    };
    rows.iter().map(line).collect()
}

/// How long ago `then` was, as kubectl writes ages. Clocks that disagree never make it negative.
pub fn age(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(then).as_secs().max(0);
    let (m, h, d) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        ..120 => format!("{seconds}s"),
        120..600 if seconds % 60 > 0 => format!("{m}m{}s", seconds % 60),
        120..10_800 => format!("{m}m"),
        10_800..28_800 if m % 60 > 0 => format!("{h}h{}m", m % 60),
        10_800..172_800 => format!("{h}h"),
        172_800..691_200 if h % 24 > 0 => format!("{d}d{}h", h % 24),
        _ => format!("{d}d"),
    }
}

/// A time of day in UTC, with the date where it is not today.
pub fn clock(at: Timestamp, now: Timestamp) -> String {
    let (at, today) = (at.to_string(), now.to_string());
    match (at.split_once('T'), today.split_once('T')) {
        (Some((date, time)), Some((same, _))) if date == same => format!("{} UTC", time.get(..8).unwrap_or(time)),
        (Some((date, time)), _) => format!("{date} {} UTC", time.get(..8).unwrap_or(time)),
        _ => at,
    }
}

/// A length of time: milliseconds below a minute.
pub fn took(length: Duration) -> String {
    let seconds = length.as_secs();
    match seconds {
        0..60 => format!("{:.3} s", length.as_secs_f64()),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        _ => format!("{}h{}m", seconds / 3600, seconds / 60 % 60),
    }
}

/// From `then` to `now`, never negative.
pub fn between(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

/// `1 order`, `3 orders`.
pub fn count(n: i64, what: &str) -> String {
    if n == 1 { format!("{n} {what}") } else { format!("{n} {what}s") }
}

/// A word for a shell, quoted where it must be.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@=,+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn ages_are_written_as_kubectl_does() {
        for (seconds, text) in [
            (-5, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (192, "3m12s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (11_000, "3h3m"),
            (30_000, "8h"),
            (180_000, "2d2h"),
            (700_000, "8d"),
        ] {
            assert_eq!(age(at(0), at(seconds)), text, "{seconds}");
        }
    }

    #[test]
    fn times_show_the_date_where_it_is_not_today() {
        assert_eq!(clock(at(3_661), at(80_000)), "01:01:01 UTC");
        assert_eq!(clock(at(3_661), at(90_000)), "1970-01-01 01:01:01 UTC");
        assert_eq!(took(Duration::from_millis(285)), "0.285 s");
        assert_eq!(took(Duration::from_secs(192)), "3m12s");
    }

    #[test]
    fn what_a_venue_answered_cannot_steer_the_terminal() {
        let line = Line::of("a\x1b]0;owned\x07b\r\nc\u{202e}d");
        assert_eq!(line.plain(), "a ]0;owned b  cd");
        assert!(!line.rows(false, Some(80))[0].contains('\x1b'));
    }

    #[test]
    fn long_lines_go_on_below_their_text() {
        let line = row("why").and(Style::Bad, "prices are stale since the feed broke");
        assert_eq!(
            line.rows(false, Some(30)),
            ["  why         prices are stale", "              since the feed", "              broke"]
        );
        assert_eq!(line.rows(false, None).len(), 1);
        assert!(line.rows(true, None)[0].contains("\x1b[1;31mprices"));
        for width in 0..60 {
            let text: String = line.rows(false, Some(width)).concat();
            let letters = |t: &str| t.chars().filter(|c| *c != ' ').collect::<String>();
            assert_eq!(letters(&text), letters(&line.plain()), "nothing is lost at {width} columns");
        }
    }

    #[test]
    fn columns_are_aligned() {
        let cell = |t: &str| (Style::Plain, t.to_owned());
        let lines = table(&[vec![cell("a"), cell("bb"), cell("c")], vec![cell("ddd"), cell("e"), cell("f")]], 2);
        let plain: Vec<_> = lines.iter().map(Line::plain).collect();
        assert_eq!(plain, ["  a    bb  c", "  ddd  e   f"]);
    }

    #[test]
    fn words_are_quoted_where_a_shell_needs_it() {
        assert_eq!(quoted("kind-demo"), "kind-demo");
        assert_eq!(quoted("it's me"), r"'it'\''s me'");
        assert_eq!(quoted(""), "''");
    }
}
