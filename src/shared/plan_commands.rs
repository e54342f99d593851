//! The commands for plans and the lease, and their replies.

use std::time::Duration;

use redis::{FromRedisValue, Pipeline, ServerError, Value};

use super::{
    commands::{Reply, milliseconds},
    error::SharedError,
    plan::{
        Lease, MAX_EPOCH, MAX_NOTE_BYTES, MAX_PLAN_BYTES, PlanRead, PlanVersion, PlanWrite,
        StoredPlan, digest, next_epoch,
    },
};
use crate::telemetry::{SENTENCE_BYTES, cut};

/// The most versions of plans in one reply, which is some 200 KiB.
pub(super) const VERSIONS_PER_REPLY: usize = 4096;
/// The most contents of plans in one reply. With the largest ones it has 8 MiB, whose digests take a
/// few ten milliseconds.
pub(super) const CONTENTS_PER_REPLY: usize = 128;
/// The time after which a note without a leader is removed.
const NOTE_TTL: Duration = Duration::from_secs(24 * 3600);

const REPLACE: &str = include_str!("lua/plan_replace.lua");
const RESTORE: &str = include_str!("lua/plan_restore.lua");
const LEASE: &str = include_str!("lua/lease.lua");

/// The keys of the plans and of the lease of one gateway.
#[derive(Debug)]
pub(super) struct PlanKeys {
    plan_prefix: String,
    lease: String,
    note: String,
}

/// The key of a plan, and the version that the caller knows.
#[derive(Debug)]
pub(super) struct PlanLookup {
    pub(super) key: String,
    pub(super) known: Option<PlanVersion>,
}

/// The key of a plan, and what is written there.
#[derive(Debug, Clone, Copy)]
pub(super) struct PlanUpdate<'a> {
    pub(super) key: &'a str,
    /// The epoch of the plan that is replaced or restored.
    pub(super) epoch: u64,
    pub(super) rank: u8,
    pub(super) content: &'a [u8],
}

/// A call for the lease.
#[derive(Debug, Clone, Copy)]
pub(super) struct LeaseRequest<'a> {
    pub(super) holder: u64,
    pub(super) ttl: Duration,
    pub(super) note: &'a [u8],
    /// Whether the holder knows that it has the lease.
    pub(super) is_known: bool,
}

impl PlanKeys {
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            plan_prefix: format!("{{{prefix}}}:plan:"),
            lease: format!("{{{prefix}}}:lead"),
            note: format!("{{{prefix}}}:lead-note"),
        }
    }

    pub(super) fn plan(&self, name: &str) -> String {
        format!("{}{name}", self.plan_prefix)
    }

    pub(super) fn lease(&self, request: LeaseRequest<'_>) -> Pipeline {
        let mut commands = script(LEASE, &[&self.lease, &self.note]);
        commands
            .arg(request.holder)
            // `SET` refuses 0.
            .arg(milliseconds(request.ttl).max(1))
            .arg(request.note)
            .arg(milliseconds(NOTE_TTL))
            .arg(u8::from(request.is_known));
        commands
    }
}

/// Reads the versions of plans, and asks for the time.
pub(super) fn read_versions(lookups: &[PlanLookup]) -> Pipeline {
    let mut commands = Pipeline::new();
    commands.ignore_errors();
    for PlanLookup { key, .. } in lookups {
        commands.cmd("HMGET").arg(key).arg(&["epoch", "digest"]);
    }
    commands.cmd("TIME");
    commands
}

/// Reads plans with their contents.
pub(super) fn read(keys: &[&str]) -> Pipeline {
    let mut commands = Pipeline::new();
    commands.ignore_errors();
    for key in keys {
        let fields = ["epoch", "rank", "digest", "content"];
        commands.cmd("HMGET").arg(key).arg(&fields);
    }
    commands
}

impl PlanUpdate<'_> {
    pub(super) fn replace(self) -> Pipeline {
        self.script(REPLACE)
    }

    pub(super) fn restore(self) -> Pipeline {
        self.script(RESTORE)
    }

    fn script(self, text: &str) -> Pipeline {
        let mut commands = script(text, &[self.key]);
        commands
            .arg(self.epoch)
            .arg(next_epoch(self.epoch))
            .arg(self.rank)
            .arg(&digest(self.rank, self.content))
            .arg(self.content);
        commands
    }
}

/// A script by its text: a server that was promoted or restarted has no other one.
fn script(text: &str, keys: &[&str]) -> Pipeline {
    let mut commands = Pipeline::new();
    commands.ignore_errors();
    commands.cmd("EVAL").arg(text).arg(keys.len()).arg(keys);
    commands
}

impl Reply {
    /// The reply to [`read_versions`]; `None` for a plan whose content must be read.
    pub(super) fn plan_versions(
        self,
        lookups: &[PlanLookup],
    ) -> Result<(Vec<Option<PlanRead>>, Duration), SharedError> {
        let Self {
            mut values,
            run,
            server,
        } = self;
        let time = values.pop().unwrap_or(Value::Nil);
        check_number(&server, values.len(), lookups.len())?;
        let versions = lookups.iter().zip(values);
        let versions = versions.map(|(lookup, value)| compare(lookup, value));
        let versions = versions.collect();
        let values = vec![time];
        let time = Self {
            values,
            run,
            server,
        };
        Ok((versions, time.time()?))
    }

    /// The reply to [`read`].
    pub(super) fn plans(self, keys: &[&str]) -> Result<Vec<PlanRead>, SharedError> {
        let Self { values, server, .. } = self;
        check_number(&server, values.len(), keys.len())?;
        let plans = keys.iter().zip(values);
        let plans = plans.map(|(key, value)| match plan(key, value) {
            Ok(Some(plan)) => PlanRead::Plan(plan),
            Ok(None) => PlanRead::Absent,
            Err(reason) => PlanRead::Broken(reason),
        });
        Ok(plans.collect())
    }

    /// The reply to [`PlanUpdate::replace`] and [`PlanUpdate::restore`].
    pub(super) fn plan_write(self, update: PlanUpdate<'_>) -> Result<PlanWrite, SharedError> {
        let Self { values, server, .. } = self;
        match values.into_iter().next().unwrap_or(Value::Nil) {
            Value::Int(1) => Ok(PlanWrite::Written(StoredPlan {
                epoch: next_epoch(update.epoch),
                rank: update.rank,
                content: update.content.to_vec(),
            })),
            value => plan(update.key, value)
                .map(PlanWrite::Superseded)
                .map_err(|reason| SharedError::protocol(&server, &reason)),
        }
    }

    /// The reply to [`PlanKeys::lease`].
    pub(super) fn lease(self, keys: &PlanKeys) -> Result<Lease, SharedError> {
        let Self { values, server, .. } = self;
        match values.into_iter().next().unwrap_or(Value::Nil) {
            Value::Int(0) => Ok(Lease::Held),
            Value::Int(1) => Ok(Lease::Renewed),
            Value::BulkString(note) if note.len() <= MAX_NOTE_BYTES => Ok(Lease::Taken(note)),
            Value::BulkString(note) => {
                let reason = format!("a note of {} bytes", note.len());
                let reason = broken(&reason, &[&keys.note]);
                Err(SharedError::protocol(&server, &reason))
            }
            Value::ServerError(_) => {
                let keys = [&*keys.lease, &*keys.note];
                Err(SharedError::protocol(&server, &broken(WRONG_TYPE, &keys)))
            }
            _ => Err(SharedError::protocol(&server, "no lease")),
        }
    }
}

/// Whether a command failed because its key has another type. The connection is in order then.
pub(super) fn is_wrong_type(error: &ServerError) -> bool {
    const CODE: &str = "WRONGTYPE";
    // Redis 6 and Valkey wrap the errors of scripts.
    let in_script = |details: &str| details.contains(CODE);
    error.code() == CODE || error.details().is_some_and(in_script)
}

fn check_number(server: &str, replies: usize, commands: usize) -> Result<(), SharedError> {
    if replies == commands {
        return Ok(());
    }
    let reason = "the number of replies is not that of the commands";
    Err(SharedError::protocol(server, reason))
}

type Field = Option<Vec<u8>>;

/// What the version in a reply to `HMGET` tells of a plan; `None` if its content must be read.
fn compare(lookup: &PlanLookup, value: Value) -> Option<PlanRead> {
    match fields::<(Field, Field)>(&lookup.key, value) {
        Ok((None, None)) => Some(PlanRead::Absent),
        Ok((epoch, digest)) => lookup
            .known
            .filter(|known| number(epoch) == Some(known.epoch))
            .filter(|known| digest.is_some_and(|digest| digest == known.digest))
            .map(|_| PlanRead::Unchanged),
        Err(reason) => Some(PlanRead::Broken(reason)),
    }
}

/// The plan of a reply to `HMGET`, or what is wrong with the key.
fn plan(key: &str, value: Value) -> Result<Option<StoredPlan>, String> {
    let broken = |reason: &str| broken(reason, &[key]);
    let fields = fields::<(Field, Field, Field, Field)>(key, value)?;
    let (epoch, rank, stored, content) = match fields {
        (None, None, None, None) => return Ok(None),
        (epoch, rank, stored, Some(content)) => (number(epoch), number(rank), stored, content),
        (_, _, _, None) => return Err(broken("a plan without content")),
    };
    let Some(epoch) = epoch.filter(|epoch| (1..=MAX_EPOCH).contains(epoch)) else {
        return Err(broken("a plan without an epoch"));
    };
    let Some(rank) = rank.and_then(|rank| u8::try_from(rank).ok()) else {
        return Err(broken("a plan without a rank"));
    };
    if content.len() > MAX_PLAN_BYTES {
        let reason = format!("a plan of {} bytes", content.len());
        return Err(broken(&reason));
    }
    if stored.is_none_or(|stored| stored != digest(rank, &content)) {
        return Err(broken("a plan without its digest"));
    }
    Ok(Some(StoredPlan {
        epoch,
        rank,
        content,
    }))
}

/// The fields of a reply to `HMGET`.
fn fields<T: FromRedisValue>(key: &str, value: Value) -> Result<T, String> {
    match value {
        Value::ServerError(_) => Err(broken(WRONG_TYPE, &[key])),
        value => T::from_redis_value(value).map_err(|error| broken(&error.to_string(), &[key])),
    }
}

/// A number as it is written here. The scripts compare it as text.
fn number(field: Option<Vec<u8>>) -> Option<u64> {
    let text = String::from_utf8(field?).ok()?;
    text.parse()
        .ok()
        .filter(|number: &u64| number.to_string() == text)
}

/// What is wrong with a key that another program has changed, which is one of `keys`.
fn broken(reason: &str, keys: &[&str]) -> String {
    let keys: Vec<_> = keys.iter().map(|key| format!("{key:?}")).collect();
    // The reason first: a long key is cut.
    let reason = format!(
        "{reason}; delete the key {}, which another program has changed",
        keys.join(" or ")
    );
    cut(&reason, SENTENCE_BYTES).into_owned()
}

const WRONG_TYPE: &str = "a key with another type";

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn reply(values: Vec<Value>) -> Reply {
        Reply {
            values,
            run: Arc::default(),
            server: "server".to_owned(),
        }
    }

    fn text(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    /// The reply for a plan with the digest of `rank`, or of another one if it is not valid.
    fn fields(epoch: &str, rank: &str, content: &str) -> Value {
        let digest = digest(rank.parse().unwrap_or(0), content.as_bytes());
        let digest = Value::BulkString(digest.to_vec());
        Value::Array(vec![text(epoch), text(rank), digest, text(content)])
    }

    fn time() -> Value {
        Value::Array(vec![text("7"), text("5")])
    }

    /// The reply to the read of one plan.
    fn read(value: Value) -> PlanRead {
        reply(vec![value]).plans(&[KEY]).unwrap().remove(0)
    }

    const KEY: &str = "{b}:plan:a";

    #[test]
    fn a_plan_is_four_fields() {
        let highest = MAX_EPOCH.to_string();
        let largest = "x".repeat(MAX_PLAN_BYTES);
        assert_eq!(read(Value::Array(vec![Value::Nil; 4])), PlanRead::Absent);
        for (epoch, rank, content) in [("1", "0", ""), (&highest, "255", &largest)] {
            let expected = StoredPlan {
                epoch: epoch.parse().unwrap(),
                rank: rank.parse().unwrap(),
                content: content.into(),
            };
            assert_eq!(read(fields(epoch, rank, content)), PlanRead::Plan(expected));
        }
    }

    #[test]
    fn a_broken_plan_is_reported_with_its_key() {
        let above = (MAX_EPOCH + 1).to_string();
        let large = "x".repeat(MAX_PLAN_BYTES + 1);
        let [epoch, rank, digest] =
            ["an epoch", "a rank", "its digest"].map(|what| format!("a plan without {what}"));
        let content = "a plan without content";
        // A good plan without one of its fields, and with one of another plan.
        let with = |index: usize, field: Value| {
            let Value::Array(mut values) = fields("1", "1", "c") else {
                unreachable!()
            };
            values[index] = field;
            Value::Array(values)
        };
        let without = |index| with(index, Value::Nil);
        for (value, reason) in [
            (fields("0", "1", "c"), &*epoch),
            (fields("01", "1", "c"), &epoch),
            (fields("+1", "1", "c"), &epoch),
            (fields("1.0", "1", "c"), &epoch),
            (fields("inf", "1", "c"), &epoch),
            (fields(&above, "1", "c"), &epoch),
            (without(0), &epoch),
            (fields("1", "256", "c"), &rank),
            (fields("1", "-1", "c"), &rank),
            (fields("1", "", "c"), &rank),
            (without(1), &rank),
            (with(1, text("2")), &digest),
            (without(2), &digest),
            (with(2, text("")), &digest),
            (without(3), content),
            (with(3, text("d")), &digest),
            (fields("1", "1", &large), "a plan of 65537 bytes"),
        ] {
            let expected =
                format!("{reason}; delete the key {KEY:?}, which another program has changed");
            assert_eq!(read(value), PlanRead::Broken(expected));
        }
        for value in [Value::Nil, Value::Int(1), Value::Array(vec![])] {
            let PlanRead::Broken(text) = read(value.clone()) else {
                panic!("{value:?}")
            };
            assert!(text.contains(&format!("{KEY:?}")), "{value:?}: {text}");
        }
    }

    /// The content is read only where the version does not suffice.
    #[test]
    fn a_version_tells_whether_a_plan_is_absent_or_unchanged() {
        let known = PlanVersion {
            epoch: 7,
            digest: [b'd'; 16],
        };
        let (version, digest) = (
            |epoch, digest| Value::Array(vec![epoch, digest]),
            "d".repeat(16),
        );
        let unchanged = version(text("7"), text(&digest));
        let absent = version(Value::Nil, Value::Nil);
        for (known, value, expected) in [
            (Some(known), unchanged.clone(), Some(PlanRead::Unchanged)),
            (None, unchanged, None),
            (Some(known), version(text("8"), text(&digest)), None),
            (Some(known), version(text("6"), text(&digest)), None),
            (Some(known), version(text("07"), text(&digest)), None),
            (Some(known), version(text("7"), text("other")), None),
            (Some(known), version(Value::Nil, text(&digest)), None),
            (Some(known), version(text("7"), Value::Nil), None),
            (Some(known), absent.clone(), Some(PlanRead::Absent)),
            (None, absent, Some(PlanRead::Absent)),
        ] {
            let text = format!("{value:?}");
            let key = KEY.to_owned();
            let result = reply(vec![value, time()]).plan_versions(&[PlanLookup { key, known }]);
            let time = Duration::new(7, 5000);
            assert_eq!(result, Ok((vec![expected], time)), "{known:?}, {text}");
        }
    }

    #[test]
    fn replies_that_do_not_match_their_commands_are_an_error() {
        let absent = || Value::Array(vec![Value::Nil; 2]);
        for values in [
            vec![],
            vec![time()],
            vec![absent()],
            vec![absent(), absent()],
            vec![absent(), absent(), time()],
        ] {
            let (key, known) = (KEY.to_owned(), None);
            let result = reply(values.clone()).plan_versions(&[PlanLookup { key, known }]);
            let is_protocol = matches!(result, Err(SharedError::Protocol { .. }));
            assert!(is_protocol, "{values:?}");
        }
        for number in [0, 2] {
            let result = reply(vec![fields("1", "1", "c"); number]).plans(&[KEY]);
            assert!(matches!(result, Err(SharedError::Protocol { .. })));
        }
    }

    #[test]
    fn a_written_plan_has_the_next_epoch() {
        let write = |epoch, value| {
            let update = PlanUpdate {
                key: KEY,
                epoch,
                rank: 3,
                content: b"new",
            };
            reply(vec![value]).plan_write(update)
        };
        for (epoch, next) in [
            (0, 1),
            (7, 8),
            (MAX_EPOCH, MAX_EPOCH),
            (u64::MAX, MAX_EPOCH),
        ] {
            let written = StoredPlan {
                epoch: next,
                rank: 3,
                content: b"new".to_vec(),
            };
            assert_eq!(write(epoch, Value::Int(1)), Ok(PlanWrite::Written(written)));
        }
        let stands = StoredPlan {
            epoch: 9,
            rank: 1,
            content: b"old".to_vec(),
        };
        let superseded = Ok(PlanWrite::Superseded(Some(stands)));
        assert_eq!(write(7, fields("9", "1", "old")), superseded);
        let error = write(7, fields("nine", "1", "old")).unwrap_err();
        assert!(error.to_string().contains(KEY), "{error}");
    }

    #[test]
    fn a_lease_is_held_renewed_or_taken_with_a_note() {
        let keys = PlanKeys::new("b");
        let lease = |value| reply(vec![value]).lease(&keys);
        let largest = vec![0; MAX_NOTE_BYTES];
        for (value, expected) in [
            (Value::Int(0), Lease::Held),
            (Value::Int(1), Lease::Renewed),
            (text(""), Lease::Taken(Vec::new())),
            (Value::BulkString(largest.clone()), Lease::Taken(largest)),
        ] {
            assert_eq!(lease(value), Ok(expected));
        }
        for value in [Value::Nil, Value::Int(2), Value::Array(vec![])] {
            let error = lease(value).unwrap_err();
            assert!(matches!(error, SharedError::Protocol { .. }), "{error}");
        }
        let error = lease(Value::BulkString(vec![0; MAX_NOTE_BYTES + 1])).unwrap_err();
        assert!(error.to_string().contains(r#""{b}:lead-note""#), "{error}");
    }
}
