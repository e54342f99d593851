//! Finding the primary by sentinels.

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use redis::{ErrorKind, Pipeline, RedisConnectionInfo, RedisError};
use tokio::time::{Duration, timeout};

use super::{
    connection::{Connector, Session},
    error::{SharedError, WRONG_PASSWORD},
    options::Endpoint,
};

/// The sentinels, and the name by which they know the primary.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sentinels<'a> {
    pub(super) master: &'a str,
    pub(super) nodes: &'a [Endpoint],
}

/// A user and a password.
type Credential<'a> = (Option<&'a str>, &'a str);

/// Asks all sentinels at once, so that one that does not answer delays nothing, and returns the first
/// address. The caller checks that it is that of a primary.
///
/// # Errors
/// That of one of the sentinels, if none of them knows the address within half of `timeout`. What a
/// sentinel says comes before the failure to reach one.
pub(super) async fn primary(
    connector: &Connector,
    servers: Sentinels<'_>,
    credential: Option<Credential<'_>>,
    timeout: Duration,
) -> Result<Endpoint, SharedError> {
    let mut answers: FuturesUnordered<_> = servers
        .nodes
        .iter()
        .map(|node| ask_within(connector, servers.master, node, credential, timeout / 2))
        .collect();
    let mut error = None;
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(primary) => return Ok(primary),
            Err(answer) if matches!(error, Some(SharedError::Refused { .. })) => drop(answer),
            Err(answer) => error = Some(answer),
        }
    }
    Err(error.unwrap_or_else(|| SharedError::unreachable(servers.master, "it has no sentinels")))
}

async fn ask_within(
    connector: &Connector,
    master: &str,
    node: &Endpoint,
    credential: Option<Credential<'_>>,
    limit: Duration,
) -> Result<Endpoint, SharedError> {
    timeout(limit, ask(connector, master, node, credential))
        .await
        .unwrap_or_else(|_| {
            Err(SharedError::TimedOut {
                server: node.to_string(),
                timeout: limit,
            })
        })
}

async fn ask(
    connector: &Connector,
    master: &str,
    node: &Endpoint,
    credential: Option<Credential<'_>>,
) -> Result<Endpoint, SharedError> {
    // Most sentinels have no password, and refuse one.
    let anonymous = RedisConnectionInfo::default().set_skip_set_lib_name();
    let mut session = connector.session(node, &anonymous).await?;
    let found = match (address(&mut session, master).await, credential) {
        (Err(error), Some(credential)) if is_noauth(&error) => {
            authenticate(&mut session, credential).await?;
            address(&mut session, master).await
        }
        (found, _) => found,
    };
    let found = found.map_err(|error| SharedError::of_command(session.server(), error))?;
    let Some((host, port)) = found else {
        let reason = format!("this sentinel knows no primary `{master}`");
        return Err(SharedError::refused(session.server(), &reason));
    };
    Ok(Endpoint { host, port })
}

async fn address(session: &mut Session, master: &str) -> Result<Option<(String, u16)>, RedisError> {
    let mut commands = Pipeline::new();
    commands
        .cmd("SENTINEL")
        .arg("get-master-addr-by-name")
        .arg(master);
    let (found,) = session.try_query(&commands).await?;
    Ok(found)
}

async fn authenticate(
    session: &mut Session,
    (username, password): Credential<'_>,
) -> Result<(), SharedError> {
    let mut commands = Pipeline::new();
    commands.cmd("AUTH").arg(username).arg(password).ignore();
    session
        .try_query::<()>(&commands)
        .await
        .map_err(|error| match error.kind() {
            ErrorKind::Io => SharedError::of_command(session.server(), error),
            // Not quoted: an engine without the command answers with its arguments.
            _ => SharedError::refused(session.server(), WRONG_PASSWORD),
        })
}

fn is_noauth(error: &RedisError) -> bool {
    let errors = error.clone().into_server_errors();
    errors.is_some_and(|errors| errors.iter().any(|(_, error)| error.code() == "NOAUTH"))
}
