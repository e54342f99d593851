//! What is served in place of a bundle that is withdrawn.

/// What happens to clients when there is nothing to serve any more.
///
/// Withdrawing stops distribution, not enforcement: OPA keeps its last policy on every error.
/// Only another bundle takes a policy out of a running fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnWithdraw {
    /// The bundle that is served instead, under the name of the withdrawn one, as long as that
    /// is withdrawn and this one is not. Judged by its own trust policy. It has to be
    /// configured, must not be the bundle itself, and must not name a fallback of its own, so
    /// that there are neither chains nor circles.
    pub fallback: String,
}
