//! Verifies a bundle as sigstore-conformance defines it, which is wider than what the gateway
//! accepts: every version of the format, message signatures as well as envelopes, any artifact.
//! The certificate and log checks are the same code as the gateway's.

use sigstore_verify::types::{Artifact, ArtifactDigest, Bundle, DerPublicKey, Sha256Hash};

use super::{
    Identity, TrustRoot, certificate,
    reason::CandidateError,
    sigstore::{CertificateRequirements, check_clock, verify_certificate, verify_key},
};
use crate::oci::{Digest, strict_json};

/// The expected subject of the bundle.
#[derive(Debug)]
pub enum Subject {
    /// These bytes.
    Bytes(Vec<u8>),
    /// An artifact with this digest.
    Digest(Digest),
}

/// The expected signer.
#[derive(Debug)]
pub enum ExpectedSigner {
    /// The holder of a certificate with this identity.
    Identity(Identity),
    /// The holder of this public key, PEM.
    Key(String),
}

/// Verifies a bundle.
///
/// # Errors
/// The first check that failed, as text.
pub fn verify_bundle(
    bundle: &[u8],
    subject: &Subject,
    signer: &ExpectedSigner,
    root: &TrustRoot,
) -> Result<(), String> {
    check_clock().map_err(|error| error.to_string())?;
    strict_json(bundle).map_err(|error| error.to_string())?;
    let text = std::str::from_utf8(bundle).map_err(|error| error.to_string())?;
    let bundle = Bundle::from_json(text).map_err(|error| error.to_string())?;
    let artifact = match subject {
        Subject::Bytes(bytes) => Artifact::from_blob(bytes),
        Subject::Digest(digest) => {
            let hash = Sha256Hash::from_hex(digest.hex()).map_err(|error| error.to_string())?;
            Artifact::Digest(ArtifactDigest::sha256(hash))
        }
    };
    match signer {
        ExpectedSigner::Key(pem) => {
            let key = DerPublicKey::from_pem(pem).map_err(|error| error.to_string())?;
            verify_key(root.verifier(), &bundle, artifact, &key, true)
                .map_err(|error| error.to_string())?;
        }
        ExpectedSigner::Identity(identity) => {
            let requirements = CertificateRequirements {
                log: true,
                sct: root.has_ct_logs(),
            };
            let certified = verify_certificate(root.verifier(), &bundle, artifact, requirements);
            let certified = certified.map_err(|error| error.to_string())?;
            let leaf = bundle.signing_certificate().ok_or("no certificate")?;
            let in_words = |error: CandidateError| error.to_string();
            certificate::check_leaf(leaf).map_err(in_words)?;
            identity.check(&certified.certificate).map_err(in_words)?;
        }
    }
    Ok(())
}
