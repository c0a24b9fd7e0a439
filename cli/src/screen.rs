//! Printing: lines once, or a picture that is drawn again in its place. Nothing here panics when nobody reads any more.

use std::{
    env,
    io::{self, IsTerminal, Write},
};

use serde::Serialize;

use crate::{
    args::Format,
    failure::Failure,
    text::{Line, Style},
};

/// Where something is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Out,
    Err,
}

impl Stream {
    fn is_terminal(self) -> bool {
        let terminal = match self {
            Self::Out => io::stdout().is_terminal(),
            Self::Err => io::stderr().is_terminal(),
        };
        terminal && env::var_os("TERM").is_none_or(|t| t != "dumb")
    }

    fn write(self, text: &str) {
        // Nobody to tell if this fails: the reader went away.
        let _ = match self {
            Self::Out => io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()),
            Self::Err => io::stderr().write_all(text.as_bytes()).and_then(|()| io::stderr().flush()),
        };
    }

    /// Prints lines.
    pub fn print(self, lines: &[Line]) {
        let terminal = self.is_terminal();
        let width = if terminal { size().map(|(w, _)| w) } else { None };
        self.write(&text(lines, colours(terminal), width));
    }
}

/// Prints a failure.
pub fn fail(failure: &Failure) {
    let mut lines = vec![Line::new().and(Style::Bad, "error: ").and(Style::Plain, &failure.message)];
    lines.extend(failure.hint.as_ref().map(|hint| Line::of(format!("  {hint}"))));
    Stream::Err.print(&lines);
}

/// Prints a result for programs.
pub fn result<T: Serialize>(value: &T, format: Format) -> Result<(), Failure> {
    let failed = |e: String| Failure::new(format!("writing the result: {e}"));
    let text = match format {
        Format::Json => serde_json::to_string_pretty(value).map_err(|e| failed(e.to_string()))? + "\n",
        // By way of JSON, so that both say the same.
        Format::Yaml => {
            let value = serde_json::to_value(value).map_err(|e| failed(e.to_string()))?;
            serde_saphyr::to_string(&value).map_err(|e| failed(e.to_string()))?
        }
    };
    Stream::Out.write(&text);
    Ok(())
}

/// Prints one line for programs.
pub fn line(text: &str) {
    Stream::Out.write(&format!("{text}\n"));
}

fn colours(terminal: bool) -> bool {
    terminal && env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

fn size() -> Option<(usize, usize)> {
    // Of the terminal, whatever of the program is connected to it.
    terminal_size::terminal_size().map(|(w, h)| (usize::from(w.0), usize::from(h.0)))
}

fn text(lines: &[Line], colours: bool, width: Option<usize>) -> String {
    lines.iter().flat_map(|l| l.rows(colours, width)).map(|row| row + "\n").collect()
}

/// A picture that changes: drawn in its place on a terminal; elsewhere each new line of `news` is printed.
pub struct Live {
    stream: Stream,
    terminal: bool,
    rows: Vec<String>,
    news: Vec<String>,
}

impl Live {
    /// Nothing is drawn yet.
    pub fn new(stream: Stream) -> Self {
        Self { stream, terminal: stream.is_terminal(), rows: vec![], news: vec![] }
    }

    /// Shows how things stand. `news` is the same in short, one line for each thing.
    pub fn show(&mut self, picture: &[Line], news: &[String]) {
        if !self.terminal {
            let fresh: String =
                news.iter().filter(|n| !self.news.contains(n)).map(|n| Line::of(n).plain() + "\n").collect();
            self.news = news.to_vec();
            if !fresh.is_empty() {
                self.stream.write(&fresh);
            }
            return;
        }
        let (width, height) = size().unwrap_or((80, 24));
        let mut rows: Vec<String> = picture.iter().flat_map(|l| l.rows(colours(true), Some(width))).collect();
        // What has left the screen cannot be drawn again.
        if rows.len() >= height {
            rows.truncate(height.saturating_sub(2));
            rows.push("… (the terminal is too small for the rest)".chars().take(width).collect());
        }
        if rows != self.rows {
            let steps = redraw(&self.rows, &rows);
            self.stream.write(&steps);
            self.rows = rows;
        }
    }

    /// Prints lines that stay, and goes on below them.
    pub fn leave(&mut self, lines: &[Line]) {
        self.rows.clear();
        self.stream.print(lines);
    }
}

/// Draws `new` over `old`. Each row is cleared behind its end, so that nothing flickers.
fn redraw(old: &[String], new: &[String]) -> String {
    let mut steps = String::new();
    if !old.is_empty() {
        steps.push_str(&format!("\x1b[{}A\r", old.len()));
    }
    for row in new {
        steps.push_str(row);
        steps.push_str("\x1b[K\n");
    }
    steps.push_str("\x1b[J");
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_drawn_over_the_one_before() {
        let of = |rows: &[&str]| rows.iter().map(|r| (*r).to_owned()).collect::<Vec<_>>();
        assert_eq!(redraw(&[], &of(&["a", "b"])), "a\x1b[K\nb\x1b[K\n\x1b[J");
        assert_eq!(redraw(&of(&["a", "b"]), &of(&["c"])), "\x1b[2A\rc\x1b[K\n\x1b[J");
    }

    #[test]
    fn results_are_the_same_in_json_and_yaml() {
        let value = serde_json::json!({"name": "demo", "since": null, "halts": [1]});
        let yaml = serde_saphyr::to_string(&value).unwrap();
        let back: serde_json::Value = serde_saphyr::from_str(&yaml).unwrap();
        assert_eq!(back, value);
    }
}
