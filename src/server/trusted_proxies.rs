//! The proxies whose `X-Forwarded-For` is believed.

use std::net::IpAddr;

use ipnet::IpNet;

use super::request_head::HeaderLines;

/// The networks of proxies that report the addresses of their clients. None by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

/// Addresses that are read from the right. No chain of proxies is longer, and a client can write
/// anything further left.
const MAX_FORWARDED_ADDRESSES: usize = 16;

impl TrustedProxies {
    /// The proxies in these networks.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    /// The client's address, where `peer` is the address of the connection: the last one in
    /// `X-Forwarded-For` that does not belong to a trusted proxy, since each proxy appends the
    /// address of its own peer.
    pub(super) fn client_address(&self, peer: IpAddr, lines: HeaderLines<'_>) -> IpAddr {
        let mut client = peer;
        for forwarded in lines
            .iter()
            .rev()
            .flat_map(|line| line.rsplit(','))
            .take(MAX_FORWARDED_ADDRESSES)
        {
            if !self.contains(client) {
                break;
            }
            let Some(address) = address(forwarded.trim()) else {
                break;
            };
            client = address;
        }
        client
    }

    fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// Parses an address. Some proxies append a port.
fn address(text: &str) -> Option<IpAddr> {
    let with_port = || {
        text.parse()
            .ok()
            .map(|address: std::net::SocketAddr| address.ip())
    };
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    bare.parse()
        .ok()
        .or_else(with_port)
        .map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use hyper::HeaderMap;

    use super::*;
    use crate::server::request_head::X_FORWARDED_FOR;

    #[test]
    fn an_address_counts_only_if_a_trusted_proxy_appended_it() {
        let proxies = TrustedProxies::new(
            ["10.0.0.0/8", "fd00::/8"]
                .map(|network| network.parse().unwrap())
                .to_vec(),
        );
        for (peer, lines, client) in [
            ("192.0.2.1", &["198.51.100.7"][..], "192.0.2.1"),
            ("10.1.2.3", &["198.51.100.7"], "198.51.100.7"),
            ("10.1.2.3", &[], "10.1.2.3"),
            // The client itself wrote the address on the left.
            ("10.1.2.3", &["203.0.113.9, 198.51.100.7"], "198.51.100.7"),
            ("10.1.2.3", &["203.0.113.9", "198.51.100.7"], "198.51.100.7"),
            // Through two proxies.
            (
                "10.1.2.3",
                &["203.0.113.9, 198.51.100.7, 10.9.9.9"],
                "198.51.100.7",
            ),
            ("10.1.2.3", &["10.9.9.9, 10.8.8.8"], "10.9.9.9"),
            ("fd00::1", &["[2001:db8::7]:4711"], "2001:db8::7"),
            ("10.1.2.3", &["198.51.100.7:4711"], "198.51.100.7"),
            ("10.1.2.3", &["::ffff:198.51.100.7"], "198.51.100.7"),
            ("10.1.2.3", &["198.51.100.7, unknown"], "10.1.2.3"),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append("x-forwarded-for", line.parse().unwrap());
            }
            let lines_of = HeaderLines::of(&headers, &X_FORWARDED_FOR);
            let found = proxies.client_address(peer.parse().unwrap(), lines_of);
            assert_eq!(found, client.parse::<IpAddr>().unwrap(), "{peer} {lines:?}");
            assert_eq!(
                TrustedProxies::default()
                    .client_address(peer.parse().unwrap(), lines_of)
                    .to_string(),
                peer
            );
        }
    }
}
