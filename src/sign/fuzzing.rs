//! What a key file makes us read once its password has opened it, for the fuzz targets. Not
//! there in any other build.

use super::KeyPair;

/// The PKCS#8 document inside.
pub fn pkcs8(document: &[u8]) -> Option<KeyPair> {
    KeyPair::from_pkcs8(document).ok()
}

/// A signature over anything.
pub fn sign(key: &KeyPair, message: &[u8]) -> Vec<u8> {
    key.sign(message).unwrap_or_default()
}
