//! Private certificate authorities.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use sigstore_verify::types::DerCertificate;
use x509_cert::der::Decode as _;

use super::{TrustRoot, keys::fingerprint};
use crate::oci::Digest;

/// The certificates of a private certificate authority: roots, and intermediates that are trusted
/// like roots.
#[derive(Clone)]
pub struct CaRoots {
    certificates: Arc<[DerCertificate]>,
    /// The roots joined with the logs and timestamp authorities of the first trust root they were
    /// used with: one authority has one root.
    joined: Arc<OnceLock<(Digest, TrustRoot)>>,
}

/// An error in a file of certificates.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadCaRoots {
    /// There is no PEM certificate.
    #[error("no PEM certificate (-----BEGIN CERTIFICATE-----)")]
    Empty,
    /// A PEM block is not a certificate.
    #[error("certificate {number} is malformed: {reason}")]
    Broken {
        /// Its number, counted from 1.
        number: usize,
        /// The defect.
        reason: String,
    },
}

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";

impl CaRoots {
    /// Reads a sequence of PEM certificates.
    ///
    /// # Errors
    /// See [`BadCaRoots`].
    pub fn from_pem(text: &str) -> Result<Self, BadCaRoots> {
        let certificates = pem_certificates(text)?;
        if certificates.is_empty() {
            return Err(BadCaRoots::Empty);
        }
        Ok(Self {
            certificates: certificates.into(),
            joined: Arc::default(),
        })
    }

    /// A trust root with the logs and timestamp authorities of `root` and these certificate
    /// authorities.
    pub(super) fn joined_with(&self, root: &TrustRoot) -> Result<TrustRoot, String> {
        if let Some((of, joined)) = self.joined.get()
            && of == root.revision()
        {
            return Ok(joined.clone());
        }
        let joined = root.with_certificate_authorities(&self.certificates)?;
        // Two threads may compute this at the same time; both values are valid.
        let _ = self.joined.set((root.revision().clone(), joined.clone()));
        Ok(joined)
    }

    pub(super) fn certificates(&self) -> &[DerCertificate] {
        &self.certificates
    }
}

/// All PEM certificates in a text.
pub(super) fn pem_certificates(text: &str) -> Result<Vec<DerCertificate>, BadCaRoots> {
    text.match_indices(BEGIN)
        .enumerate()
        .map(|(index, (start, _))| {
            let rest = &text[start..];
            let end = rest[BEGIN.len()..]
                .find(BEGIN)
                .map_or(rest.len(), |next| BEGIN.len() + next);
            let broken = |reason: String| BadCaRoots::Broken {
                number: index + 1,
                reason,
            };
            let certificate = DerCertificate::from_pem(rest[..end].trim())
                .map_err(|error| broken(error.to_string()))?;
            x509_cert::Certificate::from_der(certificate.as_bytes())
                .map_err(|error| broken(error.to_string()))?;
            Ok(certificate)
        })
        .collect()
}

impl fmt::Debug for CaRoots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(
                self.certificates
                    .iter()
                    .map(|one| fingerprint(one.as_bytes())),
            )
            .finish()
    }
}
