//! Values from Secrets: read live, by name, and only for the hosts that the Secret's owner allows.

use std::{fmt, time::Duration};

use futures::future::join_all;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, core::ObjectMeta};
use standfast_crds::v1alpha1::SecretKeyRef;
use tokio::time::timeout;
use url::{Host, Url};

use crate::outbound::CallError;

/// The label that a Secret must carry, with the value `true`.
pub const USE_LABEL: &str = "standfast.dev/use";
/// The annotation with the hosts that its values may be sent to.
pub const HOSTS_ANNOTATION: &str = "standfast.dev/allowed-hosts";
/// The annotation, with the value `true`, that lets Jobs have them.
pub const JOBS_ANNOTATION: &str = "standfast.dev/allowed-in-jobs";
/// The longest that reading a Secret may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// A value that does not print.
#[derive(Clone, PartialEq, Eq)]
pub struct Sensitive(String);

impl Sensitive {
    #[cfg(test)]
    pub(crate) fn of(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The value itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Sensitive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sensitive")
    }
}

/// A Secret that was read. Does not print.
pub struct Read {
    namespace: String,
    secret: Secret,
}

impl fmt::Debug for Read {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Read").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

/// Reads one Secret.
pub async fn read(client: &Client, namespace: &str, name: &str) -> Result<Read, CallError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = answer(namespace, name, timeout(DEADLINE, api.get_opt(name)).await)?;
    check_use(namespace, &secret.metadata)?;
    Ok(Read { namespace: namespace.to_owned(), secret })
}

/// Whether a Secret may be given to Jobs, without reading its values. What is run there may send it anywhere, so its owner
/// has to allow that, too.
pub async fn check_for_jobs(client: &Client, namespace: &str, name: &str) -> Result<(), CallError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let found = answer(namespace, name, timeout(DEADLINE, api.get_metadata_opt(name)).await)?;
    check_use(namespace, &found.metadata)?;
    match found.metadata.annotations.as_ref().and_then(|annotations| annotations.get(JOBS_ANNOTATION)) {
        Some(value) if value == "true" => Ok(()),
        _ => Err(CallError::Refused(format!(
            "Secret {namespace}/{name} may not be given to Jobs: if it may, run: kubectl -n {namespace} annotate secret \
             {name} {JOBS_ANNOTATION}=true"
        ))),
    }
}

/// Whether a Secret has a key.
pub async fn check_key(client: &Client, namespace: &str, reference: &SecretKeyRef) -> Result<(), CallError> {
    let (name, key) = (&reference.name, &reference.key);
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let found = answer(namespace, name, timeout(DEADLINE, api.get_opt(name)).await)?;
    match found.data.is_some_and(|data| data.contains_key(key)) {
        true => Ok(()),
        false => Err(CallError::Refused(format!(
            "Secret {namespace}/{name} has no key {key}: add it, or correct the name of the key"
        ))),
    }
}

/// Reads several Secrets at once, each once.
pub async fn read_all(
    client: &Client,
    namespace: &str,
    mut names: Vec<String>,
) -> std::collections::BTreeMap<String, Result<Read, CallError>> {
    names.sort();
    names.dedup();
    let reads = join_all(names.iter().map(|name| read(client, namespace, name))).await;
    names.into_iter().zip(reads).collect()
}

fn answer<T, E>(
    namespace: &str,
    name: &str,
    result: Result<Result<Option<T>, kube::Error>, E>,
) -> Result<T, CallError> {
    let object = format!("Secret {namespace}/{name}");
    match result {
        Ok(Ok(Some(found))) => Ok(found),
        Ok(Ok(None)) => Err(CallError::Refused(format!("{object} does not exist: create it, or correct its name"))),
        Ok(Err(kube::Error::Api(status))) if status.code == 403 => Err(CallError::Refused(format!(
            "{object} may not be read by the operator: check its role in the namespace"
        ))),
        // The text of other errors may hold parts of an answer.
        Ok(Err(kube::Error::Api(status))) => {
            Err(CallError::NotSent(format!("{object} was not read: the API server answered {}", status.code)))
        }
        Ok(Err(kube::Error::SerdeError(_))) => Err(CallError::NotSent(format!("{object} was not read: odd answer"))),
        Ok(Err(error)) => Err(CallError::NotSent(format!("{object} was not read: {error}"))),
        Err(_) => Err(CallError::NotSent(format!("{object} was not read within {DEADLINE:?}"))),
    }
}

fn check_use(namespace: &str, metadata: &ObjectMeta) -> Result<(), CallError> {
    let name = metadata.name.as_deref().unwrap_or_default();
    match metadata.labels.as_ref().and_then(|labels| labels.get(USE_LABEL)) {
        Some(value) if value == "true" => Ok(()),
        _ => Err(CallError::Refused(format!(
            "Secret {namespace}/{name} is not meant for Standfast: if it is, run: kubectl -n {namespace} label secret \
             {name} {USE_LABEL}=true"
        ))),
    }
}

impl Read {
    /// The value of `key`, for sending to `host` and `port`. A line break at its end is left out.
    pub fn value(&self, key: &str, host: &str, port: u16) -> Result<Sensitive, CallError> {
        self.check_host(host, port)?;
        self.text(key)
    }

    fn name(&self) -> &str {
        self.secret.metadata.name.as_deref().unwrap_or_default()
    }

    fn text(&self, key: &str) -> Result<Sensitive, CallError> {
        let object = format!("Secret {}/{}", self.namespace, self.name());
        let bytes = self
            .secret
            .data
            .as_ref()
            .and_then(|data| data.get(key))
            .ok_or_else(|| CallError::Refused(format!("{object} has no key {key}: add it, or correct the key")))?;
        let text = str::from_utf8(&bytes.0)
            .map_err(|_| CallError::Refused(format!("the value of {key} in {object} is not text")))?;
        Ok(Sensitive(text.trim_end_matches(['\r', '\n']).to_owned()))
    }

    fn check_host(&self, host: &str, port: u16) -> Result<(), CallError> {
        let annotations = self.secret.metadata.annotations.as_ref();
        let allowed = annotations.and_then(|annotations| annotations.get(HOSTS_ANNOTATION)).map_or("", String::as_str);
        if allowed.split(',').any(|pattern| host_matches(pattern.trim(), host, port)) {
            return Ok(());
        }
        let (namespace, name) = (&self.namespace, self.name());
        let mut wanted: Vec<&str> = allowed.split(',').map(str::trim).filter(|pattern| !pattern.is_empty()).collect();
        wanted.push(host);
        Err(CallError::Refused(format!(
            "Secret {namespace}/{name} may not be sent to {host}:{port}: to allow it, run: kubectl -n {namespace} \
             annotate secret {name} --overwrite {HOSTS_ANNOTATION}={}",
            wanted.join(",")
        )))
    }
}

/// Whether `pattern`, `host` or `host:port` or `*.domain`, covers a host.
fn host_matches(pattern: &str, host: &str, port: u16) -> bool {
    let (name, wanted_port) = match pattern.rsplit_once(':') {
        Some((name, digits)) if !name.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
            match digits.parse::<u16>() {
                Ok(wanted) if !name.contains(':') || name.ends_with(']') => (name, Some(wanted)),
                _ => return false,
            }
        }
        _ => (pattern, None),
    };
    if wanted_port.is_some_and(|wanted| wanted != port) {
        return false;
    }
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    match name.strip_prefix("*.") {
        Some(domain) => canonical(domain).is_some_and(|domain| {
            host.strip_suffix(domain.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
        }),
        None => canonical(name).is_some_and(|name| name == host),
    }
}

/// A host as URLs have it: in lower case, in ASCII, without a dot at its end.
fn canonical(host: &str) -> Option<String> {
    if host.is_empty() || host.contains('*') {
        return None;
    }
    let host = Host::parse(host).ok()?.to_string();
    Some(host.trim_end_matches('.').to_ascii_lowercase())
}

/// A database's address, from a Secret.
#[derive(Clone, Debug)]
pub struct DatabaseUrl {
    /// The whole URL, with its password.
    pub url: Sensitive,
    /// The host in it.
    pub host: String,
    /// The port in it, 5432 if none is given.
    pub port: u16,
}

/// Reads a connection URL. Its host must be one that the Secret's annotation names; nothing in it may lead elsewhere.
pub async fn database_url(
    client: &Client,
    namespace: &str,
    reference: &SecretKeyRef,
) -> Result<DatabaseUrl, CallError> {
    let read = read(client, namespace, &reference.name).await?;
    let value = read.text(&reference.key)?;
    let (host, port) = database_host(value.expose()).map_err(|why| {
        CallError::Refused(format!(
            "the value of {} in Secret {namespace}/{} is not a connection URL that can be used: {why}",
            reference.key, reference.name
        ))
    })?;
    read.check_host(&host, port)?;
    Ok(DatabaseUrl { url: value, host, port })
}

fn database_host(text: &str) -> Result<(String, u16), &'static str> {
    const SHAPE: &str = "write postgresql://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=require";
    let url = Url::parse(text).map_err(|_| SHAPE)?;
    if !matches!(url.scheme(), "postgresql" | "postgres") {
        return Err(SHAPE);
    }
    if url.authority().matches('@').count() > 1 || text.matches('@').count() > 1 {
        return Err("write @ in the user, the password and the database as %40");
    }
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or(SHAPE)?;
    if host.contains([',', '%', '/']) {
        return Err("it must name one host");
    }
    // These would override the host that was checked, or read files.
    const ALLOWED: [&str; 4] = ["sslmode", "application_name", "connect_timeout", "options"];
    if url.query_pairs().any(|(name, _)| !ALLOWED.contains(&name.as_ref())) {
        return Err("of parameters, only sslmode, application_name, connect_timeout and options may stand in it");
    }
    Ok((host.to_ascii_lowercase(), url.port().unwrap_or(5432)))
}

#[cfg(test)]
#[path = "secrets_tests.rs"]
mod tests;
