//! The certificate by which bundlegate identifies itself to a registry (mutual TLS).

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_platform_verifier::Verifier;
use zeroize::{Zeroize as _, Zeroizing};

use crate::oci::{Digest, read_regular};

/// A larger certificate or key file is the wrong file.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The files of a client certificate. They are read again when they change.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate, followed by the intermediate ones of its chain (PEM).
    pub certificate: PathBuf,
    /// Its private key (PEM, unencrypted).
    pub key: PathBuf,
}

/// Why the files can't be used. Contains nothing of the key.
#[derive(Debug, thiserror::Error)]
pub enum ClientCertificateError {
    /// The certificate can't be read.
    #[error("client_certificate: {0}")]
    Certificate(String),
    /// The key can't be read, or is the key of another certificate.
    #[error("client_key: {0}")]
    Key(String),
}

/// A certificate and its key, ready for a handshake.
pub(super) struct ClientIdentity {
    key: Arc<CertifiedKey>,
}

impl ClientCertificate {
    /// Checks that both files can be read and belong together.
    ///
    /// # Errors
    /// See [`ClientCertificateError`].
    pub fn check(&self) -> Result<(), ClientCertificateError> {
        self.read().map(drop)
    }

    /// Reads both files. Blocks.
    pub(super) fn read(&self) -> Result<ClientIdentity, ClientCertificateError> {
        let chain = chain(&self.certificate).map_err(ClientCertificateError::Certificate)?;
        let key = signing_key(&self.key).map_err(ClientCertificateError::Key)?;
        let key = CertifiedKey::new(chain, key);
        match key.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InvalidCertificate(error)) => {
                let file = self.certificate.display();
                return Err(ClientCertificateError::Certificate(format!(
                    "{file} is unusable: {error:?}; replace it"
                )));
            }
            Err(_) => {
                let (key, certificate) = (self.key.display(), self.certificate.display());
                return Err(ClientCertificateError::Key(format!(
                    "{key} is not the key of the certificate in {certificate}; use a matching pair"
                )));
            }
        }
        Ok(ClientIdentity { key: Arc::new(key) })
    }

    /// The digests of both files; `None` for one that can't be read. Blocks.
    pub(super) fn contents(&self) -> [Option<Digest>; 2] {
        [&self.certificate, &self.key].map(|file| {
            let bytes = read_regular(file, MAX_FILE_BYTES).ok().map(Zeroizing::new);
            bytes.map(|bytes| Digest::sha256(&bytes))
        })
    }
}

impl ClientIdentity {
    /// A TLS configuration that presents the certificate to servers that ask for one, and trusts
    /// the system's roots and `extra_roots`.
    pub(super) fn tls(
        &self,
        extra_roots: Vec<CertificateDer<'static>>,
    ) -> Result<ClientConfig, rustls::Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = verifier(extra_roots, Arc::clone(&provider))?;
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&self.key))));
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(tls)
    }
}

/// As reqwest verifies servers by default.
fn verifier(
    extra_roots: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
) -> Result<Verifier, rustls::Error> {
    if extra_roots.is_empty() {
        Verifier::new(provider)
    } else {
        Verifier::new_with_extra_roots(extra_roots, provider)
    }
}

fn chain(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = read(file)?;
    let chain = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|_| format!("{} has malformed PEM", file.display()))?;
    if chain.is_empty() {
        return Err(format!(
            "{} has no certificate; use a PEM certificate (-----BEGIN CERTIFICATE-----)",
            file.display()
        ));
    }
    Ok(chain)
}

fn signing_key(file: &Path) -> Result<Arc<dyn rustls::sign::SigningKey>, String> {
    // The errors are not quoted: they could contain the key.
    let unusable = |_| {
        format!(
            "{} has no usable private key; use an unencrypted PEM key (PKCS#8, SEC1, PKCS#1)",
            file.display()
        )
    };
    let mut key = PrivateKeyDer::from_pem_slice(&read(file)?).map_err(|_| unusable(()))?;
    let signing_key = aws_lc_rs::sign::any_supported_type(&key);
    key.zeroize();
    signing_key.map_err(|_| unusable(()))
}

fn read(file: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let bytes = read_regular(file, MAX_FILE_BYTES).map_err(|error| {
        format!(
            "{} can't be read: {error}; correct the path or its permissions",
            file.display()
        )
    })?;
    Ok(Zeroizing::new(bytes))
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCertificate")
            .field("certificate", &self.certificate)
            .field("key", &self.key)
            .finish()
    }
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientIdentity").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[test]
    fn a_key_of_another_certificate_is_an_error_that_names_the_key_and_shows_nothing_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let file = folder.path().join(name);
            fs::write(&file, text).unwrap();
            file
        };
        let (own, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let certificate = CertificateParams::default().self_signed(&own).unwrap();
        let certificate = write("tls.crt", &certificate.pem());
        let error = |key: &str, text: &str| {
            let files = ClientCertificate {
                certificate: certificate.clone(),
                key: write(key, text),
            };
            files.check().unwrap_err().to_string()
        };
        let mismatch = error("other.key", &other.serialize_pem());
        assert!(
            mismatch.starts_with("client_key: ") && mismatch.contains("is not the key of"),
            "{mismatch}"
        );
        let broken = error(
            "broken.key",
            "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n",
        );
        assert!(
            broken.contains("no usable private key") && !broken.contains("c2VjcmV0"),
            "{broken}"
        );
        let files = ClientCertificate {
            key: write("tls.key", &own.serialize_pem()),
            certificate,
        };
        files.check().unwrap();
        let shown = format!("{:?} {files:?}", files.read().unwrap());
        assert!(!shown.contains("BEGIN"), "{shown}");
    }
}
