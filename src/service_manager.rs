//! Messages to a service manager about the state of this process, by the protocol of systemd's
//! `sd_notify(3)`, which other managers and podman speak as well: one datagram each, to the socket
//! that `NOTIFY_SOCKET` names. Without that variable nothing is sent.

use std::{
    env,
    ffi::{OsStr, OsString},
    io,
    os::unix::{ffi::OsStrExt as _, net},
    path::Path,
    process,
    sync::Arc,
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};
use tokio::{net::UnixDatagram, time::timeout};

use crate::telemetry::{SENTENCE_BYTES, cut};

/// Time for one message. The service manager reads its socket at once, or is in trouble itself.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// The service manager that has started this process, if it wants messages. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct ServiceManager(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    socket: UnixDatagram,
    watchdog: Option<Duration>,
}

/// The reason for which the service manager gets no messages.
#[derive(Debug, thiserror::Error)]
pub enum ServiceManagerError {
    /// Another kind of address.
    #[error(
        "NOTIFY_SOCKET is {0:?}, which is neither an absolute path nor an abstract socket (@NAME); \
         unset it, or start bundlegate by its service manager"
    )]
    Address(OsString),
    /// The socket can't be reached.
    #[error(
        "NOTIFY_SOCKET is {address:?}: {error}; unset it, or start bundlegate by its service manager"
    )]
    Connect {
        /// The address.
        address: OsString,
        /// The reason.
        error: io::Error,
    },
}

impl ServiceManager {
    /// The service manager that the environment names: `NOTIFY_SOCKET`, and `WATCHDOG_USEC` with
    /// `WATCHDOG_PID` for [`Self::watchdog`]. Needs a runtime, which has to outlive the messages.
    ///
    /// # Errors
    /// When `NOTIFY_SOCKET` names no socket that this process can send to.
    pub fn from_env() -> Result<Self, ServiceManagerError> {
        let Some(address) = env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty())
        else {
            return Ok(Self::default());
        };
        let [limit, pid] = ["WATCHDOG_USEC", "WATCHDOG_PID"].map(|name| env::var(name).ok());
        let watchdog = watchdog(limit.as_deref(), pid.as_deref(), process::id());
        Self::at(&address, watchdog)
    }

    /// The service manager at an address as in `NOTIFY_SOCKET`, which expects a keep-alive ping within
    /// `watchdog`.
    ///
    /// # Errors
    /// When this process can't send to that address.
    pub fn at(address: &OsStr, watchdog: Option<Duration>) -> Result<Self, ServiceManagerError> {
        let Some(parsed) = socket_address(address) else {
            return Err(ServiceManagerError::Address(address.to_owned()));
        };
        let socket = parsed.and_then(|address| connect(&address));
        let socket = socket.map_err(|error| ServiceManagerError::Connect {
            address: address.to_owned(),
            error,
        })?;
        Ok(Self(Some(Arc::new(Inner { socket, watchdog }))))
    }

    /// Whether there is a service manager that wants messages.
    pub fn is_present(&self) -> bool {
        self.0.is_some()
    }

    /// The time within which [`Self::send_watchdog`] has to be called again and again; `None` if
    /// the service manager has no watchdog.
    pub fn watchdog(&self) -> Option<Duration> {
        self.0.as_ref()?.watchdog
    }

    /// The start has completed, or a reload.
    pub async fn send_ready(&self) {
        self.send("READY=1").await;
    }

    /// A reload begins. It ends with [`Self::send_ready`], whatever its outcome.
    pub async fn send_reloading(&self) {
        // The manager tells by it whether this reload began after its own request.
        let now = clock_gettime(ClockId::Monotonic);
        let microseconds = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1_000;
        let message = format!("RELOADING=1\nMONOTONIC_USEC={microseconds}");
        self.send(&message).await;
    }

    /// The process is about to end, within `limit`.
    pub async fn send_stopping(&self, limit: Duration) {
        let limit = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX);
        let message = format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={limit}\nSTATUS=draining");
        self.send(&message).await;
    }

    /// What people read in `systemctl status`. Any text.
    pub async fn send_status(&self, text: &str) {
        self.send(&format!("STATUS={}", line(text))).await;
    }

    /// The keep-alive ping for the watchdog.
    pub async fn send_watchdog(&self) {
        self.send("WATCHDOG=1").await;
    }

    async fn send(&self, message: &str) {
        let Some(Inner { socket, .. }) = self.0.as_deref() else {
            return;
        };
        let sent = timeout(SEND_TIMEOUT, socket.send(message.as_bytes())).await;
        let sent = sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        if let Err(error) = sent {
            let message = message.lines().next().unwrap_or_default();
            tracing::warn!(%error, message, "the service manager (NOTIFY_SOCKET) got no message");
        }
    }
}

/// The address that `NOTIFY_SOCKET` stands for; `None` if it has no known form.
fn socket_address(address: &OsStr) -> Option<io::Result<net::SocketAddr>> {
    if Path::new(address).is_absolute() {
        return Some(net::SocketAddr::from_pathname(address));
    }
    let name = address.as_bytes().strip_prefix(b"@")?;
    abstract_address(name)
}

#[cfg(target_os = "linux")]
fn abstract_address(name: &[u8]) -> Option<io::Result<net::SocketAddr>> {
    use std::os::linux::net::SocketAddrExt as _;
    Some(net::SocketAddr::from_abstract_name(name))
}

#[cfg(not(target_os = "linux"))]
fn abstract_address(_name: &[u8]) -> Option<io::Result<net::SocketAddr>> {
    None
}

fn connect(address: &net::SocketAddr) -> io::Result<UnixDatagram> {
    let socket = net::UnixDatagram::unbound()?;
    socket.connect_addr(address)?;
    socket.set_nonblocking(true)?;
    UnixDatagram::from_std(socket)
}

/// The limit of the watchdog, if it is meant for the process `own`.
fn watchdog(limit: Option<&str>, pid: Option<&str>, own: u32) -> Option<Duration> {
    if pid.is_some_and(|pid| pid.parse() != Ok(own)) {
        return None;
    }
    let limit = limit?.parse().ok().filter(|limit| *limit > 0)?;
    Some(Duration::from_micros(limit))
}

/// A line that adds no variable to its message.
fn line(text: &str) -> String {
    cut(text, SENTENCE_BYTES).replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    async fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 8192];
        let length = timeout(Duration::from_secs(60), socket.recv(&mut buffer));
        let length = length.await.unwrap().unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[tokio::test]
    async fn messages_are_those_of_sd_notify_and_no_text_adds_another() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let manager = ServiceManager::at(path.as_os_str(), None).unwrap();
        manager.send_ready().await;
        assert_eq!(received(&socket).await, "READY=1");
        manager.send_status("refused: a\nSTOPPING=1\u{1b}[2J").await;
        let status = received(&socket).await;
        assert_eq!(status, "STATUS=refused: a STOPPING=1 [2J");
        manager.send_status(&"x".repeat(1 << 20)).await;
        assert!(received(&socket).await.len() <= SENTENCE_BYTES + "STATUS=".len());
        manager.send_reloading().await;
        let reloading = received(&socket).await;
        let since = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
        assert!(since.unwrap().parse::<u64>().unwrap() > 0, "{reloading}");
        manager.send_stopping(Duration::from_secs(15)).await;
        assert_eq!(
            received(&socket).await,
            "STOPPING=1\nEXTEND_TIMEOUT_USEC=15000000\nSTATUS=draining"
        );
    }

    /// A manager that reads nothing must not stop a reload or the drain.
    #[tokio::test(start_paused = true)]
    async fn a_manager_that_reads_nothing_delays_a_message_by_a_second_at_most() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("notify");
        let _socket = UnixDatagram::bind(&path).unwrap();
        let manager = ServiceManager::at(path.as_os_str(), None).unwrap();
        let began = tokio::time::Instant::now();
        let mut timed_out = false;
        for _ in 0..100_000 {
            manager.send_watchdog().await;
            timed_out = began.elapsed() >= SEND_TIMEOUT;
            if timed_out {
                break;
            }
        }
        assert!(timed_out, "the socket never was full");
        assert_eq!(began.elapsed(), SEND_TIMEOUT);
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn an_abstract_socket_gets_messages_as_well() {
        let name = format!("bundlegate-test-{}", process::id());
        let address = abstract_address(name.as_bytes()).unwrap().unwrap();
        let socket = net::UnixDatagram::bind_addr(&address).unwrap();
        socket.set_nonblocking(true).unwrap();
        let socket = UnixDatagram::from_std(socket).unwrap();
        let manager = ServiceManager::at(format!("@{name}").as_ref(), None).unwrap();
        manager.send_watchdog().await;
        assert_eq!(received(&socket).await, "WATCHDOG=1");
    }

    #[tokio::test]
    async fn an_address_without_a_socket_is_told_with_a_way_out() {
        for (address, reason) in [
            (
                "vsock:2:1234",
                "neither an absolute path nor an abstract socket",
            ),
            ("notify", "neither an absolute path nor an abstract socket"),
            ("/nonexistent/notify", "No such file"),
        ] {
            let error = ServiceManager::at(address.as_ref(), None).unwrap_err();
            let error = error.to_string();
            assert!(
                error.contains(address) && error.contains(reason) && error.contains("; unset it"),
                "{error}"
            );
        }
        ServiceManager::default().send_ready().await;
    }

    #[test]
    fn the_watchdog_is_that_of_this_process() {
        let limit = Some(Duration::from_secs(30));
        assert_eq!(watchdog(Some("30000000"), None, 7), limit);
        assert_eq!(watchdog(Some("30000000"), Some("7"), 7), limit);
        for (usec, pid) in [
            (None, None),
            (Some("0"), None),
            (Some("soon"), None),
            (Some("30000000"), Some("8")),
            (Some("30000000"), Some("")),
        ] {
            assert_eq!(watchdog(usec, pid, 7), None, "{usec:?} {pid:?}");
        }
    }
}
