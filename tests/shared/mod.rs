//! The gateway that both test programs run, and how they wait for it. Each program compiles these
//! files as a module of its own.

pub(crate) mod gateway;
pub(crate) mod issuer;
mod process;
mod wait;

pub(crate) use gateway::TestGateway;
pub(crate) use process::Process;
pub(crate) use wait::{PATIENCE, poll_until};
