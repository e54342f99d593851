//! The commands to the engine, and their replies.

use std::{sync::Arc, time::Duration};

use redis::{FromRedisValue, Pipeline, Value};

use super::{
    batch::{Batch, Cursor, EntryId, LogPosition, LogRead, Record},
    error::SharedError,
};

/// The number of entries that the log keeps at least.
pub const MIN_LOG_LENGTH: usize = 1024;
/// The time after which a log without writes is removed, so that a gateway that is no longer
/// installed leaves nothing behind.
const LOG_TTL: Duration = Duration::from_secs(24 * 3600);
/// The most messages of one read of the log: 64 KiB each are less than the largest reply.
const MAX_MESSAGES: usize = 512;
/// About how many keys one page of a scan looks at.
const SCAN_COUNT: usize = 500;
/// The field of a message. Other entries only mark a position.
const MESSAGE: &[u8] = b"m";
const MARK: &[u8] = b"mark";

/// The keys of one gateway.
#[derive(Debug)]
pub(super) struct Keys {
    log: Vec<u8>,
    record_prefix: Vec<u8>,
    record_pattern: Vec<u8>,
}

/// The replies to the commands of one call.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) values: Vec<Value>,
    /// The process of the engine that answered.
    pub(super) run: Arc<str>,
    pub(super) server: String,
}

/// An entry of a stream, with its fields.
type Entry = (String, Vec<(Vec<u8>, Vec<u8>)>);

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        let record_prefix = format!("{{{prefix}}}:record:").into_bytes();
        let mut record_pattern = escape_glob(&record_prefix);
        record_pattern.push(b'*');
        Self {
            log: format!("{{{prefix}}}:log").into_bytes(),
            record_prefix,
            record_pattern,
        }
    }

    /// Writes a batch, and asks for the time. Records come first: a replica that sees a message finds
    /// its records.
    pub(super) fn write(&self, batch: &Batch) -> Pipeline {
        let mut commands = Pipeline::new();
        // `PEXPIRE` with 0 would remove the record.
        let ttl = milliseconds(batch.ttl).max(1);
        for record in batch
            .records
            .iter()
            .filter(|record| !record.fields.is_empty())
        {
            let key = [&self.record_prefix, record.key.as_slice()].concat();
            let command = commands.cmd("HSET").arg(&key);
            for (name, value) in &record.fields {
                command.arg(name).arg(value);
            }
            command.ignore();
            commands.cmd("PEXPIRE").arg(&key).arg(ttl).ignore();
        }
        for message in &batch.messages {
            self.append(&mut commands, MESSAGE, message);
            commands.ignore();
        }
        if !batch.messages.is_empty() {
            self.renew_log(&mut commands);
        }
        commands.cmd("TIME");
        commands
    }

    /// Reads the entry of a position, and those after it.
    pub(super) fn read_log(&self, after: EntryId, limit: usize) -> Pipeline {
        let mut commands = Pipeline::new();
        commands
            .cmd("XRANGE")
            .arg(&self.log)
            .arg(after.to_string())
            .arg("+")
            .arg("COUNT")
            // The entry of the position, the messages, and one more, to know whether there are more.
            .arg(limit.clamp(1, MAX_MESSAGES) + 2);
        commands
    }

    /// Reads the last entry of the log.
    pub(super) fn last_entry(&self) -> Pipeline {
        let mut commands = Pipeline::new();
        commands
            .cmd("XREVRANGE")
            .arg(&self.log)
            .arg("+")
            .arg("-")
            .arg("COUNT")
            .arg(1);
        commands
    }

    /// Appends an entry without a message to a log that has none.
    pub(super) fn mark(&self) -> Pipeline {
        let mut commands = Pipeline::new();
        self.append(&mut commands, MARK, b"");
        self.renew_log(&mut commands);
        commands
    }

    /// Reads the keys of a page of records.
    pub(super) fn scan(&self, cursor: Cursor) -> Pipeline {
        let mut commands = Pipeline::new();
        commands
            .cmd("SCAN")
            .arg(cursor.0)
            .arg("MATCH")
            .arg(&self.record_pattern)
            .arg("COUNT")
            .arg(SCAN_COUNT)
            .arg("TYPE")
            .arg("hash");
        commands
    }

    /// Reads records.
    pub(super) fn records(keys: &[Vec<u8>]) -> Pipeline {
        let mut commands = Pipeline::new();
        for key in keys {
            commands.cmd("HGETALL").arg(key);
        }
        commands
    }

    /// The record of a key. `None` if it has expired, or if the key has another prefix.
    pub(super) fn record(&self, key: &[u8], fields: Vec<(Vec<u8>, Vec<u8>)>) -> Option<Record> {
        let key = key.strip_prefix(self.record_prefix.as_slice())?.to_vec();
        (!fields.is_empty()).then_some(Record { key, fields })
    }

    fn append(&self, commands: &mut Pipeline, field: &[u8], value: &[u8]) {
        commands
            .cmd("XADD")
            .arg(&self.log)
            .arg("MAXLEN")
            // Trimmed by whole nodes, which costs the engine much less.
            .arg("~")
            .arg(MIN_LOG_LENGTH)
            .arg("*")
            .arg(field)
            .arg(value);
    }

    fn renew_log(&self, commands: &mut Pipeline) {
        let ttl = milliseconds(LOG_TTL);
        commands.cmd("PEXPIRE").arg(&self.log).arg(ttl).ignore();
    }
}

/// Commands that only ask for the time.
pub(super) fn time() -> Pipeline {
    let mut commands = Pipeline::new();
    commands.cmd("TIME");
    commands
}

impl Reply {
    /// The only value, if the commands have one.
    fn single<T: FromRedisValue>(self) -> Result<T, SharedError> {
        let Self { values, server, .. } = self;
        let value = values.into_iter().next().unwrap_or(Value::Nil);
        T::from_redis_value(value)
            .map_err(|error| SharedError::protocol(&server, &error.to_string()))
    }

    /// The reply to `TIME`, since 1970.
    pub(super) fn time(self) -> Result<Duration, SharedError> {
        let (seconds, microseconds) = self.single::<(u64, u64)>()?;
        Ok(Duration::from_secs(seconds) + Duration::from_micros(microseconds.min(999_999)))
    }

    /// The reply to [`Keys::mark`].
    pub(super) fn marked(self) -> Result<LogPosition, SharedError> {
        let (run, server) = (Arc::clone(&self.run), self.server.clone());
        let entry = entry_id(&server, &self.single::<String>()?)?;
        Ok(LogPosition { run, entry })
    }

    /// The reply to [`Keys::last_entry`]; `None` for an empty log.
    pub(super) fn last_entry(self) -> Result<Option<LogPosition>, SharedError> {
        let (run, server) = (Arc::clone(&self.run), self.server.clone());
        let entries = self.single::<Vec<Entry>>()?;
        let entry = entries.first().map(|(id, _)| entry_id(&server, id));
        Ok(entry.transpose()?.map(|entry| LogPosition { run, entry }))
    }

    /// The reply to [`Keys::read_log`].
    pub(super) fn log(self, after: &LogPosition, limit: usize) -> Result<LogRead, SharedError> {
        if self.run != after.run {
            return Ok(LogRead::Missed);
        }
        let (run, server) = (Arc::clone(&self.run), self.server.clone());
        let mut entries = self.single::<Vec<Entry>>()?.into_iter();
        match entries.next() {
            Some((id, _)) if entry_id(&server, &id)? == after.entry => {}
            // It was trimmed or never was in this log, so entries after it may lack as well.
            _ => return Ok(LogRead::Missed),
        }
        let limit = limit.clamp(1, MAX_MESSAGES);
        let more = entries.len() > limit;
        let (mut messages, mut position) = (Vec::new(), after.entry);
        for (id, fields) in entries.take(limit) {
            position = entry_id(&server, &id)?;
            let message = fields.into_iter().find(|(name, _)| name == MESSAGE);
            messages.extend(message.map(|(_, value)| value));
        }
        let position = LogPosition {
            run,
            entry: position,
        };
        Ok(LogRead::Messages {
            messages,
            position,
            more,
        })
    }

    /// The reply to [`Keys::scan`]: the next cursor and the keys.
    pub(super) fn keys(self) -> Result<(Option<Cursor>, Vec<Vec<u8>>), SharedError> {
        let (cursor, keys) = self.single::<(u64, Vec<Vec<u8>>)>()?;
        Ok(((cursor != 0).then_some(Cursor(cursor)), keys))
    }

    /// The replies to [`Keys::records`].
    pub(super) fn records(
        self,
        keys: &Keys,
        names: &[Vec<u8>],
    ) -> Result<Vec<Record>, SharedError> {
        let mut records = Vec::with_capacity(names.len());
        for (name, value) in names.iter().zip(self.values) {
            let fields = <Vec<(Vec<u8>, Vec<u8>)>>::from_redis_value(value)
                .map_err(|error| SharedError::protocol(&self.server, &error.to_string()))?;
            records.extend(keys.record(name, fields));
        }
        Ok(records)
    }
}

fn entry_id(server: &str, text: &str) -> Result<EntryId, SharedError> {
    EntryId::parse(text).ok_or_else(|| {
        SharedError::protocol(server, &format!("{text:?} is no identifier of an entry"))
    })
}

/// Escapes what has a meaning in a pattern of `SCAN`.
fn escape_glob(text: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(text.len());
    for byte in text {
        if b"*?[]\\^".contains(byte) {
            escaped.push(b'\\');
        }
        escaped.push(*byte);
    }
    escaped
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
