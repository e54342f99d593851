//! What a service manager is told (`NOTIFY_SOCKET`), and its watchdog.

use std::{
    fs,
    os::{linux::net::SocketAddrExt as _, unix::net},
    process::Command,
    sync::mpsc,
    time::Duration,
};

use bundlegate::{
    config::Config,
    gateway::{self, Gateway},
    service_manager::ServiceManager,
};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::UnixDatagram, sync::oneshot, time::timeout};

use crate::{
    faulty::{Fault, FaultyRegistry, Hold},
    gateway::bundle,
    shared::{PATIENCE, Process, poll_until},
};

/// The time of the watchdog. A keep-alive ping comes after half of it.
const WATCHDOG: Duration = Duration::from_millis(200);

/// The side of the service manager.
struct Manager {
    socket: UnixDatagram,
    /// The value of `NOTIFY_SOCKET`.
    address: String,
}

impl Manager {
    fn at_path(folder: &TempDir) -> Self {
        let path = folder.path().join("notify.sock");
        Self {
            socket: UnixDatagram::bind(&path).unwrap(),
            address: path.to_str().unwrap().to_owned(),
        }
    }

    fn at_abstract_name(folder: &TempDir) -> Self {
        let name = folder.path().to_str().unwrap();
        let address = net::SocketAddr::from_abstract_name(name).unwrap();
        let socket = net::UnixDatagram::bind_addr(&address).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self {
            socket: UnixDatagram::from_std(socket).unwrap(),
            address: format!("@{name}"),
        }
    }

    async fn next(&self) -> String {
        let mut buffer = [0; 8192];
        let received = timeout(PATIENCE, self.socket.recv(&mut buffer));
        let length = received.await.expect("no message").unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    /// The next message that is no keep-alive ping.
    async fn event(&self) -> String {
        loop {
            let message = self.next().await;
            if message != "WATCHDOG=1" {
                return message;
            }
        }
    }

    /// Waits for a status that begins with `status`.
    async fn status(&self, status: &str) -> String {
        let event = self.event().await;
        assert!(event.starts_with(&format!("STATUS={status}")), "{event}");
        event
    }

    /// Waits for the two messages of a reload, and returns when it began.
    async fn reload(&self) -> Duration {
        let began = self.event().await;
        let began = began.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
        let began = began.expect("no reload").parse().unwrap();
        assert_eq!(self.event().await, "READY=1");
        Duration::from_micros(began)
    }
}

fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.try_into().unwrap())
}

fn config(registry: &FaultyRegistry) -> Value {
    json!({
        "version": 1,
        "server": {
            "listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "ready_after": "1h",
            "drain": { "notice": "7s", "over": "8s" },
        },
        "clients": [{ "name": "anyone", "anonymous": true, "bundles": ["**"] }],
        "registries": { registry.address.to_string(): { "scheme": "http" } },
        "trust": { "policies": { "dev": "unsigned" } },
        "bundles": { "authz": {
            "reference": registry.reference("live").to_string(), "trust": "dev", "poll": "1s",
        } },
    })
}

fn write(folder: &TempDir, text: &str) {
    let next = folder.path().join("next");
    fs::write(&next, text).unwrap();
    fs::rename(next, folder.path().join("bundlegate.yaml")).unwrap();
}

#[tokio::test]
async fn systemd_is_told_of_start_reloads_refusals_and_the_end() {
    tells_all_at(Manager::at_path).await;
}

#[tokio::test]
async fn an_abstract_socket_is_told_the_same() {
    tells_all_at(Manager::at_abstract_name).await;
}

async fn tells_all_at(manager: impl FnOnce(&TempDir) -> Manager) {
    let registry = FaultyRegistry::start().await;
    let hold = Hold::default();
    registry.fail("", usize::MAX, Fault::Held(hold.clone()));
    registry.put_artifact("live", &bundle("one"));
    let folder = TempDir::new().unwrap();
    let manager = manager(&folder);
    let config = config(&registry);
    write(&folder, &config.to_string());
    let mut command = Command::new(env!("CARGO_BIN_EXE_bundlegate"));
    command
        .args(["serve", "--config"])
        .arg(folder.path().join("bundlegate.yaml"))
        .env("NOTIFY_SOCKET", &manager.address)
        .env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
    let mut process = Process::start("bundlegate", &mut command);
    // Listening, which is before the first bundle is served.
    assert_eq!(manager.event().await, "READY=1");
    manager.status("not ready: waiting for authz").await;
    assert_eq!(manager.next().await, "WATCHDOG=1");
    hold.release();
    registry.heal();
    manager.status("ready: serving all 1 bundles").await;

    let before = monotonic();
    process.signal("HUP");
    let began = manager.reload().await;
    assert!((before..=monotonic()).contains(&began), "{began:?}");

    write(&folder, "version: 1\nservre: {}\n");
    manager.reload().await;
    let refused = manager.status("ready: serving all 1 bundles; ").await;
    assert!(
        refused.contains("the configuration on disk is refused: ") && refused.contains("servre"),
        "{refused}"
    );
    assert_eq!(refused.lines().count(), 1, "{refused}");
    write(&folder, &config.to_string());
    manager.reload().await;
    manager.status("ready: serving all 1 bundles").await;
    assert_eq!(manager.next().await, "WATCHDOG=1");

    process.signal("TERM");
    let stopping = manager.event().await;
    let limit = stopping.strip_prefix("STOPPING=1\nEXTEND_TIMEOUT_USEC=");
    let (limit, status) = limit.unwrap().split_once('\n').unwrap();
    assert_eq!(status, "STATUS=draining");
    // Longer than both phases of the drain.
    assert!(limit.parse::<u64>().unwrap() > 15_000_000, "{limit}");
    assert!(process.ended().await.success());
}

#[tokio::test]
async fn a_manager_that_is_gone_does_not_stop_the_start() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let folder = TempDir::new().unwrap();
    write(&folder, &config(&registry).to_string());
    let mut command = Command::new(env!("CARGO_BIN_EXE_bundlegate"));
    command
        .args(["serve", "--config"])
        .arg(folder.path().join("bundlegate.yaml"))
        .env("NOTIFY_SOCKET", folder.path().join("gone"));
    let mut process = Process::start("bundlegate", &mut command);
    let told = |line: &str| line.contains("gets no messages").then(|| line.to_owned());
    let told = process.line(told).await;
    assert!(
        told.contains("NOTIFY_SOCKET") && told.contains("; unset it"),
        "{told}"
    );
    let is_listening = |line: &str| line.contains("listening").then_some(());
    process.line(is_listening).await;
}

/// The server has one thread here, which a task blocks.
#[tokio::test(flavor = "multi_thread")]
async fn no_sign_of_life_is_sent_while_the_threads_of_the_server_are_blocked() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", &bundle("one"));
    let folder = TempDir::new().unwrap();
    let manager = Manager::at_path(&folder);
    write(&folder, &config(&registry).to_string());
    let config = Config::load(&folder.path().join("bundlegate.yaml")).unwrap();
    let options = gateway::server_options(&config).unwrap();
    let serving = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let service_manager = ServiceManager::at(manager.address.as_ref(), Some(WATCHDOG)).unwrap();
    let gateway = Gateway::start_on(serving.handle().clone(), config, options, None)
        .await
        .unwrap()
        .report_to(service_manager);
    let (stop, stopped) = oneshot::channel::<()>();
    let exit = async {
        let _ = stopped.await;
    };
    let running = tokio::spawn(gateway.run(std::future::pending(), exit));
    let sign_of_life = async || {
        poll_until("a keep-alive ping", async || {
            (manager.next().await == "WATCHDOG=1").then_some(())
        })
        .await;
    };
    sign_of_life().await;

    let (unblock, blocked) = mpsc::channel::<()>();
    let (begun, beginning) = oneshot::channel();
    serving.spawn(async move {
        begun.send(()).unwrap();
        let _ = blocked.recv();
    });
    beginning.await.unwrap();
    // One may have been under way. Other messages come from the other runtime, which runs.
    let keep_alives = async |time: Duration| {
        let mut count = 0;
        let counting = async {
            loop {
                count += usize::from(manager.next().await == "WATCHDOG=1");
            }
        };
        let _ = timeout(time, counting).await;
        count
    };
    assert!(keep_alives(2 * WATCHDOG).await <= 1);
    assert_eq!(keep_alives(4 * WATCHDOG).await, 0);
    unblock.send(()).unwrap();
    sign_of_life().await;

    stop.send(()).unwrap();
    timeout(PATIENCE, running).await.unwrap().unwrap().unwrap();
    serving.shutdown_background();
}
