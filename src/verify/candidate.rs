//! A signature of either format, parsed but not verified. Nothing in it is trusted.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sigstore_verify::{
    crypto::ArtifactHasher,
    types::{
        Bundle, CertificateContent, DerCertificate, DigestBytes, DsseEnvelope, HashAlgorithm,
        KindVersion, MediaType, MessageDigest, MessageSignature, PublicKeyIdentifier,
        Rfc3161Timestamp, SignatureBytes, SignatureContent, TimestampVerificationData,
        TransparencyLogEntry, VerificationMaterial, VerificationMaterialContent, X509Certificate,
    },
};

use super::reason::CandidateError;

/// The limits of sigstore-go.
const MAX_LOG_ENTRIES: usize = 32;
const MAX_TIMESTAMPS: usize = 32;
/// The longest certificate chain that is verified.
const MAX_CHAIN: usize = 8;

/// A parsed signature.
#[derive(Debug)]
pub(super) struct Candidate {
    /// The signed bytes.
    pub(super) message: Vec<u8>,
    pub(super) signature: Vec<u8>,
    pub(super) material: Material,
    /// An entry that can't be parsed matters only if the log is checked.
    pub(super) log_entries: Result<Vec<TransparencyLogEntry>, CandidateError>,
    pub(super) timestamps: Vec<Rfc3161Timestamp>,
    pub(super) content: Content,
}

/// The verification material for the signature's key.
#[derive(Debug)]
pub(super) enum Material {
    /// No material: the verifier needs the key.
    Key,
    /// A certificate.
    Certificate {
        leaf: DerCertificate,
        /// The other certificates of its chain, as the signer sent them.
        chain: Vec<DerCertificate>,
    },
}

/// The format of the signed message.
#[derive(Debug)]
pub(super) enum Content {
    /// A DSSE envelope, whose statement names the artifact.
    Envelope(DsseEnvelope),
    /// A simple signing payload, without an envelope.
    Payload,
}

impl Candidate {
    /// Rejects a signature whose verification would cost too much.
    pub(super) fn within_bounds(self) -> Result<Self, CandidateError> {
        let too_many = |number: usize, what: &str| {
            Err(CandidateError::Malformed(format!(
                "{number} {what} are too many"
            )))
        };
        if let Ok(entries) = &self.log_entries
            && entries.len() > MAX_LOG_ENTRIES
        {
            return too_many(entries.len(), "log entries");
        }
        if self.timestamps.len() > MAX_TIMESTAMPS {
            return too_many(self.timestamps.len(), "timestamps");
        }
        match &self.material {
            Material::Certificate { chain, .. } if chain.len() > MAX_CHAIN => {
                too_many(chain.len(), "certificates")
            }
            _ => Ok(self),
        }
    }

    /// Whether there are log entries, valid or not.
    pub(super) fn has_log_entries(&self) -> bool {
        self.log_entries
            .as_ref()
            .map_or(true, |entries| !entries.is_empty())
    }

    /// Checks that entries of the older log have the log's signed time: an attacker could remove it
    /// to make another time count.
    pub(super) fn check_entry_times(&self, log: bool) -> Result<(), CandidateError> {
        if !log {
            return Ok(());
        }
        let entries = self
            .log_entries
            .as_ref()
            .map_err(|error| CandidateError::Log(error.to_string()))?;
        let timeless = |entry: &&TransparencyLogEntry| {
            entry.kind_version != KindVersion::HashedRekordV002
                && (entry.inclusion_promise.is_none() || entry.integrated_time.is_none())
        };
        match entries.iter().find(timeless) {
            Some(_) => Err(CandidateError::Timestamp(
                "a log entry without the log's signed time".into(),
            )),
            None => Ok(()),
        }
    }

    /// The bundle for sigstore-verify, with or without log entries. A simple signing payload
    /// becomes a message signature over its `hash`.
    pub(super) fn to_bundle(
        &self,
        hash: HashAlgorithm,
        with_log: bool,
    ) -> Result<Bundle, CandidateError> {
        let log_entries = if with_log {
            self.log_entries.clone()?
        } else {
            Vec::new()
        };
        let media_type = match (&self.content, &self.material) {
            // The version without inclusion proofs, which legacy signatures don't have.
            (Content::Payload, _) if with_log => MediaType::Bundle0_1,
            (Content::Payload, _) => MediaType::Bundle0_2,
            // Later versions can't hold a chain.
            (Content::Envelope(_), Material::Certificate { chain, .. }) if !chain.is_empty() => {
                MediaType::Bundle0_2
            }
            (Content::Envelope(_), _) => MediaType::Bundle0_3,
        };
        let material = VerificationMaterial::new(self.material.content())
            .with_tlog_entries(log_entries)
            .with_timestamp_verification_data(TimestampVerificationData::new(
                self.timestamps.clone(),
            ));
        let content = match &self.content {
            Content::Envelope(envelope) => SignatureContent::DsseEnvelope(envelope.clone()),
            Content::Payload => SignatureContent::MessageSignature(self.message_signature(hash)?),
        };
        Ok(Bundle::new(media_type, material, content))
    }

    fn message_signature(&self, hash: HashAlgorithm) -> Result<MessageSignature, CandidateError> {
        let message_digest = MessageDigest::new(hash, digest(hash, &self.message)?);
        let signature = MessageSignature::new(SignatureBytes::from_bytes(&self.signature));
        Ok(signature.with_message_digest(message_digest))
    }
}

impl Material {
    fn content(&self) -> VerificationMaterialContent {
        match self {
            // The key hint proves nothing, so it is left empty.
            Self::Key => VerificationMaterialContent::PublicKey(PublicKeyIdentifier::new("")),
            Self::Certificate { leaf, chain } if chain.is_empty() => {
                VerificationMaterialContent::Certificate(CertificateContent::new(leaf.clone()))
            }
            Self::Certificate { leaf, chain } => {
                let all = std::iter::once(leaf)
                    .chain(chain)
                    .cloned()
                    .map(X509Certificate::new);
                VerificationMaterialContent::X509CertificateChain {
                    certificates: all.collect(),
                }
            }
        }
    }
}

/// An error of parsing.
pub(super) fn malformed(error: impl ToString) -> CandidateError {
    CandidateError::Malformed(error.to_string())
}

/// Decodes base64; `what` names the value in the error.
pub(super) fn decode(what: &str, text: &str) -> Result<Vec<u8>, CandidateError> {
    STANDARD
        .decode(text)
        .map_err(|_| CandidateError::Malformed(format!("the {what} is not base64")))
}

/// The digest of `bytes` in the form of a bundle.
fn digest(algorithm: HashAlgorithm, bytes: &[u8]) -> Result<DigestBytes, CandidateError> {
    let mut hasher = ArtifactHasher::new(algorithm)
        .map_err(|error| CandidateError::Unsupported(error.to_string()))?;
    hasher.update(bytes);
    Ok(hasher.finalize().value().clone())
}
