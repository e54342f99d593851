//! Verification of one artifact against its policy: checks every candidate signature and counts
//! the authorities.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::{
    authority_check::{AuthorityCheck, AuthorityMatch},
    bundle_v03,
    candidate::Candidate,
    evidence::{Evidence, LegacySignature, SignatureBundle},
    legacy,
    matching::max_matching,
    outcome::{Accepted, Signer, Validity, VerificationContext, VerificationError},
    policy::{Attestation, ClaimedRepository, Format, Requirements},
    reason::{CandidateError, Reason},
    report::{CheckLog, SignatureReport},
    sanitize::sanitize,
    statement::Statement,
};
use crate::oci::{PinnedReference, Repository};

/// The most details in the text of an error; the report has them all.
const MAX_DETAILS: usize = 4;
/// The time after which an attestation rule is evaluated again.
const RULE_LIFETIME: SignedDuration = SignedDuration::from_hours(1);

/// The verification of one artifact: the requirements, the digest and the assumptions.
pub(super) struct Verification<'a> {
    pub(super) requirements: &'a Requirements,
    pub(super) pinned: &'a PinnedReference,
    pub(super) context: VerificationContext,
}

/// The contribution of a valid candidate.
enum Contribution {
    /// One vote for each of these authorities.
    Signature(Vec<Vote>),
    /// A statement by one or more authorities of the policy, and the time until which one of them
    /// is valid; `None` = no end.
    Attestation(Statement, Option<Timestamp>),
}

/// One authority's vote, by one signer.
struct Vote {
    authority: usize,
    signer_key: String,
    signer: Signer,
    until: Option<Timestamp>,
}

/// The contributions of the candidates that have been checked so far.
#[derive(Default)]
struct Tally {
    votes: Vec<Vote>,
    statements: Vec<(Statement, Option<Timestamp>)>,
    errors: Vec<CandidateError>,
}

impl Verification<'_> {
    /// Verifies the artifact, which is not revoked, with `evidence`, and appends a report for each candidate to
    /// `signatures`.
    pub(super) fn verify(
        &self,
        evidence: &Evidence,
        signatures: &mut Vec<SignatureReport>,
    ) -> Result<Accepted, VerificationError> {
        let mut tally = Tally::default();
        for candidate in &evidence.bundles {
            let outcome = self.check_candidate(
                Format::Bundle,
                || bundle_v03::read(&candidate.bundle),
                |read, matched, checks| self.check_statement(candidate, read, matched, checks),
            );
            tally.take(outcome, signatures);
        }
        for candidate in &evidence.legacy {
            let outcome = self.check_candidate(
                Format::Legacy,
                || legacy::read(candidate),
                |_, matched, checks| self.check_payload(candidate, matched, checks),
            );
            tally.take(outcome, signatures);
        }
        let with_revocation = |error: VerificationError| VerificationError {
            revoked: error.revoked || tally.is_revoked(),
            ..error
        };
        let accepted = self
            .count_votes(&tally, evidence)
            .map_err(with_revocation)?;
        let attested = self.check_attestations(&tally).map_err(with_revocation)?;
        Ok(Accepted {
            validity: accepted.validity.and(attested),
            ..accepted
        })
    }

    /// Checks one candidate: parses it, matches it with the authorities of the policy, and reads
    /// its content only then, so that content without a trusted signer is never parsed.
    fn check_candidate(
        &self,
        format: Format,
        read: impl FnOnce() -> Result<Candidate, CandidateError>,
        contents: impl FnOnce(
            &Candidate,
            &Matches,
            &mut CheckLog,
        ) -> Result<Contribution, CandidateError>,
    ) -> (SignatureReport, Result<Contribution, CandidateError>) {
        let (mut checks, mut signer) = (CheckLog::default(), None);
        let outcome = checks
            .record(
                "format",
                self.check_format(format).and_then(|()| read()),
                |_| format.in_words().to_owned(),
            )
            .and_then(|read| {
                let matched = self.match_authorities(&read, format, &mut checks)?;
                signer = matched.0.first().map(|(_, signer, _)| signer.clone());
                contents(&read, &matched, &mut checks)
            });
        (checks.into_report(format, signer), outcome)
    }

    fn check_statement(
        &self,
        candidate: &SignatureBundle,
        read: &Candidate,
        matched: &Matches,
        checks: &mut CheckLog,
    ) -> Result<Contribution, CandidateError> {
        let statement = Statement::of(read).and_then(|statement| {
            let statement =
                statement.ok_or_else(|| CandidateError::Malformed("no statement".to_owned()))?;
            let (kind, wanted) = (&statement.predicate_type, self.requirements);
            let known = wanted.predicate_types.contains(kind)
                || wanted
                    .attestations
                    .iter()
                    .any(|attestation| attestation.predicate_type == *kind);
            if known {
                Ok(statement)
            } else {
                Err(CandidateError::NotASignature(kind.clone()))
            }
        });
        let statement = checks.record("statement", statement, |statement| {
            statement.predicate_type.clone()
        })?;
        let digest = self.pinned.digest();
        let annotations = checks.record("digest", statement.names(digest), |_| {
            format!("it names {digest}")
        })?;
        let referrer = bundle_v03::check_referrer(candidate, digest);
        checks.record("referrer", referrer, |()| {
            "attached to the same digest".to_owned()
        })?;
        if self
            .requirements
            .predicate_types
            .contains(&statement.predicate_type)
        {
            self.check_annotations(annotations, checks)?;
            return self
                .collect_votes(matched, checks)
                .map(Contribution::Signature);
        }
        // The statement is valid for as long as any of its authorities is.
        let ends: Option<Vec<Timestamp>> = matched
            .0
            .iter()
            .map(|(.., matched)| matched.until)
            .collect();
        Ok(Contribution::Attestation(
            statement,
            ends.and_then(|ends| ends.into_iter().max()),
        ))
    }

    fn check_payload(
        &self,
        candidate: &LegacySignature,
        matched: &Matches,
        checks: &mut CheckLog,
    ) -> Result<Contribution, CandidateError> {
        let payload = checks.record(
            "statement",
            legacy::parse_payload(&candidate.payload),
            |_| "cosign signature".to_owned(),
        )?;
        let digest = self.pinned.digest();
        checks.record("digest", payload.names(digest), |()| {
            format!("it names {digest}")
        })?;
        if self.requirements.claimed_repository != ClaimedRepository::Ignore {
            checks.record(
                "repository",
                self.check_repository(&payload.repository),
                |()| payload.repository.clone(),
            )?;
        }
        self.check_annotations(&payload.annotations, checks)?;
        self.collect_votes(matched, checks)
            .map(Contribution::Signature)
    }

    fn check_format(&self, format: Format) -> Result<(), CandidateError> {
        if self.requirements.formats.contains(&format) {
            Ok(())
        } else {
            Err(CandidateError::Format(format.label()))
        }
    }

    /// All authorities that the candidate matches. `checks` continues with the checks of the
    /// authority that passed the most.
    fn match_authorities(
        &self,
        candidate: &Candidate,
        format: Format,
        checks: &mut CheckLog,
    ) -> Result<Matches, CandidateError> {
        let mut check = AuthorityCheck {
            candidate,
            subject: self.pinned.digest(),
            now: self.context.now,
            expired_roots: self.context.expired_roots,
            verified_certificates: Vec::new(),
        };
        let mut all = Vec::new();
        let mut best: Option<(Option<Reason>, CheckLog)> = None;
        let mut refused = CandidateError::AnotherKey;
        for (index, authority) in self.requirements.authorities.iter().enumerate() {
            let mut own = CheckLog::default();
            let outcome = check.check(authority, &mut own);
            let rank = outcome.as_ref().err().map(CandidateError::reason);
            // Success is better than any error, and a more specific error better than a less
            // specific one.
            let better = match (&best, rank) {
                (None, _) | (Some((Some(_), _)), None) => true,
                (Some((Some(known), _)), Some(reason)) => reason > *known,
                (Some((None, _)), _) => false,
            };
            if better {
                best = Some((rank, own));
            }
            match outcome {
                Ok(matched) => {
                    let signer = Signer {
                        authority: authority.name.clone(),
                        identity: matched.identity.clone(),
                        format,
                        signed_at: matched.signed_at,
                        earliest_time: matched.earliest_time,
                    };
                    all.push((index, signer, matched));
                }
                Err(error) if error.reason() >= refused.reason() => refused = error,
                Err(_) => {}
            }
        }
        if let Some((_, own)) = best {
            checks.append(own);
        }
        if all.is_empty() {
            Err(refused)
        } else {
            Ok(Matches(all))
        }
    }

    fn collect_votes(
        &self,
        matched: &Matches,
        checks: &mut CheckLog,
    ) -> Result<Vec<Vote>, CandidateError> {
        let mut votes = Vec::new();
        let mut refused = None;
        for (authority, signer, matched) in &matched.0 {
            match self.check_age(matched) {
                Ok(fresh) => {
                    let until = [matched.until, fresh].into_iter().flatten().min();
                    votes.push(Vote {
                        authority: *authority,
                        signer_key: matched.signer_key.clone(),
                        signer: signer.clone(),
                        until,
                    });
                }
                Err(error) => refused = Some(error),
            }
        }
        match (refused, votes.is_empty()) {
            (Some(error), true) => checks.record("age", Err(error), |_: &Vec<Vote>| String::new()),
            _ => Ok(votes),
        }
    }

    /// Checks that the signature is not older than `max_signature_age`, and returns until when it
    /// is not.
    fn check_age(&self, matched: &AuthorityMatch) -> Result<Option<Timestamp>, CandidateError> {
        let Some(most) = self.requirements.max_signature_age else {
            return Ok(None);
        };
        let Some(earliest) = matched.earliest_time else {
            return Err(CandidateError::TooOld(
                "nothing proves when it was signed".to_owned(),
            ));
        };
        let most = SignedDuration::try_from(most).unwrap_or(SignedDuration::MAX);
        let until = earliest.checked_add(most).unwrap_or(Timestamp::MAX);
        if self.context.now > until {
            return Err(CandidateError::TooOld(format!(
                "signed at {earliest}, good until {until}"
            )));
        }
        Ok(Some(until))
    }

    fn check_annotations(
        &self,
        signed: &BTreeMap<String, Value>,
        checks: &mut CheckLog,
    ) -> Result<(), CandidateError> {
        let wanted = &self.requirements.annotations;
        if wanted.is_empty() {
            return Ok(());
        }
        let lacking = wanted
            .iter()
            .find(|(key, value)| signed.get(*key) != Some(*value));
        let outcome = match lacking {
            None => Ok(()),
            Some((key, value)) => Err(CandidateError::Annotations(match signed.get(key) {
                None => format!("{key} is missing"),
                Some(other) => format!("{key} is {other}, not {value}"),
            })),
        };
        checks.record("annotations", outcome, |()| {
            wanted.keys().cloned().collect::<Vec<_>>().join(", ")
        })
    }

    fn check_repository(&self, claimed: &str) -> Result<(), CandidateError> {
        let right = match (
            &self.requirements.claimed_repository,
            self.pinned.repository(),
        ) {
            (ClaimedRepository::Ignore, _) => true,
            (ClaimedRepository::Exactly(repository), _) => repository == claimed,
            (ClaimedRepository::Match, repository @ Repository::Registry { .. }) => {
                repository.to_string() == claimed
            }
            // A layout folder has no repository name that a signer could have known.
            (ClaimedRepository::Match, Repository::Layout { .. }) => false,
        };
        if right {
            Ok(())
        } else {
            Err(CandidateError::Repository(claimed.to_owned()))
        }
    }

    fn count_votes(
        &self,
        tally: &Tally,
        evidence: &Evidence,
    ) -> Result<Accepted, VerificationError> {
        let candidates: Vec<_> = tally
            .votes
            .iter()
            .map(|vote| (vote.authority, vote.signer_key.as_str()))
            .collect();
        let counted: Vec<&Vote> = max_matching(&candidates)
            .into_iter()
            .map(|position| &tally.votes[position])
            .collect();
        let (needed, votes) = (self.requirements.at_least, counted.len());
        if votes < needed {
            let mut details: Vec<String> = tally
                .errors
                .iter()
                .filter_map(CandidateError::detail)
                .collect();
            details.extend(evidence.skipped.iter().cloned());
            if votes == 0 {
                let reason = tally
                    .errors
                    .iter()
                    .map(CandidateError::reason)
                    .max()
                    .unwrap_or(Reason::Unsigned);
                return Err(self.error(reason, details));
            }
            let names: Vec<_> = counted
                .iter()
                .map(|vote| vote.signer.authority.as_str())
                .collect();
            details.insert(0, format!("{votes} of {needed}: {}", names.join(", ")));
            return Err(self.error(Reason::TooFewVotes, details));
        }
        Ok(Accepted {
            signers: counted.iter().map(|vote| vote.signer.clone()).collect(),
            validity: Validity {
                until: counted.iter().filter_map(|vote| vote.until).min(),
                reverify_after: None,
            },
        })
    }

    /// Checks that every required attestation is present, and returns how long the result is
    /// valid.
    fn check_attestations(&self, tally: &Tally) -> Result<Validity, VerificationError> {
        let mut validity = Validity::default();
        for Attestation {
            predicate_type,
            rule,
        } in &self.requirements.attestations
        {
            let mut details = vec![format!("{predicate_type} is missing")];
            let mut satisfied: Vec<Option<Timestamp>> = Vec::new();
            for (statement, until) in tally
                .statements
                .iter()
                .filter(|(one, _)| one.predicate_type == *predicate_type)
            {
                match rule
                    .as_ref()
                    .map_or(Ok(true), |rule| rule.allows(&statement.text))
                {
                    Ok(true) => satisfied.push(*until),
                    Ok(false) => details[0] = format!("{predicate_type} does not satisfy the rule"),
                    Err(error) => {
                        details[0] = format!("{predicate_type}: the rule failed: {error}")
                    }
                }
            }
            if satisfied.is_empty() {
                details.extend(tally.errors.iter().filter_map(CandidateError::detail));
                return Err(self.error(Reason::Attestation, details));
            }
            // One statement is enough, so the latest end counts.
            let until = satisfied
                .into_iter()
                .collect::<Option<Vec<_>>>()
                .and_then(|ends| ends.into_iter().max());
            // A rule may depend on the clock.
            let reverify_after = rule
                .as_ref()
                .and_then(|_| self.context.now.checked_add(RULE_LIFETIME).ok());
            validity = validity.and(Validity {
                until,
                reverify_after,
            });
        }
        Ok(validity)
    }

    fn error(&self, reason: Reason, details: Vec<String>) -> VerificationError {
        let text: String = details
            .iter()
            .take(MAX_DETAILS)
            .map(|detail| format!("; {}", sanitize(detail)))
            .collect();
        VerificationError {
            reason,
            digest: self.pinned.digest().clone(),
            details: text,
            revoked: reason.is_revocation(),
        }
    }
}

/// The authorities that match a candidate, by position in the policy.
struct Matches(Vec<(usize, Signer, AuthorityMatch)>);

impl Tally {
    /// Whether one of the signatures is by a revoked key.
    fn is_revoked(&self) -> bool {
        self.errors
            .iter()
            .any(|error| error.reason().is_revocation())
    }

    fn take(
        &mut self,
        (signature, outcome): (SignatureReport, Result<Contribution, CandidateError>),
        signatures: &mut Vec<SignatureReport>,
    ) {
        signatures.push(signature);
        match outcome {
            Ok(Contribution::Signature(votes)) => self.votes.extend(votes),
            Ok(Contribution::Attestation(statement, until)) => {
                self.statements.push((statement, until))
            }
            Err(error) => self.errors.push(error),
        }
    }
}

#[cfg(test)]
mod tests;
