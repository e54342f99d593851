//! One connection to a server: TCP, TLS, authentication, and the role of the server.

use std::{io, sync::Arc, time::Duration};

use redis::{
    AsyncConnectionConfig, FromRedisValue, Pipeline, RedisConnectionInfo, RedisError, Value,
    aio::MultiplexedConnection,
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName},
};
use rustls_platform_verifier::Verifier;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::{JoinHandle, spawn_blocking},
};
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use super::{
    error::SharedError,
    options::{Endpoint, Options, Servers},
    reply_limit::ReplyLimit,
    sentinel::{self, Sentinels},
};

/// Opens connections. Holds what does not change between them.
pub(super) struct Connector {
    tls: Option<TlsConnector>,
}

/// A connection to any server.
#[derive(Debug)]
pub(super) struct Session {
    redis: MultiplexedConnection,
    driver: Driver,
    limit: ReplyLimit,
    server: String,
}

/// A connection to a primary.
#[derive(Debug)]
pub(super) struct Connection {
    session: Session,
    /// The identifier of the process that answers. It is empty where the engine tells none.
    pub(super) run: Arc<str>,
}

/// The task that reads and writes; it ends with its owner.
#[derive(Debug)]
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Connector {
    /// Reads the roots of the system, if TLS is used.
    ///
    /// # Errors
    /// When the extra roots are unusable.
    pub(super) fn new(options: &Options) -> Result<Self, rustls::Error> {
        let tls = options
            .tls
            .then(|| tls_config(options.extra_roots.clone()))
            .transpose()?;
        let tls = tls.map(|tls| TlsConnector::from(Arc::new(tls)));
        Ok(Self { tls })
    }

    /// Connects to the server, and authenticates as `info` says.
    pub(super) async fn session(
        &self,
        endpoint: &Endpoint,
        info: &RedisConnectionInfo,
    ) -> Result<Session, SharedError> {
        let server = endpoint.to_string();
        let unreachable = |error: io::Error| SharedError::unreachable(&server, &error.to_string());
        let address = (endpoint.host.as_str(), endpoint.port);
        let stream = TcpStream::connect(address).await.map_err(unreachable)?;
        // Commands are small and their replies are waited for.
        stream.set_nodelay(true).map_err(unreachable)?;
        let Some(tls) = &self.tls else {
            return Session::new(stream, server, info).await;
        };
        let name = ServerName::try_from(endpoint.host.clone())
            .map_err(|_| SharedError::refused(&server, "no certificate can have this name"))?;
        let stream = tls
            .connect(name, stream)
            .await
            .map_err(|error| of_handshake(&server, &error))?;
        Session::new(stream, server, info).await
    }
}

impl Session {
    async fn new<S>(
        stream: S,
        server: String,
        info: &RedisConnectionInfo,
    ) -> Result<Self, SharedError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let limit = ReplyLimit::default();
        limit.reset();
        // The deadline is that of the caller.
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let stream = limit.apply(stream);
        let (redis, driver) = MultiplexedConnection::new_with_config(info, stream, config)
            .await
            .map_err(|error| SharedError::of_command(&server, error))?;
        Ok(Self {
            redis,
            driver: Driver(tokio::spawn(driver)),
            limit,
            server,
        })
    }

    /// The server, for errors.
    pub(super) fn server(&self) -> &str {
        &self.server
    }

    /// Sends commands, and waits for all replies. If the future is dropped, the session must not be
    /// used further.
    pub(super) async fn query<T: FromRedisValue>(
        &mut self,
        commands: &Pipeline,
    ) -> Result<T, SharedError> {
        self.try_query(commands)
            .await
            .map_err(|error| SharedError::of_command(&self.server, error))
    }

    /// As [`Self::query`], with the error of the crate.
    pub(super) async fn try_query<T: FromRedisValue>(
        &mut self,
        commands: &Pipeline,
    ) -> Result<T, RedisError> {
        self.limit.reset();
        commands.query_async(&mut self.redis).await
    }
}

impl Connection {
    /// Connects to the primary that the options name.
    pub(super) async fn open(
        connector: &Connector,
        options: &Arc<Options>,
    ) -> Result<Self, SharedError> {
        let password = password(options).await?;
        let primary = match &options.servers {
            Servers::Address(endpoint) => endpoint.clone(),
            Servers::Sentinel { master, nodes } => {
                let username = options.username.as_deref();
                let credential = password.as_deref().map(|password| (username, &**password));
                let sentinels = Sentinels { master, nodes };
                sentinel::primary(connector, sentinels, credential, options.timeout).await?
            }
        };
        let mut info = RedisConnectionInfo::default()
            .set_skip_set_lib_name()
            .set_db(options.database.into());
        if let Some(username) = &options.username {
            info = info.set_username(username);
        }
        if let Some(password) = &password {
            info = info.set_password(password.as_str());
        }
        Self::of_primary(connector.session(&primary, &info).await?).await
    }

    /// Checks that the server is a primary. A replica answers reads, which may be old, and a sentinel
    /// can name the former primary for a while.
    async fn of_primary(mut session: Session) -> Result<Self, SharedError> {
        let mut commands = Pipeline::new();
        commands.cmd("INFO").arg("replication");
        commands.cmd("INFO").arg("server");
        let (replication, server) = session.query::<(String, String)>(&commands).await?;
        match line(&replication, "role:") {
            Some("master") => {}
            Some(role) => {
                let reason = format!("it is no primary (its role is {role:?})");
                return Err(SharedError::refused(session.server(), &reason));
            }
            None => {
                let reason = "INFO tells no role";
                return Err(SharedError::protocol(session.server(), reason));
            }
        }
        Ok(Self {
            session,
            run: line(&server, "run_id:").unwrap_or_default().into(),
        })
    }

    /// Whether the server has closed the connection.
    pub(super) fn is_closed(&self) -> bool {
        self.session.driver.0.is_finished()
    }

    /// The server, for errors.
    pub(super) fn server(&self) -> &str {
        self.session.server()
    }

    /// Sends commands, as [`Session::query`] does.
    pub(super) async fn query(&mut self, commands: &Pipeline) -> Result<Vec<Value>, SharedError> {
        self.session.query(commands).await
    }
}

/// The value of the line that begins with `key`.
fn line<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(key))
}

/// Reads the password on a thread that may block.
async fn password(options: &Arc<Options>) -> Result<Option<Zeroizing<String>>, SharedError> {
    if options.password_file.is_none() {
        return Ok(None);
    }
    let read = {
        let options = Arc::clone(options);
        spawn_blocking(move || options.password()).await
    };
    let refused = |reason: &str| SharedError::refused(&options.servers.to_string(), reason);
    read.map_err(|error| refused(&error.to_string()))?
        .map_err(|reason| refused(&reason))
}

/// A configuration that trusts the roots of the system and `extra_roots`, as reqwest does by default.
fn tls_config(extra_roots: Vec<CertificateDer<'static>>) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = if extra_roots.is_empty() {
        Verifier::new(Arc::clone(&provider))
    } else {
        Verifier::new_with_extra_roots(extra_roots, Arc::clone(&provider))
    }?;
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    tls.dangerous().set_certificate_verifier(Arc::new(verifier));
    Ok(tls)
}

/// The error of a TLS handshake.
fn of_handshake(server: &str, error: &io::Error) -> SharedError {
    let tls = error.get_ref().and_then(|error| error.downcast_ref());
    match tls {
        Some(rustls::Error::InvalidMessage(_)) => {
            SharedError::refused(server, "it does not use TLS; write `redis://` for it")
        }
        Some(tls) => SharedError::refused(server, &format!("TLS: {tls}")),
        None => SharedError::unreachable(server, &format!("TLS handshake: {error}")),
    }
}

/// The delay before the attempt after this number of failed ones: from 100 ms to a second.
pub(super) fn retry_delay(failures: u32) -> Duration {
    FIRST_RETRY_DELAY
        .saturating_mul(1 << failures.min(8))
        .min(MAX_RETRY_DELAY)
}

const FIRST_RETRY_DELAY: Duration = Duration::from_millis(100);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(1);
