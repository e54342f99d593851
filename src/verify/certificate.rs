//! What a signer's certificate has to be like beyond its chain, and whose it is.

use sigstore_verify::{SubjectAltName, crypto::CertificateInfo, types::DerCertificate};
use x509_cert::{
    Certificate,
    der::{Decode as _, asn1::Utf8StringRef, oid::ObjectIdentifier},
    ext::pkix::{BasicConstraints, KeyUsage, SubjectAltName as Names},
};

use super::{
    ca::pem_certificates,
    candidate::malformed,
    policy::{Identity, San},
    reason::CandidateError,
};

/// Fulcio's two ways to write the issuer: raw, and as a DER UTF8String.
const ISSUER_RAW: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.57264.1.1");
const ISSUER: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.57264.1.8");

/// A leaf that signs, and names one signer: whoever reads another of several names would
/// trust somebody else.
pub(super) fn check_leaf(leaf: &DerCertificate) -> Result<(), CandidateError> {
    let refused = |text: String| CandidateError::Certificate(text);
    let certificate = Certificate::from_der(leaf.as_bytes()).map_err(|error| refused(error.to_string()))?;
    let tbs = &certificate.tbs_certificate;
    let extension = |error: x509_cert::der::Error| refused(error.to_string());
    if tbs.get::<BasicConstraints>().map_err(extension)?.is_some_and(|(_, constraints)| constraints.ca) {
        return Err(refused("it is an authority's, not a signer's".into()));
    }
    if tbs.get::<KeyUsage>().map_err(extension)?.is_some_and(|(_, usage)| !usage.digital_signature()) {
        return Err(refused("its key usage is not digitalSignature".into()));
    }
    match tbs.get::<Names>().map_err(extension)? {
        Some((_, names)) if names.0.len() == 1 => {}
        Some((_, names)) => return Err(refused(format!("{} names instead of one", names.0.len()))),
        None => return Err(refused("it names nobody".into())),
    }
    check_issuers(&certificate)
}

/// Programs differ in which of the two they read.
fn check_issuers(certificate: &Certificate) -> Result<(), CandidateError> {
    let value = |id: ObjectIdentifier| {
        let extensions = certificate.tbs_certificate.extensions.iter().flatten();
        let mut values = extensions.filter(|one| one.extn_id == id).map(|one| one.extn_value.as_bytes());
        (values.next(), values.next().is_some())
    };
    let ((raw, more_raw), (der, more_der)) = (value(ISSUER_RAW), value(ISSUER));
    if more_raw || more_der {
        return Err(CandidateError::Certificate("several issuers".into()));
    }
    let (Some(raw), Some(der)) = (raw, der) else { return Ok(()) };
    match Utf8StringRef::from_der(der) {
        Ok(issuer) if issuer.as_str().as_bytes() == raw => Ok(()),
        _ => Err(CandidateError::Certificate("it names two different issuers".into())),
    }
}

/// What may stand between a signer's certificate and a trusted one. Trust never comes from
/// here, so what signed itself is of no use.
pub(super) fn intermediates(certificates: impl Iterator<Item = DerCertificate>) -> Vec<DerCertificate> {
    let signed_by_another = |one: &DerCertificate| {
        let certificate = Certificate::from_der(one.as_bytes());
        certificate.is_ok_and(|certificate| certificate.tbs_certificate.issuer != certificate.tbs_certificate.subject)
    };
    certificates.filter(signed_by_another).collect()
}

/// A PEM certificate, exactly one.
pub(super) fn one_certificate(text: &str) -> Result<DerCertificate, CandidateError> {
    match certificates(text)?.as_slice() {
        [only] => Ok(only.clone()),
        several => Err(CandidateError::Malformed(format!("{} certificates instead of one", several.len()))),
    }
}

/// PEM certificates.
pub(super) fn certificates(text: &str) -> Result<Vec<DerCertificate>, CandidateError> {
    pem_certificates(text).map_err(malformed)
}

impl Identity {
    /// Whether a Fulcio certificate was issued to this one; the signer in words.
    pub(super) fn check(&self, certificate: &CertificateInfo) -> Result<String, CandidateError> {
        let subject = certificate.identity.as_ref().map(SubjectAltName::as_str).unwrap_or_default();
        let issuer = certificate.issuer.as_deref().unwrap_or_default();
        if !self.subject.is_match(subject) || !self.issuer.is_match(issuer) {
            return Err(CandidateError::Identity { subject: subject.to_owned(), issuer: issuer.to_owned() });
        }
        for (claim, expected) in &self.claims {
            let actual = claim.of(certificate);
            if !actual.is_some_and(|actual| expected.is_match(actual)) {
                let actual = actual.unwrap_or("missing");
                return Err(CandidateError::Claim(format!("{claim} is {actual}, not {expected}")));
            }
        }
        Ok(subject.to_owned())
    }
}

impl San {
    /// Whether a certificate names this one; the signer in words.
    pub(super) fn check(&self, certificate: &CertificateInfo) -> Result<String, CandidateError> {
        let (expected, actual) = match (self, &certificate.identity) {
            (Self::Uri(pattern), Some(SubjectAltName::Uri(uri))) => (pattern, uri),
            (Self::Email(pattern), Some(SubjectAltName::Email(email))) => (pattern, email),
            (_, other) => {
                let subject = other.as_ref().map(SubjectAltName::as_str).unwrap_or_default();
                return Err(CandidateError::Identity { subject: subject.to_owned(), issuer: String::new() });
            }
        };
        if expected.is_match(actual) {
            return Ok(actual.clone());
        }
        Err(CandidateError::Identity { subject: actual.clone(), issuer: String::new() })
    }
}
