use k8s_openapi::ByteString;
use rstest::rstest;

use super::*;

fn secret(label: Option<&str>, hosts: Option<&str>) -> Secret {
    let one = |name: &str, value: &str| [(name.to_owned(), value.to_owned())].into();
    Secret {
        metadata: ObjectMeta {
            name: Some("alpaca".into()),
            labels: label.map(|value| one(USE_LABEL, value)),
            annotations: hosts.map(|value| one(HOSTS_ANNOTATION, value)),
            ..ObjectMeta::default()
        },
        data: Some(
            [("token".to_owned(), ByteString(b"hunter2\r\n".to_vec())), ("binary".to_owned(), ByteString(vec![0xff]))]
                .into(),
        ),
        ..Secret::default()
    }
}

fn read_of(hosts: Option<&str>) -> Read {
    Read { namespace: "trading".into(), secret: secret(Some("true"), hosts) }
}

#[rstest]
fn only_secrets_for_this_use(#[values(None, Some(""), Some("false"), Some("True"))] label: Option<&str>) {
    check_use("trading", &secret(Some("true"), None).metadata).unwrap();
    let error = check_use("trading", &secret(label, None).metadata).unwrap_err().to_string();
    let command = "kubectl -n trading label secret alpaca standfast.dev/use=true";
    assert!(error.contains("Secret trading/alpaca") && error.contains(command), "{error}");
}

#[rstest]
#[case("api.venue.example", true)]
#[case("API.Venue.Example", true)]
#[case("api.venue.example.", true)]
#[case(" a.example , api.venue.example ", true)]
#[case("api.venue.example:443", true)]
#[case("*.venue.example", true)]
#[case("*.venue.example:443", true)]
#[case("*.example", true)]
#[case("", false)]
#[case(",", false)]
#[case("*", false)]
#[case("*.", false)]
#[case("*.*", false)]
#[case("*venue.example", false)]
#[case("*.api.venue.example", false)]
#[case("venue.example", false)]
#[case("pi.venue.example", false)]
#[case("api.venue.example.evil", false)]
#[case("api.venue.example:8443", false)]
#[case("api.venue.example:", false)]
#[case("api.venue.example:99999", false)]
#[case("api.venue.example:+443", false)]
#[case("https://api.venue.example", false)]
#[case("api.venue.example/path", false)]
#[case("a.example api.venue.example", false)]
fn hosts(#[case] annotation: &str, #[case] allowed: bool) {
    assert_eq!(read_of(Some(annotation)).value("token", "api.venue.example", 443).is_ok(), allowed);
}

#[rstest]
#[case("127.0.0.1", "127.0.0.1", true)]
#[case("127.0.0.1:80", "127.0.0.1", true)]
#[case("[::1]", "[::1]", true)]
#[case("[::1]:80", "[::1]", true)]
#[case("[::1]:81", "[::1]", false)]
#[case("bücher.example", "xn--bcher-kva.example", true)]
fn odd_hosts(#[case] annotation: &str, #[case] host: &str, #[case] allowed: bool) {
    assert_eq!(read_of(Some(annotation)).value("token", host, 80).is_ok(), allowed);
}

#[test]
fn a_refused_host_says_what_to_run() {
    let error = read_of(None).value("token", "api.venue.example", 443).unwrap_err().to_string();
    let command = "kubectl -n trading annotate secret alpaca --overwrite standfast.dev/allowed-hosts=api.venue.example";
    assert!(error.contains(command), "{error}");
    let error = read_of(Some("a.example, b.example")).value("token", "c.example", 443).unwrap_err().to_string();
    assert!(error.contains("allowed-hosts=a.example,b.example,c.example"), "{error}");
}

#[test]
fn values() {
    let read = read_of(Some("venue.example"));
    let value = read.value("token", "venue.example", 443).unwrap();
    assert_eq!(value.expose(), "hunter2");
    assert!(!format!("{value:?} {read:?}").contains("hunter2"));
    let error = read.value("tokens", "venue.example", 443).unwrap_err().to_string();
    assert!(error.contains("Secret trading/alpaca has no key tokens") && !error.contains("hunter2"), "{error}");
    assert!(read.value("binary", "venue.example", 443).unwrap_err().to_string().contains("not text"));
}

#[rstest]
#[case("postgresql://u:p@db.trading.svc:6432/app?sslmode=require", "db.trading.svc", 6432)]
#[case("postgres://u:p%40x@DB.example/app", "db.example", 5432)]
fn database_urls(#[case] text: &str, #[case] host: &str, #[case] port: u16) {
    assert_eq!(database_host(text), Ok((host.to_owned(), port)));
}

#[rstest]
fn database_urls_that_lead_elsewhere(
    #[values(
        "",
        "host=db user=u",
        "mysql://db/app",
        "postgresql:///app",
        "postgresql://a.example,b.example/app",
        "postgresql://%2Fvar%2Frun/app",
        "postgresql://u:p@evil.example@good.example/app",
        "postgresql://good.example/app?host=evil.example",
        "postgresql://good.example/app?hostaddr=10.0.0.1",
        "postgresql://good.example/app?port=1",
        "postgresql://good.example/app?sslrootcert=/etc/passwd",
        "postgresql://good.example/app?%68ost=evil.example"
    )]
    text: &str,
) {
    database_host(text).unwrap_err();
}
