//! How clients prove who they are, apart from bearer tokens, which are only compared: password
//! files and certificates. Pure: what is cached, and how many checks run at a time, is decided by
//! the server.

mod certificate;
mod password_file;

pub use certificate::{CertificateIdentity, CertificateName};
pub use password_file::{InvalidPasswordFile, PasswordFile, User};
