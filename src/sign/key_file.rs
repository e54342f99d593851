//! cosign's private key files: PKCS#8 encrypted with a password, in PEM (cosign,
//! `pkg/cosign/keys.go`; go-tuf, `encrypted/encrypted.go`).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use sigstore::crypto::signing_key::kdf;
use zeroize::Zeroizing;

use super::SignError;

const LABEL: &str = "ENCRYPTED SIGSTORE PRIVATE KEY";
/// The label that cosign 1 wrote.
const OLD_LABEL: &str = "ENCRYPTED COSIGN PRIVATE KEY";

/// The JSON document in the PEM.
#[derive(Deserialize)]
struct EncryptedKey {
    kdf: Kdf,
    cipher: Cipher,
}

#[derive(Deserialize)]
struct Kdf {
    name: String,
    params: Params,
    salt: String,
}

#[derive(Deserialize, PartialEq, Eq)]
struct Params {
    #[serde(rename = "N")]
    n: u32,
    r: u32,
    p: u32,
}

#[derive(Deserialize)]
struct Cipher {
    name: String,
    nonce: String,
}

/// Decrypts a key file to its PKCS#8 document. Blocks for the duration of scrypt, some 100 ms.
pub(super) fn open(text: &str, password: &[u8]) -> Result<Zeroizing<Vec<u8>>, SignError> {
    let sealed = contents(text)?;
    check(&sealed)?;
    // All parameters have been checked, so a failure means the password.
    kdf::decrypt(&sealed, password)
        .map(Zeroizing::new)
        .map_err(|_| SignError::WrongPassword)
}

/// Checks that `text` is a key file, before the user is prompted for a password.
pub(super) fn is_key_file(text: &str) -> Result<(), SignError> {
    check(&contents(text)?)
}

/// Encrypts `pkcs8` to a key file.
pub(super) fn seal(pkcs8: &[u8], password: &[u8]) -> Result<String, SignError> {
    let sealed =
        kdf::encrypt(pkcs8, password).map_err(|error| SignError::Key(error.to_string()))?;
    Ok(pem(LABEL, &sealed))
}

pub(super) fn pem(label: &str, content: &[u8]) -> String {
    let body = STANDARD.encode(content);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        text.extend(line.iter().map(|byte| char::from(*byte)));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

fn contents(text: &str) -> Result<Vec<u8>, SignError> {
    let no_key_file = |reason: &str| SignError::NotAKeyFile(reason.to_owned());
    if text.contains("-----BEGIN PUBLIC KEY-----") {
        return Err(no_key_file(
            "it holds a public key; name the private one (cosign.key)",
        ));
    }
    let label = [LABEL, OLD_LABEL]
        .into_iter()
        .find(|label| text.contains(&format!("-----BEGIN {label}-----")));
    let Some(label) = label else {
        return Err(no_key_file(match text.contains("PRIVATE KEY-----") {
            true => "not a cosign key file; convert it (cosign import-key-pair --key FILE)",
            false => "no private key in it; create one (bundlegate generate-key-pair)",
        }));
    };
    let (begin, end) = (
        format!("-----BEGIN {label}-----"),
        format!("-----END {label}-----"),
    );
    let body = text
        .split_once(&begin)
        .and_then(|(_, rest)| rest.split_once(&end))
        .map(|(body, _)| body);
    let body: String = body.unwrap_or_default().split_ascii_whitespace().collect();
    match STANDARD.decode(body) {
        Ok(sealed) if !sealed.is_empty() => Ok(sealed),
        _ => Err(no_key_file("its PEM is damaged; restore the file")),
    }
}

/// Checks the parameters. Only the two scrypt costs of cosign's own files are accepted: a file
/// must not choose how much memory and time it takes to open.
fn check(sealed: &[u8]) -> Result<(), SignError> {
    let refused = |reason: String| SignError::NotAKeyFile(reason);
    let EncryptedKey { kdf, cipher } =
        serde_json::from_slice(sealed).map_err(|error| refused(error.to_string()))?;
    let known = [32768, 65536].map(|n| Params { n, r: 8, p: 1 });
    if kdf.name != kdf::NAME_SCRYPT || !known.contains(&kdf.params) {
        return Err(refused(format!(
            "key derivation ({}) is not one that cosign uses",
            kdf.name
        )));
    }
    if cipher.name != kdf::NAME_SECRET_BOX {
        return Err(refused(format!(
            "cipher ({}) is not the one that cosign uses",
            cipher.name
        )));
    }
    for (what, text, length) in [
        ("salt", &kdf.salt, kdf::SALT_SIZE),
        ("nonce", &cipher.nonce, kdf::BOX_NONCE_SIZE),
    ] {
        if STANDARD
            .decode(text)
            .ok()
            .is_none_or(|bytes| bytes.len() != length as usize)
        {
            return Err(refused(format!("its {what} is not {length} bytes long")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encrypted_key_opens_with_its_password_only() {
        let text = seal(b"secret", b"pass").unwrap();
        assert_eq!(*open(&text, b"pass").unwrap(), b"secret");
        assert_eq!(
            *open(
                &text.replace('\n', "\r\n").replace(LABEL, OLD_LABEL),
                b"pass"
            )
            .unwrap(),
            b"secret"
        );
        assert!(matches!(
            open(&text, b"Pass"),
            Err(SignError::WrongPassword)
        ));
        assert!(matches!(open(&text, b""), Err(SignError::WrongPassword)));
    }

    /// The crypto library would panic at the nonce, and take hours at the cost.
    #[test]
    fn a_file_with_other_parameters_is_refused_before_it_costs_anything() {
        let text = seal(b"secret", b"").unwrap();
        let sealed: serde_json::Value = serde_json::from_slice(&contents(&text).unwrap()).unwrap();
        for (pointer, value, expected) in [
            (
                "/kdf/params/N",
                serde_json::json!(1 << 30),
                "key derivation",
            ),
            ("/kdf/params/r", serde_json::json!(80), "key derivation"),
            ("/kdf/name", serde_json::json!("none"), "key derivation"),
            ("/cipher/name", serde_json::json!("none"), "cipher"),
            ("/cipher/nonce", serde_json::json!("AAAA"), "nonce"),
            ("/kdf/salt", serde_json::json!("%"), "salt"),
            ("/kdf", serde_json::json!(null), "invalid type"),
        ] {
            let mut altered = sealed.clone();
            *altered.pointer_mut(pointer).unwrap() = value;
            let altered = format!(
                "-----BEGIN {LABEL}-----\n{}\n-----END {LABEL}-----\n",
                STANDARD.encode(altered.to_string())
            );
            let error = open(&altered, b"").unwrap_err();
            assert!(
                matches!(&error, SignError::NotAKeyFile(reason) if reason.contains(expected)),
                "{pointer}: {error}"
            );
        }
    }

    #[test]
    fn an_invalid_key_file_is_rejected_with_the_way_out() {
        for (text, expected) in [
            ("", "generate-key-pair"),
            ("-----BEGIN PUBLIC KEY-----\n", "public key"),
            (
                "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----",
                "import-key-pair",
            ),
            (
                "-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\nAA=",
                "damaged",
            ),
            (
                "-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n%%\n-----END ENCRYPTED SIGSTORE PRIVATE KEY-----",
                "damaged",
            ),
        ] {
            let error = open(text, b"").unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }
}
