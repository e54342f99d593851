//! Whether an authority stands behind a signature.

use jiff::Timestamp;
use sigstore_verify::{SubjectAltName, crypto::CertificateInfo};

use super::{
    candidate::{Candidate, Material},
    certificate::check_leaf,
    keys::{Answer, Scheme},
    policy::{Authority, AuthorityKey, Identity, Log, Proof, SigningTime, X509},
    private_ca,
    reason::Fault,
    report::Trail,
    roots::{RootTrouble, TrustRoot},
    sigstore::{self, Certified, Demands, Times},
};
use crate::oci::Digest;

/// An authority's word for a signature.
#[derive(Debug, Clone)]
pub(super) struct Vouched {
    /// Who signed, in words.
    pub(super) identity: String,
    /// Whose voice it is: two signatures by one key are one, and so are two by one owner of
    /// certificates, who has a new key for each.
    pub(super) voice: String,
    /// When, by the earliest proof.
    pub(super) signed_at: Option<Timestamp>,
    /// From when on its age counts: a time that nobody can make later without the signer.
    pub(super) made: Option<Timestamp>,
    /// Until when this holds, if not for ever.
    pub(super) until: Option<Timestamp>,
}

/// A signature under judgement.
pub(super) struct Bench<'a> {
    pub(super) candidate: &'a Candidate,
    pub(super) subject: &'a Digest,
    pub(super) now: Timestamp,
    /// Whether an expired root may still speak: about what it has accepted before.
    pub(super) expired_roots: bool,
    /// What is known already of the certificate, under a root and demands.
    pub(super) certified: Vec<(Digest, Demands, Result<Certified, Fault>)>,
}

impl Bench<'_> {
    /// Whether `authority` stands behind it; `trail` is told every step.
    pub(super) fn vouch(&mut self, authority: &Authority, trail: &mut Trail) -> Result<Vouched, Fault> {
        match &authority.proof {
            Proof::Keys(keys) => self.keys(authority, keys, trail),
            Proof::Keyless(identity) => self.keyless(authority, identity, trail),
            Proof::X509(x509) => self.x509(authority, x509, trail),
        }
    }

    fn keys(&self, authority: &Authority, keys: &[AuthorityKey], trail: &mut Trail) -> Result<Vouched, Fault> {
        // A certificate proves nothing to somebody who has keys.
        let keys = if matches!(self.candidate.material, Material::Key) { keys } else { &[] };
        let (key, scheme) = trail.check("signature", self.signing_key(keys), |(key, scheme)| {
            format!("by {} ({scheme})", key.key.identity())
        })?;
        let times = self.key_times(authority, key, scheme, trail)?;
        let speaks = key.speaks(&times, authority.log == Log::Require, self.now);
        let until = if key.has_window() {
            trail.check("validity", speaks, |_| format!("signed {}, counts {}", told(&times.all), key.window()))?
        } else {
            speaks?
        };
        let identity = key.key.identity().to_owned();
        let signed_at = times.all.first().copied();
        Ok(Vouched { voice: identity.clone(), identity, signed_at, made: times.logged, until })
    }

    fn signing_key<'k>(&self, keys: &'k [AuthorityKey]) -> Result<(&'k AuthorityKey, Scheme), Fault> {
        let mut refused = Fault::AnotherKey;
        for key in keys {
            match key.key.answer(&self.candidate.message, &self.candidate.signature) {
                Answer::Mine(_) if key.revoked => return Err(Fault::RevokedKey(key.key.identity().to_owned())),
                Answer::Mine(scheme) => return Ok((key, scheme)),
                Answer::Undeclared(scheme) => refused = Fault::Scheme(scheme),
                Answer::No => {}
            }
        }
        Err(refused)
    }

    /// When a key signed, as logs and timestamps of the authority's root tell.
    fn key_times(
        &self,
        authority: &Authority,
        key: &AuthorityKey,
        scheme: Scheme,
        trail: &mut Trail,
    ) -> Result<Times, Fault> {
        let log = self.wants_log(authority.log);
        let stamped = !self.candidate.timestamps.is_empty();
        let Some(root) = &authority.root else { return Ok(Times::default()) };
        if !(log || stamped && root.has_timestamp_authorities()) {
            return Ok(Times::default());
        }
        if !scheme.goes_with_a_log() {
            let sentence = format!("{scheme} signatures can't be judged together with a log or a timestamp");
            return trail.check("log", Err(Fault::Unsupported(sentence)), |_: &Times| String::new());
        }
        let verifier = trail.quietly("root", self.usable(root))?.verifier();
        let proved = sigstore::keyed(verifier, self.candidate, self.subject, key.key.spki(), log);
        trail.check(if log { "log" } else { "timestamp" }, proved, |times| told(&times.all))
    }

    fn keyless(&mut self, authority: &Authority, identity: &Identity, trail: &mut Trail) -> Result<Vouched, Fault> {
        let Some(root) = &authority.root else { return Err(Fault::AnotherKey) };
        let demands = Demands { log: self.wants_log(authority.log), sct: root.has_ct_logs() };
        let usable = self.usable(root);
        trail.quietly("root", usable)?;
        let certified = self.certified(root, demands);
        let vouched =
            self.certificate(certified, demands.log, trail, |certified| identity.check(&certified.certificate))?;
        // Such certificates live for minutes: no proof can be far from the signing.
        Ok(Vouched { made: vouched.signed_at, ..vouched })
    }

    fn x509(&self, authority: &Authority, x509: &X509, trail: &mut Trail) -> Result<Vouched, Fault> {
        let log = match (x509.time, &authority.root) {
            (SigningTime::Now, _) | (_, None) => return self.x509_now(x509, trail),
            (SigningTime::Rekor, Some(_)) => true,
            (SigningTime::Tsa, Some(_)) => self.wants_log(authority.log),
        };
        let Some(root) = &authority.root else { return Err(Fault::AnotherKey) };
        trail.quietly("root", self.usable(root))?;
        let certified = private_ca::certified(&x509.roots, root, self.candidate, self.subject, log);
        let certified = certified.and_then(|certified| match x509.time {
            SigningTime::Tsa if self.candidate.timestamps.is_empty() => {
                Err(Fault::Timestamp("no timestamp, and the policy takes the time of nothing else".into()))
            }
            SigningTime::Rekor if certified.times.logged.is_none() => {
                Err(Fault::Log("no log tells when it was signed, and the policy takes the time of nothing else".into()))
            }
            _ => Ok(certified),
        });
        self.certificate(certified, log, trail, |certified| x509.subject.check(&certified.certificate))
    }

    fn x509_now(&self, x509: &X509, trail: &mut Trail) -> Result<Vouched, Fault> {
        let valid = private_ca::valid_now(&x509.roots, self.candidate, self.now);
        let valid = valid.and_then(|valid| self.leaf().map(|()| valid));
        let (valid, until) = trail.check("certificate", valid, |(_, until)| format!("valid now, until {until}"))?;
        let identity = trail.check("identity", x509.subject.check(&valid), Clone::clone)?;
        Ok(Vouched { voice: voice(&valid), identity, signed_at: None, made: None, until: Some(until) })
    }

    fn certificate(
        &self,
        certified: Result<Certified, Fault>,
        log: bool,
        trail: &mut Trail,
        identity: impl Fn(&Certified) -> Result<String, Fault>,
    ) -> Result<Vouched, Fault> {
        let certified = certified.and_then(|certified| self.leaf().map(|()| certified));
        let named = match &certified {
            Err(fault) => fault.check(),
            Ok(_) => "certificate",
        };
        let certified = trail.check(named, certified, |certified| {
            let seen = if log { ", in the log" } else { "" };
            format!("{}{seen}", told(&certified.times.all))
        })?;
        let identity = trail.check("identity", identity(&certified), Clone::clone)?;
        let Certified { certificate, times } = certified;
        // Nobody signs with a certificate before there is one.
        let made = times.logged.or(Some(certificate.not_before));
        Ok(Vouched { voice: voice(&certificate), identity, signed_at: times.all.first().copied(), made, until: None })
    }

    fn certified(&mut self, root: &TrustRoot, demands: Demands) -> Result<Certified, Fault> {
        let known = self.certified.iter().find(|(of, by, _)| of == root.revision() && *by == demands);
        if let Some((.., certified)) = known {
            return certified.clone();
        }
        let certified = sigstore::certified(root.verifier(), self.candidate, self.subject, demands);
        self.certified.push((root.revision().clone(), demands, certified.clone()));
        certified
    }

    fn leaf(&self) -> Result<(), Fault> {
        match &self.candidate.material {
            Material::Certificate { leaf, .. } => check_leaf(leaf),
            Material::Key => Err(Fault::AnotherKey),
        }
    }

    fn usable<'r>(&self, root: &'r TrustRoot) -> Result<&'r TrustRoot, Fault> {
        match root.trouble(self.now) {
            Some(trouble) if !(self.expired_roots && matches!(trouble, RootTrouble::Expired { .. })) => {
                Err(Fault::Root(trouble.to_string()))
            }
            _ => Ok(root),
        }
    }

    fn wants_log(&self, log: Log) -> bool {
        match log {
            Log::None => false,
            Log::IfPresent => self.candidate.is_logged(),
            Log::Require => true,
        }
    }
}

impl AuthorityKey {
    /// Whether a signature of this key counts, made at `times`, or at an unknown time; until
    /// when.
    fn speaks(&self, times: &Times, log: bool, now: Timestamp) -> Result<Option<Timestamp>, Fault> {
        // A timestamp of today, or none at all, says nothing about the day of signing.
        if log && self.not_before.is_some() && times.logged.is_none() {
            let sentence = format!("no log tells when it was signed, and the key counts {}", self.window());
            return Err(Fault::Validity(sentence));
        }
        let times = times.all.as_slice();
        let outside = |time: &Timestamp| {
            self.not_before.is_some_and(|from| *time < from) || self.not_after.is_some_and(|until| *time > until)
        };
        let (unproved, made) = (times.is_empty(), if times.is_empty() { &[now] } else { times });
        match made.iter().find(|time| outside(time)) {
            Some(time) => {
                let when = if unproved { "it is" } else { "it was signed at" };
                Err(Fault::Validity(format!("{when} {time}, and the key counts {}", self.window())))
            }
            // The clock goes on, a proof stays.
            None => Ok(self.not_after.filter(|_| unproved)),
        }
    }

    fn has_window(&self) -> bool {
        self.not_before.is_some() || self.not_after.is_some()
    }

    fn window(&self) -> String {
        let from = self.not_before.map(|from| format!("from {from}"));
        let until = self.not_after.map(|until| format!("until {until}"));
        [from, until].into_iter().flatten().collect::<Vec<_>>().join(" ")
    }
}

/// Whose certificate it is.
fn voice(certificate: &CertificateInfo) -> String {
    let name = certificate.identity.as_ref().map(SubjectAltName::as_str).unwrap_or_default();
    format!("{} {name}", certificate.issuer.as_deref().unwrap_or_default())
}

/// Times, in words.
fn told(times: &[Timestamp]) -> String {
    match times {
        [] => "at an unknown time".to_owned(),
        [only] => format!("at {only}"),
        [first, .., last] => format!("at {first} … {last}"),
    }
}
