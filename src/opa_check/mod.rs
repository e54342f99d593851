//! Runs the real `opa` on a bundle before it is published: OPA's own compiler finds what no
//! other reader of the format does, such as an unsafe variable or a rule that collides with
//! data, and its test runner runs the tests that a bundle carries.
//!
//! The program runs in a folder of its own, with limits on time, memory, output and file size,
//! without our environment, and with capabilities whose `allow_net` is empty. What it says in
//! JSON decides; that it crashed, was killed or took too long says nothing about the bundle.

mod checker;
mod program;
mod report;
mod running;
mod sandbox;
mod scratch;

#[cfg(test)]
mod tests;

pub use checker::{Checker, Checkers, Options, Tested};
pub use program::{Opa, StartError, find};
pub use report::{Place, Problem, Problems, TestRun, Verdict};
pub use running::end_all;
pub use sandbox::Unavailable;
