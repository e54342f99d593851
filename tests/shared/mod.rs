//! The gateway that both test programs run, and how they wait for it. Each program compiles these
//! files as a module of its own.

mod accept;
pub(crate) mod gateway;
pub(crate) mod issuer;
mod process;
mod promql;
mod wait;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

pub(crate) use accept::{Stream, accept};
pub(crate) use gateway::TestGateway;
pub(crate) use process::Process;
pub(crate) use promql::names;
pub(crate) use wait::{PATIENCE, poll_until};

/// Raises the limit of open files of this process, and of the programs that it starts, for tests
/// with a thousand clients.
pub(crate) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).unwrap();
}
