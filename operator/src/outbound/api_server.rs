//! Where the Kubernetes API server is, so that nobody can have it called.

use std::net::SocketAddr;

use super::connect::Resolve;

/// The addresses of the API server: what the environment says, where the client's configuration leads, and the service
/// `kubernetes.default`. Names that do not resolve are left out.
pub async fn addresses(config: &kube::Config, cluster_domain: &str, resolver: &dyn Resolve) -> Vec<SocketAddr> {
    let url = &config.cluster_url;
    let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("http") { 80 } else { 443 });
    let mut hosts = vec![
        (url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned(), port),
        (format!("kubernetes.default.svc.{cluster_domain}."), 443),
    ];
    if let Ok(host) = std::env::var("KUBERNETES_SERVICE_HOST") {
        let port = std::env::var("KUBERNETES_SERVICE_PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(443);
        hosts.push((host, port));
    }
    let mut found = Vec::new();
    for (host, port) in hosts {
        let ips = match host.parse() {
            Ok(ip) => vec![ip],
            Err(_) => resolver.resolve("", &host).await.unwrap_or_default(),
        };
        found.extend(ips.into_iter().map(|ip| SocketAddr::new(ip, port)));
    }
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use std::{io, net::IpAddr};

    use super::*;
    use crate::outbound::connect::Service;

    struct Names;

    #[async_trait::async_trait]
    impl Resolve for Names {
        async fn resolve(&self, _: &str, name: &str) -> io::Result<Vec<IpAddr>> {
            match name {
                "api.example" => Ok(vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()]),
                "kubernetes.default.svc.cluster.local." => Ok(vec!["10.96.0.1".parse().unwrap()]),
                _ => Err(io::Error::other("no such name")),
            }
        }

        async fn resolve_service(&self, _: &str, _: &str) -> io::Result<Service> {
            Err(io::Error::other("no such name"))
        }
    }

    async fn found(url: &str) -> Vec<String> {
        let config = kube::Config::new(url.parse().unwrap());
        addresses(&config, "cluster.local", &Names).await.iter().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn finds_all_of_them() {
        assert_eq!(found("https://api.example:6443").await, ["10.96.0.1:443", "192.0.2.1:6443", "[2001:db8::1]:6443"]);
        assert_eq!(found("https://[::1]:6443").await, ["10.96.0.1:443", "[::1]:6443"]);
        assert_eq!(found("http://gone.example").await, ["10.96.0.1:443"]);
    }
}
