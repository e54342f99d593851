//! `rollouts`, and which bundle follows which of them.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ops::RangeInclusive,
    sync::Arc,
    time::Duration,
};

use super::{
    bundles::BundleConfig,
    fleet::number,
    keys,
    problem::Problem,
    raw,
    schema::period,
    shared::SharedConfig,
    values::{Period, name, name_glob, percentage, word},
};
use crate::{
    fleet::Options as FleetOptions,
    rollout::{
        Check, Halt, NoData, OnStableLost, Order, QueryTemplate, Rollback, Share, Step, Strategy,
        Tolerance,
    },
};

/// How new versions of a bundle reach its clients (`bundles.NAME.rollout`).
#[derive(Debug, Clone, Default, PartialEq)]
pub enum RolloutChoice {
    /// At once. A version that was rolled back while the key named a strategy is not served: the key may have
    /// been removed by mistake.
    #[default]
    Absent,
    /// At once, one that was rolled back as well: the key is `none`.
    None,
    /// By this strategy.
    Strategy(Arc<Strategy>),
}

/// The strategies by name.
pub(super) type Strategies = BTreeMap<String, Arc<Strategy>>;

/// Reads all of `rollouts`.
pub(super) fn read(
    raw: BTreeMap<String, raw::Rollout>,
    has_prometheus: bool,
) -> Result<Strategies, Problem> {
    let strategies = raw.into_iter().map(|(name, raw)| {
        let read = check_name(&name)
            .and_then(|()| strategy(name.clone(), raw))
            .and_then(check_size)
            .and_then(|strategy| check_prometheus(strategy, has_prometheus));
        match read {
            Ok(strategy) => Ok((name, Arc::new(strategy))),
            Err(problem) => Err(problem.at(&name)),
        }
    });
    strategies.collect()
}

/// What `bundles.NAME.rollout` chooses.
pub(super) fn choice(
    written: Option<&str>,
    strategies: &Strategies,
) -> Result<RolloutChoice, Problem> {
    let name = match written {
        None => return Ok(RolloutChoice::Absent),
        Some(raw::NONE) => return Ok(RolloutChoice::None),
        Some(name) => name,
    };
    if let Some(strategy) = strategies.get(name) {
        return Ok(RolloutChoice::Strategy(Arc::clone(strategy)));
    }
    let way = match strategies.is_empty() {
        true => "write its steps there".to_owned(),
        false => keys::suggestion(name, strategies.keys().map(String::as_str)),
    };
    Err(Problem::new(format!("rollouts has no {name:?}; {way}")))
}

/// Refuses a strategy of a bundle without what every roll-out needs. The problem begins below `bundles`.
pub(super) fn check_bundles(
    bundles: &[BundleConfig],
    shared: Option<&SharedConfig>,
    fleet: &FleetOptions,
) -> Result<(), Problem> {
    let is_staged = |bundle: &&BundleConfig| matches!(bundle.rollout, RolloutChoice::Strategy(_));
    let Some(bundle) = bundles.iter().find(is_staged) else {
        return Ok(());
    };
    let message = if shared.is_none() {
        "a roll-out needs `shared`, where its plan is kept; write that key, or for one replica \
         `shared: { url: \"local:\" }`"
    } else if !fleet.is_enabled {
        "a roll-out needs the fleet view, which says what clients run; remove `fleet.enabled: false`"
    } else {
        return Ok(());
    };
    Err(Problem::new(message).at("rollout").at(&bundle.name))
}

fn check_name(text: &str) -> Result<(), Problem> {
    name(text)?;
    if text == raw::NONE {
        let message = "`rollout: none` means no roll-out; write another name";
        return Err(Problem::new(message));
    }
    match text.len() <= MAX_NAME_BYTES {
        true => Ok(()),
        false => Err(Problem::new(format!(
            "a name has {MAX_NAME_BYTES} characters at most; write a shorter one"
        ))),
    }
}

/// A plan carries the strategy, and replicas read the plans of all bundles.
fn check_size(strategy: Strategy) -> Result<Strategy, Problem> {
    let bytes = serde_json::to_vec(&strategy).unwrap_or_default().len();
    match bytes <= MAX_BYTES {
        true => Ok(strategy),
        false => Err(Problem::new(format!(
            "takes {bytes} bytes in a plan, more than {MAX_BYTES}; write fewer names, or shorter queries \
             by recording rules in Prometheus"
        ))),
    }
}

fn check_prometheus(strategy: Strategy, has_prometheus: bool) -> Result<Strategy, Problem> {
    match strategy.checks.is_empty() || has_prometheus {
        true => Ok(strategy),
        false => Err(Problem::new(
            "checks need `prometheus`, which answers their queries; write that key, or remove this one",
        )
        .at("checks")),
    }
}

fn strategy(name: String, raw: raw::Rollout) -> Result<Strategy, Problem> {
    let poll = within(raw.poll, MIN_POLL..=MAX_POLL, "a soak is three polls", POLL);
    let poll = poll.map_err(|problem| problem.at("poll"))?;
    let steps = steps(&raw.steps, poll).map_err(|problem| problem.at("steps"))?;
    let why = "a step that takes longer has stopped";
    let deadline = within(raw.deadline, MIN_DEADLINE..=MAX_DEADLINE, why, DEADLINE)
        .and_then(|deadline| after_each_soak(deadline, &steps));
    let min_clients = number(raw.min_clients, &(0..=MAX_CLIENTS), MIN_CLIENTS);
    Ok(Strategy {
        steps,
        quorum: raw.quorum.map_or_else(default_quorum, |quorum| quorum.0),
        min_clients: min_clients.map_err(|problem| problem.at("min_clients"))?,
        max_failures: max_failures(raw.max_failures.map(|failures| failures.0))
            .map_err(|problem| problem.at("max_failures"))?,
        deadline: deadline.map_err(|problem| problem.at("deadline"))?,
        on_deadline: keyword("on_deadline", raw.on_deadline, &ON_DEADLINE)?,
        on_failure: keyword("on_failure", raw.on_failure, &ON_FAILURE)?,
        on_stable_lost: keyword("on_stable_lost", raw.on_stable_lost, &ON_STABLE_LOST)?,
        rollback: keyword("rollback", raw.rollback, &ROLLBACK)?,
        order: keyword("salt", raw.salt, &SALT)?,
        checks: checks(raw.checks).map_err(|problem| problem.at("checks"))?,
        name,
    })
}

/// The value of the word at `key`; the first word is the default.
fn keyword<T: Copy>(
    key: &str,
    written: Option<String>,
    words: &[(&'static str, T)],
) -> Result<T, Problem> {
    let default = words.first().map(|(word, _)| *word).unwrap_or_default();
    word(written.as_deref().unwrap_or(default), words).map_err(|problem| problem.at(key))
}

/// A time within limits, or the default; `why` explains the upper one.
fn within(
    written: Option<Period>,
    limits: RangeInclusive<Duration>,
    why: &str,
    default: Duration,
) -> Result<Duration, Problem> {
    let Some(time) = written else {
        return Ok(default);
    };
    time.at_least(*limits.start(), &period(default))?;
    time.at_most(*limits.end(), why)
}

/// [`QUORUM`].
fn default_quorum() -> Share {
    Share::from_percent(90.0).unwrap_or(Share::ALL)
}

fn max_failures(written: Option<Tolerance>) -> Result<Tolerance, Problem> {
    match written {
        None => Ok(Tolerance::Clients(0)),
        Some(Tolerance::Clients(clients)) if u64::from(clients) > MAX_CLIENTS => {
            Err(Problem::new(format!(
                "{clients} is not between 0 and {MAX_CLIENTS}; write a number in this range, or a part \
                 such as 1%"
            )))
        }
        Some(tolerance) => Ok(tolerance),
    }
}

/// Refuses a deadline that a step can't keep.
fn after_each_soak(deadline: Duration, steps: &[Step]) -> Result<Duration, Problem> {
    let too_long = steps.iter().position(|step| step.soak >= deadline);
    let Some((index, step)) = too_long.and_then(|index| Some((index, steps.get(index)?))) else {
        return Ok(deadline);
    };
    let (this, soak) = (period(deadline), period(step.soak));
    let number = index + 1;
    Err(Problem::new(format!(
        "{this} is not longer than the soak of step {number} ({soak}), so that this step would never end; \
         write a longer time"
    )))
}

/// The clients of the steps so far.
#[derive(Default)]
struct Reach<'a> {
    clients: BTreeSet<&'a str>,
    ids: BTreeSet<&'a str>,
    share: Share,
    at_least: u32,
}

/// Reads the steps, and adds one with all clients if the last one has fewer.
fn steps(raw: &[raw::RolloutStep], poll: Duration) -> Result<Vec<Step>, Problem> {
    if raw.is_empty() || raw.len() > MAX_STEPS {
        let count = raw.len();
        return Err(Problem::new(format!(
            "{count} steps are not between 1 and {MAX_STEPS}; write one such as {STEP_EXAMPLE}"
        )));
    }
    let mut reach = Reach::default();
    let mut steps = Vec::new();
    for (index, raw) in raw.iter().enumerate() {
        let step = step(raw, &mut reach, poll).map_err(|problem| problem.at_index(index))?;
        steps.push(step);
    }
    if reach.share < Share::ALL {
        steps.push(Step {
            share: Share::ALL,
            soak: poll * POLLS_OF_SOAK,
            ..Step::default()
        });
    }
    Ok(steps)
}

fn step<'a>(
    raw: &'a raw::RolloutStep,
    reach: &mut Reach<'a>,
    poll: Duration,
) -> Result<Step, Problem> {
    if reach.share == Share::ALL {
        let message = "follows a step with all clients; remove it, or write it before that step";
        return Err(Problem::new(message));
    }
    let has_any = !raw.clients.is_empty()
        || !raw.ids.is_empty()
        || raw.percent.is_some()
        || raw.at_least.is_some();
    if !has_any {
        return Err(Problem::new(
            "names no client; write `percent`, `at_least`, `clients` or `ids`",
        ));
    }
    check_globs(&raw.clients).map_err(|problem| problem.at("clients"))?;
    check_globs(&raw.ids).map_err(|problem| problem.at("ids"))?;
    let share = share(raw.percent, reach.share).map_err(|problem| problem.at("percent"))?;
    let at_least =
        at_least(raw.at_least, reach.at_least).map_err(|problem| problem.at("at_least"))?;
    // Both sets are extended before either is compared.
    let (clients, ids) = (reach.clients.len(), reach.ids.len());
    reach.clients.extend(raw.clients.iter().map(String::as_str));
    reach.ids.extend(raw.ids.iter().map(String::as_str));
    let grows = reach.clients.len() > clients
        || reach.ids.len() > ids
        || share > reach.share
        || at_least > reach.at_least;
    if !grows {
        return Err(Problem::new(
            "adds no client to the steps before; write a larger `percent` or `at_least`, or other \
             `clients` or `ids`, or remove it",
        ));
    }
    (reach.share, reach.at_least) = (share, at_least);
    let approve = raw.approve.unwrap_or(false);
    Ok(Step {
        clients: raw.clients.clone(),
        ids: raw.ids.clone(),
        share,
        at_least,
        soak: soak(raw.soak, approve, poll).map_err(|problem| problem.at("soak"))?,
        approve,
    })
}

fn check_globs(globs: &[String]) -> Result<(), Problem> {
    if globs.len() > MAX_GLOBS {
        let message = format!("more than {MAX_GLOBS} globs; join some of them with `*`");
        return Err(Problem::new(message));
    }
    for (index, text) in globs.iter().enumerate() {
        let checked = match text.len() <= MAX_GLOB_BYTES {
            true => name_glob(text),
            false => Err(Problem::new(format!(
                "a glob has {MAX_GLOB_BYTES} bytes at most; write a shorter one"
            ))),
        };
        checked.map_err(|problem| problem.at_index(index))?;
    }
    Ok(())
}

/// The share of a step after one with `before`.
fn share(percent: Option<f64>, before: Share) -> Result<Share, Problem> {
    let Some(percent) = percent else {
        return Ok(before);
    };
    let share = percentage(percent).filter(|share| *share > Share::default());
    let share = share.ok_or_else(|| {
        Problem::new(format!(
            "{percent} is not between {MIN_PERCENT} and 100 with two decimals at most; write a number in \
             this range"
        ))
    })?;
    if share < before {
        let before = before.percent();
        return Err(Problem::new(format!(
            "{percent} is below the {before} of a step before, and steps do not shrink; write a larger \
             number, or the steps in another order"
        )));
    }
    Ok(share)
}

/// The least number of clients of a step after one with `before`.
fn at_least(written: Option<u64>, before: u32) -> Result<u32, Problem> {
    let count = number(written, &(1..=MAX_AT_LEAST), before)?;
    if count < before {
        return Err(Problem::new(format!(
            "{count} is below the {before} of a step before, and steps do not shrink; write a larger \
             number, or the steps in another order"
        )));
    }
    Ok(count)
}

fn soak(written: Option<Period>, approve: bool, poll: Duration) -> Result<Duration, Problem> {
    let (least, shown_poll) = (poll * POLLS_OF_SOAK, period(poll));
    let shown = period(least);
    match written {
        None if approve => Ok(Duration::ZERO),
        None => Err(Problem::new(format!(
            "missing; write {shown} (three polls) or more, or `approve: true`"
        ))),
        Some(Period(time)) if time < least && !approve => Err(Problem::new(format!(
            "{} is below {shown}, three polls: an OPA polls every {shown_poll} at most (`poll`), and it takes \
             three polls to see that it can't activate a version; write {shown} or more, `approve: true`, or \
             the `poll` of your OPAs",
            period(time)
        ))),
        Some(Period(time)) => Ok(time),
    }
}

fn checks(raw: Vec<raw::RolloutCheck>) -> Result<Vec<Check>, Problem> {
    if raw.len() > MAX_CHECKS {
        let message =
            format!("more than {MAX_CHECKS} checks; join some of their queries with `or`");
        return Err(Problem::new(message));
    }
    let (mut checks, mut names) = (Vec::new(), HashSet::new());
    for (index, raw) in raw.into_iter().enumerate() {
        let check = check(raw).map_err(|problem| problem.at_index(index))?;
        if !names.insert(check.name.clone()) {
            let message = format!("{} is the name of two checks; rename one", check.name);
            return Err(Problem::new(message).at("name").at_index(index));
        }
        checks.push(check);
    }
    Ok(checks)
}

fn check(raw: raw::RolloutCheck) -> Result<Check, Problem> {
    check_check_name(&raw.name).map_err(|problem| problem.at("name"))?;
    let query = query(&raw.query).map_err(|problem| problem.at("query"))?;
    check_range(raw.min, raw.max)?;
    let every = within(
        raw.every,
        MIN_EVERY..=MAX_EVERY,
        "steps would wait for it",
        EVERY,
    );
    let failures = number(raw.failures, &(1..=MAX_CHECK_FAILURES), CHECK_FAILURES);
    Ok(Check {
        name: raw.name,
        query,
        min: raw.min,
        max: raw.max,
        every: every.map_err(|problem| problem.at("every"))?,
        failures: failures.map_err(|problem| problem.at("failures"))?,
        no_data: keyword("no_data", raw.no_data, &NO_DATA)?,
    })
}

/// The name is a label of metrics.
fn check_check_name(text: &str) -> Result<(), Problem> {
    let is_plain =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
    match (1..=MAX_NAME_BYTES).contains(&text.len()) && text.bytes().all(is_plain) {
        true => Ok(()),
        false => Err(Problem::new(format!(
            "{text:?} is not 1 to {MAX_NAME_BYTES} lower-case letters, digits, dashes and underscores; \
             write such a name"
        ))),
    }
}

fn query(text: &str) -> Result<QueryTemplate, Problem> {
    QueryTemplate::parse(text).map_err(|error| {
        let error = error.to_string();
        match error.contains("; ") {
            true => Problem::new(error),
            false => Problem::new(format!("{error}; write a PromQL query")),
        }
    })
}

fn check_range(min: Option<f64>, max: Option<f64>) -> Result<(), Problem> {
    // YAML with an infinite number or NaN is refused before.
    match (min, max) {
        (None, None) => Err(Problem::new(
            "every result would be in the range; write `min`, `max` or both",
        )),
        (Some(min), Some(max)) if min > max => Err(Problem::new(format!(
            "{min} is above `max` ({max}), so that no result would be in the range; exchange them"
        ))
        .at("min")),
        _ => Ok(()),
    }
}

/// The words; the first of each is the default.
pub(super) const ON_DEADLINE: [(&str, Halt); 2] =
    [("pause", Halt::Pause), ("roll_back", Halt::RollBack)];
pub(super) const ON_FAILURE: [(&str, Halt); 2] =
    [("roll_back", Halt::RollBack), ("pause", Halt::Pause)];
pub(super) const ON_STABLE_LOST: [(&str, OnStableLost); 2] = [
    ("promote", OnStableLost::Promote),
    ("withdraw", OnStableLost::Withdraw),
];
pub(super) const ROLLBACK: [(&str, Rollback); 2] = [
    ("immediate", Rollback::Immediate),
    ("staged", Rollback::Staged),
];
pub(super) const SALT: [(&str, Order); 2] =
    [("strategy", Order::Fixed), ("version", Order::ByVersion)];
pub(super) const NO_DATA: [(&str, NoData); 3] = [
    ("inconclusive", NoData::Inconclusive),
    ("pass", NoData::Pass),
    ("fail", NoData::Fail),
];
pub(super) const MAX_STEPS: usize = 16;
pub(super) const MAX_CHECKS: usize = 16;
/// Of one list of a step.
pub(super) const MAX_GLOBS: usize = 64;
pub(super) const MAX_GLOB_BYTES: usize = 128;
pub(super) const MAX_AT_LEAST: u64 = 1000;
pub(super) const MIN_PERCENT: f64 = 0.01;
/// The most clients that can be required or tolerated.
pub(super) const MAX_CLIENTS: u64 = 1_000_000;
pub(super) const MIN_CLIENTS: u32 = 1;
/// The default of `max_failures`, as it is written.
pub(super) const MAX_FAILURES: u32 = 0;
/// The default of `quorum`, as it is written.
pub(super) const QUORUM: &str = "90%";
pub(super) const DEADLINE: Duration = Duration::from_secs(2 * 3600);
pub(super) const MIN_DEADLINE: Duration = Duration::from_secs(1);
pub(super) const MAX_DEADLINE: Duration = Duration::from_secs(30 * 24 * 3600);
/// The default of `polling.max_delay_seconds` in OPA.
pub(super) const POLL: Duration = Duration::from_secs(120);
pub(super) const MIN_POLL: Duration = Duration::from_secs(1);
pub(super) const MAX_POLL: Duration = Duration::from_secs(3600);
pub(super) const EVERY: Duration = Duration::from_secs(60);
pub(super) const MIN_EVERY: Duration = Duration::from_secs(10);
pub(super) const MAX_EVERY: Duration = Duration::from_secs(3600);
pub(super) const CHECK_FAILURES: u32 = 1;
pub(super) const MAX_CHECK_FAILURES: u64 = 10;
pub(super) const CHECK_NAME: &str = "^[a-z0-9_-]{1,64}$";
/// The longest name of a strategy and of a check.
const MAX_NAME_BYTES: usize = 64;
/// The largest strategy in a plan, in bytes.
const MAX_BYTES: usize = 32 << 10;
/// A client without status reports is known to fail a version once it has got it twice and asks again.
const POLLS_OF_SOAK: u32 = 3;
const STEP_EXAMPLE: &str = "{ percent: 1, soak: 10m }";
