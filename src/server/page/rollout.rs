//! The staged roll-out in the row of a bundle.

use jiff::Timestamp;

use super::{bundle::whole_digest, html::Html, text};
use crate::{
    rollout::{EngineState, Phase, Plan, Transition, Version},
    server::{fleet_api::timestamp, overview::BundleOverview, rollouts::RolloutStatus},
};

/// The colour and the text of the badge of a bundle whose roll-out is not idle, or unknown.
pub(super) fn badge(bundle: &BundleOverview) -> Option<(&'static str, String)> {
    let status = bundle.rollout.as_ref()?;
    let Some(plan) = &status.plan else {
        return Some(("calm", "Roll-out unknown".to_owned()));
    };
    let (step, steps) = (plan.step + 1, plan.strategy.steps.len());
    match plan.phase {
        Phase::Idle => None,
        Phase::Progressing if status.is_halted => Some(("warn", "Halted here".to_owned())),
        Phase::Progressing => Some(("calm", format!("Step {step} of {steps}"))),
        Phase::Paused => Some(("warn", format!("Paused in step {step} of {steps}"))),
        Phase::RolledBack => Some(("warn", "Rolled back".to_owned())),
    }
}

/// The facts of the roll-out, for a bundle that has one.
pub(super) fn facts(html: &mut Html, bundle: &BundleOverview, now: Timestamp) {
    let Some(status) = &bundle.rollout else {
        return;
    };
    let Some(plan) = &status.plan else {
        return text::fact(html, "Roll-out", |html| {
            html.text("no plan is known yet");
        });
    };
    text::fact(html, "Roll-out", |html| phase(html, status, plan, now));
    if let Some(candidate) = &plan.candidate {
        text::fact(html, "Candidate", |html| version(html, candidate));
    }
    if let Some(last) = plan.history.last() {
        text::fact(html, "Last transition", |html| transition(html, last, now));
    }
}

fn phase(html: &mut Html, status: &RolloutStatus, plan: &Plan, now: Timestamp) {
    html.text(match plan.phase {
        Phase::Idle => "idle",
        Phase::Progressing => "progressing",
        Phase::Paused => "paused",
        Phase::RolledBack => "rolled back",
    });
    html.text(" since ");
    text::ago(html, timestamp(plan.since), now);
    if plan.phase != Phase::Idle {
        let (step, steps) = (plan.step + 1, plan.strategy.steps.len());
        html.text(&format!(", step {step} of {steps}"));
        let percent = plan.percent();
        if percent > 0.0 {
            html.text(&format!(" ({percent} %)"));
        }
        let tally = &status.tally;
        html.text(&format!(
            ", run by {} of {} that were offered it, {} failed",
            tally.acknowledged,
            text::count(
                usize::try_from(tally.offered).unwrap_or(usize::MAX),
                "client"
            ),
            tally.failed
        ));
    }
    if status.engine != EngineState::Up {
        html.text("; the shared state does not answer, so no client is moved");
    }
    if status.is_halted {
        html.text("; this replica has halted it by itself");
    }
}

fn version(html: &mut Html, version: &Version) {
    if let Some(revision) = &version.revision {
        html.text("revision ");
        html.foreign(revision);
        html.text(", ");
    }
    whole_digest(html, version.manifest.as_str());
}

fn transition(html: &mut Html, transition: &Transition, now: Timestamp) {
    text::ago(html, timestamp(transition.at), now);
    html.text(": ");
    html.foreign(&transition.reason);
    if let Some(by) = &transition.by {
        html.text(", by ");
        html.foreign(by);
    }
}
