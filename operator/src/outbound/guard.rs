//! Which addresses may be called on behalf of a namespace's owner.
//!
//! Whoever may create a TradingSystem chooses what the operator calls, from the operator's place in the network. So two
//! things are checked: the **name** in the URL before anything happens ([`Guard::target`]), and the **address** that a
//! connection is made to, each time one is made ([`Guard::check_address`]).

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{PoisonError, RwLock},
};

use ipnet::IpNet;
use url::{Host, Url};

/// What a site sets.
#[derive(Clone, Debug)]
pub struct GuardConfig {
    /// Ranges that are never called. They win over everything else.
    pub deny_cidrs: Vec<IpNet>,
    /// Ranges that may be called although a built-in rule refuses them, and whose addresses may stand in URLs. A range
    /// opens a built-in refusal only if it lies within the refused range: `0.0.0.0/0` does not open `127.0.0.0/8`.
    pub allow_cidrs: Vec<IpNet>,
    /// The cluster's DNS domain.
    pub cluster_domain: String,
    /// Addresses of the API server. Never called, on any port; on loopback, only that port is refused.
    pub api_server: Vec<SocketAddr>,
}

impl Default for GuardConfig {
    fn default() -> Self {
        Self {
            deny_cidrs: Vec::new(),
            allow_cidrs: Vec::new(),
            cluster_domain: "cluster.local".into(),
            api_server: Vec::new(),
        }
    }
}

/// Decides what may be called.
#[derive(Debug)]
pub struct Guard {
    config: GuardConfig,
    /// Where the API server listens besides, as it was last told.
    endpoints: RwLock<Vec<SocketAddr>>,
}

/// Where a request goes, as far as its URL says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Who wants to go there.
    pub namespace: String,
    /// The host as it stands in the URL, in lower case.
    pub host: String,
    /// The port, the scheme's own if the URL names none.
    pub port: u16,
    /// Whether TLS is spoken.
    pub tls: bool,
    /// What is resolved: an absolute name, so that the search list of the operator's own pod has no say.
    pub lookup: Lookup,
}

/// How a host becomes addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// It is one.
    Address(IpAddr),
    /// A name outside the cluster.
    Name(String),
    /// The name of a service in the caller's namespace.
    Service(String),
}

/// Built-in refusals, with what they are called in messages.
const REFUSED: &[(&str, &str)] = &[
    ("169.254.169.254/32", "a cloud metadata address"),
    ("169.254.170.2/32", "a cloud metadata address"),
    ("169.254.170.23/32", "a cloud metadata address"),
    ("100.100.100.200/32", "a cloud metadata address"),
    ("192.0.0.192/32", "a cloud metadata address"),
    ("168.63.129.16/32", "a cloud metadata address"),
    ("fd00:ec2::/32", "a cloud metadata address"),
    ("fd20:ce::254/128", "a cloud metadata address"),
    ("0.0.0.0/8", "not a host's address"),
    ("127.0.0.0/8", "a loopback address"),
    ("169.254.0.0/16", "a link-local address"),
    ("192.0.0.0/24", "a special-purpose address"),
    ("224.0.0.0/4", "a multicast address"),
    ("240.0.0.0/4", "a reserved address"),
    ("::/128", "not a host's address"),
    ("::1/128", "a loopback address"),
    ("100::/64", "a discard-only address"),
    ("64:ff9b:1::/48", "a local translation address"),
    ("2001::/32", "a tunnel address"),
    ("2002::/16", "a tunnel address"),
    ("fe80::/10", "a link-local address"),
    ("fec0::/10", "a site-local address"),
    ("ff00::/8", "a multicast address"),
];

/// Where pods, services and nodes are. A name outside the cluster may lead there too, so these are refused to all but
/// the services of the caller's own namespace: nothing else tells apart whose pod an address is.
const PRIVATE: &[(&str, &str)] = &[
    ("10.0.0.0/8", "a private address"),
    ("100.64.0.0/10", "a private address"),
    ("172.16.0.0/12", "a private address"),
    ("192.168.0.0/16", "a private address"),
    ("fc00::/7", "a private address"),
];

impl Guard {
    /// A guard with a site's settings.
    pub fn new(mut config: GuardConfig) -> Self {
        config.cluster_domain = config.cluster_domain.trim_matches('.').to_ascii_lowercase();
        Self { config, endpoints: RwLock::default() }
    }

    /// Tells where the API server itself listens, behind its service. Replaces what was told before.
    pub fn api_server_listens_at(&self, endpoints: Vec<SocketAddr>) {
        *self.endpoints.write().unwrap_or_else(PoisonError::into_inner) = endpoints;
    }

    /// Reads a URL and decides by what stands in it. The error says what is wrong with it.
    pub fn target(&self, namespace: &str, url: &str) -> Result<(Url, Target), String> {
        let url = parse(url)?;
        let tls = url.scheme() == "https";
        let port = url.port_or_known_default().unwrap_or(if tls { 443 } else { 80 });
        let (host, lookup) = match url.host() {
            Some(Host::Ipv4(ip)) => (ip.to_string(), self.literal(IpAddr::V4(ip))?),
            Some(Host::Ipv6(ip)) => (format!("[{ip}]"), self.literal(IpAddr::V6(ip))?),
            Some(Host::Domain(name)) => (name.to_ascii_lowercase(), self.name(namespace, name)?),
            None => return Err("the url names no host".into()),
        };
        Ok((url, Target { namespace: namespace.into(), host, port, tls, lookup }))
    }

    /// What a host and a port given otherwise than in an HTTP URL come to.
    pub fn host(&self, namespace: &str, host: &str, port: u16, tls: bool) -> Result<Target, String> {
        let (text, lookup) = match Host::parse(host).map_err(|e| format!("{host:?} is not a host: {e}"))? {
            Host::Ipv4(ip) => (ip.to_string(), self.literal(IpAddr::V4(ip))?),
            Host::Ipv6(ip) => (format!("[{ip}]"), self.literal(IpAddr::V6(ip))?),
            Host::Domain(name) => (name.to_ascii_lowercase(), self.name(namespace, &name)?),
        };
        Ok(Target { namespace: namespace.into(), host: text, port, tls, lookup })
    }

    /// Whether a connection to `address` may be made. Asked for every connection, before and after it is made.
    pub fn check_address(&self, target: &Target, address: SocketAddr) -> Result<(), String> {
        let ip = address.ip();
        let forms = forms(ip);
        let endpoints = self.endpoints.read().unwrap_or_else(PoisonError::into_inner);
        let refuse = |what: &str| Err(format!("{} leads to {ip}, {what}", target.host));
        for form in &forms {
            if self.config.deny_cidrs.iter().any(|net| net.contains(form)) {
                return refuse("which denyCIDRs refuses");
            }
            let is_server = |server: &SocketAddr| {
                let server_ip = server.ip().to_canonical();
                server_ip == *form && (!server_ip.is_loopback() || server.port() == address.port())
            };
            if self.config.api_server.iter().chain(endpoints.iter()).any(is_server) {
                return refuse("which is the Kubernetes API server");
            }
        }
        let private: &[_] = if matches!(target.lookup, Lookup::Service(_)) { &[] } else { PRIVATE };
        for form in &forms {
            for (range, what) in REFUSED.iter().chain(private) {
                let Ok(range) = range.parse::<IpNet>() else { continue };
                let opened = |net: &IpNet| range.contains(net) && net.contains(form);
                if range.contains(form) && !self.config.allow_cidrs.iter().any(opened) {
                    return refuse(&format!("{what}, which is refused unless the operator's allowCIDRs opens it"));
                }
            }
        }
        Ok(())
    }

    /// An address in place of a name is refused unless it is opened.
    fn literal(&self, ip: IpAddr) -> Result<Lookup, String> {
        let forms = forms(ip);
        if forms.iter().all(|form| self.config.allow_cidrs.iter().any(|net| net.contains(form))) {
            return Ok(Lookup::Address(ip));
        }
        Err(format!("{ip} is an address: name the host instead (addresses are refused unless allowCIDRs opens them)"))
    }

    fn name(&self, namespace: &str, name: &str) -> Result<Lookup, String> {
        let name = name.to_ascii_lowercase();
        let name = name.strip_suffix('.').unwrap_or(&name);
        let labels: Vec<&str> = name.split('.').collect();
        if labels.iter().any(|label| label.is_empty() || label.len() > 63) || name.len() > 253 {
            return Err(format!("{name:?} is not a host name"));
        }
        if name == "localhost" {
            return Ok(Lookup::Name(name.into()));
        }
        if labels.len() == 1 {
            return Err(format!("{name:?} is not a whole host name: write {name}.{namespace}.svc for a service"));
        }
        let (service, cluster) = self.service_part(name);
        match service {
            Some(service) => self.service(namespace, name, service),
            None if cluster => Err(format!(
                "{name} is a name inside the cluster that is not a service's: write SERVICE.{namespace}.svc"
            )),
            None if labels.len() == 2 && labels[1] == namespace => self.service(namespace, name, name),
            None => Ok(Lookup::Name(format!("{name}."))),
        }
    }

    /// The part of a cluster name before `.svc`, and whether the name is one of the cluster's at all.
    fn service_part<'a>(&self, name: &'a str) -> (Option<&'a str>, bool) {
        for domain in [self.config.cluster_domain.as_str(), "cluster.local", "clusterset.local"] {
            if let Some(rest) = strip_domain(name, domain) {
                return (strip_domain(rest, "svc"), true);
            }
        }
        let service = strip_domain(name, "svc");
        (service, service.is_some() || name == "svc")
    }

    /// `name` means `service`, which is `SERVICE.NAMESPACE` or `POD.SERVICE.NAMESPACE`.
    fn service(&self, namespace: &str, name: &str, service: &str) -> Result<Lookup, String> {
        let labels: Vec<&str> = service.split('.').collect();
        if labels.as_slice() == ["kubernetes", "default"] {
            return Err(format!("{name} is the Kubernetes API server"));
        }
        if labels.len() < 2 || labels.last() != Some(&namespace) {
            return Err(format!("{name} is not a service of namespace {namespace}: only those may be called"));
        }
        Ok(Lookup::Service(format!("{service}.svc.{}.", self.config.cluster_domain)))
    }
}

/// A URL with a scheme that is spoken, a host, and no credentials.
pub fn parse(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|e| format!("the url cannot be read: {e}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("{}: only http and https are spoken", url.scheme()));
    }
    let authority = text.split_once("//").map_or("", |(_, rest)| rest).split(['/', '?', '#', '\\']).next();
    if !url.username().is_empty() || url.password().is_some() || authority.is_some_and(|part| part.contains('@')) {
        return Err("the url holds a user or a password: use auth.headers with a Secret".into());
    }
    if text.chars().any(|c| c.is_control() || c == '\\') {
        return Err("the url holds a control character or a backslash".into());
    }
    if url.host().is_none() {
        return Err("the url names no host".into());
    }
    Ok(url)
}

fn strip_domain<'a>(name: &'a str, domain: &str) -> Option<&'a str> {
    name.strip_suffix(domain).and_then(|rest| rest.strip_suffix('.'))
}

/// An address and the addresses that a translator would make of it: all of them must be allowed.
fn forms(ip: IpAddr) -> Vec<IpAddr> {
    let IpAddr::V6(v6) = ip else { return vec![ip] };
    let segments = v6.segments();
    let embedded = |a: u16, b: u16| IpAddr::V4(Ipv4Addr::from((u32::from(a) << 16) | u32::from(b)));
    match segments {
        // ::ffff:a.b.c.d is a.b.c.d itself.
        [0, 0, 0, 0, 0, 0xffff, a, b] => vec![embedded(a, b)],
        // ::a.b.c.d, ::ffff:0:a.b.c.d and 64:ff9b::a.b.c.d become it on the way.
        [0, 0, 0, 0, 0, 0, a, b] if v6 != Ipv6Addr::UNSPECIFIED && v6 != Ipv6Addr::LOCALHOST => {
            vec![ip, embedded(a, b)]
        }
        [0, 0, 0, 0, 0xffff, 0, a, b] | [0x64, 0xff9b, 0, 0, 0, 0, a, b] => vec![ip, embedded(a, b)],
        _ => vec![ip],
    }
}

#[cfg(test)]
#[path = "guard_tests.rs"]
mod tests;
