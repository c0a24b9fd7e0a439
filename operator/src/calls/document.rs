//! Answers as JSON, and values in them by JSONPath.
//!
//! A number keeps the text it was written with: `0.00000001` must reach the venue again as it came, and not as `1e-8`.

use serde_json::Value;
use serde_json_path::JsonPath;

/// Objects in one answer at most, and values: in memory they are many times as large as on the wire.
const OBJECTS: usize = 50_000;
const VALUES: usize = 400_000;

/// A JSON document that remembers how its numbers were written.
#[derive(Clone, Debug)]
pub struct Document {
    plain: Value,
    /// The same, with numbers as strings of their text.
    written: Value,
}

/// A part of a document.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    plain: &'a Value,
    written: &'a Value,
}

/// A value that is neither an object nor an array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scalar {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number, as it was written.
    Number(String),
    /// A string.
    Text(String),
}

impl Scalar {
    /// The scalar in a JSON value; `None` for an object or an array.
    pub fn of(value: &Value) -> Option<Self> {
        Document::of(value.clone()).root().scalar()
    }

    /// What it says, `None` for null.
    pub fn into_text(self) -> Option<String> {
        match self {
            Self::Null => None,
            Self::Bool(value) => Some(value.to_string()),
            Self::Number(text) | Self::Text(text) => Some(text),
        }
    }
}

impl Document {
    /// Reads an answer. The error never repeats what stands in it.
    pub fn parse(body: &[u8]) -> Result<Self, String> {
        let (quoted, objects, values) = quote_numbers(body);
        if objects > OBJECTS || values > VALUES {
            return Err(format!("the answer holds {objects} objects and {values} values: ask for smaller pages"));
        }
        let not_json = |e| format!("the answer is not JSON: {e}");
        let plain = serde_json::from_slice(body).map_err(not_json)?;
        let written = serde_json::from_slice(&quoted).map_err(not_json)?;
        Ok(Self { plain, written })
    }

    /// A value that was read elsewhere.
    pub fn of(value: Value) -> Self {
        let written = number_texts(&value);
        Self { plain: value, written }
    }

    /// The whole of it.
    pub fn root(&self) -> Node<'_> {
        Node { plain: &self.plain, written: &self.written }
    }
}

impl<'a> Node<'a> {
    /// The value; its numbers may be rounded.
    pub fn value(self) -> &'a Value {
        self.plain
    }

    /// The scalar it is; `None` for an object or an array.
    pub fn scalar(self) -> Option<Scalar> {
        match (self.plain, self.written) {
            (Value::Null, _) => Some(Scalar::Null),
            (Value::Bool(value), _) => Some(Scalar::Bool(*value)),
            (Value::Number(_), Value::String(text)) => Some(Scalar::Number(text.clone())),
            (Value::String(text), _) => Some(Scalar::Text(text.clone())),
            _ => None,
        }
    }

    /// The parts that a path selects.
    pub fn select(self, path: &Path) -> Vec<Self> {
        path.path
            .query_located(self.plain)
            .iter()
            .filter_map(|found| {
                let written = self.written.pointer(&found.location().to_json_pointer())?;
                Some(Self { plain: found.node(), written })
            })
            .collect()
    }

    /// The scalar that a path selects: `None` if there is nothing or null.
    pub fn one(self, path: &Path) -> Result<Option<Scalar>, String> {
        match self.select(path).as_slice() {
            [] => Ok(None),
            [node] => match node.scalar() {
                Some(Scalar::Null) => Ok(None),
                Some(scalar) => Ok(Some(scalar)),
                None => Err(format!("{path} selects an object or a list: it must select one value")),
            },
            more => Err(format!("{path} selects {} values: it must select one", more.len())),
        }
    }
}

/// A JSONPath (RFC 9535) of a bounded cost.
#[derive(Clone, Debug)]
pub struct Path {
    text: String,
    path: JsonPath,
}

impl std::fmt::Display for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl Path {
    /// Reads a path.
    pub fn parse(text: &str) -> Result<Self, String> {
        affordable(text)?;
        let path = JsonPath::parse(text).map_err(|e| format!("{text:?} is not a JSONPath (RFC 9535): {e}"))?;
        Ok(Self { text: text.to_owned(), path })
    }
}

/// A path to the items of a list, of which it must be known that the list is there: nothing found in an answer that has
/// no such list is not the same as an empty list.
#[derive(Clone, Debug)]
pub struct ListPath {
    items: Path,
    /// From the outside in: each list, the nodes that must have exactly one such list each, and whether an object will
    /// do.
    lists: Vec<(Path, Path, bool)>,
}

impl ListPath {
    /// Reads a path whose last part is `[*]`, a filter, or `.*`. The last stands for the members of an object, too:
    /// some venues list by name.
    pub fn parse(text: &str) -> Result<Self, String> {
        let items = Path::parse(text)?;
        let wrong =
            || format!("{text} does not name the items of a list: end it with [*] or [?…], and do not use .. in it");
        let segments = segments(text).ok_or_else(wrong)?;
        if segments.iter().any(|segment| segment.descends) || segments.last().is_none_or(|last| last.singular) {
            return Err(wrong());
        }
        let mut lists = Vec::new();
        let mut owner = "$";
        for segment in segments.iter().filter(|segment| !segment.singular) {
            let list = text[..segment.start].trim_end();
            // Of a whole answer it is not known that an object is a list: it may be an error.
            let named = &text[segment.start..segment.end] == ".*" && list != "$";
            lists.push((Path::parse(owner)?, Path::parse(list)?, named));
            owner = &text[..segment.end];
        }
        Ok(Self { items, lists })
    }

    /// The items. The error says which list is not there.
    pub fn select<'a>(&self, node: Node<'a>) -> Result<Vec<Node<'a>>, String> {
        for (owners, list, named) in &self.lists {
            let (owners, lists) = (node.select(owners), node.select(list));
            let listed = |node: &Node<'_>| node.plain.is_array() || (*named && node.plain.is_object());
            if lists.len() != owners.len() || !lists.iter().all(listed) {
                return Err(format!("the answer has no list at {list}"));
            }
        }
        let items = node.select(&self.items);
        if items.iter().any(|item| item.scalar().is_some()) {
            return Err(format!("{} selects values that are neither objects nor lists", self.items));
        }
        Ok(items)
    }
}

/// A part of a path.
struct Segment {
    start: usize,
    end: usize,
    /// Selects at most one node below each: `.name`, `['name']`, `[0]`.
    singular: bool,
    descends: bool,
}

/// Takes a valid path apart.
fn segments(text: &str) -> Option<Vec<Segment>> {
    if !text.starts_with('$') {
        return None;
    }
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = 1;
    while at < bytes.len() {
        if bytes[at].is_ascii_whitespace() {
            at += 1;
            continue;
        }
        let start = at;
        let descends = text[at..].starts_with("..");
        if descends {
            at += 2;
        } else if bytes[at] == b'.' {
            at += 1;
        }
        let singular = if bytes.get(at) == Some(&b'[') {
            let end = closing(bytes, at)?;
            let inner = text[at + 1..end].trim();
            at = end + 1;
            single(inner)
        } else {
            let length = text[at..].find(|c: char| c == '.' || c == '[' || c.is_ascii_whitespace());
            let name = &text[at..length.map_or(text.len(), |length| at + length)];
            at += name.len();
            if name.is_empty() {
                return None;
            }
            name != "*"
        };
        found.push(Segment { start, end: at, singular, descends });
    }
    Some(found)
}

/// Whether a selector in brackets is one name or one index.
fn single(selector: &str) -> bool {
    let bytes = selector.as_bytes();
    match bytes.first() {
        Some(b'\'' | b'"') => closing_quote(bytes, 0) == Some(bytes.len() - 1),
        _ => selector.parse::<i64>().is_ok(),
    }
}

/// Where the bracket that opens at `open` closes.
fn closing(bytes: &[u8], open: usize) -> Option<usize> {
    let mut depth = 0usize;
    let mut at = open;
    while at < bytes.len() {
        match bytes[at] {
            b'\'' | b'"' => at = closing_quote(bytes, at)?,
            b'[' => depth += 1,
            b']' => {
                depth -= 1;
                if depth == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
        at += 1;
    }
    None
}

/// Where the quote that opens at `open` closes.
fn closing_quote(bytes: &[u8], open: usize) -> Option<usize> {
    let mut at = open + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 1,
            byte if byte == bytes[open] => return Some(at),
            _ => {}
        }
        at += 1;
    }
    None
}

/// The work a path may make grows no faster than its document: a namespace's owner writes the path and chooses who
/// answers, and the operator serves others too.
fn affordable(text: &str) -> Result<(), String> {
    let bytes = text.as_bytes();
    let (mut at, mut roots, mut descents, mut depth, mut deepest, mut patterns) = (0, 0, 0, 0usize, 0, false);
    while at < bytes.len() {
        match bytes[at] {
            b'\'' | b'"' => at = closing_quote(bytes, at).unwrap_or(bytes.len()),
            b'$' => roots += 1,
            b'.' if bytes.get(at + 1) == Some(&b'.') => {
                descents += 1;
                at += 1;
            }
            b'[' | b'(' => {
                patterns |= text[..at].ends_with("match") || text[..at].ends_with("search");
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    if bytes.len() > 1024 || roots > 1 || descents > 1 || deepest > 6 || patterns {
        return Err(format!(
            "the JSONPath {text:?} costs too much: use $ and .. at most once each, at most 6 levels of brackets, and \
             neither match() nor search()"
        ));
    }
    Ok(())
}

/// The text of valid JSON with every number in quotes, and how many objects and values it holds.
fn quote_numbers(body: &[u8]) -> (Vec<u8>, usize, usize) {
    let mut out = Vec::with_capacity(body.len() + body.len() / 4);
    let (mut objects, mut values) = (0, 1);
    let mut at = 0;
    while at < body.len() {
        let start = at;
        match body[at] {
            b'"' => {
                at = closing_quote(body, at).map_or(body.len(), |end| end + 1);
                out.extend_from_slice(&body[start..at]);
            }
            b'-' | b'0'..=b'9' => {
                while at < body.len() && matches!(body[at], b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9') {
                    at += 1;
                }
                out.push(b'"');
                out.extend_from_slice(&body[start..at]);
                out.push(b'"');
            }
            byte => {
                objects += usize::from(byte == b'{');
                values += usize::from(matches!(byte, b',' | b'[' | b'{'));
                out.push(byte);
                at += 1;
            }
        }
    }
    (out, objects, values)
}

fn number_texts(value: &Value) -> Value {
    match value {
        Value::Number(number) => Value::String(match number.as_f64() {
            // Never with an exponent.
            Some(float) if number.is_f64() => float.to_string(),
            _ => number.to_string(),
        }),
        Value::Array(items) => items.iter().map(number_texts).collect(),
        Value::Object(members) => members.iter().map(|(name, value)| (name.clone(), number_texts(value))).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
#[path = "document_tests.rs"]
mod tests;
