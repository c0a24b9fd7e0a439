//! Connections to allowed addresses: name resolution, TCP, TLS.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
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
/// Name resolutions under way at once; the system's resolver blocks a thread for each.
const LOOKUPS: usize = 64;

/// Turns names into addresses. Injected, so that tests can let names lead where they like.
#[async_trait]
pub trait Resolve: Send + Sync + 'static {
    /// The addresses of an absolute name.
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>>;
}

/// The system's resolver.
pub struct SystemResolver {
    slots: Arc<Semaphore>,
}

impl Default for SystemResolver {
    fn default() -> Self {
        Self { slots: Arc::new(Semaphore::new(LOOKUPS)) }
    }
}

#[async_trait]
impl Resolve for SystemResolver {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        // The slot is given back when the resolver is done, which may be after the caller lost patience.
        let slot = Arc::clone(&self.slots).acquire_owned().await.map_err(io::Error::other)?;
        let name = name.to_owned();
        tokio::task::spawn_blocking(move || {
            let _slot = slot;
            Ok((name.as_str(), 0).to_socket_addrs()?.map(|address| address.ip()).collect())
        })
        .await
        .map_err(io::Error::other)?
    }
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

    /// A TCP connection to an allowed address of `target`.
    pub async fn tcp(&self, target: &Target) -> Result<TcpStream, CallError> {
        let host = &target.host;
        let addresses = match &target.lookup {
            Lookup::Address(ip) => vec![*ip],
            Lookup::Name(name) | Lookup::Service(name) => self.resolver.resolve(name).await.map_err(|e| {
                CallError::NotSent(format!("the name {host} did not resolve: {e}; check the host in the url and DNS"))
            })?,
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
