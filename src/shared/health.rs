//! Whether the shared state is reachable: one log line for each change, and a gauge.

use std::sync::{Mutex, MutexGuard, PoisonError};

use prometheus::IntGauge;

use super::error::SharedError;

/// What a call does, as far as it can fail apart from the others: a full engine refuses writes and
/// answers reads, and a user may lack the permission for scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
    ReadPlans,
    Script,
}

/// Where a call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// It was not tried, because an attempt has failed a moment ago.
    Skipped(SharedError),
    /// There was no connection, or no answer.
    Connection(SharedError),
    /// The engine answered, but not as it should.
    Reply(SharedError),
    /// The engine did as it should, but another program has broken the plan of this call. It says
    /// nothing about other calls.
    Plan(SharedError),
}

/// The failures since the last successes.
#[derive(Debug)]
pub(super) struct Health {
    server: String,
    up: IntGauge,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    connection_fails: bool,
    reads_fail: bool,
    writes_fail: bool,
    plan_reads_fail: bool,
    scripts_fail: bool,
    /// Whether the last log line says that the state is unreachable.
    is_down: bool,
    last_error: Option<SharedError>,
}

impl Health {
    /// That of a `server` that was not asked yet.
    pub(super) fn new(server: String, up: IntGauge) -> Self {
        Self {
            server,
            up,
            state: Mutex::default(),
        }
    }

    /// The last failure.
    pub(super) fn last_error(&self) -> Option<SharedError> {
        self.lock().last_error.clone()
    }

    /// Records a call that succeeded.
    pub(super) fn record_success(&self, access: Access) {
        let mut state = self.lock();
        state.connection_fails = false;
        *state.fails(access) = false;
        self.compare(&mut state);
    }

    /// Records a call that failed.
    pub(super) fn record_failure(&self, access: Access, failure: &Failure) {
        let mut state = self.lock();
        match failure {
            Failure::Skipped(_) => return,
            Failure::Plan(_) => {
                state.connection_fails = false;
                *state.fails(access) = false;
            }
            Failure::Connection(error) => {
                state.connection_fails = true;
                state.last_error = Some(error.clone());
            }
            Failure::Reply(error) => {
                state.connection_fails = false;
                *state.fails(access) = true;
                state.last_error = Some(error.clone());
            }
        }
        self.compare(&mut state);
    }

    /// Logs a change.
    fn compare(&self, state: &mut State) {
        let is_down = state.connection_fails
            || state.reads_fail
            || state.writes_fail
            || state.plan_reads_fail
            || state.scripts_fail;
        self.up.set(i64::from(!is_down));
        let was_down = std::mem::replace(&mut state.is_down, is_down);
        let server = &*self.server;
        match (was_down, is_down) {
            (false, true) => {
                let error = state.last_error.as_ref().map(ToString::to_string);
                let error = error.unwrap_or_default();
                tracing::warn!(
                    server,
                    error,
                    "the shared state is unavailable: this replica knows what it sees itself"
                );
            }
            (true, false) => tracing::info!(server, "the shared state is available again"),
            _ => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn fails(&mut self, access: Access) -> &mut bool {
        match access {
            Access::Read => &mut self.reads_fail,
            Access::Write => &mut self.writes_fail,
            Access::ReadPlans => &mut self.plan_reads_fail,
            Access::Script => &mut self.scripts_fail,
        }
    }
}

impl Failure {
    /// The failure of a command on a connection.
    pub(super) fn of_command(error: SharedError) -> Self {
        match error {
            SharedError::Unreachable { .. } | SharedError::TimedOut { .. } => {
                Self::Connection(error)
            }
            _ => Self::Reply(error),
        }
    }

    pub(super) fn into_error(self) -> SharedError {
        match self {
            Self::Skipped(error)
            | Self::Connection(error)
            | Self::Reply(error)
            | Self::Plan(error) => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_up_while_reads_and_writes_succeed() {
        let up = IntGauge::new("up", "Up.").unwrap();
        let health = Health::new("server".to_owned(), up.clone());
        let dead = || Failure::of_command(SharedError::unreachable("server", "closed"));
        let full = || Failure::of_command(SharedError::refused("server", "OOM"));
        let broken = || Failure::Plan(SharedError::protocol("server", "a plan without content"));
        let skipped = || Failure::Skipped(SharedError::unreachable("server", "closed"));
        assert_eq!(up.get(), 0);
        let calls = [
            (Access::Read, None, 1),
            (Access::Read, Some(dead()), 0),
            (Access::Write, Some(skipped()), 0),
            // Any success shows that there is a connection.
            (Access::Write, None, 1),
            // Reads that succeed do not hide writes that are refused.
            (Access::Write, Some(full()), 0),
            (Access::Read, None, 0),
            (Access::Write, None, 1),
            // An answer, though an error, shows that there is a connection.
            (Access::Read, Some(dead()), 0),
            (Access::Write, Some(full()), 0),
            (Access::Write, None, 1),
            (Access::Write, Some(skipped()), 1),
            // Neither of the others hides scripts or plans that fail.
            (Access::Script, Some(full()), 0),
            (Access::Write, None, 0),
            (Access::ReadPlans, None, 0),
            (Access::Script, None, 1),
            (Access::ReadPlans, Some(full()), 0),
            (Access::Read, None, 0),
            (Access::ReadPlans, None, 1),
            // A broken plan is that of its own calls; the script has run.
            (Access::Script, Some(broken()), 1),
            (Access::Script, Some(full()), 0),
            (Access::Script, Some(broken()), 1),
            (Access::Script, Some(dead()), 0),
            (Access::Script, Some(broken()), 1),
        ];
        for (index, (access, failure, expected)) in calls.into_iter().enumerate() {
            match failure {
                None => health.record_success(access),
                Some(failure) => health.record_failure(access, &failure),
            }
            assert_eq!(up.get(), expected, "call {index}");
        }
    }
}
