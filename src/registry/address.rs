//! Addresses that an answer of a registry must not lead to: link-local ones, where clouds have
//! their metadata services with credentials.
//!
//! The answers of a registry cause requests: redirects, token realms, upload locations, next
//! pages. The registry's own origin is set by the configuration. Every other URL is checked
//! twice: an address in the URL itself ([`forbidden_host`]), and the addresses of a name at the
//! moment of connecting ([`GuardedResolver`]), so that a name that changes between two look-ups
//! gains nothing.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use moka::sync::Cache;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::{
    sync::Semaphore,
    time::{Duration, timeout},
};
use url::{Host, Url};

/// Metadata services of clouds outside of 169.254.0.0/16: Alibaba Cloud, Azure's WireServer,
/// Oracle Cloud.
const METADATA_V4: [Ipv4Addr; 3] = [
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(192, 0, 0, 192),
];
/// Metadata services over IPv6: AWS (instances, and pods on EKS), Google Cloud.
const METADATA_V6: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
];

/// Names of metadata services (Google Cloud, AWS, and what their images have in `/etc/hosts`).
const METADATA_NAMES: [&str; 5] = [
    "metadata.google.internal",
    "metadata.goog",
    "metadata",
    "instance-data",
    "instance-data.ec2.internal",
];
/// The time for resolving a name that the proxy resolves again: behind proxies there often is no
/// DNS server for outside names.
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(2);
/// Such look-ups at a time for the client of one host.
const MAX_LOOK_UPS: usize = 8;
/// For how long a name is not looked up again after a look-up took longer.
const SLOW_FOR: Duration = Duration::from_secs(60);
const MAX_SLOW_NAMES: u64 = 1024;

/// Whether answers must not lead to this address.
pub(super) fn is_forbidden(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_forbidden_v4(address),
        IpAddr::V6(address) => {
            address.is_unicast_link_local()
                || METADATA_V6.contains(&address)
                || embedded(address).into_iter().flatten().any(is_forbidden_v4)
        }
    }
}

fn is_forbidden_v4(address: Ipv4Addr) -> bool {
    address.is_link_local() || METADATA_V4.contains(&address)
}

/// The IPv4 addresses that a gateway or the system itself may reach through an IPv6 address.
fn embedded(address: Ipv6Addr) -> [Option<Ipv4Addr>; 2] {
    let from = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match address.segments() {
        // Mapped (`::ffff:a.b.c.d`), compatible (`::a.b.c.d`), translated (`::ffff:0:a.b.c.d`).
        [0, 0, 0, 0, 0, 0xffff | 0, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] => {
            [Some(from(high, low)), None]
        }
        // NAT64 (RFC 6052).
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => [Some(from(high, low)), None],
        // NAT64 of a site (RFC 8215): any prefix length, so either position.
        [0x64, 0xff9b, 1, high, middle, low, last_high, last_low] => {
            // Bits 64 to 71 are not part of the address (RFC 6052 §2.2).
            let ([_, b], [c, _]) = (middle.to_be_bytes(), low.to_be_bytes());
            [
                Some(from(high, u16::from_be_bytes([b, c]))),
                Some(from(last_high, last_low)),
            ]
        }
        // 6to4 (RFC 3056).
        [0x2002, high, low, ..] => [Some(from(high, low)), None],
        // Teredo (RFC 4380): the server, and the client with its bits inverted.
        [0x2001, 0, high, low, _, _, client_high, client_low] => {
            [Some(from(high, low)), Some(from(!client_high, !client_low))]
        }
        // ISATAP (RFC 5214).
        [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => [Some(from(high, low)), None],
        _ => [None, None],
    }
}

/// The address in a URL, if it is forbidden. Names are checked when they are resolved.
pub(super) fn forbidden_host(url: &Url) -> Option<IpAddr> {
    let address = match url.host()? {
        Host::Ipv4(address) => IpAddr::V4(address),
        Host::Ipv6(address) => IpAddr::V6(address),
        Host::Domain(_) => return None,
    };
    is_forbidden(address).then_some(address)
}

/// The check of names that a proxy resolves. Look-ups are bounded: the threads of the system's
/// resolver outlive a look-up that is given up.
pub(super) struct NameCheck {
    resolver: Arc<dyn Resolve>,
    /// Held until a look-up really ends.
    permits: Arc<Semaphore>,
    /// The names whose last look-up took too long. They are not looked up again for a while.
    slow: Cache<String, ()>,
}

impl NameCheck {
    pub(super) fn new(resolver: Arc<dyn Resolve>) -> Self {
        Self {
            resolver,
            permits: Arc::new(Semaphore::new(MAX_LOOK_UPS)),
            slow: Cache::builder()
                .max_capacity(MAX_SLOW_NAMES)
                .time_to_live(SLOW_FOR)
                .build(),
        }
    }

    /// What a request to `url` through a proxy would lead to, if that is forbidden. The proxy
    /// resolves the name, perhaps differently: this is the best that can be known here, and a name
    /// that is unknown here is allowed.
    pub(super) async fn forbidden(&self, url: &Url) -> Option<String> {
        let name = match url.host()? {
            Host::Domain(name) => name.trim_end_matches('.').to_ascii_lowercase(),
            Host::Ipv4(_) | Host::Ipv6(_) => return forbidden_host(url).map(|ip| ip.to_string()),
        };
        if METADATA_NAMES.contains(&name.as_str()) {
            return Some(name);
        }
        let mut addresses = self.look_up(&name).await?;
        let address = addresses.find(|address| is_forbidden(address.ip()))?;
        Some(format!("{name} at {}", address.ip()))
    }

    /// The addresses of a name; `None` if it has none, or if they are not known in time.
    async fn look_up(&self, name: &str) -> Option<Addrs> {
        if self.slow.contains_key(name) {
            return None;
        }
        let permits = Arc::clone(&self.permits);
        let admitted = timeout(LOOK_UP_TIMEOUT, permits.acquire_owned()).await;
        let permit = admitted.ok()?.ok()?;
        // Others may have waited for the same name.
        if self.slow.contains_key(name) {
            return None;
        }
        let resolving = self.resolver.resolve(name.parse().ok()?);
        let look_up = async move {
            let found = resolving.await.ok();
            drop(permit);
            found
        };
        // Detached: it can't be cancelled.
        let running = tokio::spawn(look_up);
        match timeout(LOOK_UP_TIMEOUT, running).await {
            Ok(found) => found.ok()?,
            Err(_) => {
                self.slow.insert(name.to_owned(), ());
                None
            }
        }
    }
}

impl fmt::Debug for NameCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NameCheck").finish_non_exhaustive()
    }
}

/// The system's resolver, as reqwest uses it by default.
#[derive(Debug)]
pub(super) struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            Ok(Box::new(found.collect::<Vec<_>>().into_iter()) as Addrs)
        })
    }
}

/// Removes forbidden addresses from the answers of another resolver. A name with no other address
/// is an error.
pub(super) struct GuardedResolver {
    resolver: Arc<dyn Resolve>,
}

/// A name has forbidden addresses only.
#[derive(Debug, thiserror::Error)]
#[error(
    "{name} is at {address}, a link-local or cloud metadata address, and no answer of a registry may lead there"
)]
struct Forbidden {
    name: String,
    address: IpAddr,
}

impl GuardedResolver {
    pub(super) fn new(resolver: Arc<dyn Resolve>) -> Self {
        Self { resolver }
    }
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let text = name.as_str().to_owned();
        let resolving = self.resolver.resolve(name);
        Box::pin(async move {
            let (forbidden, allowed): (Vec<SocketAddr>, Vec<_>) = resolving
                .await?
                .partition(|address| is_forbidden(address.ip()));
            match forbidden.first() {
                Some(address) if allowed.is_empty() => Err(Forbidden {
                    name: text,
                    address: address.ip(),
                }
                .into()),
                _ => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}

impl fmt::Debug for GuardedResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardedResolver").finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Resolves these names and no other.
    #[derive(Debug, Clone)]
    pub(in crate::registry) struct Fixed(
        pub(in crate::registry) &'static [(&'static str, &'static [&'static str])],
    );

    impl Resolve for Fixed {
        fn resolve(&self, name: Name) -> Resolving {
            let known = self.0.iter().find(|(known, _)| *known == name.as_str());
            let addresses =
                known.map(|(_, addresses)| addresses.iter().map(|text| text.parse().unwrap()));
            let sockets: Option<Vec<_>> =
                addresses.map(|found| found.map(|ip| SocketAddr::new(ip, 0)).collect());
            Box::pin(
                async move { Ok(Box::new(sockets.ok_or("no such name")?.into_iter()) as Addrs) },
            )
        }
    }

    #[test]
    fn metadata_services_and_the_local_link_are_forbidden_in_every_form() {
        for forbidden in [
            "169.254.169.254",
            "169.254.0.0",
            "169.254.255.255",
            "169.254.170.2",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "fe80::1",
            "fe80::a9fe:a9fe",
            "febf:ffff::1",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd20:ce::254",
            "::ffff:169.254.169.254",
            "::ffff:100.100.100.200",
            "::169.254.169.254",
            "::ffff:0:169.254.169.254",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::169.254.169.254",
            "64:ff9b:1:a9fe:a9:fe00::",
            "2002:a9fe:a9fe::1",
            "2001:0:a9fe:a9fe::1",
            "2001:0:102:304:0:0:5601:5601",
            "2001:db8::5efe:169.254.169.254",
            "2001:db8::200:5efe:100.100.100.200",
        ] {
            assert!(is_forbidden(forbidden.parse().unwrap()), "{forbidden}");
        }
    }

    #[test]
    fn private_and_public_addresses_are_allowed() {
        for allowed in [
            "127.0.0.1",
            "10.0.0.1",
            "192.168.1.1",
            "172.16.0.1",
            "100.100.100.201",
            "169.253.255.255",
            "169.255.0.0",
            "1.1.1.1",
            "::1",
            "fd00:ec2::253",
            "fc00::1",
            "2606:4700::1111",
            "::ffff:10.0.0.1",
            "64:ff9b::10.0.0.1",
            "2002:a00:1::1",
            "fec0::1",
        ] {
            assert!(!is_forbidden(allowed.parse().unwrap()), "{allowed}");
        }
    }

    #[tokio::test]
    async fn no_name_of_a_metadata_service_is_passed_to_a_proxy() {
        let names = Fixed(&[
            ("evil.example", &["10.0.0.1", "169.254.169.254"]),
            ("blobs.example", &["10.0.0.1"]),
        ]);
        let check = NameCheck::new(Arc::new(names));
        for (host, forbidden) in [
            ("169.254.169.254", Some("169.254.169.254")),
            ("[::ffff:a9fe:a9fe]", Some("::ffff:169.254.169.254")),
            (
                "Metadata.Google.Internal.",
                Some("metadata.google.internal"),
            ),
            ("metadata", Some("metadata")),
            // The proxy may take either address.
            ("evil.example", Some("evil.example at 169.254.169.254")),
            ("blobs.example", None),
            ("unknown.here", None),
        ] {
            let url = Url::parse(&format!("http://{host}/x")).unwrap();
            let found = check.forbidden(&url).await;
            assert_eq!(found.as_deref(), forbidden, "{host}");
        }
    }

    #[tokio::test]
    async fn a_name_resolves_to_its_allowed_addresses_only() {
        let resolver = GuardedResolver::new(Arc::new(Fixed(&[
            ("metadata.example", &["169.254.169.254", "fe80::1"]),
            ("mixed.example", &["169.254.169.254", "10.0.0.1"]),
        ])));
        let resolve = |name: &str| resolver.resolve(name.parse().unwrap());
        let refused = resolve("metadata.example").await.err().unwrap().to_string();
        assert!(
            refused.starts_with("metadata.example is at 169.254.169.254, a link-local"),
            "{refused}"
        );
        let mixed: Vec<_> = resolve("mixed.example")
            .await
            .unwrap()
            .map(|address| address.ip().to_string())
            .collect();
        assert_eq!(mixed, ["10.0.0.1"]);
        assert_eq!(
            resolve("none.example").await.err().unwrap().to_string(),
            "no such name"
        );
    }

    /// Never answers, as `getaddrinfo` behind a proxy without DNS, and counts its look-ups.
    #[derive(Debug, Default)]
    struct Silent(AtomicUsize);

    impl Resolve for Silent {
        fn resolve(&self, _: Name) -> Resolving {
            self.0.fetch_add(1, Ordering::Relaxed);
            Box::pin(std::future::pending())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_is_not_resolved_in_time_is_not_looked_up_for_every_request() {
        let resolver = Arc::new(Silent::default());
        let check = NameCheck::new(Arc::clone(&resolver) as Arc<dyn Resolve>);
        let url = Url::parse("http://blobs.example/x").unwrap();
        for _ in 0..100 {
            assert_eq!(check.forbidden(&url).await, None);
        }
        assert_eq!(resolver.0.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn look_ups_that_do_not_end_are_bounded() {
        let resolver = Arc::new(Silent::default());
        let check = NameCheck::new(Arc::clone(&resolver) as Arc<dyn Resolve>);
        for number in 0..50 {
            let url = Url::parse(&format!("http://blobs{number}.example/x")).unwrap();
            assert_eq!(check.forbidden(&url).await, None);
        }
        assert_eq!(resolver.0.load(Ordering::Relaxed), MAX_LOOK_UPS);
    }
}
