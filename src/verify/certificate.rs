//! Checks of a signer's certificate beyond its chain, and its identity.

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

/// Fulcio's two encodings of the issuer: raw, and as a DER UTF8String.
const ISSUER_RAW: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.57264.1.1");
const ISSUER: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.57264.1.8");

/// Checks that a leaf certificate may sign and has exactly one name: with several names, a
/// program that reads another one would trust another signer.
pub(super) fn check_leaf(leaf: &DerCertificate) -> Result<(), CandidateError> {
    let refused = |text: String| CandidateError::Certificate(text);
    let certificate =
        Certificate::from_der(leaf.as_bytes()).map_err(|error| refused(error.to_string()))?;
    let tbs = &certificate.tbs_certificate;
    let extension = |error: x509_cert::der::Error| refused(error.to_string());
    if tbs
        .get::<BasicConstraints>()
        .map_err(extension)?
        .is_some_and(|(_, constraints)| constraints.ca)
    {
        return Err(refused(
            "a CA certificate is not a signing certificate".into(),
        ));
    }
    if tbs
        .get::<KeyUsage>()
        .map_err(extension)?
        .is_some_and(|(_, usage)| !usage.digital_signature())
    {
        return Err(refused("the key usage lacks digitalSignature".into()));
    }
    match tbs.get::<Names>().map_err(extension)? {
        Some((_, names)) if names.0.len() == 1 => {}
        Some((_, names)) => {
            return Err(refused(format!(
                "{} subject alternative names instead of one",
                names.0.len()
            )));
        }
        None => return Err(refused("no subject alternative name".into())),
    }
    check_issuers(&certificate)
}

/// Checks that the two encodings of the issuer agree, since programs differ in which one they
/// read.
fn check_issuers(certificate: &Certificate) -> Result<(), CandidateError> {
    let value = |id: ObjectIdentifier| {
        let extensions = certificate.tbs_certificate.extensions.iter().flatten();
        let mut values = extensions
            .filter(|one| one.extn_id == id)
            .map(|one| one.extn_value.as_bytes());
        (values.next(), values.next().is_some())
    };
    let ((raw, more_raw), (der, more_der)) = (value(ISSUER_RAW), value(ISSUER));
    if more_raw || more_der {
        return Err(CandidateError::Certificate(
            "several issuer extensions of one kind".into(),
        ));
    }
    let (Some(raw), Some(der)) = (raw, der) else {
        return Ok(());
    };
    match Utf8StringRef::from_der(der) {
        Ok(issuer) if issuer.as_str().as_bytes() == raw => Ok(()),
        _ => Err(CandidateError::Certificate(
            "it names two different issuers".into(),
        )),
    }
}

/// The certificates that may link the signer's certificate to a trusted one. They are never
/// trusted themselves, so self-signed ones are dropped.
pub(super) fn intermediates(
    certificates: impl Iterator<Item = DerCertificate>,
) -> Vec<DerCertificate> {
    let signed_by_another = |one: &DerCertificate| {
        let certificate = Certificate::from_der(one.as_bytes());
        certificate.is_ok_and(|certificate| {
            certificate.tbs_certificate.issuer != certificate.tbs_certificate.subject
        })
    };
    certificates.filter(signed_by_another).collect()
}

/// Reads exactly one PEM certificate.
pub(super) fn one_certificate(text: &str) -> Result<DerCertificate, CandidateError> {
    match certificates(text)?.as_slice() {
        [only] => Ok(only.clone()),
        several => Err(CandidateError::Malformed(format!(
            "{} certificates instead of one",
            several.len()
        ))),
    }
}

/// Reads PEM certificates.
pub(super) fn certificates(text: &str) -> Result<Vec<DerCertificate>, CandidateError> {
    pem_certificates(text).map_err(malformed)
}

impl Identity {
    /// Checks that a Fulcio certificate was issued to this identity, and returns its subject.
    pub(super) fn check(&self, certificate: &CertificateInfo) -> Result<String, CandidateError> {
        let subject = certificate
            .identity
            .as_ref()
            .map(SubjectAltName::as_str)
            .unwrap_or_default();
        let issuer = certificate.issuer.as_deref().unwrap_or_default();
        if !self.subject.is_match(subject) || !self.issuer.is_match(issuer) {
            return Err(CandidateError::Identity {
                subject: subject.to_owned(),
                issuer: issuer.to_owned(),
            });
        }
        for (claim, expected) in &self.claims {
            let actual = claim.of(certificate);
            if !actual.is_some_and(|actual| expected.is_match(actual)) {
                let actual = actual.unwrap_or("missing");
                return Err(CandidateError::Claim(format!(
                    "{claim} is {actual}, not {expected}"
                )));
            }
        }
        Ok(subject.to_owned())
    }
}

impl San {
    /// Checks that a certificate has this name, and returns the name.
    pub(super) fn check(&self, certificate: &CertificateInfo) -> Result<String, CandidateError> {
        let (expected, actual) = match (self, &certificate.identity) {
            (Self::Uri(pattern), Some(SubjectAltName::Uri(uri))) => (pattern, uri),
            (Self::Email(pattern), Some(SubjectAltName::Email(email))) => (pattern, email),
            (_, other) => {
                let subject = other
                    .as_ref()
                    .map(SubjectAltName::as_str)
                    .unwrap_or_default();
                return Err(CandidateError::Identity {
                    subject: subject.to_owned(),
                    issuer: String::new(),
                });
            }
        };
        if expected.is_match(actual) {
            return Ok(actual.clone());
        }
        Err(CandidateError::Identity {
            subject: actual.clone(),
            issuer: String::new(),
        })
    }
}
