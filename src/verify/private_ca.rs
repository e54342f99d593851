//! Signatures with certificates of a private certificate authority.

use jiff::Timestamp;
use rustls::pki_types::{CertificateDer, UnixTime};
use sigstore_verify::{
    crypto::{CertificateInfo, WEBPKI_VERIFICATION_ALGS, parse_certificate_info},
    types::DerCertificate,
};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::{
    ca::CaRoots,
    candidate::{Candidate, Material},
    keys::{KeyMatch, PublicKey},
    reason::CandidateError,
    roots::TrustRoot,
    sigstore::{self, CertificateRequirements, VerifiedCertificate},
};
use crate::oci::Digest;

/// DER of 1.3.6.1.5.5.7.3.3, id-kp-codeSigning.
const CODE_SIGNING: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x03];

/// Verifies the certificate at a time that the logs or timestamp authorities of `root` prove.
pub(super) fn verify_at_proven_time(
    roots: &CaRoots,
    root: &TrustRoot,
    candidate: &Candidate,
    subject: &Digest,
    log: bool,
) -> Result<VerifiedCertificate, CandidateError> {
    let own = roots
        .joined_with(root)
        .map_err(CandidateError::Certificate)?;
    sigstore::verify_candidate_certificate(
        own.verifier(),
        candidate,
        subject,
        CertificateRequirements { log, sct: false },
    )
}

/// Verifies without a proof of time: the certificate and all certificates above it have to be
/// valid now. Returns also the earliest end of their validity.
pub(super) fn verify_now(
    roots: &CaRoots,
    candidate: &Candidate,
    now: Timestamp,
) -> Result<(CertificateInfo, Timestamp), CandidateError> {
    let Material::Certificate { leaf, chain } = &candidate.material else {
        return Err(CandidateError::AnotherKey);
    };
    let refused = |text: String| CandidateError::Certificate(text);
    let info = parse_certificate_info(leaf).map_err(|error| refused(error.to_string()))?;
    let above = roots
        .certificates()
        .iter()
        .chain(chain)
        .filter(|one| is_valid(one, now));
    let until = above
        .filter_map(parse_validity)
        .map(|(_, until)| until)
        .fold(info.not_after, Timestamp::min);
    let anchors = roots
        .certificates()
        .iter()
        .filter(|one| is_valid(one, now))
        .map(der)
        .collect::<Vec<_>>();
    let anchors = anchors
        .iter()
        .map(anchor_from_trusted_cert)
        .collect::<Result<Vec<_>, _>>();
    let anchors = anchors.map_err(|error| refused(error.to_string()))?;
    let chain: Vec<_> = chain.iter().map(der).collect();
    let seconds = u64::try_from(now.as_second())
        .map_err(|_| refused("the system's clock is before 1970".into()))?;
    let leaf = der(leaf);
    let leaf = EndEntityCert::try_from(&leaf).map_err(|error| refused(error.to_string()))?;
    leaf.verify_for_usage(
        WEBPKI_VERIFICATION_ALGS,
        &anchors,
        &chain,
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds)),
        KeyUsage::required(CODE_SIGNING),
        None,
        None,
    )
    .map_err(|error| refused(error.to_string()))?;
    let key = PublicKey::from_pem(&info.public_key.to_pem())
        .map_err(|error| refused(error.to_string()))?;
    match key.match_signature(&candidate.message, &candidate.signature) {
        KeyMatch::Declared(_) => Ok((info, until)),
        KeyMatch::Undeclared(_) | KeyMatch::Unknown => Err(CandidateError::Signature(
            "not made with the certificate's key".into(),
        )),
    }
}

/// webpki does not check the validity of trust anchors.
fn is_valid(certificate: &DerCertificate, now: Timestamp) -> bool {
    parse_validity(certificate).is_some_and(|(from, until)| from <= now && now <= until)
}

fn parse_validity(certificate: &DerCertificate) -> Option<(Timestamp, Timestamp)> {
    use x509_cert::der::Decode as _;
    let certificate = x509_cert::Certificate::from_der(certificate.as_bytes()).ok()?;
    let validity = certificate.tbs_certificate.validity;
    let time = |time: x509_cert::time::Time| Timestamp::try_from(time.to_system_time()).ok();
    Some((time(validity.not_before)?, time(validity.not_after)?))
}

fn der(certificate: &DerCertificate) -> CertificateDer<'_> {
    CertificateDer::from(certificate.as_bytes())
}
