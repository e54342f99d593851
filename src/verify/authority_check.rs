//! Checks whether a candidate is a signature by an authority of the policy.

use jiff::Timestamp;
use sigstore_verify::{SubjectAltName, crypto::CertificateInfo};

use super::{
    candidate::{Candidate, Material},
    certificate::check_leaf,
    keys::{KeyMatch, Scheme},
    policy::{Authority, AuthorityKey, AuthorityKind, Identity, SigningTime, TlogPolicy, X509},
    private_ca,
    reason::CandidateError,
    report::CheckLog,
    roots::{TrustRoot, UnusableRoot},
    sigstore::{self, CertificateRequirements, SigningTimes, VerifiedCertificate},
};
use crate::oci::Digest;

/// A candidate that is a signature by an authority.
#[derive(Debug, Clone)]
pub(super) struct AuthorityMatch {
    /// The key's fingerprint, or the name in the certificate.
    pub(super) identity: String,
    /// The identity of the signer when votes are counted: the key, or issuer and name of the
    /// certificate. Two signatures by one key are one vote, and so are two by one holder of
    /// certificates, who has a new key for each.
    pub(super) signer_key: String,
    /// The earliest proven time of signing.
    pub(super) signed_at: Option<Timestamp>,
    /// The time from which the signature's age counts. Only the signer could obtain a later one,
    /// by signing again.
    pub(super) earliest_time: Option<Timestamp>,
    /// The end of the match; `None` = no end.
    pub(super) until: Option<Timestamp>,
}

/// The check of one candidate against the authorities of a policy.
pub(super) struct AuthorityCheck<'a> {
    pub(super) candidate: &'a Candidate,
    pub(super) subject: &'a Digest,
    pub(super) now: Timestamp,
    /// Whether expired roots are still usable, for an artifact that they accepted before.
    pub(super) expired_roots: bool,
    /// Results of certificate verification, by trust root and requirements: authorities share
    /// them.
    pub(super) verified_certificates: Vec<(
        Digest,
        CertificateRequirements,
        Result<VerifiedCertificate, CandidateError>,
    )>,
}

impl AuthorityCheck<'_> {
    /// Checks whether the candidate is a signature by `authority`, and records every step in
    /// `checks`.
    pub(super) fn check(
        &mut self,
        authority: &Authority,
        checks: &mut CheckLog,
    ) -> Result<AuthorityMatch, CandidateError> {
        match &authority.kind {
            AuthorityKind::Keys(keys) => self.check_keys(authority, keys, checks),
            AuthorityKind::Keyless(identity) => self.check_keyless(authority, identity, checks),
            AuthorityKind::X509(x509) => self.check_x509(authority, x509, checks),
        }
    }

    fn check_keys(
        &self,
        authority: &Authority,
        keys: &[AuthorityKey],
        checks: &mut CheckLog,
    ) -> Result<AuthorityMatch, CandidateError> {
        // An authority with keys does not accept a certificate.
        let keys = if matches!(self.candidate.material, Material::Key) {
            keys
        } else {
            &[]
        };
        let (key, scheme) =
            checks.record("signature", self.signing_key(keys), |(key, scheme)| {
                format!("by {} ({scheme})", key.key.identity())
            })?;
        let times = self.key_times(authority, key, scheme, checks)?;
        let valid_until = key.valid_for(&times, authority.tlog == TlogPolicy::Require, self.now);
        let until = if key.has_window() {
            checks.record("validity", valid_until, |_| {
                format!(
                    "signed {}, key valid {}",
                    describe(&times.all),
                    key.window()
                )
            })?
        } else {
            valid_until?
        };
        let identity = key.key.identity().to_owned();
        let signed_at = times.all.first().copied();
        Ok(AuthorityMatch {
            signer_key: identity.clone(),
            identity,
            signed_at,
            earliest_time: times.logged,
            until,
        })
    }

    fn signing_key<'k>(
        &self,
        keys: &'k [AuthorityKey],
    ) -> Result<(&'k AuthorityKey, Scheme), CandidateError> {
        let mut refused = CandidateError::AnotherKey;
        for key in keys {
            match key
                .key
                .match_signature(&self.candidate.message, &self.candidate.signature)
            {
                KeyMatch::Declared(_) if key.revoked => {
                    return Err(CandidateError::RevokedKey(key.key.identity().to_owned()));
                }
                KeyMatch::Declared(scheme) => return Ok((key, scheme)),
                KeyMatch::Undeclared(scheme) => refused = CandidateError::Scheme(scheme),
                KeyMatch::Unknown => {}
            }
        }
        Err(refused)
    }

    /// The times of signing that logs and timestamps under the authority's root prove.
    fn key_times(
        &self,
        authority: &Authority,
        key: &AuthorityKey,
        scheme: Scheme,
        checks: &mut CheckLog,
    ) -> Result<SigningTimes, CandidateError> {
        let log = self.requires_log(authority.tlog);
        let stamped = !self.candidate.timestamps.is_empty();
        let Some(root) = &authority.root else {
            return Ok(SigningTimes::default());
        };
        if !(log || stamped && root.has_timestamp_authorities()) {
            return Ok(SigningTimes::default());
        }
        if !scheme.supports_tlog() {
            let sentence =
                format!("{scheme} signatures can't be verified against a log or a timestamp");
            return checks.record(
                "log",
                Err(CandidateError::Unsupported(sentence)),
                |_: &SigningTimes| String::new(),
            );
        }
        let verifier = checks
            .record_failure("root", self.require_usable(root))?
            .verifier();
        let proved = sigstore::verify_candidate_key(
            verifier,
            self.candidate,
            self.subject,
            key.key.spki(),
            log,
        );
        checks.record(if log { "log" } else { "timestamp" }, proved, |times| {
            describe(&times.all)
        })
    }

    fn check_keyless(
        &mut self,
        authority: &Authority,
        identity: &Identity,
        checks: &mut CheckLog,
    ) -> Result<AuthorityMatch, CandidateError> {
        let Some(root) = &authority.root else {
            return Err(CandidateError::AnotherKey);
        };
        let requirements = CertificateRequirements {
            log: self.requires_log(authority.tlog),
            sct: root.has_ct_logs(),
        };
        let usable = self.require_usable(root);
        checks.record_failure("root", usable)?;
        let certified = self.verify_certificate(root, requirements);
        let matched = self.match_certificate(certified, requirements.log, checks, |certified| {
            identity.check(&certified.certificate)
        })?;
        // Fulcio certificates are valid for minutes, so every proven time is close to the
        // signing.
        Ok(AuthorityMatch {
            earliest_time: matched.signed_at,
            ..matched
        })
    }

    fn check_x509(
        &self,
        authority: &Authority,
        x509: &X509,
        checks: &mut CheckLog,
    ) -> Result<AuthorityMatch, CandidateError> {
        let log = match (x509.time, &authority.root) {
            (SigningTime::Now, _) | (_, None) => return self.check_x509_now(x509, checks),
            (SigningTime::Rekor, Some(_)) => true,
            (SigningTime::Tsa, Some(_)) => self.requires_log(authority.tlog),
        };
        let Some(root) = &authority.root else {
            return Err(CandidateError::AnotherKey);
        };
        checks.record_failure("root", self.require_usable(root))?;
        let certified =
            private_ca::verify_at_proven_time(&x509.roots, root, self.candidate, self.subject, log);
        let certified = certified.and_then(|certified| match x509.time {
            SigningTime::Tsa if self.candidate.timestamps.is_empty() => {
                Err(CandidateError::Timestamp(
                    "no timestamp, the only proof of time that the policy accepts".into(),
                ))
            }
            SigningTime::Rekor if certified.times.logged.is_none() => Err(CandidateError::Log(
                "no log proves when it was signed, and the policy accepts no other proof of time"
                    .into(),
            )),
            _ => Ok(certified),
        });
        self.match_certificate(certified, log, checks, |certified| {
            x509.subject.check(&certified.certificate)
        })
    }

    fn check_x509_now(
        &self,
        x509: &X509,
        checks: &mut CheckLog,
    ) -> Result<AuthorityMatch, CandidateError> {
        let valid = private_ca::verify_now(&x509.roots, self.candidate, self.now);
        let valid = valid.and_then(|valid| self.check_leaf().map(|()| valid));
        let (valid, until) = checks.record("certificate", valid, |(_, until)| {
            format!("valid now, until {until}")
        })?;
        let identity = checks.record("identity", x509.subject.check(&valid), Clone::clone)?;
        Ok(AuthorityMatch {
            signer_key: signer_key(&valid),
            identity,
            signed_at: None,
            earliest_time: None,
            until: Some(until),
        })
    }

    fn match_certificate(
        &self,
        certified: Result<VerifiedCertificate, CandidateError>,
        log: bool,
        checks: &mut CheckLog,
        identity: impl Fn(&VerifiedCertificate) -> Result<String, CandidateError>,
    ) -> Result<AuthorityMatch, CandidateError> {
        let certified = certified.and_then(|certified| self.check_leaf().map(|()| certified));
        let named = match &certified {
            Err(error) => error.check(),
            Ok(_) => "certificate",
        };
        let certified = checks.record(named, certified, |certified| {
            let seen = if log { ", in the log" } else { "" };
            format!("{}{seen}", describe(&certified.times.all))
        })?;
        let identity = checks.record("identity", identity(&certified), Clone::clone)?;
        let VerifiedCertificate { certificate, times } = certified;
        // A certificate can't sign before it is issued.
        let earliest_time = times.logged.or(Some(certificate.not_before));
        Ok(AuthorityMatch {
            signer_key: signer_key(&certificate),
            identity,
            signed_at: times.all.first().copied(),
            earliest_time,
            until: None,
        })
    }

    fn verify_certificate(
        &mut self,
        root: &TrustRoot,
        requirements: CertificateRequirements,
    ) -> Result<VerifiedCertificate, CandidateError> {
        let known = self
            .verified_certificates
            .iter()
            .find(|(of, by, _)| of == root.revision() && *by == requirements);
        if let Some((.., certified)) = known {
            return certified.clone();
        }
        let certified = sigstore::verify_candidate_certificate(
            root.verifier(),
            self.candidate,
            self.subject,
            requirements,
        );
        self.verified_certificates
            .push((root.revision().clone(), requirements, certified.clone()));
        certified
    }

    fn check_leaf(&self) -> Result<(), CandidateError> {
        match &self.candidate.material {
            Material::Certificate { leaf, .. } => check_leaf(leaf),
            Material::Key => Err(CandidateError::AnotherKey),
        }
    }

    fn require_usable<'r>(&self, root: &'r TrustRoot) -> Result<&'r TrustRoot, CandidateError> {
        match root.unusable_reason(self.now) {
            Some(reason)
                if !(self.expired_roots && matches!(reason, UnusableRoot::Expired { .. })) =>
            {
                Err(CandidateError::Root(reason.to_string()))
            }
            _ => Ok(root),
        }
    }

    fn requires_log(&self, tlog: TlogPolicy) -> bool {
        match tlog {
            TlogPolicy::None => false,
            TlogPolicy::IfPresent => self.candidate.has_log_entries(),
            TlogPolicy::Require => true,
        }
    }
}

impl AuthorityKey {
    /// Checks that a signature by this key, made at `times` or at an unknown time, is within the
    /// key's validity, and returns until when.
    fn valid_for(
        &self,
        times: &SigningTimes,
        log: bool,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, CandidateError> {
        // A timestamp can be obtained at any time after signing, so it does not prove that the
        // signature is not older.
        if log && self.not_before.is_some() && times.logged.is_none() {
            let sentence = format!(
                "no log proves when it was signed, and the key is valid {}",
                self.window()
            );
            return Err(CandidateError::Validity(sentence));
        }
        let times = times.all.as_slice();
        let outside = |time: &Timestamp| {
            self.not_before.is_some_and(|from| *time < from)
                || self.not_after.is_some_and(|until| *time > until)
        };
        let (unproved, relevant) = (
            times.is_empty(),
            if times.is_empty() { &[now] } else { times },
        );
        match relevant.iter().find(|time| outside(time)) {
            Some(time) => {
                let when = if unproved {
                    "it is"
                } else {
                    "it was signed at"
                };
                Err(CandidateError::Validity(format!(
                    "{when} {time}, but the key is valid {}",
                    self.window()
                )))
            }
            // Without a proven time the result depends on the clock, so it has an end.
            None => Ok(self.not_after.filter(|_| unproved)),
        }
    }

    fn has_window(&self) -> bool {
        self.not_before.is_some() || self.not_after.is_some()
    }

    fn window(&self) -> String {
        let from = self.not_before.map(|from| format!("from {from}"));
        let until = self.not_after.map(|until| format!("until {until}"));
        [from, until]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(" ")
    }
}

/// Issuer and name of a certificate.
fn signer_key(certificate: &CertificateInfo) -> String {
    let name = certificate
        .identity
        .as_ref()
        .map(SubjectAltName::as_str)
        .unwrap_or_default();
    format!(
        "{} {name}",
        certificate.issuer.as_deref().unwrap_or_default()
    )
}

/// The times as text.
fn describe(times: &[Timestamp]) -> String {
    match times {
        [] => "at an unknown time".to_owned(),
        [only] => format!("at {only}"),
        [first, .., last] => format!("at {first} … {last}"),
    }
}
