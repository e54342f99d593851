//! Limits the trust in a certificate to its own validity.
//!
//! To webpki a trust anchor is a name and a key: it never checks the anchor's own validity. In a
//! `trusted_root.json` every certificate of an authority's chain is an anchor, the intermediates
//! too. Only the time range beside the chain would limit them, and that usually has no end; so an
//! intermediate that expired long ago would still be trusted (cosign had that, CVE-2026-24122).

use sigstore_verify::{
    trust_root::{CertificateAuthority, TimeRange, TimestampAuthority, TrustedRoot},
    types::DerCertificate,
};
use x509_cert::{Certificate, der::Decode as _};

/// The same root, with a time range of its own for each anchor: that of its authority, limited to
/// the anchor's validity and to that of every certificate above it. Anchors without any time left
/// are removed.
pub(in crate::verify) fn limit_validity(mut root: TrustedRoot) -> Result<TrustedRoot, String> {
    root.certificate_authorities = root
        .certificate_authorities
        .into_iter()
        .map(certificate_authority)
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .flatten()
        .collect();
    root.timestamp_authorities = root
        .timestamp_authorities
        .into_iter()
        .map(timestamp_authority)
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .flatten()
        .collect();
    Ok(root)
}

/// Makes one authority of each certificate in the chain.
fn certificate_authority(
    authority: CertificateAuthority,
) -> Result<Vec<CertificateAuthority>, String> {
    let chain = authority
        .cert_chain
        .certificates
        .iter()
        .map(|one| &one.raw_bytes);
    let chain = chain.map(Link::read).collect::<Result<Vec<_>, _>>()?;
    // The verifier rejects an empty chain.
    if chain.is_empty() {
        return Ok(vec![authority]);
    }
    let mut limited = Vec::new();
    for (index, entry) in authority.cert_chain.certificates.iter().enumerate() {
        let Some(window) = window(&chain, index, authority.valid_for) else {
            continue;
        };
        let mut one = authority.clone();
        one.cert_chain.certificates = vec![entry.clone()];
        one.valid_for = Some(window);
        limited.push(one);
    }
    Ok(limited)
}

/// Of these chains only the last certificate is an anchor; webpki checks the others.
fn timestamp_authority(
    mut authority: TimestampAuthority,
) -> Result<Option<TimestampAuthority>, String> {
    let Some(anchor) = authority.cert_chain.certificates.last() else {
        return Ok(Some(authority));
    };
    let anchor = Link::read(&anchor.raw_bytes)?;
    authority.valid_for = match authority.valid_for {
        None => Some(anchor.validity),
        Some(window) => match both(window, anchor.validity) {
            None => return Ok(None),
            both => both,
        },
    };
    Ok(Some(authority))
}

/// A certificate in a chain.
struct Link {
    certificate: Certificate,
    validity: TimeRange,
}

impl Link {
    fn read(der: &DerCertificate) -> Result<Self, String> {
        let certificate = Certificate::from_der(der.as_bytes())
            .map_err(|error| format!("a certificate in it: {error}"))?;
        let validity = &certificate.tbs_certificate.validity;
        let read = |time: x509_cert::time::Time| {
            jiff::Timestamp::try_from(time.to_system_time())
                .map_err(|error| format!("a certificate in it: {error}"))
        };
        let validity = TimeRange::new(read(validity.not_before)?, Some(read(validity.not_after)?));
        Ok(Self {
            certificate,
            validity,
        })
    }

    /// Issuers are matched by name, as when chains are built. If several certificates have that
    /// name all of them count, which can only shorten the time range.
    fn is_issued_by(&self, other: &Self) -> bool {
        self.certificate.tbs_certificate.issuer == other.certificate.tbs_certificate.subject
    }
}

/// The part of `window` for which the certificate at `index` in `chain` is trusted, if any.
fn window(chain: &[Link], index: usize, window: Option<TimeRange>) -> Option<TimeRange> {
    let mut left = chain.get(index)?.validity;
    if let Some(window) = window {
        left = both(left, window)?;
    }
    let mut seen = vec![index];
    let mut next = 0;
    while let Some(below) = seen.get(next).and_then(|index| chain.get(*index)) {
        next += 1;
        for (index, above) in chain.iter().enumerate() {
            if !seen.contains(&index) && below.is_issued_by(above) {
                left = both(left, above.validity)?;
                seen.push(index);
            }
        }
    }
    Some(left)
}

/// The intersection of two time ranges; their ends belong to them.
fn both(one: TimeRange, other: TimeRange) -> Option<TimeRange> {
    let start = one.start.max(other.start);
    let end = match (one.end, other.end) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    };
    end.is_none_or(|end| start <= end)
        .then(|| TimeRange::new(start, end))
}

#[cfg(test)]
mod tests;
