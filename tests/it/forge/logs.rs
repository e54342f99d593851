//! Transparency logs as Rekor runs them, in both generations.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::keys::Key;

/// A log with three entries, of which the second is always the one that is asked for.
pub(crate) struct Log {
    pub(crate) key: Key,
    pub(crate) origin: &'static str,
    generation: Generation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Generation {
    /// Promises, times, and an index across shards.
    V1,
    /// None of them.
    V2,
}

/// The answer of a log. A change of it is a forgery.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) kind: &'static str,
    pub(crate) version: &'static str,
    pub(crate) body: Vec<u8>,
    pub(crate) log_id: Vec<u8>,
    pub(crate) index: i64,
    pub(crate) time: Option<i64>,
    /// The signed entry timestamp, which is the log's promise and its word on the time.
    pub(crate) promise: Option<Vec<u8>>,
    pub(crate) proof: Option<Proof>,
}

#[derive(Debug, Clone)]
pub(crate) struct Proof {
    pub(crate) index: i64,
    pub(crate) size: i64,
    pub(crate) root: [u8; 32],
    pub(crate) hashes: Vec<[u8; 32]>,
    pub(crate) checkpoint: String,
}

impl Log {
    pub(crate) fn new(origin: &'static str, generation: Generation) -> Self {
        // The origin has the form of the public logs.
        let key = if generation == Generation::V1 {
            Key::p256()
        } else {
            Key::ed25519()
        };
        Self {
            key,
            origin,
            generation,
        }
    }

    /// The whole of it is in a `trusted_root.json`, the first four bytes are in checkpoints.
    pub(crate) fn id(&self) -> [u8; 32] {
        match self.generation {
            Generation::V1 => self.key.id(),
            // The key ID of an Ed25519 key in signed notes (C2SP, signed-note.md).
            Generation::V2 => {
                let raw = &self.key.spki[self.key.spki.len() - 32..];
                Sha256::digest([self.origin.as_bytes(), b"\n\x01", raw].concat()).into()
            }
        }
    }

    /// Takes an entry in.
    pub(crate) fn enter(
        &self,
        kind: &'static str,
        version: &'static str,
        body: &Value,
        time: Timestamp,
    ) -> Entry {
        let body = body.to_string().into_bytes();
        let proof = self.prove(&body);
        let log_id = self.id().to_vec();
        match self.generation {
            Generation::V1 => {
                let (index, time) = (proof.index + 1_000_000, time.as_second());
                let promise = self.promise(&body, &log_id, index, time);
                let (time, promise, proof) = (Some(time), Some(promise), Some(proof));
                Entry {
                    kind,
                    version,
                    body,
                    log_id,
                    index,
                    time,
                    promise,
                    proof,
                }
            }
            Generation::V2 => {
                let index = proof.index;
                Entry {
                    kind,
                    version,
                    body,
                    log_id,
                    index,
                    time: None,
                    promise: None,
                    proof: Some(proof),
                }
            }
        }
    }

    /// A promise for these values, right or wrong.
    pub(crate) fn promise(&self, body: &[u8], log_id: &[u8], index: i64, time: i64) -> Vec<u8> {
        let body = STANDARD.encode(body);
        let id = hex(log_id);
        // Canonical JSON: members in order, no blanks.
        let text = format!(
            r#"{{"body":"{body}","integratedTime":{time},"logID":"{id}","logIndex":{index}}}"#
        );
        self.key.sign(text.as_bytes())
    }

    fn prove(&self, body: &[u8]) -> Proof {
        let (before, leaf, after) = (leaf_hash(b"before"), leaf_hash(body), leaf_hash(b"after"));
        let root = node_hash(&node_hash(&before, &leaf), &after);
        let checkpoint = self.checkpoint(3, &root);
        Proof {
            index: 1,
            size: 3,
            root,
            hashes: vec![before, after],
            checkpoint,
        }
    }

    /// A checkpoint for these values, right or wrong.
    pub(crate) fn checkpoint(&self, size: i64, root: &[u8; 32]) -> String {
        let text = format!("{}\n{size}\n{}\n", self.origin, STANDARD.encode(root));
        let signature =
            STANDARD.encode([&self.id()[..4], &self.key.sign(text.as_bytes())].concat());
        // Names in notes have no blanks; Rekor's tree number is not part of it.
        let name = self.origin.split(' ').next().unwrap();
        format!("{text}\n\u{2014} {name} {signature}\n")
    }

    /// The entry of the log in a `trusted_root.json`.
    pub(crate) fn listed(&self, valid_for: &Value) -> Value {
        json!({
            "baseUrl": format!("https://{}", self.origin), "hashAlgorithm": "SHA2_256",
            "publicKey": {
                "rawBytes": STANDARD.encode(&self.key.spki), "keyDetails": self.key.details(), "validFor": valid_for,
            },
            "logId": {"keyId": STANDARD.encode(self.id())},
        })
    }
}

impl Entry {
    /// The entry in the form of Sigstore bundles.
    pub(crate) fn in_bundle(&self) -> Value {
        let mut entry = json!({
            "logIndex": self.index.to_string(),
            "logId": {"keyId": STANDARD.encode(&self.log_id)},
            "kindVersion": {"kind": self.kind, "version": self.version},
            "canonicalizedBody": STANDARD.encode(&self.body),
        });
        if let Some(time) = self.time {
            entry["integratedTime"] = time.to_string().into();
        }
        if let Some(promise) = &self.promise {
            entry["inclusionPromise"] = json!({"signedEntryTimestamp": STANDARD.encode(promise)});
        }
        if let Some(proof) = &self.proof {
            entry["inclusionProof"] = json!({
                "logIndex": proof.index.to_string(), "treeSize": proof.size.to_string(),
                "rootHash": STANDARD.encode(proof.root),
                "hashes": proof.hashes.iter().map(|hash| STANDARD.encode(hash)).collect::<Vec<_>>(),
                "checkpoint": {"envelope": proof.checkpoint},
            });
        }
        entry
    }

    /// The entry in the form of the annotation `dev.sigstore.cosign/bundle`.
    pub(crate) fn in_annotation(&self) -> Value {
        json!({
            "SignedEntryTimestamp": self.promise.as_ref().map(|promise| STANDARD.encode(promise)),
            "Payload": {
                "body": STANDARD.encode(&self.body), "integratedTime": self.time, "logIndex": self.index,
                "logID": hex(&self.log_id),
            },
        })
    }

    /// The body as JSON, changed by `bend`, in an entry that is otherwise the same.
    pub(crate) fn with_body(&self, bend: impl FnOnce(&mut Value)) -> Self {
        let mut body: Value = serde_json::from_slice(&self.body).unwrap();
        bend(&mut body);
        Self {
            body: body.to_string().into_bytes(),
            ..self.clone()
        }
    }
}

/// RFC 6962 §2.1.
fn leaf_hash(body: &[u8]) -> [u8; 32] {
    Sha256::digest([&[0], body].concat()).into()
}

fn node_hash(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    Sha256::digest([&[1][..], left, right].concat()).into()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
