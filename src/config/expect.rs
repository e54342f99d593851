//! `bundles.NAME.expect`: what a bundle has to be beside signed.

use super::{keys, problem::Problem, raw, values::Moment};
use crate::{
    verify::{Authority, TrustPolicy},
    watch::{Expect, OnOlder, Order, Version},
};

/// Reads it; `trust` tells whether signatures have a time.
pub(super) fn read(raw: raw::Expect, trust: &TrustPolicy) -> Result<Expect, Problem> {
    if raw.annotations.contains_key("") {
        return Err(Problem::new("an annotation has a name; write it").at("annotations"));
    }
    let minimum = raw.minimum.as_deref();
    let on_older = raw.on_older.as_deref().map_or(Ok(OnOlder::Alarm), on_older);
    let on_older = on_older.map_err(|problem| problem.at("on_older"))?;
    if on_older == OnOlder::Serve && minimum.is_some() {
        let sentence = "what is below `minimum` would be served all the same; write `alarm` or `refuse`";
        return Err(Problem::new(sentence).at("on_older"));
    }
    Ok(Expect {
        annotations: raw.annotations,
        roots: raw.roots.map_or(Ok(Vec::new()), roots).map_err(|problem| problem.at("roots"))?,
        order: order(raw.order.as_deref(), minimum, trust)?,
        on_older,
    })
}

fn on_older(word: &str) -> Result<OnOlder, Problem> {
    keys::word(word, &[("serve", OnOlder::Serve), ("alarm", OnOlder::Alarm), ("refuse", OnOlder::Refuse)])
}

fn order(word: Option<&str>, minimum: Option<&str>, trust: &TrustPolicy) -> Result<Option<Order>, Problem> {
    let Some(word) = word else {
        return match minimum {
            Some(_) => Err(Problem::new("nothing says what it is a minimum of; write `order`, too").at("minimum")),
            None => Ok(None),
        };
    };
    let version = |text: &str| text.parse::<Version>().map_err(|error| Problem::new(error.to_string()).at("minimum"));
    let moment = |text: &str| match text.parse::<Moment>() {
        Ok(Moment(at)) => Ok(at),
        Err(sentence) => Err(Problem::new(sentence).at("minimum")),
    };
    // Each with a minimum of its own kind.
    let words = [("version", Kind::Version), ("created", Kind::Created), ("signed_time", Kind::SignedTime)];
    let kind = keys::word(word, &words).map_err(|problem| problem.at("order"))?;
    if kind == Kind::SignedTime && !proves_time(trust) {
        let policy = trust.name();
        let sentence = format!(
            "nothing proves when a bundle under the policy {policy} was signed; write another order, or ask its \
             authorities for a log (tlog: require)"
        );
        return Err(Problem::new(sentence).at("order"));
    }
    Ok(Some(match kind {
        Kind::Version => Order::Version { minimum: minimum.map(version).transpose()? },
        Kind::Created => Order::Created { minimum: minimum.map(moment).transpose()? },
        Kind::SignedTime => Order::SignedTime { minimum: minimum.map(moment).transpose()? },
    }))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Version,
    Created,
    SignedTime,
}

/// Whether among the votes that it takes there is always one with a time.
fn proves_time(trust: &TrustPolicy) -> bool {
    let untimed = |authority: &&Authority| !authority.proves_time();
    trust
        .requirements()
        .is_some_and(|requirements| requirements.authorities.iter().filter(untimed).count() < requirements.at_least)
}

fn roots(raw: Vec<String>) -> Result<Vec<String>, Problem> {
    if raw.is_empty() {
        let sentence = "no bundle has its roots nowhere; write some such as [\"authz\"], or remove the key";
        return Err(Problem::new(sentence));
    }
    for (index, root) in raw.iter().enumerate() {
        // `""` is everything.
        let malformed = !root.is_empty() && root.split('/').any(|segment| segment.is_empty() || segment == "..");
        if malformed || root.chars().any(char::is_control) {
            let sentence = format!("{root:?} is no root; write it as `.manifest` has it, such as authz/users");
            return Err(Problem::new(sentence).at_index(index));
        }
    }
    Ok(raw)
}
