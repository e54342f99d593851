//! The identity of a client: what makes two requests those of one client.

use std::{fmt, net::IpAddr, str::FromStr};

use sha2::{Digest as _, Sha256};

/// The length of a name in a header, in bytes.
const MAX_NAME_BYTES: usize = 128;
/// The bytes of a key. A client can choose its name, so the key is long enough that a collision can't
/// be found by chance; that of a client with another credential is no use to it.
const KEY_BYTES: usize = 12;

/// The key of a client: a hash of its [`Identity`]. It is the same on every replica, and for a request
/// for a bundle and a status report.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientKey([u8; KEY_BYTES]);

/// What a request says about its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity<'a> {
    /// The name of the configured client whose credential the request has. One client can't take the
    /// place of another whose credential it does not have.
    pub credential: Option<&'a str>,
    /// What tells the clients with this credential apart.
    pub source: IdentitySource<'a>,
}

/// What tells the clients with one credential apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdentitySource<'a> {
    /// The value of the header `fleet.identity`.
    Name(&'a str),
    /// The address of a client that sends no name. Several clients may share it.
    Address(IpAddr),
}

/// The name in an identity header; `None` for a value that names no client: an empty one, and an
/// environment variable that OPA did not replace, because it is not set. OPA 0.70 sends the empty
/// value and OPA 1.22 the literal `${NAME}`.
pub fn usable_name(value: &[u8]) -> Option<&str> {
    let text = str::from_utf8(value).ok()?.trim_matches([' ', '\t']);
    let is_visible = text.bytes().all(|byte| matches!(byte, b'!'..=b'~'));
    let is_usable =
        is_visible && !text.is_empty() && text.len() <= MAX_NAME_BYTES && !text.contains("${");
    is_usable.then_some(text)
}

impl Identity<'_> {
    /// The key of the client.
    pub fn key(&self) -> ClientKey {
        let mut hash = Sha256::new();
        // Each part ends by a byte that it can't contain, so that no two identities are hashed alike.
        if let Some(credential) = self.credential {
            hash.update(credential.len().to_le_bytes());
            hash.update(credential);
        }
        match self.source {
            IdentitySource::Name(name) => {
                hash.update(b"\xffname\xff");
                hash.update(name);
            }
            IdentitySource::Address(address) => {
                hash.update(b"\xffaddress\xff");
                hash.update(address.to_canonical().to_string());
            }
        }
        let hash = hash.finalize();
        let mut key = [0; KEY_BYTES];
        key.copy_from_slice(&hash[..KEY_BYTES]);
        ClientKey(key)
    }
}

impl ClientKey {
    /// The key with these bytes; `None` if they are of another length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn to_array(self) -> [u8; KEY_BYTES] {
        self.0
    }

    /// A number that spreads evenly over all keys.
    pub(super) fn number(self) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.0[..8]);
        u64::from_le_bytes(bytes)
    }
}

impl fmt::Display for ClientKey {
    /// 24 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ClientKey {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text.len() != 2 * KEY_BYTES || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(());
        }
        let mut key = [0; KEY_BYTES];
        for (byte, index) in key.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&text[index..index + 2], 16).map_err(|_| ())?;
        }
        Ok(Self(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(credential: Option<&str>, source: IdentitySource<'_>) -> ClientKey {
        Identity { credential, source }.key()
    }

    #[test]
    fn credential_name_and_address_make_different_clients() {
        let address = |text: &str| IdentitySource::Address(text.parse().unwrap());
        let keys = [
            key(None, IdentitySource::Name("a")),
            key(None, IdentitySource::Name("b")),
            key(Some("a"), IdentitySource::Name("b")),
            key(Some("ab"), IdentitySource::Name("b")),
            key(Some(""), IdentitySource::Name("b")),
            key(None, IdentitySource::Name("10.0.0.1")),
            key(None, address("10.0.0.1")),
            key(None, address("10.0.0.2")),
            key(None, address("::1")),
        ];
        for (index, one) in keys.iter().enumerate() {
            assert!(!keys[..index].contains(one), "{index}");
        }
        assert_eq!(key(None, address("::ffff:10.0.0.1")), keys[6]);
    }

    #[test]
    fn a_key_is_read_as_it_is_written() {
        let one = key(Some("canary"), IdentitySource::Name("opa-1"));
        assert_eq!(one.to_string().len(), 24);
        assert_eq!(one.to_string().parse(), Ok(one));
        assert_eq!(ClientKey::from_bytes(one.as_bytes()), Some(one));
        for text in ["", "ab", "xx0000000000000000000000", &"é".repeat(12)] {
            assert_eq!(text.parse::<ClientKey>(), Err(()), "{text}");
        }
        assert_eq!(ClientKey::from_bytes(b"short"), None);
    }

    #[test]
    fn a_name_that_opa_did_not_replace_names_no_client() {
        let longest = "a".repeat(MAX_NAME_BYTES);
        for (value, name) in [
            ("opa-eu-1", Some("opa-eu-1")),
            (" opa-1\t", Some("opa-1")),
            (&*longest, Some(&*longest)),
            ("", None),
            ("  ", None),
            ("${HOSTNAME}", None),
            ("opa-${UNDEFINED}", None),
            ("two words", None),
            ("ü", None),
            (&*format!("{longest}a"), None),
        ] {
            assert_eq!(usable_name(value.as_bytes()), name, "{value:?}");
        }
        assert_eq!(usable_name(b"\xff"), None);
    }
}
