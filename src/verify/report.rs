//! What the judge saw of each candidate, for people: written while judging, so that it
//! can't tell another story than the verdict.

use super::{
    keys::PublicKey,
    policy::{Format, TrustPolicy},
    verdict::{Fault, Signer},
};

/// Everything that was offered to vouch for an artifact, and what became of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The candidates, in the order in which they were judged.
    pub findings: Vec<Finding>,
    /// Signature material that could not be used, in words.
    pub skipped: Vec<String>,
}

/// One candidate signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where it was found.
    pub format: Format,
    /// Whose it is, where a key of the policy made it, whatever else is wrong with it.
    pub signer: Option<Signer>,
    /// What was checked, up to the first failure.
    pub checks: Vec<Check>,
}

/// One thing that a signature has to satisfy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Which: `format`, `signature`, `statement`, `digest`, `referrer`.
    pub name: &'static str,
    /// Whether it does.
    pub ok: bool,
    /// Why, in a few words; foreign text in it is cut and cleaned.
    pub detail: String,
}

impl Finding {
    pub(super) fn new(format: Format) -> Self {
        Self { format, signer: None, checks: Vec::new() }
    }

    /// Whether it counts as a vote.
    pub fn is_verified(&self) -> bool {
        self.signer.is_some() && self.checks.iter().all(|check| check.ok)
    }

    /// Notes what came out of a check, and passes it on.
    pub(super) fn check<T>(
        &mut self,
        name: &'static str,
        outcome: Result<T, Fault>,
        passed: impl FnOnce(&T) -> String,
    ) -> Result<T, Fault> {
        let detail = match &outcome {
            Ok(value) => passed(value),
            Err(fault) => fault.to_string(),
        };
        self.checks.push(Check { name, ok: outcome.is_ok(), detail: clean(&detail) });
        outcome
    }

    /// Looks for the authority one of whose keys passes `signed`.
    pub(super) fn signature(
        &mut self,
        policy: &TrustPolicy,
        signed: impl Fn(&PublicKey) -> bool,
    ) -> Result<Signer, Fault> {
        let format = self.format;
        let mut authorities = policy.requirements().into_iter().flat_map(|r| &r.authorities);
        let signer = authorities.find_map(|authority| {
            let key = authority.keys().iter().find(|key| signed(&key.key))?;
            Some(Signer { authority: authority.name.clone(), identity: key.key.identity().to_owned(), format })
        });
        self.signer.clone_from(&signer);
        self.check("signature", signer.ok_or(Fault::AnotherKey), |signer| format!("by {}", signer.identity))
    }
}

/// A hostile registry must be able neither to fill the log nor to steer a terminal.
pub(super) fn clean(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(300).collect()
}
