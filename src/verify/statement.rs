//! The in-toto statement in a DSSE envelope.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{
    candidate::{Candidate, Content},
    reason::CandidateError,
};
use crate::oci::{Digest, cosign, strict_json};

/// The limits of sigstore-go.
const MAX_SUBJECTS: usize = 1024;
const MAX_DIGESTS: usize = 32;

/// An in-toto statement.
#[derive(Debug)]
pub(super) struct Statement {
    /// The type of its predicate.
    pub(super) predicate_type: String,
    subjects: Vec<Subject>,
    /// The whole statement, as it was signed.
    pub(super) text: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawStatement {
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
    /// Parses the statement of a candidate; `None` if it has no envelope. Only useful once the
    /// signature is verified.
    pub(super) fn of(candidate: &Candidate) -> Result<Option<Self>, CandidateError> {
        match &candidate.content {
            Content::Payload => Ok(None),
            Content::Envelope(envelope) => {
                Self::read(&envelope.payload_type, envelope.payload.as_bytes()).map(Some)
            }
        }
    }

    /// The subject of a candidate's statement, if it is not `subject`.
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
        let raw: RawStatement =
            serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
        let known = match raw.predicate_type.as_str() {
            cosign::SIGN_PREDICATE => raw.kind == cosign::STATEMENT,
            _ => [cosign::STATEMENT, cosign::STATEMENT_V0_1].contains(&raw.kind.as_str()),
        };
        if !known {
            return Err(malformed(format!("statement of type {}", raw.kind)));
        }
        if raw.subject.len() > MAX_SUBJECTS {
            return Err(malformed(format!(
                "{} subjects are too many",
                raw.subject.len()
            )));
        }
        if raw
            .subject
            .iter()
            .any(|subject| subject.digest.len() > MAX_DIGESTS)
        {
            return Err(malformed("a subject with too many digests".into()));
        }
        Ok(Self {
            predicate_type: raw.predicate_type,
            subjects: raw.subject,
            text: text.to_owned(),
        })
    }

    /// Checks that the statement is about `digest`, and returns the annotations of that subject.
    pub(super) fn names(
        &self,
        digest: &Digest,
    ) -> Result<&BTreeMap<String, Value>, CandidateError> {
        let about = |subject: &&Subject| {
            subject.digest.get(digest.algorithm()).map(String::as_str) == Some(digest.hex())
        };
        if let Some(subject) = self.subjects.iter().find(about) {
            return Ok(&subject.annotations);
        }
        let other = self
            .subjects
            .first()
            .and_then(|subject| subject.digest.iter().next());
        Err(CandidateError::OtherDigest(other.map_or_else(
            || "nothing".into(),
            |(algorithm, hex)| format!("{algorithm}:{hex}"),
        )))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn attestations_may_be_statements_v0_1_and_signatures_may_not() {
        let read = |kind: &str, predicate_type: &str| {
            let statement = json!({ "_type": kind, "predicateType": predicate_type,
                "subject": [{ "name": "r.example/a", "digest": { "sha256": "00" } }], "predicate": {} });
            Statement::read(cosign::IN_TOTO, statement.to_string().as_bytes())
        };
        const PROVENANCE: &str = "https://slsa.dev/provenance/v1";
        assert_eq!(
            read(cosign::STATEMENT_V0_1, PROVENANCE)
                .unwrap()
                .predicate_type,
            PROVENANCE
        );
        assert_eq!(
            read(cosign::STATEMENT, PROVENANCE).unwrap().predicate_type,
            PROVENANCE
        );
        assert!(read(cosign::STATEMENT, cosign::SIGN_PREDICATE).is_ok());
        for (kind, predicate_type) in [
            (cosign::STATEMENT_V0_1, cosign::SIGN_PREDICATE),
            ("https://in-toto.io/Statement/v2", PROVENANCE),
        ] {
            assert!(
                matches!(
                    read(kind, predicate_type).unwrap_err(),
                    CandidateError::Malformed(_)
                ),
                "{kind}"
            );
        }
    }
}
