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
/// with thousands of clients. Returns the limit.
pub(crate) fn raise_open_files() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    limit
        .maximum
        .map_or(usize::MAX, |maximum| usize::try_from(maximum).unwrap())
}
