//! Every attack that `cosign.md` knows: what is offered, what becomes of it, and why.

mod certificates;
mod claims;
mod fields;
mod keys;
mod logs;
mod registries;
mod scene;
mod serving;

pub(crate) use scene::{keyed, keyless, policy, policy_with};
