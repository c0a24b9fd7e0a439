use rstest::rstest;

use super::*;

fn config(deny: &[&str], allow: &[&str]) -> GuardConfig {
    let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect();
    GuardConfig {
        deny_cidrs: nets(deny),
        allow_cidrs: nets(allow),
        api_server: vec!["10.96.0.1:443".parse().unwrap(), "127.0.0.1:6443".parse().unwrap()],
        ..GuardConfig::default()
    }
}

fn guard(deny: &[&str], allow: &[&str]) -> Guard {
    Guard::new(config(deny, allow))
}

fn lookup(guard: &Guard, url: &str) -> Result<Lookup, String> {
    guard.target("trading", url).map(|(_, target)| target.lookup)
}

fn connects(guard: &Guard, address: &str) -> Result<(), String> {
    let (_, target) = guard.target("trading", "https://venue.example/").unwrap();
    guard.check_address(&target, address.parse().unwrap())
}

#[rstest]
#[case("https://api.venue.example/v2/orders", "api.venue.example.")]
#[case("https://API.Venue.Example./", "api.venue.example.")]
#[case("http://venue.example:8080", "venue.example.")]
#[case("https://x.svc.example/", "x.svc.example.")]
#[case("https://bücher.example/", "xn--bcher-kva.example.")]
fn outside_names_are_absolute(#[case] url: &str, #[case] expected: &str) {
    assert_eq!(lookup(&guard(&[], &[]), url), Ok(Lookup::Name(expected.into())));
}

#[rstest]
#[case("http://bot.trading", "bot.trading.svc.cluster.local.")]
#[case("http://bot.trading.svc:8080/halt", "bot.trading.svc.cluster.local.")]
#[case("http://BOT.Trading.SVC", "bot.trading.svc.cluster.local.")]
#[case("http://bot.trading.svc.", "bot.trading.svc.cluster.local.")]
#[case("http://bot.trading.svc.cluster.local", "bot.trading.svc.cluster.local.")]
#[case("http://bot.trading.svc.cluster.local.", "bot.trading.svc.cluster.local.")]
#[case("http://bot-0.bot.trading.svc", "bot-0.bot.trading.svc.cluster.local.")]
fn own_services_may_be_called(#[case] url: &str, #[case] expected: &str) {
    assert_eq!(lookup(&guard(&[], &[]), url), Ok(Lookup::Service(expected.into())));
}

#[rstest]
#[case("http://bot.other.svc", "not a service of namespace trading")]
#[case("http://bot.other.svc.cluster.local", "not a service of namespace trading")]
#[case("http://bot.other.svc.cluster.local.", "not a service of namespace trading")]
#[case("http://trading.other.svc", "not a service of namespace trading")]
#[case("http://trading.svc", "not a service of namespace trading")]
#[case("http://svc", "not a whole host name")]
#[case("http://.svc", "not a host name")]
#[case("http://bot.trading.svc.clusterset.local.evil..", "not a host name")]
#[case("http://bot.other.svc.clusterset.local", "not a service of namespace trading")]
#[case("http://10-0-0-1.trading.pod.cluster.local", "not a service's")]
#[case("http://x.cluster.local", "not a service's")]
#[case("http://kubernetes.default.svc", "the Kubernetes API server")]
#[case("http://kubernetes.default.svc.cluster.local.", "the Kubernetes API server")]
#[case("http://bot", "write bot.trading.svc")]
#[case("http://user@venue.example/", "a user or a password")]
#[case("http://:pw@venue.example/", "a user or a password")]
#[case("http://@venue.example/", "a user or a password")]
#[case("http://venue.example@169.254.169.254/", "a user or a password")]
#[case("http:\\\\venue.example\\@evil/", "backslash")]
#[case("http://venue.example\\@evil/", "backslash")]
#[case("http://venue.example/\r\nX: y", "control character")]
#[case("ftp://venue.example", "only http and https")]
#[case("file:///etc/passwd", "only http and https")]
#[case("gopher://venue.example", "only http and https")]
#[case("https://", "cannot be read")]
#[case("venue.example", "cannot be read")]
#[case("http://127.0.0.1/", "is an address")]
#[case("http://8.8.8.8/", "is an address")]
#[case("http://0x7f000001/", "127.0.0.1 is an address")]
#[case("http://2130706433/", "127.0.0.1 is an address")]
#[case("http://127.1/", "127.0.0.1 is an address")]
#[case("http://0177.0.0.1/", "127.0.0.1 is an address")]
#[case("http://%31%32%37.0.0.1/", "127.0.0.1 is an address")]
#[case("http://127.0.0.1./", "127.0.0.1 is an address")]
#[case("http://127。0。0。1/", "127.0.0.1 is an address")]
#[case("http://①②⑦.0.0.1/", "127.0.0.1 is an address")]
#[case("http://[::1]/", "is an address")]
#[case("http://[::ffff:169.254.169.254]/", "is an address")]
#[case("http://[::ffff:7f00:1]:80/", "is an address")]
#[case("http://[64:ff9b::7f00:1]/", "is an address")]
#[case("http://[fd00:ec2::254]/", "is an address")]
fn refused_urls(#[case] url: &str, #[case] expected: &str) {
    let error = lookup(&guard(&[], &[]), url).unwrap_err();
    assert!(error.contains(expected), "{url}: {error}");
}

#[test]
fn the_api_server_is_refused_by_name_to_its_own_namespace_too() {
    let error = guard(&[], &[]).target("default", "https://kubernetes.default.svc").unwrap_err();
    assert!(error.contains("API server"), "{error}");
    guard(&[], &[]).target("default", "https://bot.default.svc").unwrap();
}

#[test]
fn the_cluster_domain_is_set_by_the_site() {
    let guard = Guard::new(GuardConfig { cluster_domain: "k8s.corp.".into(), ..GuardConfig::default() });
    let own = Lookup::Service("bot.trading.svc.k8s.corp.".into());
    assert_eq!(lookup(&guard, "http://bot.trading.svc.k8s.corp"), Ok(own.clone()));
    assert_eq!(lookup(&guard, "http://bot.trading.svc"), Ok(own));
    lookup(&guard, "http://bot.other.svc.k8s.corp").unwrap_err();
    lookup(&guard, "http://bot.other.svc.cluster.local").unwrap_err();
    lookup(&guard, "http://x.k8s.corp").unwrap_err();
    lookup(&guard, "http://venue.corp").unwrap();
}

#[rstest]
fn refused_addresses(
    #[values(
        "0.0.0.0:80",
        "0.1.2.3:80",
        "127.0.0.1:80",
        "127.255.255.254:80",
        "169.254.169.254:80",
        "169.254.170.2:80",
        "169.254.1.1:80",
        "100.100.100.200:80",
        "168.63.129.16:80",
        "192.0.0.192:80",
        "224.0.0.1:80",
        "239.255.255.255:80",
        "240.0.0.1:80",
        "255.255.255.255:80",
        "10.96.0.1:443",
        "10.96.0.1:8443",
        "[::]:80",
        "[::1]:80",
        "[fe80::1]:80",
        "[fec0::1]:80",
        "[ff02::1]:80",
        "[fd00:ec2::254]:80",
        "[fd00:ec2::23]:80",
        "[fd20:ce::254]:80",
        "[2002:7f00:1::]:80",
        "[2001::1]:80",
        "[64:ff9b:1::a00:1]:80",
        "[::ffff:127.0.0.1]:80",
        "[::ffff:169.254.169.254]:80",
        "[::ffff:10.96.0.1]:443",
        "[::ffff:0:169.254.169.254]:80",
        "[::169.254.169.254]:80",
        "[64:ff9b::169.254.169.254]:80",
        "[64:ff9b::10.96.0.1]:443",
        "10.0.0.7:443",
        "100.64.0.1:443",
        "172.16.0.1:80",
        "172.31.255.254:80",
        "192.168.1.1:80",
        "[fc00::1]:443",
        "[fd12:3456::1]:443",
        "[::ffff:10.0.0.7]:443",
        "[64:ff9b::10.0.0.7]:443"
    )]
    address: &str,
) {
    connects(&guard(&[], &[]), address).unwrap_err();
    connects(&guard(&[], &["0.0.0.0/0", "::/0"]), address).unwrap_err();
}

#[rstest]
fn allowed_addresses(
    #[values(
        "8.8.8.8:443",
        "11.0.0.1:443",
        "100.128.0.1:443",
        "172.32.0.1:443",
        "192.169.0.1:443",
        "[2606:4700::1111]:443",
        "[64:ff9b::8.8.8.8]:443",
        "[::ffff:8.8.8.8]:443"
    )]
    address: &str,
) {
    connects(&guard(&[], &[]), address).unwrap();
}

#[rstest]
fn denied_ranges_win(#[values("10.1.2.3:443", "[::ffff:10.1.2.3]:443", "[64:ff9b::10.1.2.3]:443")] address: &str) {
    let error = connects(&guard(&["10.0.0.0/8"], &["10.1.0.0/16"]), address).unwrap_err();
    assert!(error.contains("denyCIDRs"), "{error}");
}

#[test]
fn loopback_can_be_opened_for_a_test() {
    let guard = guard(&[], &["127.0.0.0/8"]);
    let (_, target) = guard.target("trading", "http://127.0.0.1:8080/").unwrap();
    assert_eq!(target.lookup, Lookup::Address("127.0.0.1".parse().unwrap()));
    guard.check_address(&target, "127.0.0.1:8080".parse().unwrap()).unwrap();
    guard.target("trading", "http://127.1:8080/").unwrap();
    connects(&guard, "127.0.0.1:8080").unwrap();
    connects(&guard, "[::ffff:127.0.0.1]:8080").unwrap();
    // Only that, and never the API server's port.
    connects(&guard, "127.0.0.1:6443").unwrap_err();
    connects(&guard, "[::1]:8080").unwrap_err();
    connects(&guard, "169.254.169.254:80").unwrap_err();
    guard.target("trading", "http://10.0.0.1/").unwrap_err();
}

#[test]
fn link_local_can_be_opened_without_metadata() {
    let guard = guard(&[], &["169.254.0.0/16"]);
    connects(&guard, "169.254.20.10:80").unwrap();
    connects(&guard, "169.254.169.254:80").unwrap_err();
}

#[test]
fn the_api_server_cannot_be_opened() {
    connects(&guard(&[], &["10.96.0.1/32"]), "10.96.0.1:443").unwrap_err();
}

/// Other namespaces' pods and services have private addresses, and any name may lead to one.
#[rstest]
fn private_addresses_are_for_own_services(
    #[values("10.100.0.9:80", "100.64.0.9:80", "172.18.0.9:80", "192.168.0.9:80", "[fd00::9]:80")] address: &str,
) {
    let guard = guard(&[], &[]);
    let error = connects(&guard, address).unwrap_err();
    assert!(error.contains("a private address, which is refused unless the operator's allowCIDRs opens it"), "{error}");
    let (_, service) = guard.target("trading", "http://bot.trading.svc").unwrap();
    guard.check_address(&service, address.parse().unwrap()).unwrap();
}

#[test]
fn private_addresses_can_be_opened() {
    let guard = guard(&[], &["10.20.0.0/16", "fd20::/16"]);
    connects(&guard, "10.20.0.5:5432").unwrap();
    connects(&guard, "[fd20::5]:5432").unwrap();
    connects(&guard, "10.21.0.5:5432").unwrap_err();
    let (_, literal) = guard.target("trading", "http://10.20.0.5/").unwrap();
    guard.check_address(&literal, "10.20.0.5:80".parse().unwrap()).unwrap();
    // What is refused within them stays so.
    connects(&guard, "[fd20:ce::254]:80").unwrap_err();
}

/// Everything may be called by address, as it seems, but an address is not the name of a service.
#[test]
fn private_addresses_are_not_opened_by_the_way() {
    let guard = guard(&[], &["0.0.0.0/0"]);
    let (_, literal) = guard.target("trading", "http://10.20.0.5/").unwrap();
    guard.check_address(&literal, "10.20.0.5:80".parse().unwrap()).unwrap_err();
}
