//! What is written to the shared state and read from it.

use std::{fmt, sync::Arc, time::Duration};

use super::error::SharedError;

/// The largest message of the log.
pub const MAX_MESSAGE_BYTES: usize = 64 << 10;
/// The most bytes of keys, fields, values and messages that one batch may have.
pub const MAX_BATCH_BYTES: usize = 4 << 20;

/// What one call writes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// The records. A field of a record that exists replaces the field of the same name; the other
    /// fields stay.
    pub records: Vec<Record>,
    /// The time after which the records expire, unless they are written again; at least 1 ms.
    pub ttl: Duration,
    /// The messages that are appended to the log, each of at most [`MAX_MESSAGE_BYTES`].
    pub messages: Vec<Vec<u8>>,
}

/// A record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// The key, without the prefix.
    pub key: Vec<u8>,
    /// The names and values of the fields.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A successful write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The clock of the engine after the write, since 1970.
    pub engine_time: Duration,
}

/// A position in the log: an entry of it, and the process of the engine that had this entry.
#[derive(Clone, PartialEq, Eq)]
pub struct LogPosition {
    pub(super) run: Arc<str>,
    pub(super) entry: EntryId,
}

/// The identifier of an entry of a stream: milliseconds and a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EntryId(u64, u64);

/// What the log has after a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogRead {
    /// The messages in their order, none if there is nothing new.
    Messages {
        /// The messages.
        messages: Vec<Vec<u8>>,
        /// The position after them, for the next call.
        position: LogPosition,
        /// Whether the log has further messages.
        more: bool,
    },
    /// Messages or records may be lost; see the [module](super).
    Missed,
}

/// A part of all records. A record that is written meanwhile may be in several pages or in none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The records.
    pub records: Vec<Record>,
    /// The cursor of the next page; `None` after the last page.
    pub next: Option<Cursor>,
}

/// A position in all records; the default is the beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cursor(pub(super) u64);

impl Batch {
    /// Checks the sizes.
    pub(super) fn check(&self) -> Result<(), SharedError> {
        let limit = SharedError::check_size;
        for message in &self.messages {
            limit("a message of the log", message.len(), MAX_MESSAGE_BYTES)?;
        }
        let messages = self.messages.iter().map(Vec::len).sum::<usize>();
        let records = self.records.iter().map(Record::bytes).sum::<usize>();
        limit("a batch", messages.saturating_add(records), MAX_BATCH_BYTES)
    }
}

impl Record {
    fn bytes(&self) -> usize {
        let fields = self.fields.iter();
        let fields = fields.map(|(name, value)| name.len() + value.len());
        self.key.len() + fields.sum::<usize>()
    }
}

impl EntryId {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (time, counter) = text.split_once('-')?;
        Some(Self(time.parse().ok()?, counter.parse().ok()?))
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0, self.1)
    }
}

impl fmt::Debug for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogPosition({} of {})", self.entry, self.run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_has_limits_and_an_error_names_them() {
        let record = |bytes| Record {
            key: b"k".to_vec(),
            fields: vec![(b"f".to_vec(), vec![0; bytes])],
        };
        let batch = |bytes, message| Batch {
            records: vec![record(bytes)],
            ttl: Duration::from_secs(1),
            messages: vec![vec![0; message]],
        };
        assert_eq!(batch(1, MAX_MESSAGE_BYTES).check(), Ok(()));
        assert_eq!(batch(MAX_BATCH_BYTES - 2, 0).check(), Ok(()));
        let error = batch(1, MAX_MESSAGE_BYTES + 1).check().unwrap_err();
        assert_eq!(
            error.to_string(),
            "a message of the log has 65537 bytes; the limit is 65536"
        );
        let error = batch(MAX_BATCH_BYTES - 2, 1).check().unwrap_err();
        assert_eq!(
            error.to_string(),
            "a batch has 4194305 bytes; the limit is 4194304"
        );
    }

    #[test]
    fn an_entry_is_two_numbers() {
        for id in ["0-0", "1526919030474-55", "18446744073709551615-1"] {
            assert_eq!(EntryId::parse(id).unwrap().to_string(), id);
        }
        for text in ["", "1", "1-", "-1", "1-2-3", "a-b"] {
            assert_eq!(EntryId::parse(text), None, "{text}");
        }
    }
}
