//! How many files the process may have open; every connection is one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The files that clients can't use up: those of operators, registries and the cache.
const RESERVE: u64 = 256;

/// Raises the soft limit as far as `connections` need it and the hard limit allows, and returns how
/// many connections then fit. Without this the usual soft limit of 1024 would let idle clients
/// take the last descriptor, and with it the admin listener and the registries.
pub(super) fn room_for(connections: usize) -> usize {
    let wanted = (connections as u64).saturating_add(RESERVE);
    let limit = getrlimit(Resource::Nofile);
    let allowed = raised(
        limit.current.unwrap_or(u64::MAX),
        limit.maximum.unwrap_or(u64::MAX),
        wanted,
    );
    let allowed = match setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(allowed),
            maximum: limit.maximum,
        },
    ) {
        Ok(()) => allowed,
        Err(_) => limit.current.unwrap_or(u64::MAX),
    };
    let fit = fitting(allowed, connections);
    if fit < connections {
        tracing::warn!(
            limit = allowed,
            connections = fit,
            "the limit of open files (ulimit -n) leaves room for fewer clients than server.max_connections; raise it"
        );
    }
    fit
}

fn raised(soft: u64, hard: u64, wanted: u64) -> u64 {
    wanted.min(hard).max(soft)
}

/// The number of files for clients: at least a quarter of those that are allowed, even if these are
/// fewer than the reserve.
fn fitting(allowed: u64, connections: usize) -> usize {
    let room = allowed.saturating_sub(RESERVE).max(allowed / 4).max(1);
    usize::try_from(room).unwrap_or(usize::MAX).min(connections)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_rises_to_what_is_wanted_and_never_sinks() {
        assert_eq!(raised(1024, 524_288, 20_256), 20_256);
        assert_eq!(raised(1024, 4096, 20_256), 4096);
        assert_eq!(raised(65_536, 65_536, 20_256), 65_536);
    }

    #[test]
    fn clients_never_get_what_operators_and_registries_need() {
        assert_eq!(fitting(20_256, 20_000), 20_000);
        assert_eq!(fitting(1024, 20_000), 768);
        assert_eq!(fitting(64, 20_000), 16);
        assert_eq!(fitting(u64::MAX, 20_000), 20_000);
    }
}
