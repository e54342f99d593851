//! `/rollouts` of the admin API: the staged roll-outs, and what operators ask for.

use bytes::Bytes;
use hyper::{Response, StatusCode, http::request::Parts};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::{
    admin_access,
    bundle_api::resource,
    fleet_api::timestamp,
    response,
    response_body::ResponseBody,
    rollouts::{RolloutReply, RolloutRequest, RolloutStatus, Rollouts},
    status::milliseconds,
};
use crate::{
    rollout::{
        Check, CheckState, EngineState, Millis, Operation, Operator, Outcome, Phase, Plan,
        Tolerance, Transition, Version,
    },
    telemetry,
};

/// The path of one roll-out, before the bundle's name.
pub(super) const PREFIX: &str = "/rollouts/";

/// The document of `GET /rollouts`.
pub(super) fn list(rollouts: &Rollouts) -> Value {
    let statuses = rollouts.all();
    let documents = statuses.iter();
    let documents = documents.map(|status| (status.bundle.clone(), document(status)));
    json!({
        "at": milliseconds(telemetry::now()),
        "rollouts": documents.collect::<Map<_, _>>(),
    })
}

/// Answers `GET /rollouts/NAME`.
pub(super) fn get(rollouts: &Rollouts, path: &str) -> Response<ResponseBody> {
    match name(path) {
        Ok(name) => match rollouts.get(&name) {
            Some(status) => response::json(StatusCode::OK, &document(&status)),
            None => unknown(&name),
        },
        Err(message) => bad_request(message),
    }
}

/// Answers `POST /rollouts/NAME/OPERATION` of a client that may change something: 200 with the plan that is
/// now in force, 409 if the plan does not allow the operation or has another epoch, 503 if it could not be
/// written, and 202 if only this replica has halted the roll-out or the result is not there yet.
pub(super) async fn operate(
    rollouts: &Rollouts,
    head: &Parts,
    body: &Bytes,
) -> Response<ResponseBody> {
    let request = match request(head.uri.path(), body) {
        Ok(request) => request,
        Err(Invalid::Operation) => {
            let message =
                "no such operation; use /rollouts/NAME/promote, pause, resume, abort or retry";
            return response::error(StatusCode::NOT_FOUND, "not_found", message, None);
        }
        Err(Invalid::Request(message)) => return bad_request(&message),
    };
    let bundle = request.bundle.clone();
    let reply = timeout(admin_access::wait_of(head), rollouts.operate(request)).await;
    match reply {
        Ok(Some(reply)) => answer(rollouts, &bundle, reply),
        Ok(None) => unavailable(&bundle, "the gateway shuts down"),
        Err(_) => {
            let message = "the operation has not ended yet; /rollouts has its result";
            accepted(&bundle, "waiting", message)
        }
    }
}

fn answer(rollouts: &Rollouts, bundle: &str, reply: RolloutReply) -> Response<ResponseBody> {
    match reply {
        RolloutReply::Changed(plan) => {
            let status = rollouts.get(bundle).map(|status| status.with_plan(plan));
            match status {
                Some(status) => response::json(StatusCode::OK, &document(&status)),
                // The configuration was reloaded meanwhile.
                None => unknown(bundle),
            }
        }
        RolloutReply::Conflict(message) => {
            response::error(StatusCode::CONFLICT, "conflict", &message, Some(bundle))
        }
        RolloutReply::Unreachable(message) => unavailable(bundle, &message),
        RolloutReply::HaltedHere => {
            let message = "the shared state does not answer: this replica has halted the roll-out and \
                           offers the candidate to no client; repeat the request once it answers";
            accepted(bundle, "halted_here", message)
        }
        RolloutReply::Unknown => unknown(bundle),
    }
}

fn accepted(bundle: &str, outcome: &str, message: &str) -> Response<ResponseBody> {
    let document = json!({ "bundle": bundle, "outcome": outcome, "message": message });
    response::json(StatusCode::ACCEPTED, &document)
}

fn unavailable(bundle: &str, message: &str) -> Response<ResponseBody> {
    let status = StatusCode::SERVICE_UNAVAILABLE;
    response::error(status, "unavailable", message, Some(bundle))
}

fn unknown(bundle: &str) -> Response<ResponseBody> {
    let message = "no bundle of this name is rolled out in steps; see /rollouts";
    response::error(StatusCode::NOT_FOUND, "not_found", message, Some(bundle))
}

fn bad_request(message: &str) -> Response<ResponseBody> {
    response::error(StatusCode::BAD_REQUEST, "bad_request", message, None)
}

/// Why a request is not carried out.
enum Invalid {
    /// The path has no operation.
    Operation,
    /// In words.
    Request(String),
}

/// The body of a request; all keys are optional.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    epoch: Option<u64>,
    full: Option<bool>,
    reason: Option<String>,
    by: Option<String>,
}

fn request(path: &str, body: &Bytes) -> Result<RolloutRequest, Invalid> {
    let (path, operation) = path.rsplit_once('/').ok_or(Invalid::Operation)?;
    let mut operation = operation_of(operation).ok_or(Invalid::Operation)?;
    if !path.starts_with(PREFIX) {
        return Err(Invalid::Operation);
    }
    let bundle = name(path).map_err(|message| Invalid::Request(message.to_owned()))?;
    let body = match body.trim_ascii() {
        b"" => Body::default(),
        json => serde_json::from_slice(json).map_err(|error| {
            let message =
                format!("the body is not an object of epoch, full, reason and by: {error}");
            Invalid::Request(message)
        })?,
    };
    match (&mut operation, body.full) {
        (Operation::Promote { full }, Some(wanted)) => *full = wanted,
        (_, None) => {}
        (_, Some(_)) => {
            let message = "`full` is for promote only".to_owned();
            return Err(Invalid::Request(message));
        }
    }
    Ok(RolloutRequest {
        bundle,
        operation,
        operator: Operator {
            by: body.by,
            reason: body.reason,
        },
        epoch: body.epoch,
    })
}

fn operation_of(word: &str) -> Option<Operation> {
    Some(match word {
        "promote" => Operation::Promote { full: false },
        "pause" => Operation::Pause,
        "resume" => Operation::Resume,
        "abort" => Operation::Abort,
        "retry" => Operation::Retry,
        _ => return None,
    })
}

/// The bundle's name in a path that begins with [`PREFIX`].
fn name(path: &str) -> Result<String, &'static str> {
    let name = resource(path).and_then(|path| Some(path.strip_prefix(&PREFIX[1..])?.to_owned()));
    name.ok_or("the path is not percent-encoded UTF-8")
}

/// The document of one roll-out.
pub(super) fn document(status: &RolloutStatus) -> Value {
    let mut document = match &status.plan {
        Some(plan) => planned(status, plan),
        None => json!({ "phase": null }),
    };
    document["bundle"] = status.bundle.clone().into();
    document["halted_here"] = status.is_halted.into();
    document["leader"] = status.is_leader.into();
    document["engine"] = engine(status.engine).into();
    document
}

/// The part of a bundle's `/status`.
pub(super) fn summary(status: &RolloutStatus) -> Value {
    let plan = status.plan.as_deref();
    json!({
        "phase": plan.map(|plan| plan.phase.label()),
        "step": plan.and_then(step),
        "percent": plan.map(Plan::percent),
        "candidate": plan.and_then(|plan| plan.candidate.as_ref()).map(version),
    })
}

fn planned(status: &RolloutStatus, plan: &Plan) -> Value {
    let history: Vec<_> = plan.history.iter().map(transition).collect();
    let is_idle = plan.phase == Phase::Idle;
    json!({
        "phase": plan.phase.label(),
        "step": step(plan),
        "steps": plan.strategy.steps.len(),
        "percent": plan.percent(),
        "since": time(plan.since),
        "began": time(plan.began),
        "epoch": plan.epoch,
        "generation": plan.generation,
        "stable": version(&plan.stable),
        "candidate": plan.candidate.as_ref().map(version),
        "strategy": plan.strategy.name,
        "refused": plan.refused,
        "criteria": (!is_idle).then(|| criteria(status, plan)),
        "history": history,
    })
}

/// The current step, from 1.
fn step(plan: &Plan) -> Option<usize> {
    (plan.phase != Phase::Idle).then_some(plan.step + 1)
}

/// The criteria of the current step with their values. What only the leader observes is `null` elsewhere.
fn criteria(status: &RolloutStatus, plan: &Plan) -> Value {
    let (strategy, tally) = (&plan.strategy, &status.tally);
    let step = strategy.steps.get(plan.step);
    let observed = status.criteria.as_ref();
    let checks = strategy.checks.iter().enumerate();
    let checks = checks.map(|(at, one)| check(one, status.checks.get(at)));
    let tolerated = match strategy.max_failures {
        Tolerance::Clients(clients) => clients.into(),
        Tolerance::Share(share) => share.at_most_of(tally.offered),
    };
    json!({
        "soak": {
            "observed_s": observed.map(|observed| observed.soaked.as_secs()),
            "required_s": step.map(|step| step.soak.as_secs()),
        },
        "clients": {
            "offered": tally.offered,
            "acknowledged": tally.acknowledged,
            "failed": tally.failed,
            "outside": tally.outside,
            "min": strategy.min_clients,
            "quorum_percent": strategy.quorum.percent(),
            "tolerated": tolerated,
        },
        "checks": checks.collect::<Vec<_>>(),
        "approval": {
            "required": step.is_some_and(|step| step.approve),
            "awaited": observed.map(|observed| observed.awaits_approval),
        },
    })
}

fn check(check: &Check, state: Option<&CheckState>) -> Value {
    let last = state.and_then(|state| state.last.as_ref());
    let (value, reason) = match last {
        Some(Outcome::Passed { value } | Outcome::Failed { value }) => (*value, None),
        Some(Outcome::Inconclusive { reason }) => (None, Some(reason)),
        None => (None, None),
    };
    json!({
        "name": check.name,
        "min": check.min,
        "max": check.max,
        "outcome": last.map(Outcome::label),
        "value": value,
        "reason": reason,
        "at": state.and_then(|state| state.last_at).map(time),
        "failures": state.map(|state| state.consecutive_failures),
        "max_failures": check.failures,
    })
}

fn transition(transition: &Transition) -> Value {
    let is_idle = transition.to == Phase::Idle;
    json!({
        "at": time(transition.at),
        "to": transition.to.label(),
        "step": (!is_idle).then_some(transition.step + 1),
        "cause": transition.cause.label(),
        "reason": transition.reason,
        "by": transition.by,
        "candidate": transition.candidate,
    })
}

fn version(version: &Version) -> Value {
    json!({
        "manifest": version.manifest,
        "etag": version.etag,
        "revision": version.revision,
    })
}

fn engine(engine: EngineState) -> &'static str {
    match engine {
        EngineState::Up => "up",
        EngineState::Down | EngineState::DownForLong => "down",
    }
}

fn time(millis: Millis) -> String {
    milliseconds(timestamp(millis))
}

impl RolloutStatus {
    /// With a plan that this replica may not have taken over yet: what was observed of another one does not
    /// count for it.
    fn with_plan(self, plan: std::sync::Arc<Plan>) -> Self {
        let of = |plan: &Plan| (plan.generation, plan.phase, plan.step);
        let known = self.plan.as_deref();
        if known.is_some_and(|known| of(known) == of(&plan)) {
            return Self {
                plan: Some(plan),
                ..self
            };
        }
        let is_counted = known.is_some_and(|known| known.generation == plan.generation);
        Self {
            tally: if is_counted {
                self.tally
            } else {
                Default::default()
            },
            criteria: None,
            checks: Vec::new(),
            plan: Some(plan),
            ..self
        }
    }
}
