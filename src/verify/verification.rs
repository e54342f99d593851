//! One artifact before its policy: every candidate is heard, the votes are counted.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::{
    authority_check::{Bench, Vouched},
    bundle_v03,
    candidate::Candidate,
    evidence::{Evidence, LegacySignature, SignatureBundle},
    legacy,
    matching::tally,
    policy::{Attestation, ClaimedRepository, Format, Requirements},
    reason::{Fault, Reason},
    report::{Finding, Trail, clean},
    statement::Statement,
    verified::{Circumstances, Rejection, Signer, Term},
};
use crate::oci::{PinnedReference, Repository};

/// Details that a rejection tells; the report has them all.
const TOLD: usize = 4;
/// After so long a rule is asked again about a statement.
const RULE_HOLDS: SignedDuration = SignedDuration::from_hours(1);

pub(super) struct Hearing<'a> {
    pub(super) requirements: &'a Requirements,
    pub(super) pinned: &'a PinnedReference,
    pub(super) circumstances: Circumstances,
}

/// Yes.
#[derive(Debug, Default)]
pub(super) struct Accepted {
    pub(super) signers: Vec<Signer>,
    pub(super) term: Term,
}

/// What a good candidate is worth.
enum Word {
    /// The vote of each of these authorities.
    Signature(Vec<Vote>),
    /// A statement that some of the policy's authorities make, and until when one of them
    /// stands behind it, if not for ever.
    Attestation(Statement, Option<Timestamp>),
}

struct Vote {
    authority: usize,
    voice: String,
    signer: Signer,
    until: Option<Timestamp>,
}

/// What has been heard so far.
#[derive(Default)]
struct Heard {
    votes: Vec<Vote>,
    statements: Vec<(Statement, Option<Timestamp>)>,
    faults: Vec<Fault>,
}

impl Hearing<'_> {
    pub(super) fn hear(&self, evidence: &Evidence, findings: &mut Vec<Finding>) -> Result<Accepted, Rejection> {
        if self.requirements.revoked_digests.contains(self.pinned.digest()) {
            return Err(self.refuse(Reason::RevokedDigest, Vec::new()));
        }
        let mut heard = Heard::default();
        for candidate in &evidence.bundles {
            let judged = self.judge(
                Format::Bundle,
                || bundle_v03::read(&candidate.bundle),
                |read, vouched, trail| self.statement(candidate, read, vouched, trail),
            );
            heard.take(judged, findings);
        }
        for candidate in &evidence.legacy {
            let judged = self.judge(
                Format::Legacy,
                || legacy::read(candidate),
                |_, vouched, trail| self.claim(candidate, vouched, trail),
            );
            heard.take(judged, findings);
        }
        let told = |rejection: Rejection| Rejection { revoked: rejection.revoked || heard.is_revoked(), ..rejection };
        let accepted = self.count(&heard, evidence).map_err(told)?;
        let attested = self.attested(&heard).map_err(told)?;
        Ok(Accepted { term: accepted.term.and(attested), ..accepted })
    }

    /// Takes a candidate apart, asks who stands behind it, and only then what it says: nothing
    /// that nobody signed is worth reading.
    fn judge(
        &self,
        format: Format,
        read: impl FnOnce() -> Result<Candidate, Fault>,
        contents: impl FnOnce(&Candidate, &VouchedFor, &mut Trail) -> Result<Word, Fault>,
    ) -> (Finding, Result<Word, Fault>) {
        let (mut trail, mut signer) = (Trail::default(), None);
        let outcome = trail
            .check("format", self.looked_at(format).and_then(|()| read()), |_| format.in_words().to_owned())
            .and_then(|read| {
                let vouched = self.vouched(&read, format, &mut trail)?;
                signer = vouched.0.first().map(|(_, signer, _)| signer.clone());
                contents(&read, &vouched, &mut trail)
            });
        (trail.into_finding(format, signer), outcome)
    }

    fn statement(
        &self,
        candidate: &SignatureBundle,
        read: &Candidate,
        vouched: &VouchedFor,
        trail: &mut Trail,
    ) -> Result<Word, Fault> {
        let statement = Statement::of(read).and_then(|statement| {
            let statement = statement.ok_or_else(|| Fault::Malformed("no statement".to_owned()))?;
            let (kind, wanted) = (&statement.predicate_type, self.requirements);
            let known = wanted.predicate_types.contains(kind)
                || wanted.attestations.iter().any(|attestation| attestation.predicate_type == *kind);
            if known { Ok(statement) } else { Err(Fault::NotASignature(kind.clone())) }
        });
        let statement = trail.check("statement", statement, |statement| statement.predicate_type.clone())?;
        let digest = self.pinned.digest();
        let annotations = trail.check("digest", statement.names(digest), |_| format!("it names {digest}"))?;
        let referrer = bundle_v03::check_referrer(candidate, digest);
        trail.check("referrer", referrer, |()| "attached to the same digest".to_owned())?;
        if self.requirements.predicate_types.contains(&statement.predicate_type) {
            self.annotations(annotations, trail)?;
            return self.votes(vouched, trail).map(Word::Signature);
        }
        // It holds for as long as anybody of them stands behind it.
        let ends: Option<Vec<Timestamp>> = vouched.0.iter().map(|(.., vouched)| vouched.until).collect();
        Ok(Word::Attestation(statement, ends.and_then(|ends| ends.into_iter().max())))
    }

    fn claim(&self, candidate: &LegacySignature, vouched: &VouchedFor, trail: &mut Trail) -> Result<Word, Fault> {
        let claim = trail.check("statement", legacy::claim(&candidate.payload), |_| "cosign signature".to_owned())?;
        let digest = self.pinned.digest();
        trail.check("digest", claim.names(digest), |()| format!("it names {digest}"))?;
        if self.requirements.claimed_repository != ClaimedRepository::Ignore {
            trail.check("repository", self.repository(&claim.repository), |()| claim.repository.clone())?;
        }
        self.annotations(&claim.annotations, trail)?;
        self.votes(vouched, trail).map(Word::Signature)
    }

    fn looked_at(&self, format: Format) -> Result<(), Fault> {
        if self.requirements.formats.contains(&format) { Ok(()) } else { Err(Fault::Format(format.label())) }
    }

    /// Everybody who stands behind a signature. The trail goes on with the one who came
    /// furthest.
    fn vouched(&self, candidate: &Candidate, format: Format, trail: &mut Trail) -> Result<VouchedFor, Fault> {
        let mut bench = Bench {
            candidate,
            subject: self.pinned.digest(),
            now: self.circumstances.now,
            expired_roots: self.circumstances.expired_roots,
            certified: Vec::new(),
        };
        let mut all = Vec::new();
        let mut best: Option<(Option<Reason>, Trail)> = None;
        let mut refused = Fault::AnotherKey;
        for (index, authority) in self.requirements.authorities.iter().enumerate() {
            let mut own = Trail::default();
            let outcome = bench.vouch(authority, &mut own);
            let rank = outcome.as_ref().err().map(Fault::reason);
            // No fault is better than any, a more telling one better than others.
            let better = match (&best, rank) {
                (None, _) | (Some((Some(_), _)), None) => true,
                (Some((Some(known), _)), Some(reason)) => reason > *known,
                (Some((None, _)), _) => false,
            };
            if better {
                best = Some((rank, own));
            }
            match outcome {
                Ok(vouched) => {
                    let signer = Signer {
                        authority: authority.name.clone(),
                        identity: vouched.identity.clone(),
                        format,
                        signed_at: vouched.signed_at,
                        made: vouched.made,
                    };
                    all.push((index, signer, vouched));
                }
                Err(fault) if fault.reason() >= refused.reason() => refused = fault,
                Err(_) => {}
            }
        }
        if let Some((_, own)) = best {
            trail.follow(own);
        }
        if all.is_empty() { Err(refused) } else { Ok(VouchedFor(all)) }
    }

    fn votes(&self, vouched: &VouchedFor, trail: &mut Trail) -> Result<Vec<Vote>, Fault> {
        let mut votes = Vec::new();
        let mut refused = None;
        for (authority, signer, vouched) in &vouched.0 {
            match self.fresh(vouched) {
                Ok(fresh) => {
                    let until = [vouched.until, fresh].into_iter().flatten().min();
                    votes.push(Vote {
                        authority: *authority,
                        voice: vouched.voice.clone(),
                        signer: signer.clone(),
                        until,
                    });
                }
                Err(fault) => refused = Some(fault),
            }
        }
        match (refused, votes.is_empty()) {
            (Some(fault), true) => trail.check("age", Err(fault), |_: &Vec<Vote>| String::new()),
            _ => Ok(votes),
        }
    }

    /// Whether a signature is not too old yet; until when.
    fn fresh(&self, vouched: &Vouched) -> Result<Option<Timestamp>, Fault> {
        let Some(most) = self.requirements.max_signature_age else { return Ok(None) };
        let Some(made) = vouched.made else {
            return Err(Fault::TooOld("nothing proves its age".to_owned()));
        };
        let most = SignedDuration::try_from(most).unwrap_or(SignedDuration::MAX);
        let until = made.checked_add(most).unwrap_or(Timestamp::MAX);
        if self.circumstances.now > until {
            return Err(Fault::TooOld(format!("signed at {made}, good until {until}")));
        }
        Ok(Some(until))
    }

    fn annotations(&self, signed: &BTreeMap<String, Value>, trail: &mut Trail) -> Result<(), Fault> {
        let wanted = &self.requirements.annotations;
        if wanted.is_empty() {
            return Ok(());
        }
        let lacking = wanted.iter().find(|(key, value)| signed.get(*key) != Some(*value));
        let outcome = match lacking {
            None => Ok(()),
            Some((key, value)) => Err(Fault::Annotations(match signed.get(key) {
                None => format!("{key} is missing"),
                Some(other) => format!("{key} is {other}, not {value}"),
            })),
        };
        trail.check("annotations", outcome, |()| wanted.keys().cloned().collect::<Vec<_>>().join(", "))
    }

    fn repository(&self, claimed: &str) -> Result<(), Fault> {
        let right = match (&self.requirements.claimed_repository, self.pinned.repository()) {
            (ClaimedRepository::Ignore, _) => true,
            (ClaimedRepository::Exactly(repository), _) => repository == claimed,
            (ClaimedRepository::Match, repository @ Repository::Registry { .. }) => repository.to_string() == claimed,
            // A folder has no name that a signer could have known.
            (ClaimedRepository::Match, Repository::Layout { .. }) => false,
        };
        if right { Ok(()) } else { Err(Fault::Repository(claimed.to_owned())) }
    }

    fn count(&self, heard: &Heard, evidence: &Evidence) -> Result<Accepted, Rejection> {
        let ballots: Vec<_> = heard.votes.iter().map(|vote| (vote.authority, vote.voice.as_str())).collect();
        let counted: Vec<&Vote> = tally(&ballots).into_iter().map(|position| &heard.votes[position]).collect();
        let (needed, votes) = (self.requirements.at_least, counted.len());
        if votes < needed {
            let mut details: Vec<String> = heard.faults.iter().filter_map(Fault::detail).collect();
            details.extend(evidence.skipped.iter().cloned());
            if votes == 0 {
                let reason = heard.faults.iter().map(Fault::reason).max().unwrap_or(Reason::Unsigned);
                return Err(self.refuse(reason, details));
            }
            let names: Vec<_> = counted.iter().map(|vote| vote.signer.authority.as_str()).collect();
            details.insert(0, format!("{votes} of {needed}: {}", names.join(", ")));
            return Err(self.refuse(Reason::TooFewVotes, details));
        }
        Ok(Accepted {
            signers: counted.iter().map(|vote| vote.signer.clone()).collect(),
            term: Term { until: counted.iter().filter_map(|vote| vote.until).min(), renew: None },
        })
    }

    /// Whether every attestation is there, and for how long that is good.
    fn attested(&self, heard: &Heard) -> Result<Term, Rejection> {
        let mut term = Term::default();
        for Attestation { predicate_type, rule } in &self.requirements.attestations {
            let mut details = vec![format!("{predicate_type} is missing")];
            let mut satisfied: Vec<Option<Timestamp>> = Vec::new();
            for (statement, until) in heard.statements.iter().filter(|(one, _)| one.predicate_type == *predicate_type) {
                match rule.as_ref().map_or(Ok(true), |rule| rule.allows(&statement.text)) {
                    Ok(true) => satisfied.push(*until),
                    Ok(false) => details[0] = format!("{predicate_type} is not what the rule allows"),
                    Err(error) => details[0] = format!("{predicate_type}: the rule failed: {error}"),
                }
            }
            if satisfied.is_empty() {
                details.extend(heard.faults.iter().filter_map(Fault::detail));
                return Err(self.refuse(Reason::Attestation, details));
            }
            // The one that holds longest is enough.
            let until = satisfied.into_iter().collect::<Option<Vec<_>>>().and_then(|ends| ends.into_iter().max());
            // A rule may look at the clock.
            let renew = rule.as_ref().and_then(|_| self.circumstances.now.checked_add(RULE_HOLDS).ok());
            term = term.and(Term { until, renew });
        }
        Ok(term)
    }

    fn refuse(&self, reason: Reason, details: Vec<String>) -> Rejection {
        let told: String = details.iter().take(TOLD).map(|detail| format!("; {}", clean(detail))).collect();
        Rejection { reason, digest: self.pinned.digest().clone(), details: told, revoked: reason.is_revocation() }
    }
}

/// Authorities of the policy, by position, and their word.
struct VouchedFor(Vec<(usize, Signer, Vouched)>);

impl Heard {
    /// Whether somebody signed who is not to be trusted any more.
    fn is_revoked(&self) -> bool {
        self.faults.iter().any(|fault| fault.reason().is_revocation())
    }

    fn take(&mut self, (finding, outcome): (Finding, Result<Word, Fault>), findings: &mut Vec<Finding>) {
        findings.push(finding);
        match outcome {
            Ok(Word::Signature(votes)) => self.votes.extend(votes),
            Ok(Word::Attestation(statement, until)) => self.statements.push((statement, until)),
            Err(fault) => self.faults.push(fault),
        }
    }
}

#[cfg(test)]
mod tests;
