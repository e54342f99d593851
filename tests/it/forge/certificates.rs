//! Certificates as Fulcio issues them, with the timestamp of a certificate log inside.

use jiff::{SignedDuration, Timestamp};

use super::{
    der::{self, element, explicit, octets, sequence, utf8},
    keys::{Key, pem},
};

pub(crate) const CODE_SIGNING: &str = "1.3.6.1.5.5.7.3.3";
pub(crate) const TIME_STAMPING: &str = "1.3.6.1.5.5.7.3.8";
/// `.1` to `.24` below it are what Fulcio says about a signer.
const FULCIO: &str = "1.3.6.1.4.1.57264.1";
const SCT_LIST: &str = "1.3.6.1.4.1.11129.2.4.2";

/// From when until when something is valid.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub(crate) from: Timestamp,
    pub(crate) until: Timestamp,
}

impl Window {
    pub(crate) fn around(time: Timestamp, before: SignedDuration, after: SignedDuration) -> Self {
        Self {
            from: time - before,
            until: time + after,
        }
    }
}

/// A certificate and the key that it is about.
pub(crate) struct Certified {
    pub(crate) key: Key,
    /// DER.
    pub(crate) certificate: Vec<u8>,
    name: Vec<u8>,
    serial: Vec<u8>,
    issuer: Vec<u8>,
}

/// Whom a certificate is for, in its alternative name.
#[derive(Debug, Clone)]
pub(crate) enum San {
    Email(String),
    Uri(String),
    /// Another kind of name, which identifies nobody here.
    Dns(String),
}

/// The certificate log's word on a certificate.
pub(crate) enum Sct<'a> {
    Missing,
    /// By this log, at this time.
    By(&'a Key, Timestamp),
    /// The timestamp that the log gave for another certificate.
    Stolen(&'a Key, Timestamp),
}

/// The content of a certificate.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    pub(crate) san: Option<San>,
    /// Fulcio's extensions that hold a DER string, by their last number: `.8` is the issuer.
    pub(crate) claims: Vec<(u8, String)>,
    /// The extensions that hold bare text.
    pub(crate) bare_claims: Vec<(u8, String)>,
    pub(crate) valid: Window,
    pub(crate) usages: Vec<&'static str>,
    pub(crate) is_ca: bool,
}

impl Certified {
    pub(crate) fn pem(&self) -> String {
        pem("CERTIFICATE", &self.certificate)
    }

    /// Signed by itself.
    pub(crate) fn root(name: &str, key: Key, content: &Content) -> Self {
        let name = common_name(name);
        let certificate = certificate(
            &Signature {
                key: &key,
                issuer: &name,
            },
            &name,
            &key.spki,
            content,
            &Sct::Missing,
        );
        Self {
            certificate: certificate.0,
            serial: certificate.1,
            issuer: name.clone(),
            name,
            key,
        }
    }

    /// A certificate for `key`, signed by this one's.
    pub(crate) fn issue(&self, name: &str, key: Key, content: &Content, sct: &Sct<'_>) -> Self {
        let name = common_name(name);
        let signature = Signature {
            key: &self.key,
            issuer: &self.name,
        };
        let certificate = certificate(&signature, &name, &key.spki, content, sct);
        Self {
            certificate: certificate.0,
            serial: certificate.1,
            issuer: self.name.clone(),
            name,
            key,
        }
    }

    /// The `IssuerAndSerialNumber` by which CMS names the certificate.
    pub(super) fn issuer_and_serial(&self) -> Vec<u8> {
        sequence(&[self.issuer.clone(), self.serial.clone()])
    }
}

struct Signature<'a> {
    key: &'a Key,
    issuer: &'a [u8],
}

/// RFC 5280, and RFC 6962 for the log's word: it signs what the certificate would be without it.
fn certificate(
    by: &Signature<'_>,
    name: &[u8],
    spki: &[u8],
    content: &Content,
    sct: &Sct<'_>,
) -> (Vec<u8>, Vec<u8>) {
    let serial = der::integer(&fastrand::u64(1 << 40..1 << 60).to_be_bytes());
    let valid = sequence(&[
        der::utc_time(content.valid.from),
        der::utc_time(content.valid.until),
    ]);
    let body = |extensions: &[Vec<u8>]| {
        sequence(&[
            explicit(0, &der::integer(&[2])),
            serial.clone(),
            by.key.algorithm(),
            by.issuer.to_vec(),
            valid.clone(),
            name.to_vec(),
            spki.to_vec(),
            explicit(3, &sequence(extensions)),
        ])
    };
    let mut extensions = extensions(content);
    let without = body(&extensions);
    match sct {
        Sct::Missing => {}
        Sct::By(log, time) => extensions.push(sct_list(log, by.key, *time, &without)),
        Sct::Stolen(log, time) => {
            extensions.push(sct_list(log, by.key, *time, b"another certificate"))
        }
    }
    let body = body(&extensions);
    let signature = by.key.sign(&body);
    (
        sequence(&[body, by.key.algorithm(), der::bits(&signature)]),
        serial,
    )
}

fn extensions(content: &Content) -> Vec<Vec<u8>> {
    let constraints = if content.is_ca {
        sequence(&[der::boolean(true)])
    } else {
        sequence(&[])
    };
    // keyCertSign and cRLSign, or digitalSignature.
    let key_usage = if content.is_ca {
        [0x01, 0x06]
    } else {
        [0x07, 0x80]
    };
    let mut extensions = vec![
        extension("2.5.29.15", true, &element(0x03, &key_usage)),
        extension("2.5.29.19", true, &constraints),
    ];
    if !content.usages.is_empty() {
        let usages: Vec<_> = content.usages.iter().map(|usage| der::oid(usage)).collect();
        // RFC 3161 wants it critical, where it is the only one.
        let critical = content.usages == [TIME_STAMPING];
        extensions.push(extension("2.5.29.37", critical, &sequence(&usages)));
    }
    if let Some(san) = &content.san {
        let name = match san {
            San::Email(email) => element(0x81, email.as_bytes()),
            San::Dns(host) => element(0x82, host.as_bytes()),
            San::Uri(uri) => element(0x86, uri.as_bytes()),
        };
        extensions.push(extension("2.5.29.17", true, &sequence(&[name])));
    }
    for (number, text) in &content.bare_claims {
        extensions.push(extension(
            &format!("{FULCIO}.{number}"),
            false,
            text.as_bytes(),
        ));
    }
    for (number, text) in &content.claims {
        extensions.push(extension(&format!("{FULCIO}.{number}"), false, &utf8(text)));
    }
    extensions
}

fn extension(oid: &str, critical: bool, value: &[u8]) -> Vec<u8> {
    let mut parts = vec![der::oid(oid)];
    if critical {
        parts.push(der::boolean(true));
    }
    parts.push(octets(value));
    sequence(&parts)
}

/// RFC 6962 §3.2 and §3.3: a list of one.
fn sct_list(log: &Key, issuer: &Key, time: Timestamp, certificate: &[u8]) -> Vec<u8> {
    let millis = u64::try_from(time.as_millisecond()).unwrap().to_be_bytes();
    let length = u32::try_from(certificate.len()).unwrap().to_be_bytes();
    let signed = [
        &[0, 0][..],
        &millis,
        &[0, 1],
        &issuer.id(),
        &length[1..],
        certificate,
        &[0, 0],
    ]
    .concat();
    let signature = log.sign(&signed);
    let length = |bytes: &[u8]| u16::try_from(bytes.len()).unwrap().to_be_bytes();
    let sct = [
        &[0][..],
        &log.id(),
        &millis,
        &[0, 0],
        &[4, 3],
        &length(&signature),
        &signature,
    ]
    .concat();
    let item = [&length(&sct)[..], &sct].concat();
    extension(
        SCT_LIST,
        false,
        &octets(&[&length(&item)[..], &item].concat()),
    )
}

fn common_name(name: &str) -> Vec<u8> {
    sequence(&[der::set(&[sequence(&[der::oid("2.5.4.3"), utf8(name)])])])
}
