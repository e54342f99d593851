//! The time at which certificates expire.

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use x509_cert::{
    Certificate,
    der::Decode as _,
    ext::pkix::{SubjectAltName, name::GeneralName},
};

use super::certificate::validity;
use crate::telemetry::{NAME_BYTES, cut};

/// A certificate's name and validity, for its renewal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateExpiry {
    /// The subject as in RFC 4514, or the first alternative name of a certificate without a subject.
    pub subject: String,
    /// The beginning of its validity.
    pub not_before: Timestamp,
    /// The end of its validity.
    pub not_after: Timestamp,
}

impl CertificateExpiry {
    /// Of several certificates, such as those of a chain, the one that expires first. One that can't
    /// be decoded is left out. `None` if no other is there.
    pub fn earliest<'a>(
        certificates: impl IntoIterator<Item = &'a CertificateDer<'a>>,
    ) -> Option<Self> {
        let certificates = certificates.into_iter().filter_map(Self::of);
        certificates.min_by_key(|expiry| expiry.not_after)
    }

    fn of(der: &CertificateDer<'_>) -> Option<Self> {
        let certificate = Certificate::from_der(der).ok()?;
        let (not_before, not_after) = validity(&certificate)?;
        Some(Self {
            subject: cut(&subject(&certificate), NAME_BYTES).into_owned(),
            not_before,
            not_after,
        })
    }

    /// Whether the certificate is valid no more at this time.
    pub fn is_expired_at(&self, time: Timestamp) -> bool {
        self.not_after < time
    }
}

fn subject(certificate: &Certificate) -> String {
    let subject = certificate.tbs_certificate.subject.to_string();
    if !subject.is_empty() {
        return subject;
    }
    let names = certificate.tbs_certificate.get::<SubjectAltName>();
    let names = names.ok().flatten().map(|(_, names)| names.0);
    let name = names
        .unwrap_or_default()
        .into_iter()
        .find_map(|name| match name {
            GeneralName::DnsName(name) => Some(name.as_str().to_owned()),
            GeneralName::UniformResourceIdentifier(uri) => Some(uri.as_str().to_owned()),
            _ => None,
        });
    name.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, date_time_ymd};

    use super::*;

    fn certificate(subject: &str, dns: &str, year_of_expiry: i32) -> CertificateDer<'static> {
        let mut params = CertificateParams::new([dns.to_owned()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        if !subject.is_empty() {
            params.distinguished_name.push(DnType::CommonName, subject);
        }
        params.not_before = date_time_ymd(2019, 1, 1);
        params.not_after = date_time_ymd(year_of_expiry, 1, 1);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn the_certificate_that_expires_first_counts_and_has_a_name() {
        let chain = [
            certificate("leaf", "gate.example", 2030),
            certificate("", "issuer.example", 2025),
            certificate("root", "root.example", 2040),
            CertificateDer::from(b"broken".to_vec()),
        ];
        let first = CertificateExpiry::earliest(&chain).unwrap();
        assert_eq!(first.subject, "issuer.example");
        assert_eq!(first.not_before.to_string(), "2019-01-01T00:00:00Z");
        assert_eq!(first.not_after.to_string(), "2025-01-01T00:00:00Z");
        assert!(!first.is_expired_at(first.not_after));
        let later = first.not_after + jiff::SignedDuration::from_secs(1);
        assert!(first.is_expired_at(later));
        let leaf = CertificateExpiry::earliest(&chain[..1]).unwrap();
        assert_eq!(leaf.subject, "CN=leaf");
        assert_eq!(CertificateExpiry::earliest(&chain[3..]), None);
    }

    #[test]
    fn a_long_subject_is_cut() {
        let long = certificate(&"x".repeat(64 << 10), "gate.example", 2030);
        let expiry = CertificateExpiry::earliest([&long]).unwrap();
        assert!(expiry.subject.len() <= NAME_BYTES, "{}", expiry.subject);
    }
}
