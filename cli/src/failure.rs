//! What went wrong: what was attempted on which object, and what to do.

use kube::{Error, core::Status};

/// A failure, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What was attempted, and what came of it.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
    /// Whether asking again may help: no answer, or one that says so.
    pub passing: bool,
}

impl Failure {
    /// A failure that is not the API server's.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, passing: false }
    }

    /// The same, with what to do.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// The API server did not answer in time.
    pub fn late(attempt: &Attempt<'_>, limit: std::time::Duration) -> Self {
        let message = format!("{attempt}: no answer within {} s", limit.as_secs());
        Self { message, hint: None, passing: true }
    }
}

/// What is asked of the API server.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// The verb, as in RBAC.
    pub verb: &'static str,
    /// The resource, as in RBAC.
    pub resource: &'a str,
    /// The kind.
    pub kind: &'a str,
    /// The object; empty for a list.
    pub name: &'a str,
    /// The namespace; empty for what has none.
    pub namespace: &'a str,
}

impl std::fmt::Display for Attempt<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.name, self.namespace) {
            ("", "") => write!(f, "{} {}", self.verb, self.resource),
            ("", namespace) => write!(f, "{} {} in namespace {namespace}", self.verb, self.resource),
            (name, namespace) => write!(f, "{} {} {namespace}/{name}", self.verb, self.kind),
        }
    }
}

/// What the answer means.
pub fn explain(error: &Error, attempt: &Attempt<'_>) -> Failure {
    let Error::Api(status) = error else {
        let hint = match error {
            Error::Auth(_) => "log in to the cluster as for kubectl",
            _ => "is the cluster reachable? try: kubectl version",
        };
        let passing = matches!(error, Error::Service(_) | Error::HyperError(_) | Error::ReadEvents(_));
        return Failure { message: format!("{attempt}: {}", causes(error)), hint: Some(hint.into()), passing };
    };
    let message = format!("{attempt}: {}", status.message);
    let hint = match status.code {
        401 => Some("the API server does not know you: log in to the cluster as for kubectl".into()),
        403 if status.message.contains("ValidatingAdmissionPolicy") => None,
        403 => Some(role(attempt)),
        404 if not_installed(status) => Some(
            "the kinds of Standfast are not installed in this cluster: is it the right one? (kubectl config current-context)"
                .into(),
        ),
        _ => None,
    };
    Failure { message, hint, passing: status.code == 429 || status.code >= 500 }
}

fn not_installed(status: &Status) -> bool {
    status.message.contains("could not find the requested resource") || status.message.contains("page not found")
}

/// An error with all that caused it.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// The role that allows it.
fn role(attempt: &Attempt<'_>) -> String {
    let role = match (attempt.verb, attempt.resource) {
        ("create" | "patch", "tradinghalts") => "standfast-responder",
        ("create" | "patch", "tradingresumes" | "approvals") => "standfast-risk",
        _ => "standfast-view",
    };
    format!(
        "the ClusterRole {role} allows it; somebody who may bind it runs: kubectl --namespace {} create rolebinding \
         {role} --clusterrole={role} --user=<you>",
        attempt.namespace
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREATE: Attempt<'_> =
        Attempt { verb: "create", resource: "tradinghalts", kind: "TradingHalt", name: "h", namespace: "fx" };

    fn api(code: u16, message: &str) -> Error {
        Error::Api(Box::new(Status { code, message: message.into(), ..Status::default() }))
    }

    #[test]
    fn a_failure_names_the_attempt_and_what_to_do() {
        for (code, message, hint, passing) in [
            (403, "tradinghalts.standfast.dev is forbidden: User \"bob\" cannot create", "standfast-responder", false),
            (403, "ValidatingAdmissionPolicy 'x' denied request", "", false),
            (401, "Unauthorized", "log in", false),
            (404, "404 page not found", "not installed", false),
            (404, "tradinghalts \"h\" not found", "", false),
            (422, "spec.reason: too long", "", false),
            (429, "too many requests", "", true),
            (500, "etcd is gone", "", true),
        ] {
            let failure = explain(&api(code, message), &CREATE);
            assert_eq!(failure.message, format!("create TradingHalt fx/h: {message}"));
            assert_eq!(failure.passing, passing, "{message}");
            match (hint, &failure.hint) {
                ("", told) => assert_eq!(told, &None, "{message}"),
                (hint, told) => assert!(told.as_ref().is_some_and(|t| t.contains(hint)), "{told:?}"),
            }
        }
    }

    #[test]
    fn each_right_has_its_role() {
        for (verb, resource, expected) in [
            ("create", "tradingresumes", "--clusterrole=standfast-risk"),
            ("create", "approvals", "--clusterrole=standfast-risk"),
            ("list", "tradinghalts", "--clusterrole=standfast-view"),
        ] {
            let told = role(&Attempt { verb, resource, ..CREATE });
            assert!(told.contains(expected) && told.contains("--namespace fx"), "{told}");
        }
    }
}
