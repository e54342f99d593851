//! Which requests go through a proxy, and which one.

use std::{fmt, path::PathBuf, sync::Arc};

use hyper::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use url::{Host, Url};
use zeroize::Zeroizing;

use crate::oci::{Digest, MAX_PASSWORD_BYTES, read_password, read_regular};

/// How the connections for one registry are made: to it, to its token server and to the storage
/// that it redirects to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Proxy {
    /// As `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` say, except to this machine.
    #[default]
    Environment,
    /// Directly, whatever the environment says.
    Direct,
    /// Through this proxy, whatever the environment says.
    Server(ProxyServer),
}

/// A proxy: `http` or `https` with CONNECT, or SOCKS 5.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyServer {
    /// Scheme, host and port.
    pub url: Url,
    /// The user's name, if the proxy requires one.
    pub username: Option<String>,
    /// The file with the password; white space around it is dropped. It is read again when it
    /// changes.
    pub password_file: Option<PathBuf>,
}

/// The proxy settings of one registry, with the environment as it was at the start.
#[derive(Debug, Clone)]
pub(super) enum ProxyRules {
    Environment(Arc<Matcher>),
    Direct,
    Server(ProxyServer),
}

impl ProxyServer {
    /// The password. Blocks.
    ///
    /// # Errors
    /// When the file can't be read or is empty. The text has nothing of the password.
    pub fn password(&self) -> Result<Option<Zeroizing<String>>, String> {
        self.password_file.as_deref().map(read_password).transpose()
    }

    /// The digest of the password file, if there is one and it can be read. Blocks.
    pub(super) fn contents(&self) -> Option<Digest> {
        let bytes = read_regular(self.password_file.as_ref()?, MAX_PASSWORD_BYTES).ok()?;
        Some(Digest::sha256(&Zeroizing::new(bytes)))
    }

    /// The proxy for reqwest, with the current password.
    pub(super) fn connect(&self) -> Result<reqwest::Proxy, String> {
        // reqwest decodes what it finds in the URL, a `%` of the password as well.
        let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let mut url = self.url.clone();
        let mut set = Ok(());
        if let Some(username) = &self.username {
            set = url.set_username(&encoded(username));
        }
        if let Some(password) = self.password()? {
            let password = Zeroizing::new(encoded(&password));
            set = set.and_then(|()| url.set_password(Some(&password)));
        }
        // The error is not quoted: it could contain the URL.
        set.ok()
            .and_then(|()| reqwest::Proxy::all(url).ok())
            .ok_or_else(|| {
                format!("{self} can't be used; write a URL such as http://proxy.lan:3128")
            })
    }
}

impl ProxyRules {
    pub(super) fn new(proxy: &Proxy) -> Self {
        match proxy {
            Proxy::Environment => Self::Environment(Arc::new(Matcher::from_system())),
            Proxy::Direct => Self::Direct,
            Proxy::Server(server) => Self::Server(server.clone()),
        }
    }

    /// Whether there may be a proxy for some request. Of the environment only single URLs can be
    /// asked, and `NO_PROXY` may have any of them.
    pub(super) fn are_used(&self) -> bool {
        !matches!(self, Self::Direct)
    }

    /// Whether names of servers may be resolved by this program and not by the proxy: with
    /// `socks5`, unlike `socks5h`.
    pub(super) fn may_resolve_here(&self) -> bool {
        match self {
            Self::Direct => false,
            Self::Server(server) => server.url.scheme() == "socks5",
            Self::Environment(_) => true,
        }
    }

    /// The proxy of a request to `url`, without credentials; `None` for a direct connection.
    pub(super) fn proxy_of(&self, url: &Url) -> Option<String> {
        match self {
            Self::Direct => None,
            Self::Server(server) => Some(server.to_string()),
            // As in Go's tools.
            Self::Environment(_) if is_this_machine(url) => None,
            Self::Environment(matcher) => {
                let uri: Uri = url.as_str().parse().ok()?;
                let found = matcher.intercept(&uri)?;
                let authority = found.uri().authority()?;
                Some(format!("{}://{authority}", found.uri().scheme_str()?))
            }
        }
    }
}

fn is_this_machine(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

impl fmt::Display for ProxyServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.url.host_str().unwrap_or_default();
        write!(f, "{}://{host}", self.url.scheme())?;
        match self.url.port_or_known_default() {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for ProxyServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProxyServer({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(http: &str, https: &str, no: &str) -> ProxyRules {
        let matcher = Matcher::builder()
            .http(http.to_owned())
            .https(https.to_owned());
        ProxyRules::Environment(Arc::new(matcher.no(no.to_owned()).build()))
    }

    #[test]
    fn the_environment_decides_by_scheme_and_host_and_never_for_this_machine() {
        let rules = environment(
            "http://robot:secret@plain.lan:3128",
            "http://robot:secret@tls.lan:3129",
            "direct.example, .internal.example, 10.0.0.0/8",
        );
        for (url, proxy) in [
            ("https://r.example/v2/", Some("http://tls.lan:3129")),
            ("http://r.example:5000/v2/", Some("http://plain.lan:3128")),
            ("https://direct.example/v2/", None),
            ("https://sub.direct.example/v2/", None),
            ("https://a.internal.example:8443/", None),
            ("https://10.1.2.3/v2/", None),
            ("https://11.1.2.3/v2/", Some("http://tls.lan:3129")),
            ("http://localhost:5000/v2/", None),
            ("http://127.0.0.1:5000/v2/", None),
            ("https://[::1]:5000/v2/", None),
        ] {
            let url = Url::parse(url).unwrap();
            assert_eq!(rules.proxy_of(&url).as_deref(), proxy, "{url}");
        }
        assert!(!format!("{rules:?}").contains("secret"));
    }

    #[test]
    fn proxies_of_the_environment_are_used_whatever_no_proxy_has() {
        let rules = environment("", "http://tls.lan:3129", "bundlegate, .svc, localhost");
        assert!(rules.are_used());
        let url = Url::parse("https://r.example/v2/").unwrap();
        assert_eq!(rules.proxy_of(&url).as_deref(), Some("http://tls.lan:3129"));
        assert!(!ProxyRules::new(&Proxy::Direct).are_used());
    }

    #[test]
    fn a_proxy_of_the_configuration_is_used_for_every_host() {
        let rules = ProxyRules::new(&Proxy::Server(ProxyServer {
            url: Url::parse("http://proxy.lan").unwrap(),
            username: Some("robot".to_owned()),
            password_file: None,
        }));
        for url in ["http://127.0.0.1:5000/v2/", "https://r.example/v2/"] {
            let url = Url::parse(url).unwrap();
            assert_eq!(rules.proxy_of(&url).as_deref(), Some("http://proxy.lan:80"));
        }
        let direct = ProxyRules::new(&Proxy::Direct);
        assert_eq!(
            direct.proxy_of(&Url::parse("https://r.example/").unwrap()),
            None
        );
    }
}
