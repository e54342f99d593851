//! All calls of sigstore-verify: certificates, transparency logs, timestamps, and that all of
//! them belong to this one signature.

use jiff::Timestamp;
use sigstore_verify::{
    Error, PublicKeyVerificationPolicy, TimestampError, VerificationPolicy, VerificationResult,
    Verifier,
    bundle::Error as BundleError,
    crypto::{CertificateInfo, KeyAlgorithm, parse_certificate_info},
    types::{Artifact, ArtifactDigest, Bundle, DerPublicKey, DigestBytes, HashAlgorithm},
};

use super::{
    candidate::{Candidate, Content, Material},
    reason::CandidateError,
    statement::Statement,
};
use crate::{oci::Digest, telemetry};

/// The requirements on a certificate besides its chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct CertificateRequirements {
    /// A transparency log entry. Without this requirement log entries are ignored, and a
    /// timestamp has to prove the time.
    pub(super) log: bool,
    /// A signed certificate timestamp of a certificate transparency log.
    pub(super) sct: bool,
}

/// A certificate that was valid at every proven time of signing.
#[derive(Debug, Clone)]
pub(super) struct VerifiedCertificate {
    pub(super) certificate: CertificateInfo,
    pub(super) times: SigningTimes,
}

/// The proven times of signing.
#[derive(Debug, Clone, Default)]
pub(super) struct SigningTimes {
    /// All of them, in order. Each is an upper bound.
    pub(super) all: Vec<Timestamp>,
    /// The time at which a log accepted the entry. Anyone can obtain a timestamp for an old
    /// signature at any time, but the same entry is logged only once.
    pub(super) logged: Option<Timestamp>,
}

/// Verifies that the candidate was signed with a certificate under `verifier`'s root, and returns
/// the certificate and the times.
pub(super) fn verify_candidate_certificate(
    verifier: &Verifier,
    candidate: &Candidate,
    subject: &Digest,
    requirements: CertificateRequirements,
) -> Result<VerifiedCertificate, CandidateError> {
    check_clock()?;
    let Material::Certificate { leaf, .. } = &candidate.material else {
        return Err(CandidateError::AnotherKey);
    };
    let info = parse_certificate_info(leaf)
        .map_err(|error| CandidateError::Certificate(error.to_string()))?;
    candidate.check_entry_times(requirements.log)?;
    try_hashes(
        candidate,
        info.key_algorithm,
        subject,
        requirements.log,
        |bundle, artifact| verify_certificate(verifier, bundle, artifact, requirements),
    )
}

/// Verifies that the candidate was signed with `key`, using logs and timestamps under
/// `verifier`'s root, and returns the times.
pub(super) fn verify_candidate_key(
    verifier: &Verifier,
    candidate: &Candidate,
    subject: &Digest,
    key: &DerPublicKey,
    log: bool,
) -> Result<SigningTimes, CandidateError> {
    check_clock()?;
    candidate.check_entry_times(log)?;
    let algorithm = KeyAlgorithm::from_spki(key)
        .map_err(|error| CandidateError::Unsupported(error.to_string()))?;
    try_hashes(candidate, algorithm, subject, log, |bundle, artifact| {
        verify_key(verifier, bundle, artifact, key, log)
    })
}

/// The only call of sigstore-verify for certificates.
pub(super) fn verify_certificate(
    verifier: &Verifier,
    bundle: &Bundle,
    artifact: Artifact<'_>,
    requirements: CertificateRequirements,
) -> Result<VerifiedCertificate, Error> {
    let mut policy = VerificationPolicy::any_identity();
    if !requirements.log {
        policy = policy.skip_tlog_unsafe();
    }
    if !requirements.sct {
        policy = policy.skip_sct();
    }
    let result = verifier.verify(artifact, bundle, &policy)?;
    let times = times(&result);
    match result.certificate() {
        Some(certificate) if result.certificate_verified() && !times.all.is_empty() => {
            Ok(VerifiedCertificate {
                certificate: certificate.clone(),
                times,
            })
        }
        _ => Err(TimestampError::NoVerifiedTimestamp(
            "nothing proves when it was signed".to_owned(),
        )
        .into()),
    }
}

/// The only call of sigstore-verify for keys.
pub(super) fn verify_key(
    verifier: &Verifier,
    bundle: &Bundle,
    artifact: Artifact<'_>,
    key: &DerPublicKey,
    log: bool,
) -> Result<SigningTimes, Error> {
    let mut policy = PublicKeyVerificationPolicy::new(key.clone());
    if !log {
        policy = policy.skip_tlog_unsafe();
    }
    verifier
        .verify(artifact, bundle, &policy)
        .map(|result| times(&result))
}

/// Checks the clock: sigstore-verify reads it, and panics if the time can't be written as a date.
pub(super) fn check_clock() -> Result<(), CandidateError> {
    if telemetry::is_clock_usable() {
        return Ok(());
    }
    Err(CandidateError::Timestamp(
        "the system's clock is before 1970 or after 9999; set it".to_owned(),
    ))
}

fn try_hashes<T>(
    candidate: &Candidate,
    algorithm: KeyAlgorithm,
    subject: &Digest,
    log: bool,
    verify: impl Fn(&Bundle, Artifact<'_>) -> Result<T, Error>,
) -> Result<T, CandidateError> {
    let mut refused = CandidateError::Malformed("no hash for this kind of key".to_owned());
    for hash in hashes(candidate, algorithm) {
        let bundle = candidate.to_bundle(*hash, log)?;
        match verify(&bundle, artifact(candidate, subject)?) {
            Ok(good) => return Ok(good),
            // A wrong hash looks like another key, which must not hide the error with the right
            // hash.
            Err(error) => {
                refused = refused.or_more_specific(classify(error, candidate, subject, log))
            }
        }
    }
    Err(refused)
}

/// The hashes to try: a legacy signature does not name its hash. The hash of an envelope follows
/// from the key.
fn hashes(candidate: &Candidate, algorithm: KeyAlgorithm) -> &'static [HashAlgorithm] {
    match (&candidate.content, algorithm) {
        (Content::Payload, KeyAlgorithm::EcdsaP384) => {
            &[HashAlgorithm::Sha2384, HashAlgorithm::Sha2256]
        }
        _ => &[HashAlgorithm::Sha2256],
    }
}

fn artifact<'a>(
    candidate: &'a Candidate,
    subject: &Digest,
) -> Result<Artifact<'a>, CandidateError> {
    match &candidate.content {
        Content::Payload => Ok(Artifact::from_blob(&candidate.message)),
        Content::Envelope(_) => {
            let unusable =
                |error: String| CandidateError::Unsupported(format!("{subject}: {error}"));
            let algorithm = subject.algorithm().parse::<HashAlgorithm>();
            let algorithm = algorithm.map_err(|error| unusable(error.to_string()))?;
            let value = DigestBytes::from_hex(subject.hex())
                .map_err(|error| unusable(error.to_string()))?;
            let digest = ArtifactDigest::new(algorithm, value)
                .map_err(|error| unusable(error.to_string()))?;
            Ok(Artifact::Digest(digest))
        }
    }
}

fn times(result: &VerificationResult) -> SigningTimes {
    let mut all = result.verified_timestamps().to_vec();
    all.sort_unstable();
    all.dedup();
    SigningTimes {
        all,
        logged: result.integrated_time(),
    }
}

fn classify(error: Error, candidate: &Candidate, subject: &Digest, log: bool) -> CandidateError {
    let text = error.to_string();
    match error {
        Error::Bundle(
            BundleError::MissingSigningTimeEvidence
            | BundleError::MissingInclusionProof(_)
            | BundleError::MissingInclusionPromise(_),
        ) if log && !candidate.has_log_entries() => {
            CandidateError::Log("in no transparency log".into())
        }
        // sigstore-verify has the same error for the statement and for a log entry.
        Error::ArtifactMismatch(_) => match Statement::other_than(candidate, subject) {
            Some(other) => CandidateError::OtherDigest(other),
            None => CandidateError::Log(text),
        },
        Error::SignatureInvalid(_) => match candidate.material {
            Material::Key => CandidateError::AnotherKey,
            Material::Certificate { .. } => CandidateError::Signature(text),
        },
        Error::Certificate(_) => CandidateError::Certificate(text),
        Error::TransparencyLog(_) => CandidateError::Log(text),
        Error::Timestamp(_) => CandidateError::Timestamp(text),
        Error::Bundle(
            BundleError::MissingInclusionProof(_)
            | BundleError::MissingInclusionPromise(_)
            | BundleError::MissingCheckpoint
            | BundleError::CheckpointRootMismatch
            | BundleError::LogIndexOutOfRange { .. },
        ) => CandidateError::Log(text),
        Error::Bundle(BundleError::MissingSigningTimeEvidence | BundleError::MissingTimestamp) => {
            CandidateError::Timestamp("nothing proves when it was signed".into())
        }
        _ => CandidateError::Malformed(text),
    }
}
