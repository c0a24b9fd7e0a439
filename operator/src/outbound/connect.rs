//! Connections to allowed addresses: name resolution, TCP, TLS.

use std::{
    collections::HashMap,
    fmt, io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use dns_lookup::{AddrFamily, AddrInfo, AddrInfoHints, SockType, getaddrinfo};
use futures::future::select_ok;
use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, ServerName},
};
use rustls_platform_verifier::Verifier;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::Semaphore,
    time::sleep,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    CallError,
    guard::{Guard, Lookup, Target},
};

/// At most this many addresses of a name are tried.
const ADDRESSES: usize = 8;
/// A further address is tried when this long nothing came of the earlier ones.
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(200);
/// Name resolutions under way at once, altogether and for one namespace; the system's resolver blocks a thread for
/// each, for as long as a name server likes that whoever wrote the name may have chosen.
const LOOKUPS: (usize, usize) = (64, 8);
/// Namespaces whose turns are kept before unused ones are forgotten.
const NAMESPACES: usize = 256;

/// What the name of a service stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// The name that really has the addresses, or some of them, if it is another one.
    pub alias_of: Option<String>,
    /// The addresses.
    pub ips: Vec<IpAddr>,
}

/// Turns names into addresses. Injected, so that tests can let names lead where they like.
#[async_trait]
pub trait Resolve: Send + Sync + 'static {
    /// The addresses of an absolute name, for this namespace.
    async fn resolve(&self, namespace: &str, name: &str) -> io::Result<Vec<IpAddr>>;

    /// Those of a service's absolute name, and whether it is an alias.
    async fn resolve_service(&self, namespace: &str, name: &str) -> io::Result<Service>;
}

/// The system's resolver.
pub struct SystemResolver {
    slots: Arc<Semaphore>,
    namespaces: Mutex<HashMap<String, Arc<Semaphore>>>,
}

impl Default for SystemResolver {
    fn default() -> Self {
        Self { slots: Arc::new(Semaphore::new(LOOKUPS.0)), namespaces: Mutex::default() }
    }
}

impl SystemResolver {
    async fn ask<T: Send + 'static>(
        &self,
        namespace: &str,
        name: &str,
        question: impl FnOnce(&str) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        // Its own slot first, so that a namespace that waits for one of its own holds none of the others'.
        let own = self.namespace(namespace).acquire_owned().await.map_err(io::Error::other)?;
        let slots = (own, Arc::clone(&self.slots).acquire_owned().await.map_err(io::Error::other)?);
        let name = name.to_owned();
        // They are given back when the resolver is done, which may be after the caller lost patience.
        tokio::task::spawn_blocking(move || {
            let _slots = slots;
            question(&name)
        })
        .await
        .map_err(io::Error::other)?
    }

    fn namespace(&self, namespace: &str) -> Arc<Semaphore> {
        let mut namespaces = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        if !namespaces.contains_key(namespace) && namespaces.len() >= NAMESPACES {
            namespaces.retain(|_, slots| Arc::strong_count(slots) > 1);
        }
        Arc::clone(namespaces.entry(namespace.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(LOOKUPS.1))))
    }
}

#[async_trait]
impl Resolve for SystemResolver {
    async fn resolve(&self, namespace: &str, name: &str) -> io::Result<Vec<IpAddr>> {
        self.ask(namespace, name, |name| Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).collect())).await
    }

    async fn resolve_service(&self, namespace: &str, name: &str) -> io::Result<Service> {
        self.ask(namespace, name, service).await
    }
}

/// Asks for one family after the other: of both together the C library tells one name only, and whoever owns the
/// service may have changed it between the two answers.
fn service(name: &str) -> io::Result<Service> {
    let mut service = Service::default();
    let mut failure = None;
    for family in [AddrFamily::Inet, AddrFamily::Inet6] {
        let hints = AddrInfoHints {
            flags: libc::AI_CANONNAME,
            address: family.into(),
            socktype: SockType::Stream.into(),
            ..AddrInfoHints::default()
        };
        let answer = getaddrinfo(Some(name), None, Some(hints)).map_err(io::Error::from);
        match answer.and_then(Iterator::collect::<io::Result<Vec<AddrInfo>>>) {
            Ok(all) => {
                // An answer that does not say whose the addresses are is as good as one that names somebody else.
                let owner = all.iter().find_map(|info| info.canonname.clone()).unwrap_or_default();
                if !same(&owner, name) {
                    service.alias_of = Some(owner);
                }
                service.ips.extend(all.iter().map(|info| info.sockaddr.ip()));
            }
            Err(error) => failure = Some(error),
        }
    }
    match failure {
        Some(error) if service.ips.is_empty() => Err(error),
        _ => Ok(service),
    }
}

/// Whether two absolute names are the same, with or without the dot at the end.
fn same(a: &str, b: &str) -> bool {
    a.trim_end_matches('.').eq_ignore_ascii_case(b.trim_end_matches('.'))
}

/// Makes connections, to allowed addresses only.
#[derive(Clone)]
pub struct Connector {
    guard: Arc<Guard>,
    resolver: Arc<dyn Resolve>,
    tls: Arc<ClientConfig>,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("guard", &self.guard).finish_non_exhaustive()
    }
}

impl Connector {
    /// A connector that trusts the system's certificate authorities and `roots`.
    pub fn new(
        guard: Arc<Guard>,
        resolver: Arc<dyn Resolve>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = Verifier::new_with_extra_roots(roots, Arc::clone(&provider))?;
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { guard, resolver, tls: Arc::new(tls) })
    }

    /// The address policy.
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// The addresses of `target` that may be called: at least one, and no more than are tried.
    pub async fn addresses(&self, target: &Target) -> Result<Vec<SocketAddr>, CallError> {
        let host = &target.host;
        let unresolved = |e: io::Error| {
            CallError::NotSent(format!("the name {host} did not resolve: {e}; check the host in the url and DNS"))
        };
        let (resolver, namespace) = (&self.resolver, &target.namespace);
        let addresses = match &target.lookup {
            Lookup::Address(ip) => vec![*ip],
            Lookup::Name(name) => resolver.resolve(namespace, name).await.map_err(unresolved)?,
            Lookup::Service(name) => match resolver.resolve_service(namespace, name).await.map_err(unresolved)? {
                Service { alias_of: None, ips } => ips,
                // A Service of the type ExternalName stands for any name, also for a service of another namespace.
                Service { alias_of: Some(other), .. } => {
                    return Err(CallError::Refused(format!(
                        "{host} is only another name for {other:?}: Services of the type ExternalName are not \
                         followed; put the name that is meant into the url"
                    )));
                }
            },
        };
        let mut allowed = Vec::new();
        let mut refusal = None;
        for ip in addresses {
            let address = SocketAddr::new(ip, target.port);
            match self.guard.check_address(target, address) {
                Ok(()) => allowed.push(address),
                Err(why) => refusal = Some(why),
            }
        }
        allowed.truncate(ADDRESSES);
        if allowed.is_empty() {
            return Err(match refusal {
                Some(why) => CallError::Refused(why),
                None => CallError::NotSent(format!("the name {host} has no address; check the host in the url")),
            });
        }
        Ok(allowed)
    }

    /// A TCP connection to an allowed address of `target`.
    pub async fn tcp(&self, target: &Target) -> Result<TcpStream, CallError> {
        let host = &target.host;
        let allowed = self.addresses(target).await?;
        let attempts = allowed.iter().zip(0u32..).map(|(address, turn)| {
            Box::pin(async move {
                sleep(NEXT_ADDRESS_AFTER * turn).await;
                TcpStream::connect(address).await
            })
        });
        let (stream, _) = select_ok(attempts).await.map_err(|e| {
            CallError::NotSent(format!(
                "no connection to {host} port {}: {e}; check that it is up and that network policies let the operator \
                 reach it",
                target.port
            ))
        })?;
        let peer = stream.peer_addr().map_err(|e| CallError::NotSent(format!("no connection to {host}: {e}")))?;
        self.guard.check_address(target, peer).map_err(CallError::Refused)?;
        tune(&stream);
        Ok(stream)
    }

    /// A connection to `target`, with TLS if it asks for it.
    pub async fn connect(&self, target: &Target) -> Result<Connection, CallError> {
        let stream = self.tcp(target).await?;
        if !target.tls {
            return Ok(Connection::Plain(stream));
        }
        let host = target.host.trim_matches(['[', ']']).trim_end_matches('.').to_owned();
        let name = ServerName::try_from(host)
            .map_err(|e| CallError::Refused(format!("{} cannot be used with TLS: {e}", target.host)))?;
        let stream = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream).await.map_err(|e| {
            CallError::NotSent(format!(
                "TLS with {} port {} failed: {e}; check its certificate",
                target.host, target.port
            ))
        })?;
        Ok(Connection::Tls(Box::new(stream)))
    }
}

/// Lets a peer that went away be noticed while a connection is idle. Without it the connection works as well.
fn tune(stream: &TcpStream) {
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(15))
        .with_interval(Duration::from_secs(5))
        .with_retries(3);
    if let Err(error) =
        stream.set_nodelay(true).and_then(|()| socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive))
    {
        tracing::debug!(%error, "socket options could not be set");
    }
}

/// A connection that HTTP is spoken on.
pub enum Connection {
    /// Without TLS.
    Plain(TcpStream),
    /// With TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::outbound::fakes::PATIENCE;

    #[tokio::test]
    async fn the_system_knows_aliases() {
        let resolver = SystemResolver::default();
        let ips = resolver.resolve("trading", "localhost").await.unwrap();
        let service = resolver.resolve_service("trading", "localhost").await.unwrap();
        assert!(!ips.is_empty() && ips.iter().all(IpAddr::is_loopback), "{ips:?}");
        assert!(ips.iter().all(|ip| service.ips.contains(ip)), "{service:?}");
        assert_ne!(service.alias_of.as_deref(), Some(""), "it says whose the addresses are");
        resolver.resolve_service("trading", "no-such-name.invalid.").await.unwrap_err();
    }

    /// Names that a slow name server answers keep their own namespace waiting, and no other.
    #[tokio::test]
    async fn no_namespace_takes_the_turns_of_another() {
        let resolver = Arc::new(SystemResolver::default());
        let (answer, wait) = std::sync::mpsc::channel::<()>();
        let wait = Arc::new(Mutex::new(wait));
        let (begin, mut begun) = tokio::sync::mpsc::unbounded_channel();
        let slow: Vec<_> = (0..2 * LOOKUPS.0)
            .map(|_| {
                let (resolver, wait, begin) = (Arc::clone(&resolver), Arc::clone(&wait), begin.clone());
                tokio::spawn(async move {
                    let question = move |_: &str| {
                        begin.send(()).map_err(io::Error::other)?;
                        // Ends when the other side is dropped.
                        Ok(wait.lock().map(|wait| wait.recv().is_err()).unwrap_or(true))
                    };
                    resolver.ask("slow", "slow.example.", question).await
                })
            })
            .collect();
        for _ in 0..LOOKUPS.1 {
            begun.recv().await.unwrap();
        }
        for name in 0..LOOKUPS.0 {
            let found = timeout(PATIENCE, resolver.ask("other", "other.example.", move |_| Ok(name))).await;
            assert_eq!(found.expect("no other namespace waits").unwrap(), name);
        }
        begun.try_recv().unwrap_err();
        // Whoever does not wait any more gives nothing back before the answer is there.
        slow.iter().for_each(tokio::task::JoinHandle::abort);
        for one in slow {
            assert!(one.await.unwrap_err().is_cancelled());
        }
        assert_eq!(resolver.namespace("slow").available_permits(), 0);
        drop(answer);
        let all = u32::try_from(LOOKUPS.1).unwrap();
        let _back = resolver.namespace("slow").acquire_many_owned(all).await.unwrap();
    }

    #[test]
    fn names_are_the_same() {
        assert!(same("bot.trading.svc.cluster.local", "Bot.trading.svc.cluster.local."));
        assert!(!same("bot.other.svc.cluster.local", "bot.trading.svc.cluster.local."));
        assert!(!same("", "bot.trading.svc.cluster.local."));
    }
}
