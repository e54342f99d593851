//! `bundles.NAME.delta`.

use std::ops::RangeInclusive;

use super::{fleet::number, problem::Problem, raw, schema::size};
use crate::watch::DeltaOptions;

/// Reads `delta`; `None` if there are no deltas.
pub(super) fn read(raw: Option<raw::Delta>) -> Result<Option<DeltaOptions>, Problem> {
    let Some(raw) = raw else {
        return Ok(None);
    };
    if raw.history.is_none() {
        return Err(Problem::new(
            "without `history` there are no deltas; write the number of earlier versions from which OPAs get one, such as \
             history: 4, or remove `delta`",
        ));
    }
    let history = number(raw.history, &HISTORIES, 0).map_err(|problem| problem.at("history"))?;
    let ratio = raw.ratio.unwrap_or(RATIO);
    if !(ratio > 0.0 && ratio <= 1.0) {
        return Err(Problem::new(format!(
            "{ratio} is no part of a bundle; write a number above 0 and at most 1, such as {RATIO}"
        ))
        .at("ratio"));
    }
    let memory = raw.memory.map_or(MEMORY, |size| size.bytes());
    if !MEMORIES.contains(&memory) {
        let (least, most) = (size(*MEMORIES.start()), size(*MEMORIES.end()));
        return Err(Problem::new(format!(
            "{memory} bytes are not between {least} and {most}; write a size such as {}",
            size(MEMORY)
        ))
        .at("memory"));
    }
    Ok((history > 0).then_some(DeltaOptions {
        history,
        ratio,
        memory,
    }))
}

/// The default of `ratio`.
pub(super) const RATIO: f64 = 0.5;
/// The default of `memory`.
pub(super) const MEMORY: u64 = 256 << 20;
/// Each version is kept, and each new one is compared with all of them.
pub(super) const HISTORIES: RangeInclusive<u64> = 0..=32;
pub(super) const MEMORIES: RangeInclusive<u64> = (1 << 20)..=(64 << 30);
