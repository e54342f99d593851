//! `bundles.NAME.expect`.

use super::{
    problem::Problem,
    raw,
    values::{self, PointInTime},
};
use crate::{
    oci::Version,
    verify::{Authority, TrustPolicy},
    watch::{Expect, OnOlder, Order},
};

/// Reads `expect`. `trust` decides whether signatures have a proven time.
pub(super) fn read(raw: raw::Expect, trust: &TrustPolicy) -> Result<Expect, Problem> {
    if raw.annotations.contains_key("") {
        return Err(Problem::new("an annotation has an empty name; write one").at("annotations"));
    }
    let minimum = raw.minimum.as_deref();
    let on_older = raw.on_older.as_deref().map_or(Ok(OnOlder::Alarm), on_older);
    let on_older = on_older.map_err(|problem| problem.at("on_older"))?;
    if on_older == OnOlder::Serve && minimum.is_some() {
        let message = "versions below `minimum` would be served; write `alarm` or `refuse`";
        return Err(Problem::new(message).at("on_older"));
    }
    Ok(Expect {
        annotations: raw.annotations,
        roots: raw
            .roots
            .map_or(Ok(Vec::new()), roots)
            .map_err(|problem| problem.at("roots"))?,
        order: order(raw.order.as_deref(), minimum, trust)?,
        on_older,
    })
}

fn on_older(word: &str) -> Result<OnOlder, Problem> {
    values::word(word, &ON_OLDER)
}

fn order(
    word: Option<&str>,
    minimum: Option<&str>,
    trust: &TrustPolicy,
) -> Result<Option<Order>, Problem> {
    let Some(word) = word else {
        return match minimum {
            Some(_) => {
                Err(Problem::new("`minimum` needs an `order`; write `order` as well").at("minimum"))
            }
            None => Ok(None),
        };
    };
    let version = |text: &str| {
        text.parse::<Version>()
            .map_err(|error| Problem::new(error.to_string()).at("minimum"))
    };
    let moment = |text: &str| match text.parse::<PointInTime>() {
        Ok(PointInTime(at)) => Ok(at),
        Err(message) => Err(Problem::new(message).at("minimum")),
    };
    let kind = values::word(word, &ORDERS).map_err(|problem| problem.at("order"))?;
    if kind == Kind::SignedTime && !proves_time(trust) {
        let policy = trust.name();
        let message = format!(
            "nothing proves when a bundle under the policy {policy} was signed; write another order, or ask its \
             authorities for a log (tlog: require)"
        );
        return Err(Problem::new(message).at("order"));
    }
    Ok(Some(match kind {
        Kind::Version => Order::Version {
            minimum: minimum.map(version).transpose()?,
        },
        Kind::Created => Order::Created {
            minimum: minimum.map(moment).transpose()?,
        },
        Kind::SignedTime => Order::SignedTime {
            minimum: minimum.map(moment).transpose()?,
        },
    }))
}

/// The order, each with its own type of `minimum`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Version,
    Created,
    SignedTime,
}

/// Whether every accepted set of signatures includes one with a proven time.
fn proves_time(trust: &TrustPolicy) -> bool {
    let untimed = |authority: &&Authority| !authority.proves_time();
    trust.requirements().is_some_and(|requirements| {
        requirements.authorities.iter().filter(untimed).count() < requirements.at_least
    })
}

fn roots(raw: Vec<String>) -> Result<Vec<String>, Problem> {
    if raw.is_empty() {
        let message = "the list is empty; write roots such as [\"authz\"], or remove the key";
        return Err(Problem::new(message));
    }
    for (index, root) in raw.iter().enumerate() {
        // `""` is the root of `data`.
        let malformed = !root.is_empty()
            && root
                .split('/')
                .any(|segment| segment.is_empty() || segment == "..");
        if malformed || root.chars().any(char::is_control) {
            let message =
                format!("{root:?} is not a root; write it as in `.manifest`, such as authz/users");
            return Err(Problem::new(message).at_index(index));
        }
    }
    Ok(raw)
}

/// The default of `on_older`.
pub(super) const ALARM: &str = "alarm";
/// The words of `on_older`.
pub(super) const ON_OLDER: [(&str, OnOlder); 3] = [
    ("serve", OnOlder::Serve),
    (ALARM, OnOlder::Alarm),
    ("refuse", OnOlder::Refuse),
];
/// The words of `order`.
pub(super) const ORDERS: [(&str, Kind); 3] = [
    ("version", Kind::Version),
    ("created", Kind::Created),
    ("signed_time", Kind::SignedTime),
];
