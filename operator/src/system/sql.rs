//! One value from a PostgreSQL database.
//!
//! The query of a namespace's owner runs in a read-only transaction with a time limit, as the inner part of a `SELECT`
//! that takes its first column: it can neither be several statements nor end the transaction. The connection goes
//! where an HTTP request of the same owner could go: host allowed by the Secret, address allowed by the guard.

use std::{error::Error as _, fmt, sync::Arc, time::Duration};

use kube::Client;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use rustls_platform_verifier::Verifier;
use standfast_crds::v1alpha1::{SecretKeyRef, SqlCheck, SqlView};
use tokio::net::TcpStream;
use tokio_postgres::{Config, Row, config::SslMode, error::SqlState, tls::MakeTlsConnect};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::task::AbortOnDropHandle;
use url::Url;

use crate::{
    calls::{
        document::{Document, Scalar},
        secrets,
    },
    outbound::connect::Connector,
};

/// How long a check may take that does not say.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that a check may take, whatever it says.
const TIMEOUT_LIMIT: Duration = Duration::from_secs(60);

/// Rows of a query at most, and characters of one of them.
const ROWS: usize = 10_000;
const ROW_LENGTH: usize = 4096;

/// Why a query gave no value. The text names what was tried on which host, never a password or a row.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SqlError {
    /// The query ran, and there is no row.
    #[error("the query returned no row")]
    NoRow,
    /// It could not be asked.
    #[error("{0}")]
    Unasked(String),
}

/// Asks databases. Cheap to clone.
#[derive(Clone)]
pub struct Databases {
    client: Client,
    connector: Connector,
    verified: MakeRustlsConnect,
    unverified: MakeRustlsConnect,
}

impl fmt::Debug for Databases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Databases").field("connector", &self.connector).finish_non_exhaustive()
    }
}

/// What `sslmode` asks for, as libpq understands it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Security {
    /// `disable`
    Plain,
    /// `prefer`, and what is done without `sslmode`: TLS where the server speaks it.
    Prefer,
    /// `require`: TLS with whatever certificate.
    Encrypted,
    /// `verify-ca` and `verify-full`: TLS with a certificate that the system trusts, for this host.
    Verified,
}

impl Databases {
    /// Reads connection URLs from Secrets with `client` and connects with `connector`. Certificates are verified, where
    /// `sslmode` asks for it, with the system's authorities and `roots`.
    pub fn new(
        client: Client,
        connector: Connector,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = |verifier: Arc<dyn ServerCertVerifier>| {
            Ok::<_, rustls::Error>(MakeRustlsConnect::new(
                ClientConfig::builder_with_provider(Arc::clone(&provider))
                    .with_safe_default_protocol_versions()?
                    .dangerous()
                    .with_custom_certificate_verifier(verifier)
                    .with_no_client_auth(),
            ))
        };
        let verifier = Verifier::new_with_extra_roots(roots, Arc::clone(&provider))?;
        let verified = config(Arc::new(verifier))?;
        let unverified = config(Arc::new(AnyCertificate(Arc::clone(&provider))))?;
        Ok(Self { client, connector, verified, unverified })
    }

    /// The way to databases.
    pub(super) fn connector(&self) -> &Connector {
        &self.connector
    }

    /// The first column of the only row. One connection, closed afterwards.
    pub async fn value(&self, namespace: &str, check: &SqlCheck) -> Result<Scalar, SqlError> {
        let rows = self.within(namespace, &check.connection_secret_ref, check.timeout, &wrapped(&check.query)).await?;
        match rows.as_slice() {
            [] => Err(SqlError::NoRow),
            [row] => scalar(text(row)?),
            _ => Err(SqlError::Unasked("the query returned more than one row: let it return one".into())),
        }
    }

    /// All rows, as a list of objects by the names of their columns. One connection, closed afterwards.
    pub async fn rows(&self, namespace: &str, view: &SqlView) -> Result<Document, SqlError> {
        let rows = self.within(namespace, &view.connection_secret_ref, view.timeout, &listed(&view.query)).await?;
        if rows.len() > ROWS {
            return Err(SqlError::Unasked(format!("the query returned more than {ROWS} rows")));
        }
        let rows = rows.iter().map(text).collect::<Result<Option<Vec<_>>, _>>()?.unwrap_or_default();
        Document::parse(format!("[{}]", rows.join(",")).as_bytes())
            .map_err(|_| SqlError::Unasked(format!("a row of the query is longer than {ROW_LENGTH} characters")))
    }

    async fn within(
        &self,
        namespace: &str,
        secret: &SecretKeyRef,
        timeout: Option<standfast_crds::v1alpha1::Duration>,
        query: &str,
    ) -> Result<Vec<Row>, SqlError> {
        let limit = timeout.map_or(TIMEOUT, |t| t.get()).clamp(Duration::from_millis(100), TIMEOUT_LIMIT);
        match tokio::time::timeout(limit, self.ask(namespace, secret, query, limit)).await {
            Ok(answer) => answer,
            Err(_) => Err(SqlError::Unasked(format!(
                "the database did not answer within {}",
                standfast_crds::v1alpha1::Duration::from(limit)
            ))),
        }
    }

    async fn ask(
        &self,
        namespace: &str,
        secret: &SecretKeyRef,
        query: &str,
        limit: Duration,
    ) -> Result<Vec<Row>, SqlError> {
        let refused = |e: &dyn fmt::Display| SqlError::Unasked(e.to_string());
        let address = secrets::database_url(&self.client, namespace, secret).await.map_err(|e| refused(&e))?;
        let (config, security) = read_url(address.url.expose()).map_err(|why| {
            SqlError::Unasked(format!("the value of {} in Secret {namespace}/{}: {why}", secret.key, secret.name))
        })?;
        let guard = self.connector.guard();
        let target = guard
            .host(namespace, &address.host, address.port, security != Security::Plain)
            .map_err(|why| refused(&why))?;
        let stream = self.connector.tcp(&target).await.map_err(|e| refused(&e))?;
        let tls = if security == Security::Verified { &self.verified } else { &self.unverified };
        let host = address.host.trim_matches(['[', ']']);
        let tls = <MakeRustlsConnect as MakeTlsConnect<TcpStream>>::make_tls_connect(&mut tls.clone(), host)
            .map_err(|e| refused(&e))?;
        let failed = |error: tokio_postgres::Error| SqlError::Unasked(describe(&address.host, &error));
        let (client, connection) = config.connect_raw(stream, tls).await.map_err(failed)?;
        let _connection = AbortOnDropHandle::new(tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a database connection ended");
            }
        }));
        client.batch_execute(&begin(limit)).await.map_err(failed)?;
        client.query_typed(query, &[]).await.map_err(failed)
    }
}

/// The transaction that the query runs in.
fn begin(limit: Duration) -> String {
    let millis = limit.as_millis();
    format!(
        "BEGIN TRANSACTION READ ONLY; SET LOCAL statement_timeout = {millis}; SET LOCAL lock_timeout = {millis}; \
         SET LOCAL idle_in_transaction_session_timeout = {millis}"
    )
}

/// The query as the inner part of one that takes its first column, and at most two rows of it.
fn wrapped(query: &str) -> String {
    let query = query.trim().trim_end_matches(';');
    // The line break ends a comment at the end of the query.
    format!(
        "SELECT left(to_jsonb(standfast_value)::text, 1024) FROM (\n{query}\n) AS standfast(standfast_value) LIMIT 2"
    )
}

/// The query as the inner part of one that takes its rows as objects, and one more than may be.
fn listed(query: &str) -> String {
    let query = query.trim().trim_end_matches(';');
    format!(
        "SELECT left(to_jsonb(standfast_row)::text, {ROW_LENGTH}) FROM (\n{query}\n) AS standfast_row LIMIT {}",
        ROWS + 1
    )
}

/// The only column of a row.
fn text(row: &Row) -> Result<Option<String>, SqlError> {
    row.try_get(0).map_err(|_| SqlError::Unasked("the query gave a row that cannot be read".into()))
}

/// A value as `to_jsonb` writes it.
fn scalar(json: Option<String>) -> Result<Scalar, SqlError> {
    let Some(json) = json else { return Ok(Scalar::Null) };
    let shape =
        || SqlError::Unasked("the query returned a value that is neither a number, a short text nor a time".into());
    let document = Document::parse(json.as_bytes()).map_err(|_| shape())?;
    document.root().scalar().ok_or_else(shape)
}

/// Reads a connection URL. What is wrong is said without repeating any of it.
fn read_url(text: &str) -> Result<(Config, Security), &'static str> {
    const SHAPE: &str = "not a URL such as postgresql://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=require";
    let mut url = Url::parse(text).map_err(|_| SHAPE)?;
    let pairs: Vec<(String, String)> = url.query_pairs().map(|(k, v)| (k.into_owned(), v.into_owned())).collect();
    let mode = pairs.iter().rev().find(|(name, _)| name == "sslmode").map(|(_, mode)| mode.as_str());
    let security = match mode {
        None | Some("prefer" | "allow") => Security::Prefer,
        Some("disable") => Security::Plain,
        Some("require") => Security::Encrypted,
        Some("verify-ca" | "verify-full") => Security::Verified,
        Some(_) => return Err("sslmode must be disable, prefer, require, verify-ca or verify-full"),
    };
    // What tokio-postgres reads of the rest is decided here: it does not know every sslmode.
    url.set_query(None);
    let mut config: Config = url.as_str().parse().map_err(|_| SHAPE)?;
    let parameter = |wanted: &str| pairs.iter().rev().find(|(name, _)| name == wanted).map(|(_, value)| value);
    config.application_name(parameter("application_name").map_or("standfast", String::as_str));
    if let Some(options) = parameter("options") {
        config.options(options.as_str());
    }
    config.ssl_mode(match security {
        Security::Plain => SslMode::Disable,
        Security::Prefer => SslMode::Prefer,
        Security::Encrypted | Security::Verified => SslMode::Require,
    });
    Ok((config, security))
}

/// What went wrong, in words. Errors of the server are repeated only where they cannot hold data of a row.
fn describe(host: &str, error: &tokio_postgres::Error) -> String {
    let Some(db) = error.as_db_error() else {
        let cause = error.source().map_or_else(String::new, |cause| format!(": {cause}"));
        return format!("{host}: {error}{cause}");
    };
    let code = db.code();
    if *code == SqlState::QUERY_CANCELED {
        return format!("{host}: the query took too long and was cancelled");
    }
    // Names of tables and columns, roles and databases, limits of the server.
    let harmless = ["0A", "25", "28", "3D", "42", "53", "57"].iter().any(|class| code.code().starts_with(class));
    if harmless {
        format!("{host}: {} ({})", db.message(), code.code())
    } else {
        format!("{host}: the query failed with SQLSTATE {}", code.code())
    }
}

/// Takes any certificate: `sslmode=require` encrypts, and does not ask who the server is.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("postgresql://u:p@db.trading.svc/t", Security::Prefer, SslMode::Prefer)]
    #[case("postgres://u@db.trading.svc:6543/t?sslmode=disable", Security::Plain, SslMode::Disable)]
    #[case("postgresql://u:p@db/t?sslmode=require", Security::Encrypted, SslMode::Require)]
    #[case("postgresql://u:p@db/t?sslmode=verify-full&application_name=x", Security::Verified, SslMode::Require)]
    #[case("postgresql://u:p@db/t?sslmode=disable&sslmode=verify-ca", Security::Verified, SslMode::Require)]
    fn sslmode_means_what_libpq_says(#[case] url: &str, #[case] security: Security, #[case] mode: SslMode) {
        let (config, found) = read_url(url).unwrap();
        assert_eq!((found, config.get_ssl_mode()), (security, mode));
        assert_eq!(config.get_user(), Some("u"));
    }

    #[test]
    fn parameters_of_the_url_are_kept() {
        let (config, _) = read_url("postgresql://u:p%40ss@db/t?options=-c%20search_path%3Dbot").unwrap();
        assert_eq!(config.get_options(), Some("-c search_path=bot"));
        assert_eq!(config.get_password(), Some(b"p@ss".as_slice()));
        assert_eq!((config.get_dbname(), config.get_application_name()), (Some("t"), Some("standfast")));
    }

    #[rstest]
    #[case("postgresql://u:hunter2@db/t?sslmode=none")]
    #[case("hunter2")]
    #[case("host=db password=hunter2")]
    fn what_is_wrong_with_a_url_is_said_without_it(#[case] url: &str) {
        let why = read_url(url).unwrap_err();
        assert!(!why.contains("hunter2"), "{why}");
    }

    #[rstest]
    #[case("SELECT 1", "(\nSELECT 1\n)")]
    #[case("  SELECT 1 ; ", "(\nSELECT 1 \n)")]
    #[case("SELECT 1 -- all", "(\nSELECT 1 -- all\n)")]
    fn a_query_becomes_an_inner_one(#[case] query: &str, #[case] inner: &str) {
        assert!(wrapped(query).contains(inner), "{}", wrapped(query));
    }

    #[rstest]
    #[case(None, Scalar::Null)]
    #[case(Some("3"), Scalar::Number("3".into()))]
    #[case(Some("0.000000010"), Scalar::Number("0.000000010".into()))]
    #[case(Some("true"), Scalar::Bool(true))]
    #[case(Some("\"open\""), Scalar::Text("open".into()))]
    fn values_keep_their_kind(#[case] json: Option<&str>, #[case] expected: Scalar) {
        assert_eq!(scalar(json.map(str::to_owned)).unwrap(), expected);
    }

    #[rstest]
    #[case("[1]")]
    #[case("{\"a\": 1}")]
    #[case("\"cut off")]
    fn other_values_are_not_repeated(#[case] json: &str) {
        let Err(SqlError::Unasked(why)) = scalar(Some(json.into())) else { panic!("a value") };
        assert!(why.contains("neither"), "{why}");
    }
}
