//! Token servers whose tokens real registries verify (distribution, `auth/token.md` and
//! `auth/oauth.md`): one in the process of the test, which does what a test wants, and
//! distribution's own.

mod issue;
mod server;

use std::{fs, path::PathBuf, process::Command};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

pub(crate) use issue::{Issued, Tokens};
pub(crate) use server::{READER, TokenServer};

use super::{
    Process,
    ca::Certificate,
    free_address, http, poll_until, program,
    registry::{HTPASSWD, by_name},
};

/// As registries and tokens name both.
const SERVICE: &str = "registry.test";
const ISSUER: &str = "tokens.test";

/// The key of a token server, in every form in which a registry or a server takes it.
#[derive(Debug)]
struct TokenKey {
    pair: KeyPair,
    /// A certificate for the key, signed with it.
    certificate: Vec<u8>,
    folder: TempDir,
}

impl TokenKey {
    fn generate() -> Self {
        let pair = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["tokens.test".to_owned()]).unwrap();
        let certificate = params.self_signed(&pair).unwrap();
        let key = Self {
            pair,
            certificate: certificate.der().to_vec(),
            folder: TempDir::new().unwrap(),
        };
        fs::write(key.file("bundle.pem"), certificate.pem()).unwrap();
        let mut public = key.public();
        fs::write(
            key.file("keys.json"),
            json!({ "keys": [public] }).to_string(),
        )
        .unwrap();
        public["d"] = json!(URL_SAFE_NO_PAD.encode(key.scalar()));
        fs::write(key.file("key.json"), public.to_string()).unwrap();
        key
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// As JWK.
    fn public(&self) -> Value {
        let point = &self.pair.public_key_raw()[1..];
        let (x, y) = point.split_at(32);
        json!({
            "kty": "EC", "crv": "P-256", "kid": self.id(),
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        })
    }

    /// As docker's libtrust names the key: 240 bits of its hash in base32, in groups of four.
    fn id(&self) -> String {
        let hash = Sha256::digest(rcgen::PublicKeyData::subject_public_key_info(&self.pair));
        let bits: String = hash[..30]
            .iter()
            .map(|byte| format!("{byte:08b}"))
            .collect();
        let letters: Vec<char> = bits
            .as_bytes()
            .chunks(5)
            .map(|bits| {
                let number = u8::from_str_radix(std::str::from_utf8(bits).unwrap(), 2).unwrap();
                char::from(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"[usize::from(number)])
            })
            .collect();
        let groups: Vec<String> = letters
            .chunks(4)
            .map(|group| group.iter().collect())
            .collect();
        groups.join(":")
    }

    /// The private number, in the PKCS #8 of a key: after `INTEGER 1, OCTET STRING (32)`.
    fn scalar(&self) -> Vec<u8> {
        let der = self.pair.serialize_der();
        let before = [2, 1, 1, 4, 32];
        let at = der
            .windows(before.len())
            .position(|bytes| bytes == before)
            .unwrap();
        der[at + before.len()..][..32].to_vec()
    }

    /// For the header of a token: the certificate (`x5c`).
    fn chain(&self) -> Value {
        json!([STANDARD.encode(&self.certificate)])
    }

    /// `auth.token` in a registry's configuration: 2.8 knows certificates only, and 3 knows keys
    /// by other names than libtrust's unless they are listed.
    fn auth(&self, realm: &str) -> Value {
        json!({
            "realm": realm, "service": SERVICE, "issuer": ISSUER,
            "rootcertbundle": self.file("bundle.pem"), "jwks": self.file("keys.json"),
        })
    }
}

/// Distribution's own token server: [`super::USER`] with [`super::PASSWORD`] may use the
/// repositories below `robot/`. It runs until this is dropped.
#[derive(Debug)]
pub(crate) struct RealTokenServer {
    pub(crate) realm: String,
    key: TokenKey,
    process: Process,
}

impl RealTokenServer {
    /// Over HTTPS where there is a certificate.
    pub(crate) async fn start(certificate: Option<&Certificate>) -> Self {
        let key = TokenKey::generate();
        fs::write(key.file("htpasswd"), HTPASSWD).unwrap();
        let scheme = certificate.map_or("http", |_| "https");
        // It does not tell which port it got.
        for _ in 0..10 {
            let address = free_address();
            let mut command = Command::new(program("token-server"));
            command
                .args(["-debug", "-addr", &address, "-realm", "test"])
                .args(["-issuer", ISSUER])
                .arg("-key")
                .arg(key.file("key.json"))
                .arg("-passwd")
                .arg(key.file("htpasswd"));
            if let Some(files) = certificate {
                command.arg("-tlscert").arg(&files.certificate);
                command.arg("-tlskey").arg(&files.key);
            }
            let mut process = Process::start("token-server", &mut command);
            let realm = format!("{scheme}://{}/token/", by_name(&address));
            let (client, url) = (http(), format!("http://{address}/"));
            let (up, _) = poll_until("the token server", async || {
                match client.get(&url).send().await {
                    Ok(_) => Some(true),
                    Err(_) => process.has_ended().then_some(false),
                }
            })
            .await;
            if up {
                return Self {
                    realm,
                    key,
                    process,
                };
            }
        }
        panic!("no port for the token server");
    }

    pub(crate) fn auth(&self) -> Value {
        self.key.auth(&self.realm)
    }

    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    /// A refresh token, as `docker login` gets one.
    pub(crate) async fn refresh_token(&self) -> String {
        let request = http()
            .get(&self.realm)
            .query(&[("service", SERVICE), ("offline_token", "true")]);
        let request = request.basic_auth(super::USER, Some(super::PASSWORD));
        let answer: Value =
            serde_json::from_str(&request.send().await.unwrap().text().await.unwrap()).unwrap();
        answer["refresh_token"].as_str().unwrap().to_owned()
    }
}
