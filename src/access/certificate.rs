//! The identity in a client certificate. Whether an authority has issued the certificate is checked
//! in the TLS handshake.

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use x509_cert::{
    Certificate,
    der::{
        Decode as _,
        asn1::{PrintableStringRef, Utf8StringRef},
        oid::ObjectIdentifier,
    },
    ext::pkix::{SubjectAltName, name::GeneralName},
    time::Time,
};

use crate::verify::Pattern;

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// The authorities that issue client certificates, by the content of their file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Authorities([u8; 32]);

impl Authorities {
    /// The authorities in a file with this content.
    pub fn of(file: &[u8]) -> Self {
        Self(Sha256::digest(file).into())
    }
}

/// The names in a certificate, by which authorities it was verified, and when it is valid.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CertificateIdentity {
    authorities: Authorities,
    /// The only CN of the subject. One of several would be chosen differently by each program.
    common_name: Option<String>,
    /// In lower case.
    dns_names: Vec<String>,
    uris: Vec<String>,
    not_before: Timestamp,
    not_after: Timestamp,
}

/// The name that a certificate must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateName {
    /// The CN of the subject.
    CommonName(Pattern),
    /// Any DNS name of the subject alternative names, compared in lower case.
    Dns(Pattern),
    /// Any URI of the subject alternative names, such as a SPIFFE ID.
    Uri(Pattern),
}

impl CertificateIdentity {
    /// The identity in the first certificate of a chain, which was verified by these authorities and
    /// is valid while all certificates are. `None` if one can't be decoded.
    pub fn of_chain(chain: &[CertificateDer<'_>], authorities: Authorities) -> Option<Self> {
        let mut chain = chain.iter().map(|der| Certificate::from_der(der).ok());
        let mut identity = Self::of(&chain.next()??, authorities)?;
        for issuer in chain {
            let (not_before, not_after) = validity(&issuer?)?;
            identity.not_before = identity.not_before.max(not_before);
            identity.not_after = identity.not_after.min(not_after);
        }
        Some(identity)
    }

    fn of(certificate: &Certificate, authorities: Authorities) -> Option<Self> {
        let (not_before, not_after) = validity(certificate)?;
        let names = certificate.tbs_certificate.get::<SubjectAltName>().ok()?;
        let names = names.map(|(_, names)| names.0).unwrap_or_default();
        let (mut dns_names, mut uris) = (Vec::new(), Vec::new());
        for name in &names {
            match name {
                GeneralName::DnsName(name) => dns_names.push(name.as_str().to_ascii_lowercase()),
                GeneralName::UniformResourceIdentifier(uri) => uris.push(uri.as_str().to_owned()),
                _ => {}
            }
        }
        Some(Self {
            authorities,
            common_name: common_name(certificate),
            dns_names,
            uris,
            not_before,
            not_after,
        })
    }

    /// Whether these authorities have verified the certificate. A connection may outlast a change of
    /// them.
    pub fn is_verified_by(&self, authorities: Authorities) -> bool {
        self.authorities == authorities
    }

    /// Whether the certificate is valid at this time.
    pub fn is_valid_at(&self, time: Timestamp) -> bool {
        (self.not_before..=self.not_after).contains(&time)
    }

    /// Whether the certificate has the name.
    pub fn has(&self, name: &CertificateName) -> bool {
        let any =
            |names: &[String], pattern: &Pattern| names.iter().any(|name| pattern.is_match(name));
        match name {
            CertificateName::CommonName(pattern) => self
                .common_name
                .as_ref()
                .is_some_and(|name| pattern.is_match(name)),
            CertificateName::Dns(pattern) => any(&self.dns_names, pattern),
            CertificateName::Uri(pattern) => any(&self.uris, pattern),
        }
    }
}

#[cfg(test)]
impl CertificateName {
    /// A URI with `*` within a segment.
    pub(crate) fn uri(glob: &str) -> Self {
        Self::Uri(Pattern::glob(glob).unwrap())
    }
}

/// The time in which a certificate is valid.
pub(super) fn validity(certificate: &Certificate) -> Option<(Timestamp, Timestamp)> {
    let validity = &certificate.tbs_certificate.validity;
    let read = |time: Time| Timestamp::try_from(time.to_system_time()).ok();
    Some((read(validity.not_before)?, read(validity.not_after)?))
}

fn common_name(certificate: &Certificate) -> Option<String> {
    let subject = &certificate.tbs_certificate.subject;
    let attributes = subject.0.iter().flat_map(|names| names.0.iter());
    let mut names = attributes.filter(|attribute| attribute.oid == COMMON_NAME);
    let (name, None) = (names.next()?, names.next()) else {
        return None;
    };
    let utf8 = name.value.decode_as::<Utf8StringRef<'_>>();
    let utf8 = utf8.map(|text| text.as_str().to_owned());
    let printable = || name.value.decode_as::<PrintableStringRef<'_>>();
    utf8.or_else(|_| printable().map(|text| text.as_str().to_owned()))
        .ok()
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType, date_time_ymd,
    };

    use super::*;

    /// A certificate with these names that is valid in 2020, and its authority, valid from 2019 to
    /// the end of May 2020.
    fn chain(common_names: &[&str], dns: &[&str], uris: &[&str]) -> Vec<CertificateDer<'static>> {
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (ca.not_before, ca.not_after) = (date_time_ymd(2019, 1, 1), date_time_ymd(2020, 6, 1));
        let authority = ca.self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(ca, ca_key);
        let mut leaf = CertificateParams::default();
        leaf.distinguished_name = rcgen::DistinguishedName::new();
        // rcgen replaces a name of the same type.
        let types = [DnType::CommonName, DnType::CustomDnType(vec![2, 5, 4, 3])];
        for (name, kind) in common_names.iter().zip(types) {
            leaf.distinguished_name.push(kind, *name);
        }
        let dns = dns
            .iter()
            .map(|name| SanType::DnsName((*name).try_into().unwrap()));
        let uris = uris
            .iter()
            .map(|uri| SanType::URI((*uri).try_into().unwrap()));
        leaf.subject_alt_names = dns.chain(uris).collect();
        (leaf.not_before, leaf.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        let leaf = leaf
            .signed_by(&KeyPair::generate().unwrap(), &issuer)
            .unwrap();
        vec![leaf.der().clone(), authority.der().clone()]
    }

    fn identity_of(chain: &[CertificateDer<'_>]) -> Option<CertificateIdentity> {
        CertificateIdentity::of_chain(chain, Authorities::of(b"ca"))
    }

    #[test]
    fn a_certificate_is_recognized_by_its_names() {
        let uri = "spiffe://corp/opa/edge";
        let chain = chain(&["edge"], &["Edge.corp.example", "other.example"], &[uri]);
        let identity = identity_of(&chain).unwrap();
        let glob = |text: &str| Pattern::glob(text).unwrap();
        for (name, has) in [
            (CertificateName::CommonName(glob("edge")), true),
            (
                CertificateName::CommonName(glob("edge.corp.example")),
                false,
            ),
            (CertificateName::Dns(glob("edge.corp.example")), true),
            (CertificateName::Dns(glob("*.corp.example")), true),
            (CertificateName::Dns(glob("other.example")), true),
            (CertificateName::Dns(glob("edge")), false),
            (CertificateName::Uri(glob("spiffe://corp/opa/*")), true),
            (CertificateName::Uri(glob("spiffe://corp/*")), false),
            (CertificateName::Uri(glob("edge.corp.example")), false),
            (
                CertificateName::Uri(Pattern::regex("spiffe://corp/.*").unwrap()),
                true,
            ),
        ] {
            assert_eq!(identity.has(&name), has, "{name:?}");
        }
        let several = self::chain(&["edge", "core"], &[], &[]);
        let several = identity_of(&several).unwrap();
        assert_eq!(several.common_name, None);
    }

    #[test]
    fn a_certificate_is_valid_while_its_whole_chain_is() {
        let chain = chain(&["edge"], &[], &[]);
        let at = |time: &str| time.parse::<Timestamp>().unwrap();
        let whole = identity_of(&chain).unwrap();
        let leaf = identity_of(&chain[..1]).unwrap();
        for (time, whole_is_valid, leaf_is_valid) in [
            ("2019-07-01T00:00:00Z", false, false),
            ("2020-03-01T00:00:00Z", true, true),
            ("2020-07-01T00:00:00Z", false, true),
            ("2021-07-01T00:00:00Z", false, false),
        ] {
            assert_eq!(whole.is_valid_at(at(time)), whole_is_valid, "{time}");
            assert_eq!(leaf.is_valid_at(at(time)), leaf_is_valid, "{time}");
        }
        assert_eq!(identity_of(&[]), None);
        let broken = CertificateDer::from(b"broken".to_vec());
        assert_eq!(identity_of(&[broken]), None);
    }
}
