//! Whether an authority stands behind a signature.

use jiff::Timestamp;

use super::{
    candidate::{Candidate, Material},
    certificate::check_leaf,
    keys::{Answer, Scheme, fingerprint},
    policy::{Authority, AuthorityKey, Identity, Log, Proof, SigningTime, X509},
    private_ca,
    reason::Fault,
    report::Trail,
    roots::{RootTrouble, TrustRoot},
    sigstore::{self, Certified, Demands},
};
use crate::oci::Digest;

/// An authority's word for a signature.
#[derive(Debug, Clone)]
pub(super) struct Vouched {
    /// Who signed, in words.
    pub(super) identity: String,
    /// The key that signed: two signatures by one key are one voice.
    pub(super) key: String,
    /// When, as far as anything proves it; in order.
    pub(super) times: Vec<Timestamp>,
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
        let speaks = key.speaks(&times, self.now);
        let until = if key.has_window() {
            trail.check("validity", speaks, |_| format!("signed {}, counts {}", told(&times), key.window()))?
        } else {
            speaks?
        };
        let identity = key.key.identity().to_owned();
        Ok(Vouched { key: identity.clone(), identity, times, until })
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
    ) -> Result<Vec<Timestamp>, Fault> {
        let log = self.wants_log(authority.log);
        let stamped = !self.candidate.timestamps.is_empty();
        let Some(root) = &authority.root else { return Ok(Vec::new()) };
        if !(log || stamped && root.has_timestamp_authorities()) {
            return Ok(Vec::new());
        }
        if !scheme.goes_with_a_log() {
            let sentence = format!("{scheme} signatures can't be judged together with a log or a timestamp");
            return trail.check("log", Err(Fault::Unsupported(sentence)), |_: &Vec<_>| String::new());
        }
        let verifier = trail.quietly("root", self.usable(root))?.verifier();
        let proved = sigstore::keyed(verifier, self.candidate, self.subject, key.key.spki(), log);
        trail.check(if log { "log" } else { "timestamp" }, proved, |times| told(times))
    }

    fn keyless(&mut self, authority: &Authority, identity: &Identity, trail: &mut Trail) -> Result<Vouched, Fault> {
        let Some(root) = &authority.root else { return Err(Fault::AnotherKey) };
        let demands = Demands { log: self.wants_log(authority.log), sct: root.has_ct_logs() };
        let usable = self.usable(root);
        trail.quietly("root", usable)?;
        let certified = self.certified(root, demands);
        self.certificate(certified, demands.log, trail, |certified| identity.check(&certified.certificate))
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
        self.certificate(certified, log, trail, |certified| x509.subject.check(&certified.certificate))
    }

    fn x509_now(&self, x509: &X509, trail: &mut Trail) -> Result<Vouched, Fault> {
        let valid = private_ca::valid_now(&x509.roots, self.candidate, self.now);
        let valid = trail.check("certificate", valid.and_then(|info| self.leaf().map(|()| info)), |info| {
            format!("valid now, until {}", info.not_after)
        })?;
        let identity = trail.check("identity", x509.subject.check(&valid), Clone::clone)?;
        let key = fingerprint(valid.public_key.as_bytes());
        Ok(Vouched { identity, key, times: Vec::new(), until: Some(valid.not_after) })
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
            format!("{}{seen}", told(&certified.times))
        })?;
        let identity = trail.check("identity", identity(&certified), Clone::clone)?;
        let key = fingerprint(certified.certificate.public_key.as_bytes());
        Ok(Vouched { identity, key, times: certified.times, until: None })
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
            Log::IfPresent => !self.candidate.log_entries.is_empty(),
            Log::Require => true,
        }
    }
}

impl AuthorityKey {
    /// Whether a signature of this key counts, made at `times`, or at an unknown time; until
    /// when.
    fn speaks(&self, times: &[Timestamp], now: Timestamp) -> Result<Option<Timestamp>, Fault> {
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

/// Times, in words.
fn told(times: &[Timestamp]) -> String {
    match times {
        [] => "at an unknown time".to_owned(),
        [only] => format!("at {only}"),
        [first, .., last] => format!("at {first} … {last}"),
    }
}
