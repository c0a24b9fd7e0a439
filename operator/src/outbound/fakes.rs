//! What tests of the way out share: names that lead anywhere, and servers that answer anything.

use std::{
    collections::HashMap,
    io::{self, Write},
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ::http::Method;
use async_trait::async_trait;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{sleep, timeout},
};

use super::{
    Call,
    connect::{Connector, Resolve, Service},
    guard::{Guard, GuardConfig},
    http::HttpTransport,
};

/// Names that lead where a test says; each entry is the answers in turn, the last one for ever. An answer that begins
/// with a name is that of an alias.
pub(crate) struct Names(Mutex<HashMap<String, Vec<Service>>>);

impl Names {
    pub fn of(entries: &[(&str, &[&[&str]])]) -> Arc<Self> {
        let answer = |turn: &&[&str]| {
            let (alias_of, ips) = match turn {
                [alias, ips @ ..] if alias.parse::<IpAddr>().is_err() => (Some((*alias).to_owned()), ips),
                ips => (None, *ips),
            };
            Service { alias_of, ips: ips.iter().map(|ip| ip.parse().unwrap()).collect() }
        };
        let answers = entries
            .iter()
            .map(|(name, turns)| ((*name).to_owned(), turns.iter().rev().map(answer).collect()))
            .collect();
        Arc::new(Self(Mutex::new(answers)))
    }
}

#[async_trait]
impl Resolve for Names {
    async fn resolve(&self, namespace: &str, name: &str) -> io::Result<Vec<IpAddr>> {
        self.resolve_service(namespace, name).await.map(|service| service.ips)
    }

    async fn resolve_service(&self, _: &str, name: &str) -> io::Result<Service> {
        let mut answers = self.0.lock().unwrap();
        let turns = answers.get_mut(name.trim_end_matches('.')).ok_or_else(|| io::Error::other("no such name"))?;
        if turns.len() > 1 { Ok(turns.pop().unwrap()) } else { Ok(turns[0].clone()) }
    }
}

/// A server that sends the same bytes to everybody, keeps the connection open and tells what it was sent.
pub(crate) struct Server {
    pub port: u16,
    received: mpsc::UnboundedReceiver<String>,
    connections: Arc<AtomicUsize>,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum After {
    KeepOpen,
    Close,
    Forever(&'static [u8], Duration),
}

impl Server {
    pub async fn start(answer: impl Into<Vec<u8>>, after: After) -> Self {
        let answer: Arc<Vec<u8>> = Arc::new(answer.into());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tell, received) = mpsc::unbounded_channel();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(stream, Arc::clone(&answer), after, tell.clone()));
            }
        });
        Self { port, received, connections }
    }

    /// How many connections were made to it.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// The next request, once it is there.
    pub async fn request(&mut self) -> String {
        timeout(PATIENCE, self.received.recv()).await.expect("a request comes").unwrap()
    }

    pub fn requests(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.received.try_recv().ok()).collect()
    }
}

async fn serve(mut stream: TcpStream, answer: Arc<Vec<u8>>, after: After, tell: mpsc::UnboundedSender<String>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(size @ 1..) = stream.read(&mut buffer).await {
        let _ = tell.send(String::from_utf8_lossy(&buffer[..size]).into_owned());
        if stream.write_all(&answer).await.is_err() {
            return;
        }
        if after == After::Close {
            return;
        }
        while let After::Forever(more, pause) = after {
            if stream.write_all(more).await.is_err() {
                return;
            }
            sleep(pause).await;
        }
    }
}

pub(crate) const ONE_VENUE: &[(&str, &[&[&str]])] = &[("venue.test", &[&["127.0.0.1"]])];

pub(crate) fn transport_with(names: Arc<Names>, allow: &[&str]) -> HttpTransport {
    let allow_cidrs = allow.iter().map(|net| net.parse().unwrap()).collect();
    transport_of(Arc::new(Guard::new(GuardConfig { allow_cidrs, ..GuardConfig::default() })), names)
}

pub(crate) fn transport_of(guard: Arc<Guard>, names: Arc<Names>) -> HttpTransport {
    HttpTransport::new(Connector::new(guard, names, Vec::new()).unwrap(), 8)
}

pub(crate) fn transport() -> HttpTransport {
    transport_with(Names::of(ONE_VENUE), &["127.0.0.0/8"])
}

/// Longer than anything takes on the busiest machine: whoever waits so long waits for ever.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn call(method: Method, url: String) -> Call {
    Call { namespace: "trading".into(), method, url, headers: Vec::new(), body: None, signing: None, timeout: PATIENCE }
}

pub(crate) fn get(url: String) -> Call {
    call(Method::GET, url)
}

pub(crate) fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

pub(crate) fn gzipped(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(plain).unwrap();
    let body = encoder.finish().unwrap();
    let mut answer =
        format!("HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {}\r\n\r\n", body.len()).into_bytes();
    answer.extend(body);
    answer
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, so: impl Fn() -> bool) {
    let wait = async {
        while !so() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("it never is so that {what}"));
}

/// Time passes, for everything that asks tokio for it.
pub(crate) async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}
