//! What a DSSE envelope says: an in-toto statement about artifacts.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{
    candidate::{Candidate, Content},
    reason::CandidateError,
};
use crate::oci::{Digest, cosign, strict_json};

/// As sigstore-go caps them.
const MAX_SUBJECTS: usize = 1024;
const MAX_DIGESTS: usize = 32;

/// A statement.
#[derive(Debug)]
pub(super) struct Statement {
    /// What sort of statement.
    pub(super) predicate_type: String,
    subjects: Vec<Subject>,
    /// All of it, as it was signed.
    pub(super) text: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    #[serde(rename = "_type")]
    kind: String,
    predicate_type: String,
    subject: Vec<Subject>,
}

#[derive(Debug, Deserialize)]
struct Subject {
    digest: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, Value>,
}

impl Statement {
    /// The statement in an envelope; `None` without one. Worth reading once the signature is
    /// known to be good.
    pub(super) fn of(candidate: &Candidate) -> Result<Option<Self>, CandidateError> {
        match &candidate.content {
            Content::Payload => Ok(None),
            Content::Envelope(envelope) => Self::read(&envelope.payload_type, envelope.payload.as_bytes()).map(Some),
        }
    }

    /// What a candidate's statement is about, if that is not `subject`.
    pub(super) fn other_than(candidate: &Candidate, subject: &Digest) -> Option<String> {
        match Self::of(candidate).ok()??.names(subject) {
            Err(CandidateError::OtherDigest(other)) => Some(other),
            _ => None,
        }
    }

    pub(super) fn read(payload_type: &str, payload: &[u8]) -> Result<Self, CandidateError> {
        let malformed = |error: String| CandidateError::Malformed(error);
        if payload_type != cosign::IN_TOTO {
            return Err(CandidateError::NotASignature(payload_type.to_owned()));
        }
        strict_json(payload).map_err(|error| malformed(error.to_string()))?;
        let text = std::str::from_utf8(payload).map_err(|error| malformed(error.to_string()))?;
        let written: Written = serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
        let known = match written.predicate_type.as_str() {
            cosign::SIGN_PREDICATE => written.kind == cosign::STATEMENT,
            _ => [cosign::STATEMENT, cosign::STATEMENT_V0_1].contains(&written.kind.as_str()),
        };
        if !known {
            return Err(malformed(format!("statement of type {}", written.kind)));
        }
        if written.subject.len() > MAX_SUBJECTS {
            return Err(malformed(format!("{} subjects are too many", written.subject.len())));
        }
        if written.subject.iter().any(|subject| subject.digest.len() > MAX_DIGESTS) {
            return Err(malformed("a subject with too many digests".into()));
        }
        Ok(Self { predicate_type: written.predicate_type, subjects: written.subject, text: text.to_owned() })
    }

    /// Whether it is about `digest`; what else was signed about that.
    pub(super) fn names(&self, digest: &Digest) -> Result<&BTreeMap<String, Value>, CandidateError> {
        let about =
            |subject: &&Subject| subject.digest.get(digest.algorithm()).map(String::as_str) == Some(digest.hex());
        if let Some(subject) = self.subjects.iter().find(about) {
            return Ok(&subject.annotations);
        }
        let other = self.subjects.first().and_then(|subject| subject.digest.iter().next());
        Err(CandidateError::OtherDigest(
            other.map_or_else(|| "nothing".into(), |(algorithm, hex)| format!("{algorithm}:{hex}")),
        ))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_cosign_attests_is_a_statement_of_the_first_version_and_what_it_signs_is_not() {
        let read = |kind: &str, predicate_type: &str| {
            let statement = json!({ "_type": kind, "predicateType": predicate_type,
                "subject": [{ "name": "r.example/a", "digest": { "sha256": "00" } }], "predicate": {} });
            Statement::read(cosign::IN_TOTO, statement.to_string().as_bytes())
        };
        const PROVENANCE: &str = "https://slsa.dev/provenance/v1";
        assert_eq!(read(cosign::STATEMENT_V0_1, PROVENANCE).unwrap().predicate_type, PROVENANCE);
        assert_eq!(read(cosign::STATEMENT, PROVENANCE).unwrap().predicate_type, PROVENANCE);
        assert!(read(cosign::STATEMENT, cosign::SIGN_PREDICATE).is_ok());
        for (kind, predicate_type) in
            [(cosign::STATEMENT_V0_1, cosign::SIGN_PREDICATE), ("https://in-toto.io/Statement/v2", PROVENANCE)]
        {
            assert!(matches!(read(kind, predicate_type).unwrap_err(), CandidateError::Malformed(_)), "{kind}");
        }
    }
}
