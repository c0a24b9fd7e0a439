//! Arguments of the operator, each of which may also come from the environment.

use std::{collections::BTreeSet, ffi::OsString, fmt, net::SocketAddr, str::FromStr};

use clap::{CommandFactory, Parser, ValueEnum, builder::NonEmptyStringValueParser, error::ErrorKind};
use ipnet::IpNet;

use crate::kinds::Kinds;

/// Halts trading systems in an emergency, proves it, and resumes them.
#[derive(Clone, Debug, Parser)]
#[command(name = "standfast", version)]
pub struct Args {
    /// Namespaces to watch, separated by commas. Empty: the whole cluster
    #[arg(long, env = "STANDFAST_WATCH_NAMESPACES", default_value = "", hide_default_value = true)]
    pub watch_namespaces: Scope,

    /// Namespace that the operator runs in
    #[arg(long, env = "STANDFAST_NAMESPACE", value_parser = dns_label)]
    pub namespace: String,

    /// Name of the operator's pod, shown in Events
    #[arg(long, env = "STANDFAST_POD_NAME", value_parser = dns_subdomain)]
    pub pod_name: String,

    /// Uid of the operator's pod: who it is in the leader election
    #[arg(long, env = "STANDFAST_POD_UID", value_parser = NonEmptyStringValueParser::new())]
    pub pod_uid: String,

    /// Name of the Lease of the leader election
    #[arg(long, env = "STANDFAST_LEASE_NAME", default_value = "standfast", value_parser = dns_subdomain)]
    pub lease_name: String,

    /// Address for health, readiness and metrics
    #[arg(long, env = "STANDFAST_LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,

    /// How log lines are written
    #[arg(long, env = "STANDFAST_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,

    /// What is logged: a level, or directives such as `info,kube=debug`
    #[arg(long, env = "STANDFAST_LOG", default_value = "info")]
    pub log: String,

    /// Networks that calls may reach although they are refused by default, separated by commas
    #[arg(long, env = "STANDFAST_ALLOW_CIDRS", default_value = "", hide_default_value = true)]
    pub allow_cidrs: Cidrs,

    /// Networks that calls may not reach, separated by commas
    #[arg(long, env = "STANDFAST_DENY_CIDRS", default_value = "", hide_default_value = true)]
    pub deny_cidrs: Cidrs,

    /// Further kinds that can be halted, each as group/version/Kind/plural, separated by commas; with
    /// :.status.path where their pods are not selected by .status.selector
    #[arg(long, env = "STANDFAST_SCALABLE_KINDS", default_value = "", hide_default_value = true)]
    pub scalable_kinds: Kinds,

    /// DNS domain of the cluster's services
    #[arg(long, env = "STANDFAST_CLUSTER_DOMAIN", default_value = "cluster.local", value_parser = dns_subdomain)]
    pub cluster_domain: String,

    /// Halts that are worked on at a time
    #[arg(long, env = "STANDFAST_HALT_CONCURRENCY", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub halt_concurrency: u16,

    /// Objects of each other kind that are worked on at a time
    #[arg(long, env = "STANDFAST_CONCURRENCY", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub concurrency: u16,

    /// Writes to workloads of a halt that are under way at a time
    #[arg(long, env = "STANDFAST_WRITE_CONCURRENCY", default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub write_concurrency: u16,

    /// Calls to venues and bots that are under way at a time, for everything but halts
    #[arg(long, env = "STANDFAST_CALL_CONCURRENCY", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub call_concurrency: u16,
}

impl Args {
    /// Reads the command line and the environment, or says what is wrong with them.
    pub fn read<I, T>(command_line: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator<Item = T>,
        T: Into<OsString> + Clone,
    {
        let args = Self::try_parse_from(command_line)?;
        if let Some(both) = args.allow_cidrs.0.iter().find(|net| args.deny_cidrs.0.contains(net)) {
            return Err(Self::command().error(
                ErrorKind::ArgumentConflict,
                format!("{both} is both in --allow-cidrs and in --deny-cidrs: remove it from one of them"),
            ));
        }
        Ok(args)
    }
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// What is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The whole cluster.
    Cluster,
    /// These namespaces, sorted, each once, at least one.
    Namespaces(Vec<String>),
}

impl Scope {
    /// Whether `namespace` is watched.
    pub fn contains(&self, namespace: &str) -> bool {
        match self {
            Self::Cluster => true,
            Self::Namespaces(names) => names.iter().any(|name| name == namespace),
        }
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names: BTreeSet<String> = parts(text)?.map(dns_label).collect::<Result<_, _>>()?;
        Ok(if names.is_empty() { Self::Cluster } else { Self::Namespaces(names.into_iter().collect()) })
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster => f.write_str("the whole cluster"),
            Self::Namespaces(names) => f.write_str(&names.join(",")),
        }
    }
}

/// Networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cidrs(pub Vec<IpNet>);

impl FromStr for Cidrs {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parts(text)?.map(network).collect::<Result<_, _>>().map(Self)
    }
}

/// The parts of a list with commas; none when it is empty.
pub fn parts(text: &str) -> Result<impl Iterator<Item = &str>, String> {
    let text = text.trim();
    let parts = text.split(',').map(str::trim);
    if !text.is_empty() && parts.clone().any(str::is_empty) {
        return Err("an item between two commas is empty".into());
    }
    Ok(parts.filter(|part| !part.is_empty()))
}

fn network(text: &str) -> Result<IpNet, String> {
    let Ok(net) = text.parse::<IpNet>() else {
        return Err(match text.parse::<std::net::IpAddr>() {
            Ok(ip) => format!("{text:?} is an address, not a network: write {}", IpNet::from(ip)),
            Err(_) => format!("{text:?} is not a network: write it like 10.0.0.0/8 or fd00::/8"),
        });
    };
    if net.trunc() == net { Ok(net) } else { Err(format!("{text:?} has host bits: write {}", net.trunc())) }
}

fn dns_label(text: &str) -> Result<String, String> {
    if label(text) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{text:?} is not a valid name: at most 63 lower-case letters, digits and '-', starting and ending with a letter or digit"
    ))
}

/// A name of one or more parts with dots between them.
pub fn dns_subdomain(text: &str) -> Result<String, String> {
    if text.len() <= 253 && text.split('.').all(label) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{text:?} is not a valid name: parts of at most 63 lower-case letters, digits and '-', separated by '.', at most 253 in all"
    ))
}

fn label(text: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|c| inner(*c) || *c == b'-')
        && bytes.first().is_some_and(|c| inner(*c))
        && bytes.last().is_some_and(|c| inner(*c))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const NEEDED: [&str; 4] = ["standfast", "--namespace=standfast", "--pod-name=standfast-0", "--pod-uid=u-1"];

    fn read(more: &[&str]) -> Result<Args, String> {
        Args::read(NEEDED.iter().chain(more)).map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_argument_has_a_variable_of_the_same_name() {
        for arg in Args::command().get_arguments().filter(|arg| arg.get_long().is_some()) {
            let long = arg.get_long().unwrap();
            let expected = format!("STANDFAST_{}", long.to_uppercase().replace('-', "_"));
            assert_eq!(arg.get_env().and_then(|name| name.to_str()), Some(expected.as_str()), "--{long}");
        }
    }

    #[test]
    fn defaults_watch_the_whole_cluster() {
        let args = read(&[]).unwrap();
        assert_eq!(args.watch_namespaces, Scope::Cluster);
        assert_eq!(args.allow_cidrs, Cidrs::default());
        assert_eq!(args.lease_name, "standfast");
        assert_eq!(args.log_format, LogFormat::Json);
        assert!(args.watch_namespaces.contains("anything"));
    }

    #[test]
    fn lists_are_split_trimmed_and_sorted() {
        let args =
            read(&["--watch-namespaces= fx, bots,fx ", "--deny-cidrs=10.0.0.0/8,fd00::/8", "--allow-cidrs="]).unwrap();
        assert_eq!(args.watch_namespaces, Scope::Namespaces(vec!["bots".into(), "fx".into()]));
        assert!(args.watch_namespaces.contains("fx") && !args.watch_namespaces.contains("f"));
        assert_eq!(args.deny_cidrs.0.len(), 2);
    }

    #[rstest]
    #[case(&["--watch-namespaces=Bots"], "\"Bots\" is not a valid name")]
    #[case(&["--watch-namespaces=a,,b"], "between two commas is empty")]
    #[case(&["--watch-namespaces=a.b"], "\"a.b\" is not a valid name")]
    #[case(&["--deny-cidrs=10.0.0.5/8"], "\"10.0.0.5/8\" has host bits: write 10.0.0.0/8")]
    #[case(&["--deny-cidrs=10.0.0.5"], "\"10.0.0.5\" is an address, not a network: write 10.0.0.5/32")]
    #[case(&["--allow-cidrs=localhost"], "\"localhost\" is not a network: write it like 10.0.0.0/8")]
    #[case(&["--allow-cidrs=10.0.0.0/8", "--deny-cidrs=10.0.0.0/8"], "10.0.0.0/8 is both in --allow-cidrs and in --deny-cidrs")]
    #[case(&["--lease-name=-x"], "\"-x\" is not a valid name")]
    #[case(&["--cluster-domain=cluster.local."], "\"cluster.local.\" is not a valid name")]
    #[case(&["--halt-concurrency=0"], "0 is not in 1..=1000")]
    #[case(&["--write-concurrency=1001"], "1001 is not in 1..=1000")]
    #[case(&["--listen=8080"], "invalid socket address")]
    #[case(&["--log-format=xml"], "possible values: json, text")]
    fn wrong_values_are_explained(#[case] more: &[&str], #[case] expected: &str) {
        let error = read(more).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }

    #[rstest]
    #[case("--namespace")]
    #[case("--pod-name")]
    #[case("--pod-uid")]
    fn what_has_no_default_is_required(#[case] missing: &str) {
        let rest = NEEDED.iter().filter(|arg| !arg.starts_with(&format!("{missing}=")));
        let error = Args::read(rest).unwrap_err().to_string();
        assert!(error.contains(missing), "{error}");
        let empty = format!("{missing}=");
        let rest = NEEDED.iter().copied().filter(|arg| !arg.starts_with(&empty)).chain([empty.as_str()]);
        let error = Args::read(rest).unwrap_err().to_string();
        assert!(error.contains(missing), "{error}");
    }
}
