//! Sigstore's own idea of verifying a bundle, which is wider than the gateway's: every version
//! of the format, message signatures as well as envelopes, any artifact. For the protocol of
//! sigstore-conformance; the questions go to the same judge.

use sigstore_verify::types::{Artifact, ArtifactDigest, Bundle, DerPublicKey, Sha256Hash};

use super::{
    Identity, TrustRoot, certificate,
    reason::CandidateError,
    sigstore::{CertificateRequirements, check_clock, verify_certificate, verify_key},
};
use crate::oci::{Digest, strict_json};

/// What the bundle is to be about.
#[derive(Debug)]
pub enum Subject {
    /// These bytes.
    Bytes(Vec<u8>),
    /// Something with this digest.
    Digest(Digest),
}

/// Who is to have signed.
#[derive(Debug)]
pub enum ExpectedSigner {
    /// The owner of a certificate.
    Identity(Identity),
    /// The owner of a public key, PEM.
    Key(String),
}

/// Verifies a bundle.
///
/// # Errors
/// The first thing that is wrong, in words.
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
            verify_key(root.verifier(), &bundle, artifact, &key, true).map_err(|error| error.to_string())?;
        }
        ExpectedSigner::Identity(identity) => {
            let requirements = CertificateRequirements { log: true, sct: root.has_ct_logs() };
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
