//! Faults on demand: what the venue does to requests instead of, or besides, answering them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A fault, which requests it meets, and how often.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Only this HTTP method.
    #[serde(default)]
    pub method: Option<String>,
    /// Only paths that begin so; empty means all.
    #[serde(default)]
    pub path: String,
    /// Only this account's requests.
    #[serde(default)]
    pub account: Option<String>,
    /// How many matching requests pass unharmed first.
    #[serde(default)]
    pub skip: u32,
    /// How many matching requests are hit; without it, all of them.
    #[serde(default)]
    pub times: Option<u32>,
    /// Before the request takes effect, or after.
    #[serde(default)]
    pub when: When,
    /// What happens.
    pub action: Action,
}

/// Whether the venue acts on the request before the fault strikes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// The request has no effect (a delay excepted: the effect comes after it).
    #[default]
    Before,
    /// The request takes effect, only its reply is lost, late or wrong.
    After,
}

/// What a fault does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// Waits.
    Delay {
        /// For so long.
        ms: u64,
    },
    /// Answers so.
    Reply {
        /// HTTP status.
        status: u16,
        /// Body, as it is.
        #[serde(default)]
        body: String,
        /// Further headers, such as `Retry-After`.
        #[serde(default)]
        headers: Vec<(String, String)>,
    },
    /// Answers 200 with a body that is no JSON.
    Garbage,
    /// Never answers.
    Hang,
    /// Cuts the connection.
    Drop,
    /// In replies about many orders or positions, these symbols fail.
    Partial {
        /// The symbols.
        symbols: Vec<String>,
    },
}

impl Fault {
    /// A fault for every request with this method and path prefix, before it takes effect.
    pub fn on(method: &str, path: &str, action: Action) -> Self {
        let method = Some(method.to_ascii_uppercase());
        Fault { method, path: path.to_owned(), account: None, skip: 0, times: None, when: When::Before, action }
    }

    /// A fault for every request with this path prefix, whatever its method.
    pub fn any(path: &str, action: Action) -> Self {
        Fault { method: None, ..Self::on("", path, action) }
    }

    /// Only so many times.
    #[must_use]
    pub fn times(self, times: u32) -> Self {
        Fault { times: Some(times), ..self }
    }

    /// Only from the n-th matching request on, counted from zero.
    #[must_use]
    pub fn skip(self, skip: u32) -> Self {
        Fault { skip, ..self }
    }

    /// After the request took effect.
    #[must_use]
    pub fn after(self) -> Self {
        Fault { when: When::After, ..self }
    }

    /// Only for one account.
    #[must_use]
    pub fn account(self, key: &str) -> Self {
        Fault { account: Some(key.to_owned()), ..self }
    }
}

impl Action {
    /// Waits for a while.
    pub fn delay(duration: Duration) -> Self {
        Action::Delay { ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX) }
    }

    /// Answers with a status and an error body of Alpaca's form.
    pub fn status(status: u16) -> Self {
        let body = format!(r#"{{"code":{status}10000,"message":"fault on demand"}}"#);
        Action::Reply { status, body, headers: Vec::new() }
    }

    /// These symbols fail in replies about many.
    pub fn partial(symbols: &[&str]) -> Self {
        Action::Partial { symbols: symbols.iter().map(|s| (*s).to_owned()).collect() }
    }
}

/// The faults in force, each with its number.
#[derive(Debug, Default)]
pub struct Faults {
    next: u64,
    list: Vec<(u64, Fault)>,
}

impl Faults {
    /// Adds one and returns its number.
    pub fn add(&mut self, fault: Fault) -> u64 {
        self.next += 1;
        self.list.push((self.next, fault));
        self.next
    }

    /// Takes one away; says whether it was there.
    pub fn remove(&mut self, id: u64) -> bool {
        let before = self.list.len();
        self.list.retain(|(n, _)| *n != id);
        self.list.len() < before
    }

    /// Takes all away.
    pub fn clear(&mut self) {
        self.list.clear();
    }

    /// Those in force.
    pub fn list(&self) -> &[(u64, Fault)] {
        &self.list
    }

    /// The faults that hit this request, in the order they were added, counted as used.
    pub fn hit(&mut self, method: &str, path: &str, account: Option<&str>) -> Vec<(When, Action)> {
        let mut hits = Vec::new();
        for (_, fault) in &mut self.list {
            let matches = fault.method.as_deref().is_none_or(|m| m.eq_ignore_ascii_case(method))
                && path.starts_with(&fault.path)
                && fault.account.as_deref().is_none_or(|a| Some(a) == account);
            if !matches || fault.times == Some(0) {
                continue;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
                continue;
            }
            fault.times = fault.times.map(|n| n - 1);
            hits.push((fault.when, fault.action.clone()));
        }
        self.list.retain(|(_, fault)| fault.times != Some(0));
        hits
    }
}
