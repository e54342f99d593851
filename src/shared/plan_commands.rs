//! The commands for plans and the lease, and their replies.

use std::time::Duration;

use redis::{FromRedisValue, Pipeline, ServerError, Value};

use super::{
    commands::{Reply, milliseconds},
    error::SharedError,
    plan::{Lease, MAX_EPOCH, MAX_NOTE_BYTES, MAX_PLAN_BYTES, PlanWrite, StoredPlan, next_epoch},
};

/// The most plans of one reply: with the largest content they are less than the largest reply.
pub(super) const PLANS_PER_REPLY: usize = 512;
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

/// Reads plans, and asks for the time.
pub(super) fn read(keys: &[String]) -> Pipeline {
    let mut commands = Pipeline::new();
    commands.ignore_errors();
    for key in keys {
        let fields = ["epoch", "rank", "content"];
        commands.cmd("HMGET").arg(key).arg(&fields);
    }
    commands.cmd("TIME");
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
    /// The reply to [`read`].
    pub(super) fn plans(
        self,
        keys: &[String],
    ) -> Result<(Vec<Option<StoredPlan>>, Duration), SharedError> {
        let Self {
            mut values,
            run,
            server,
        } = self;
        let time = values.pop().unwrap_or(Value::Nil);
        if values.len() != keys.len() {
            let reason = "the number of replies is not that of the commands";
            return Err(SharedError::protocol(&server, reason));
        }
        let plans = keys.iter().zip(values);
        let plans = plans.map(|(key, value)| plan(&server, key, value));
        let plans = plans.collect::<Result<_, _>>()?;
        let values = vec![time];
        let time = Self {
            values,
            run,
            server,
        };
        Ok((plans, time.time()?))
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
            value => Ok(PlanWrite::Superseded(plan(&server, update.key, value)?)),
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
                Err(broken(&server, &reason, &[&keys.note]))
            }
            Value::ServerError(_) => {
                let keys = [&*keys.lease, &*keys.note];
                Err(broken(&server, WRONG_TYPE, &keys))
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

/// The plan of a reply to `HMGET`.
fn plan(server: &str, key: &str, value: Value) -> Result<Option<StoredPlan>, SharedError> {
    let broken = |reason: &str| broken(server, reason, &[key]);
    if let Value::ServerError(_) = value {
        return Err(broken(WRONG_TYPE));
    }
    type Field = Option<Vec<u8>>;
    let fields = <(Field, Field, Field)>::from_redis_value(value);
    let (epoch, rank, content) = match fields.map_err(|error| broken(&error.to_string()))? {
        (None, None, None) => return Ok(None),
        (epoch, rank, Some(content)) => (number(epoch), number(rank), content),
        _ => return Err(broken("a plan without content")),
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
    Ok(Some(StoredPlan {
        epoch,
        rank,
        content,
    }))
}

/// A number as it is written here. The scripts compare it as text.
fn number(field: Option<Vec<u8>>) -> Option<u64> {
    let text = String::from_utf8(field?).ok()?;
    text.parse()
        .ok()
        .filter(|number: &u64| number.to_string() == text)
}

/// The error for a key that another program has changed, which is one of `keys`.
fn broken(server: &str, reason: &str, keys: &[&str]) -> SharedError {
    let keys: Vec<_> = keys.iter().map(|key| format!("{key:?}")).collect();
    // The reason first: a long key is cut.
    let reason = format!(
        "{reason}; delete the key {}, which another program has changed",
        keys.join(" or ")
    );
    SharedError::protocol(server, &reason)
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

    fn fields(epoch: &str, rank: &str, content: &str) -> Value {
        Value::Array(vec![text(epoch), text(rank), text(content)])
    }

    fn time() -> Value {
        Value::Array(vec![text("7"), text("5")])
    }

    /// The reply to the read of one plan.
    fn read(value: Value) -> Result<Option<StoredPlan>, SharedError> {
        let (mut plans, time) = reply(vec![value, time()]).plans(&["{b}:plan:a".to_owned()])?;
        assert_eq!(time, Duration::new(7, 5000));
        Ok(plans.remove(0))
    }

    #[test]
    fn a_plan_is_three_fields() {
        let highest = MAX_EPOCH.to_string();
        let largest = "x".repeat(MAX_PLAN_BYTES);
        let absent = Value::Array(vec![Value::Nil, Value::Nil, Value::Nil]);
        assert_eq!(read(absent), Ok(None));
        for (epoch, rank, content) in [("1", "0", ""), (&highest, "255", &largest)] {
            let expected = StoredPlan {
                epoch: epoch.parse().unwrap(),
                rank: rank.parse().unwrap(),
                content: content.into(),
            };
            assert_eq!(read(fields(epoch, rank, content)), Ok(Some(expected)));
        }
    }

    #[test]
    fn a_broken_plan_is_an_error_with_its_key() {
        let above = (MAX_EPOCH + 1).to_string();
        let large = "x".repeat(MAX_PLAN_BYTES + 1);
        let [epoch, rank] =
            ["without an epoch", "without a rank"].map(|what| format!("a plan {what}"));
        let incomplete = Value::Array(vec![text("1"), text("1"), Value::Nil]);
        let no_epoch = Value::Array(vec![Value::Nil, text("1"), text("c")]);
        for (value, reason) in [
            (fields("0", "1", "c"), &*epoch),
            (fields("01", "1", "c"), &epoch),
            (fields("+1", "1", "c"), &epoch),
            (fields("1.0", "1", "c"), &epoch),
            (fields("inf", "1", "c"), &epoch),
            (fields(&above, "1", "c"), &epoch),
            (no_epoch, &epoch),
            (fields("1", "256", "c"), &rank),
            (fields("1", "-1", "c"), &rank),
            (fields("1", "", "c"), &rank),
            (incomplete, "a plan without content"),
            (fields("1", "1", &large), "a plan of 65537 bytes"),
        ] {
            let error = read(value).unwrap_err().to_string();
            let expected = format!(
                "server answered unexpectedly: {reason}; delete the key \"{{b}}:plan:a\", \
                 which another program has changed"
            );
            assert_eq!(error, expected);
        }
        for value in [Value::Nil, Value::Int(1), Value::Array(vec![])] {
            let error = read(value.clone()).unwrap_err().to_string();
            assert!(error.contains(r#""{b}:plan:a""#), "{value:?}: {error}");
        }
        for values in [vec![], vec![time()], vec![fields("1", "1", "c"); 3]] {
            let result = reply(values.clone()).plans(&["{b}:plan:a".to_owned()]);
            assert!(
                matches!(result, Err(SharedError::Protocol { .. })),
                "{values:?}"
            );
        }
    }

    #[test]
    fn a_written_plan_has_the_next_epoch() {
        let write = |epoch, value| {
            let update = PlanUpdate {
                key: "{b}:plan:a",
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
        assert!(error.to_string().contains("{b}:plan:a"), "{error}");
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
