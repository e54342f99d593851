//! How replicas tell each other of clients: records, which a replica reads when it starts, and messages
//! of a log, which it follows.
//!
//! Both are in postcard's format behind a byte with the version of this one. A replica of another
//! release that does not know the version ignores the record or message. Times are those of the engine's
//! clock, because the clocks of replicas differ ([`ClockOffset`]).

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{ClientKey, Millis};

/// The version of the format.
const VERSION: u8 = 2;
/// The size of a message from which on the next change begins another one.
const MESSAGE_BYTES: usize = 32 << 10;
/// The largest name of a bundle.
const MAX_NAME_BYTES: usize = 4 << 10;

/// The first byte of a record's key.
const CLIENT: u8 = b'i';
const BUNDLES: u8 = b'c';
const VERSIONS: u8 = b'v';
/// The only field of a client's record.
const DETAILS: &[u8] = b"i";

/// The difference between the engine's clock and that of this replica, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClockOffset(i64);

/// The name and the value of a field of a record.
pub type Field = (Vec<u8>, Vec<u8>);

/// What one write stores and sends.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Records by key, with their fields.
    pub records: Vec<(Vec<u8>, Vec<Field>)>,
    /// Messages of the log.
    pub messages: Vec<Vec<u8>>,
}

/// A change of the fleet view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Change {
    Client([u8; 12], Details),
    Bundle([u8; 12], Box<str>, Entry),
    Version(Box<str>, u64, ServedVersion),
}

/// [`ClientDetails`](super::ClientDetails).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Details {
    pub(super) name: Option<Box<str>>,
    pub(super) credential: Option<Box<str>>,
    pub(super) address: IpAddr,
    pub(super) agent: Option<Box<str>>,
    pub(super) opa: Option<Opa>,
}

/// [`OpaInstance`](super::OpaInstance).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Opa {
    pub(super) id: Option<Box<str>>,
    pub(super) version: Option<Box<str>>,
    pub(super) labels: BTreeMap<Box<str>, Box<str>>,
}

/// What a client runs of a bundle. It is small: the engine stores hashes with values of at most 64
/// bytes without an allocation for each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) is_by_address: bool,
    pub(super) stamp: Millis,
    pub(super) seen: Millis,
    pub(super) since: Millis,
    pub(super) runs: Option<u64>,
    pub(super) without_tag: u8,
    pub(super) interval: u32,
    pub(super) shared_until: Millis,
    /// The tag, when and how often.
    pub(super) offered: Option<(u64, Millis, u32)>,
    /// When an error was reported or was over.
    pub(super) error_changed: Millis,
    /// Code, message, and when it was first reported.
    pub(super) error: Option<(Box<str>, Box<str>, Millis)>,
}

/// [`Version`](super::Version).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ServedVersion {
    pub(super) etag: Box<str>,
    pub(super) manifest: Option<Box<str>>,
    pub(super) revision: Option<Box<str>>,
    pub(super) size: Option<u64>,
}

/// A message of the log.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Message {
    replica: u64,
    changes: Vec<Change>,
}

impl ClockOffset {
    /// From the times that both clocks show at a moment.
    pub fn new(engine: Millis, own: Millis) -> Self {
        let signed = |millis| i64::try_from(millis).unwrap_or(i64::MAX);
        Self(signed(engine).saturating_sub(signed(own)))
    }

    /// Whether another one differs from it by more than this.
    pub fn differs_by(self, other: Self, limit: Duration) -> bool {
        Duration::from_millis(self.0.abs_diff(other.0)) > limit
    }

    pub(super) fn to_engine(self, own: Millis) -> Millis {
        // Zero stands for no time.
        match own {
            0 => 0,
            own => own.saturating_add_signed(self.0),
        }
    }

    /// The time of this replica's clock that is a time of the engine's.
    pub fn to_own(self, engine: Millis) -> Millis {
        match engine {
            0 => 0,
            engine => engine.saturating_add_signed(self.0.saturating_neg()),
        }
    }
}

impl Encoded {
    /// The records and messages of changes, from the replica with this number.
    pub(super) fn new(replica: u64, changes: Vec<Change>) -> Self {
        let mut encoded = Self::default();
        let mut message = Message {
            replica,
            changes: Vec::new(),
        };
        let mut size = 0;
        for change in changes {
            let (key, field, value) = change.record();
            size += field.len() + value.len() + key.len();
            match encoded.records.last_mut() {
                Some((last, fields)) if *last == key => fields.push((field, value)),
                _ => encoded.records.push((key, vec![(field, value)])),
            }
            message.changes.push(change);
            if size >= MESSAGE_BYTES {
                encoded.messages.push(to_bytes(&message));
                message.changes.clear();
                size = 0;
            }
        }
        if !message.changes.is_empty() {
            encoded.messages.push(to_bytes(&message));
        }
        encoded
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

impl Change {
    /// Key, field and value.
    fn record(&self) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let key = |kind: u8, name: &[u8]| [&[kind], name].concat();
        match self {
            Self::Client(client, details) => {
                (key(CLIENT, client), DETAILS.to_vec(), to_bytes(details))
            }
            Self::Bundle(client, name, entry) => (
                key(BUNDLES, client),
                name.as_bytes().to_vec(),
                to_bytes(entry),
            ),
            Self::Version(bundle, tag, version) => (
                key(VERSIONS, bundle.as_bytes()),
                tag.to_le_bytes().to_vec(),
                to_bytes(version),
            ),
        }
    }
}

/// The changes in a message of another replica; none of one that can't be read or is this replica's.
pub(super) fn changes_of_message(bytes: &[u8], own: u64) -> Vec<Change> {
    let message: Option<Message> = from_bytes(bytes);
    let others = message.filter(|message| message.replica != own);
    others.map(|message| message.changes).unwrap_or_default()
}

/// The changes that a record stands for; none of one that can't be read.
pub(super) fn changes_of_record(key: &[u8], fields: &[Field]) -> Vec<Change> {
    let Some((kind, name)) = key.split_first() else {
        return Vec::new();
    };
    let change = |(field, value): &Field| match *kind {
        CLIENT => Some(Change::Client(client(name)?, from_bytes(value)?)),
        BUNDLES => Some(Change::Bundle(
            client(name)?,
            text(field)?,
            from_bytes(value)?,
        )),
        VERSIONS => {
            let tag = u64::from_le_bytes(field.as_slice().try_into().ok()?);
            Some(Change::Version(text(name)?, tag, from_bytes(value)?))
        }
        _ => None,
    };
    fields.iter().filter_map(change).collect()
}

fn client(bytes: &[u8]) -> Option<[u8; 12]> {
    ClientKey::from_bytes(bytes)?;
    bytes.try_into().ok()
}

fn text(bytes: &[u8]) -> Option<Box<str>> {
    let text = str::from_utf8(bytes).ok()?;
    (text.len() <= MAX_NAME_BYTES).then(|| text.into())
}

fn to_bytes<T: Serialize>(value: &T) -> Vec<u8> {
    // It can't fail for these types, all of whose lengths are known.
    postcard::to_extend(value, vec![VERSION]).unwrap_or_default()
}

fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let bytes = bytes.strip_prefix(&[VERSION])?;
    postcard::from_bytes(bytes).ok()
}
