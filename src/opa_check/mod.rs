//! Runs the real `opa` on a bundle before it is published. OPA's own compiler finds errors that no
//! other reader of the format finds, such as an unsafe variable or a rule that conflicts with data,
//! and its test runner runs the tests in the bundle.
//!
//! The program runs in a folder of its own, with limits on time, memory, output and file size,
//! without the environment of this process, and with capabilities whose `allow_net` is empty. Its
//! JSON output is the verdict. A crash, a kill or a timeout is not a verdict about the bundle.

mod checker;
mod program;
mod report;
mod running;
mod sandbox;
mod scratch;
mod text;

#[cfg(test)]
mod tests;

pub use checker::{Checker, Checkers, Options, TestOutcome};
pub use program::{Opa, StartError, find};
pub use report::{Place, Problem, Problems, TestRun, Verdict};
pub use running::kill_all;
pub use sandbox::Unavailable;
