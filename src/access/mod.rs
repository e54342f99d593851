//! How clients prove who they are, apart from bearer tokens, which are only compared: password
//! files, certificates and JSON Web Tokens; also when certificates expire. What is cached, and how many checks run at a time, is
//! decided by the server. The only I/O is fetching the keys of issuers ([`RemoteKeys`]).

mod certificate;
mod expiry;
mod jwt;
mod key_set;
mod password_file;
mod remote_keys;

pub use certificate::{Authorities, CertificateIdentity, CertificateName};
pub use expiry::CertificateExpiry;
pub use jwt::{Jwt, TokenError, TokenRule, VerifiedToken};
pub use key_set::{InvalidKeySet, KeySet};
pub use password_file::{InvalidPasswordFile, PasswordFile, User};
pub use remote_keys::{KeySource, KeyUrl, RemoteKeySets, RemoteKeys};
