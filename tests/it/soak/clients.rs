//! Clients that ask all the time, and check every answer.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use reqwest::{Client as Http, StatusCode};
use serde_json::Value;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::model::{BUNDLES, Pushed, etag};
use crate::gateway::wishing;

/// How long a request without `Prefer: wait` is held at most.
pub(super) const FIRST_WAIT: Duration = Duration::from_secs(5);
/// What a long poll asks for, in seconds.
const WAIT: u32 = 20;
/// What the steps over the network cost on the compressed clock.
const SLACK: Duration = Duration::from_secs(3);
/// Longer than any request may be held: the request of a client that gives up.
const GIVE_UP: Duration = Duration::from_secs(600);
const CLASSES: [&str; 7] = [
    "transient",
    "rate_limited",
    "not_found",
    "denied",
    "evidence",
    "defect",
    "distrusted",
];

/// The gateway that is running.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) data: String,
    pub(super) admin: String,
    pub(super) http: Http,
    pub(super) since: Instant,
}

/// What clients and the test share.
#[derive(Debug)]
pub(super) struct Shared {
    /// `None` while the gateway restarts.
    pub(super) live: watch::Sender<Option<Arc<Live>>>,
    pushed: Mutex<[Pushed; BUNDLES.len()]>,
    violations: Mutex<Vec<String>>,
    began: Instant,
    answers: Mutex<usize>,
}

/// How a client asks.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// Without a tag.
    Plain,
    /// With the tag that it got last.
    Conditional,
    /// With the tag that it got first.
    Behind,
    /// With the tag that it got last, as OPA's long polling does.
    LongPoll,
}

struct Client {
    shared: Arc<Shared>,
    bundle: usize,
    kind: Kind,
    pause: Duration,
    /// The move of the tag that explains the last answer.
    seen: usize,
    first: String,
    last: String,
}

struct Reply {
    status: StatusCode,
    etag: String,
    manifest: String,
    body: Bytes,
}

impl Shared {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            live: watch::Sender::default(),
            pushed: Mutex::default(),
            violations: Mutex::default(),
            began: Instant::now(),
            answers: Mutex::default(),
        })
    }

    pub(super) fn pushed(&self) -> MutexGuard<'_, [Pushed; BUNDLES.len()]> {
        self.pushed.lock().unwrap()
    }

    /// The time on the compressed clock.
    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// The number of answers so far.
    pub(super) fn answers(&self) -> usize {
        *self.answers.lock().unwrap()
    }

    pub(super) fn violation(&self, what: impl std::fmt::Display) {
        let at = self.elapsed();
        self.violations
            .lock()
            .unwrap()
            .push(format!("{at:.1?}: {what}"));
    }

    /// The violations so far, as an error.
    pub(super) fn verdict(&self) -> Result<(), String> {
        let violations = self.violations.lock().unwrap();
        if violations.is_empty() {
            return Ok(());
        }
        Err(violations.join("\n"))
    }

    /// The gateway, once there is one.
    pub(super) async fn running(&self) -> Arc<Live> {
        let mut live = self.live.subscribe();
        let live = live.wait_for(Option::is_some).await.unwrap();
        Arc::clone(live.as_ref().unwrap())
    }

    /// Whether this gateway is still the one that runs.
    fn runs(&self, live: &Arc<Live>) -> bool {
        let now = self.live.borrow();
        now.as_ref().is_some_and(|now| Arc::ptr_eq(now, live))
    }
}

/// Asks for a bundle until it is aborted.
pub(super) async fn ask(shared: Arc<Shared>, bundle: usize, kind: Kind, pause: Duration) {
    let mut client = Client {
        shared,
        bundle,
        kind,
        pause,
        seen: 0,
        first: String::new(),
        last: String::new(),
    };
    loop {
        client.turn().await;
        sleep(client.pause).await;
    }
}

impl Client {
    async fn turn(&mut self) {
        let live = self.shared.running().await;
        let began = Instant::now();
        let reply = timeout(GIVE_UP, self.reply(&live)).await;
        *self.shared.answers.lock().unwrap() += 1;
        if !self.shared.runs(&live) {
            // It may have been in the middle of an answer.
            return;
        }
        let checked = match reply {
            Err(_) => Err("no answer".to_owned()),
            Ok(Err(error)) => Err(format!("{error:?}")),
            Ok(Ok(reply)) => self.check(&reply, began, &live),
        };
        let held = began.elapsed();
        let (name, kind) = (BUNDLES[self.bundle].0, self.kind);
        if let Err(what) = checked {
            self.shared
                .violation(format_args!("{name}, {kind:?}, after {held:.1?}: {what}"));
        }
        let most = match self.kind {
            Kind::LongPoll => Duration::from_secs(WAIT.into()),
            _ => FIRST_WAIT,
        };
        if held > most + SLACK {
            self.shared
                .violation(format_args!("{name}, {kind:?}: held for {held:.1?}"));
        }
    }

    /// The tag to send.
    fn tag(&self) -> &str {
        match self.kind {
            Kind::Plain => "",
            Kind::Behind => &self.first,
            Kind::Conditional | Kind::LongPoll => &self.last,
        }
    }

    async fn reply(&self, live: &Live) -> reqwest::Result<Reply> {
        let wait = match self.kind {
            Kind::LongPoll => WAIT,
            _ => 0,
        };
        let url = format!("{}/bundles/{}", live.data, BUNDLES[self.bundle].0);
        let response = wishing(live.http.get(url), self.tag(), wait).send().await?;
        let header = |name: &str| {
            let value = response.headers().get(name);
            value.map_or_else(String::new, |value| value.to_str().unwrap().to_owned())
        };
        Ok(Reply {
            status: response.status(),
            etag: header("etag"),
            manifest: header("bundlegate-manifest"),
            body: response.bytes().await?,
        })
    }

    fn check(&mut self, reply: &Reply, began: Instant, live: &Live) -> Result<(), String> {
        match reply.status.as_u16() {
            200 if reply.etag != etag(&reply.body) => {
                return Err(format!("{} is not the tag of the bytes", reply.etag));
            }
            200 => {}
            304 if reply.etag != self.tag() => {
                return Err(format!("304 for {} with {}", self.tag(), reply.etag));
            }
            304 => {}
            404 => return self.absent(&reply.body, began, live),
            status => return Err(format!("HTTP {status}")),
        }
        let mut pushed = self.shared.pushed();
        let pushed = &mut pushed[self.bundle];
        self.seen = pushed.explain(&reply.etag, &reply.manifest, self.seen)?;
        pushed.served_at.get_or_insert_with(Instant::now);
        if self.first.is_empty() {
            self.first.clone_from(&reply.etag);
        }
        self.last.clone_from(&reply.etag);
        Ok(())
    }

    /// Nothing that was served goes away. After a restart it is there once the registry has
    /// answered or `first_wait` has passed.
    fn absent(&self, body: &[u8], began: Instant, live: &Live) -> Result<(), String> {
        let body: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        let reason = body["error"]["reason"].as_str().unwrap_or_default();
        let served_at = self.shared.pushed()[self.bundle].served_at;
        let was_served = served_at.is_some_and(|at| at < began);
        let starts = began < live.since + FIRST_WAIT + SLACK;
        match reason {
            "pending" if !was_served || starts => Ok(()),
            "withdrawn" if !was_served => Ok(()),
            _ => Err(format!("404: {body}")),
        }
    }
}

/// Reads `/status` and `/metrics` until it is aborted.
pub(super) async fn inspect(shared: Arc<Shared>) {
    loop {
        let live = shared.running().await;
        let inspected = compare(&live, &shared).await;
        if let (Err(what), true) = (inspected, shared.runs(&live)) {
            shared.violation(what);
        }
        sleep(Duration::from_secs(4)).await;
    }
}

async fn read(live: &Live, path: &str) -> Result<String, String> {
    let url = format!("{}{path}", live.admin);
    let text = async {
        live.http
            .get(url)
            .send()
            .await?
            .error_for_status()?
            .text()
            .await
    };
    let text = timeout(GIVE_UP, text).await;
    text.map_err(|_| format!("{path}: no answer"))?
        .map_err(|error| format!("{path}: {error:?}"))
}

/// The entries of all bundles in `/status`.
pub(super) async fn status(live: &Live) -> Result<Value, String> {
    let text = read(live, "/status").await?;
    let mut status: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    Ok(status["bundles"].take())
}

async fn compare(live: &Live, shared: &Shared) -> Result<(), String> {
    let before = status(live).await?;
    let metrics = read(live, "/metrics").await?;
    let after = status(live).await?;
    for (index, (name, _)) in BUNDLES.iter().enumerate() {
        let entry = &before[name];
        let told = |what: &str| Err(format!("{name}: {what}: {entry}"));
        let state = entry["state"].as_str().unwrap_or_default();
        if !["pending", "serving", "withdrawn"].contains(&state) {
            return told("state");
        }
        let failure = &entry["last_failure"];
        let class = failure["class"].as_str().unwrap_or_default();
        if !failure.is_null() && !CLASSES.contains(&class) {
            return told("class");
        }
        if failure.to_string().contains("panicked") {
            return told("panic");
        }
        let text = |key: &str| entry[key].as_str().unwrap_or_default();
        if state == "serving" {
            let pushed = shared.pushed();
            pushed[index].explain(text("etag"), text("manifest"), 0)?;
        }
        // No change in between, so that the metrics are of the same time.
        if after[name]["since"] != entry["since"] {
            continue;
        }
        for other in ["pending", "serving", "withdrawn"] {
            let value = u8::from(other == state);
            let sample =
                format!("bundlegate_bundle_state{{bundle=\"{name}\",state=\"{other}\"}} {value}");
            if !metrics.lines().any(|line| line == sample) {
                return told(&format!("no {sample} in /metrics"));
            }
        }
    }
    Ok(())
}
