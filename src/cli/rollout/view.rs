//! Roll-outs as text.

use jiff::{SignedDuration, Timestamp};

use super::answer::{Check, Criteria, Rollout, Transition, Version};
use crate::cli::table;

/// Stands for a value that is absent.
const ABSENT: &str = "-";

/// A line for each roll-out.
pub(super) fn list(rollouts: &[Rollout], now: Timestamp) -> String {
    let rows: Vec<_> = rollouts
        .iter()
        .map(|rollout| {
            let clients = rollout.criteria.as_ref().map(|criteria| &criteria.clients);
            let clients = clients.map(|one| {
                let counts = [one.offered, one.acknowledged, one.failed];
                counts.map(|count| count.to_string())
            });
            let [offered, acknowledged, failed] =
                clients.unwrap_or_else(|| [ABSENT; 3].map(str::to_owned));
            [
                rollout.bundle.clone(),
                phase(rollout),
                step(rollout).unwrap_or_else(|| ABSENT.to_owned()),
                short(rollout.stable.as_ref()),
                short(rollout.candidate.as_ref()),
                age(rollout.since.as_deref(), now),
                offered,
                acknowledged,
                failed,
            ]
        })
        .collect();
    let header = [
        "BUNDLE",
        "PHASE",
        "STEP",
        "STABLE",
        "CANDIDATE",
        "SINCE",
        "OFFERED",
        "RUN IT",
        "FAILED",
    ];
    table::columns(header, &rows)
}

/// Everything about one roll-out.
pub(super) fn details(rollout: &Rollout, now: Timestamp) -> String {
    let mut facts = vec![
        ("bundle", rollout.bundle.clone()),
        ("phase", phase(rollout)),
        ("since", age(rollout.since.as_deref(), now)),
        ("step", step(rollout).unwrap_or_else(|| ABSENT.to_owned())),
        ("stable", version(rollout.stable.as_ref())),
        ("candidate", version(rollout.candidate.as_ref())),
        ("strategy", text(rollout.strategy.as_deref())),
        ("epoch", number(rollout.epoch)),
    ];
    if let Some(criteria) = &rollout.criteria {
        facts.extend(criteria_facts(criteria));
    }
    facts.extend(replica_facts(rollout));
    let mut parts = vec![table::facts(&facts)];
    if let Some(criteria) = rollout.criteria.as_ref()
        && !criteria.checks.is_empty()
    {
        parts.push(checks(&criteria.checks, now));
    }
    if !rollout.history.is_empty() {
        parts.push(history(&rollout.history));
    }
    parts.join("\n\n")
}

/// The phase, step and candidate in one line.
pub(super) fn summary(rollout: &Rollout) -> String {
    let mut parts = vec![phase(rollout)];
    if let Some(step) = step(rollout) {
        parts.push(format!("step {step}"));
    }
    match (&rollout.candidate, &rollout.stable) {
        (Some(candidate), _) => parts.push(format!("candidate {}", candidate.short())),
        (None, Some(stable)) => parts.push(format!("stable {}", stable.short())),
        (None, None) => {}
    }
    table::printable(&parts.join(", "))
}

/// What a roll-out waits for, in one line.
pub(super) fn progress(rollout: &Rollout) -> String {
    let mut line = summary(rollout);
    if let Some(criteria) = &rollout.criteria {
        let clients = &criteria.clients;
        line.push_str(&format!(
            "; {} of {} clients run it, {} failed",
            clients.acknowledged, clients.offered, clients.failed
        ));
        if let Some(required) = criteria.soak.required_s {
            line.push_str(&format!("; observed for {}", soak(criteria, required)));
        }
    }
    if rollout.awaits_approval() {
        line.push_str("; waits for an approval: bundlegate rollout promote");
    }
    line
}

fn criteria_facts(criteria: &Criteria) -> Vec<(&'static str, String)> {
    let clients = &criteria.clients;
    let required = criteria.soak.required_s.unwrap_or_default();
    let approval = match (criteria.approval.required, criteria.approval.awaited) {
        (false, _) => "not required",
        (true, Some(true)) => "awaited: bundlegate rollout promote",
        (true, _) => "required once the other criteria are met",
    };
    vec![
        ("observed", soak(criteria, required)),
        (
            "clients",
            format!(
                "{} were offered it, {} run it (at least {} and {} %), {} failed ({} tolerated)",
                clients.offered,
                clients.acknowledged,
                clients.min,
                clients.quorum_percent,
                clients.failed,
                clients.tolerated
            ),
        ),
        (
            "outside",
            match clients.outside {
                0 => "0".to_owned(),
                count => format!(
                    "{count} run it without being in the step: does each replica have `rollout`?"
                ),
            },
        ),
        ("approval", approval.to_owned()),
    ]
}

fn replica_facts(rollout: &Rollout) -> Vec<(&'static str, String)> {
    let engine = match rollout.engine.as_deref() {
        Some("down") => "does not answer: no client is moved".to_owned(),
        other => text(other),
    };
    let replica = match (rollout.halted_here, rollout.leader) {
        (true, _) => "has halted the roll-out by itself",
        (false, true) => "leads: its observations decide",
        (false, false) => "follows",
    };
    vec![
        ("shared state", engine),
        ("this replica", replica.to_owned()),
    ]
}

fn checks(checks: &[Check], now: Timestamp) -> String {
    let rows: Vec<_> = checks
        .iter()
        .map(|check| {
            let outcome = match (check.outcome.as_deref(), check.reason.as_deref()) {
                (Some(outcome), Some(reason)) => format!("{outcome}: {reason}"),
                (outcome, _) => text(outcome),
            };
            let failures = format!(
                "{} of {}",
                check.failures.unwrap_or_default(),
                number(check.max_failures)
            );
            [
                check.name.clone(),
                float(check.value),
                float(check.min),
                float(check.max),
                failures,
                age(check.at.as_deref(), now),
                outcome,
            ]
        })
        .collect();
    let header = ["CHECK", "VALUE", "MIN", "MAX", "FAILURES", "AT", "OUTCOME"];
    table::columns(header, &rows)
}

/// The transitions, newest first.
fn history(history: &[Transition]) -> String {
    let rows: Vec<_> = history
        .iter()
        .rev()
        .map(|one| {
            [
                one.at.clone(),
                one.to.clone(),
                number(one.step),
                one.cause.clone(),
                text(one.by.as_deref()),
                one.reason.clone(),
            ]
        })
        .collect();
    table::columns(["AT", "TO", "STEP", "CAUSE", "BY", "REASON"], &rows)
}

fn phase(rollout: &Rollout) -> String {
    let phase = rollout.phase.as_deref().unwrap_or("unknown");
    match rollout.awaits_approval() {
        true => format!("{phase}, awaits approval"),
        false => phase.to_owned(),
    }
}

/// The step as `2 of 4 (20 %)`.
fn step(rollout: &Rollout) -> Option<String> {
    let (step, steps) = (rollout.step?, rollout.steps?);
    Some(match rollout.percent {
        Some(percent) if percent > 0.0 => format!("{step} of {steps} ({percent} %)"),
        _ => format!("{step} of {steps}"),
    })
}

/// The observed time as `10m of 30m`.
fn soak(criteria: &Criteria, required: u64) -> String {
    let observed = criteria.soak.observed_s;
    let observed = observed.map_or_else(|| "an unknown time".to_owned(), seconds);
    format!("{observed} of {}", seconds(required))
}

fn seconds(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    table::duration(SignedDuration::from_secs(seconds))
}

fn version(version: Option<&Version>) -> String {
    match version {
        Some(version) => match version.revision.as_deref().filter(|text| !text.is_empty()) {
            Some(revision) => format!("{} (revision {revision})", version.manifest),
            None => version.manifest.clone(),
        },
        None => ABSENT.to_owned(),
    }
}

fn short(version: Option<&Version>) -> String {
    version.map_or_else(|| ABSENT.to_owned(), Version::short)
}

fn age(then: Option<&str>, now: Timestamp) -> String {
    let then = then.and_then(|then| then.parse().ok());
    then.map_or_else(|| ABSENT.to_owned(), |then| table::age(then, now))
}

fn text(text: Option<&str>) -> String {
    text.unwrap_or(ABSENT).to_owned()
}

fn number(number: Option<u64>) -> String {
    number.map_or_else(|| ABSENT.to_owned(), |number| number.to_string())
}

fn float(number: Option<f64>) -> String {
    number.map_or_else(|| ABSENT.to_owned(), |number| number.to_string())
}
