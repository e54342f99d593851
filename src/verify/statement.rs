//! What a DSSE envelope says: an in-toto statement about artifacts.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::reason::Fault;
use crate::oci::{Digest, strict_json};

const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// As sigstore-go caps them.
const MAX_SUBJECTS: usize = 1024;
const MAX_DIGESTS: usize = 32;

/// A statement, in the one version that is accepted.
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
    pub(super) fn read(payload_type: &str, payload: &[u8]) -> Result<Self, Fault> {
        let malformed = |error: String| Fault::Malformed(error);
        if payload_type != PAYLOAD_TYPE {
            return Err(Fault::NotASignature(payload_type.to_owned()));
        }
        strict_json(payload).map_err(|error| malformed(error.to_string()))?;
        let text = std::str::from_utf8(payload).map_err(|error| malformed(error.to_string()))?;
        let written: Written = serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
        if written.kind != STATEMENT_TYPE {
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
    pub(super) fn names(&self, digest: &Digest) -> Result<&BTreeMap<String, Value>, Fault> {
        let about =
            |subject: &&Subject| subject.digest.get(digest.algorithm()).map(String::as_str) == Some(digest.hex());
        if let Some(subject) = self.subjects.iter().find(about) {
            return Ok(&subject.annotations);
        }
        let other = self.subjects.first().and_then(|subject| subject.digest.iter().next());
        Err(Fault::OtherDigest(other.map_or_else(|| "nothing".into(), |(algorithm, hex)| format!("{algorithm}:{hex}"))))
    }
}
