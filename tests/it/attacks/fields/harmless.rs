//! Changes of a signature that are accepted, because they mean nothing.

/// The changes that do not change the verdict: the signature, the field, the kinds of change, and the
/// reason why they do no harm. Every other change must be refused.
pub(super) const MEANINGLESS: &[(&str, &str, &str, &str)] = &[
    (
        "",
        "",
        "more",
        "an unknown member: nothing signs it, nobody reads it",
    ),
    (
        "",
        "",
        "unpadded",
        "base64 without its padding: the same bytes",
    ),
    (
        "keyed",
        "publicKey.hint",
        "",
        "a hint: the key is the policy's",
    ),
    (
        "keyed",
        "publicKey",
        "empty other",
        "says only that there is no certificate",
    ),
    (
        "log",
        "tlogEntries",
        "doubled",
        "an entry that is there twice, and counts once",
    ),
    (
        "log",
        "tlogEntries.0",
        "doubled",
        "an entry that is there twice, and counts once",
    ),
    (
        "timestamp",
        "rfc3161Timestamps",
        "doubled",
        "a timestamp that is there twice, and counts once",
    ),
    (
        "timestamp",
        "rfc3161Timestamps.0",
        "doubled",
        "a timestamp that is there twice, and counts once",
    ),
    ("timestamp", "signedTimestamp", "flipped", UNSIGNED),
    ("timestamp", "SignedRFC3161Timestamp", "flipped", UNSIGNED),
    (
        "keyless, log, timestamp",
        "timestampVerificationData",
        "gone empty renamed",
        "the log tells the time, too",
    ),
    (
        "keyless, log, timestamp",
        "rfc3161Timestamps",
        "gone empty renamed",
        "the log tells the time, too",
    ),
    (
        "keyless, log, timestamp",
        "rfc3161Timestamps.0",
        "gone",
        "the log tells the time, too",
    ),
    (
        "keyless, log, timestamp",
        "inclusionPromise",
        "gone empty renamed",
        "the timestamp tells the time, too",
    ),
    (
        "keyed, log",
        "inclusionPromise",
        "gone empty renamed",
        "the proof is enough for the log; the time is lost",
    ),
    ("log", "checkpoint.envelope.end", "", "a note's blank lines"),
    (
        "log",
        "checkpoint.envelope.signature",
        "blank doubled name",
        "a note's names and blanks; keys have numbers",
    ),
    (
        "log",
        "checkpoint.envelope",
        "blank last shorter",
        "a note's last line break",
    ),
    (
        "log",
        "inclusionProof.treeSize",
        "number",
        "the root is signed, and the proof leads to it",
    ),
    (
        "log v2",
        "inclusionProof.treeSize",
        "",
        "the checkpoint says it",
    ),
    (
        "log v2",
        "inclusionProof.rootHash",
        "",
        "the checkpoint says it",
    ),
    ("log v2", "inclusionProof.logIndex", "", "the entry says it"),
    (
        "log v2",
        "logId.keyId",
        "",
        "the checkpoint says whose it is",
    ),
    (
        "legacy",
        "log_entry.Payload.logID",
        "upper",
        "hexadecimal in capitals",
    ),
    ("legacy", "log_entry", "blank", "white space around JSON"),
    ("legacy", "timestamp", "blank", "white space around JSON"),
    (
        "legacy",
        "certificate",
        "blank longer shorter last",
        "text around PEM",
    ),
    (
        "legacy",
        "signature",
        "blank",
        "base64 with a line break, as some write it",
    ),
];
const UNSIGNED: &str =
    "what no authority signs of a timestamp: status, versions, the certificate beside it";
