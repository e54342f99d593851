//! Entry points for the fuzz targets: the code that runs after a password has opened a key file.
//! Compiled for fuzzing only.

use super::KeyPair;

/// Parses the PKCS#8 document of a key file.
pub fn pkcs8(document: &[u8]) -> Option<KeyPair> {
    KeyPair::from_pkcs8(document).ok()
}

/// Signs a message.
pub fn sign(key: &KeyPair, message: &[u8]) -> Vec<u8> {
    key.sign(message).unwrap_or_default()
}
