//! Simulated time.

use bundlegate::rollout::Millis;

/// Microseconds since the begin of the simulation.
pub(crate) type Micros = u64;

pub(crate) const MILLI: Micros = 1000;
pub(crate) const SECOND: Micros = 1000 * MILLI;
pub(crate) const MINUTE: Micros = 60 * SECOND;

/// When the simulation begins, by the engine's clock.
const BEGIN: Millis = 1_800_000_000_000;

/// A time by the engine's clock.
pub(crate) fn millis(at: Micros) -> Millis {
    BEGIN + at / MILLI
}

pub(crate) fn seconds(at: Micros) -> f64 {
    at as f64 / SECOND as f64
}
