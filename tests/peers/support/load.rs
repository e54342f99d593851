//! Clients of a bundle: a thousand long polls, and 200 requests a second.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use reqwest::{
    Client, StatusCode,
    header::{ETAG, IF_NONE_MATCH},
};
use tokio::{task::JoinSet, time::interval};

use super::poll_until;

const WAITING: usize = 1000;
/// Between two requests that are answered at once.
const PAUSE: Duration = Duration::from_millis(5);

/// Requests that go on until they are stopped. The test fails if one of them fails.
pub(crate) struct Load {
    stopped: Arc<AtomicBool>,
    waited: Arc<AtomicUsize>,
    at_once: Arc<AtomicUsize>,
    tasks: JoinSet<()>,
}

impl Load {
    /// With a client that has what the bundle at `url` requires.
    pub(crate) async fn start(client: Client, url: &str) -> Self {
        let first = client.get(url).send().await.unwrap();
        let tag = first.headers()[ETAG].to_str().unwrap().to_owned();
        let mut load = Self {
            stopped: Arc::default(),
            waited: Arc::default(),
            at_once: Arc::default(),
            tasks: JoinSet::new(),
        };
        for _ in 0..WAITING {
            let (client, url, tag) = (client.clone(), url.to_owned(), tag.clone());
            let (stopped, waited) = (Arc::clone(&load.stopped), Arc::clone(&load.waited));
            load.tasks.spawn(async move {
                while !stopped.load(Ordering::Relaxed) {
                    ask(&client, &url, &tag, Some(8)).await;
                    waited.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let (url, stopped) = (url.to_owned(), Arc::clone(&load.stopped));
        let at_once = Arc::clone(&load.at_once);
        load.tasks.spawn(async move {
            let mut ticks = interval(PAUSE);
            let mut requests = JoinSet::new();
            while !stopped.load(Ordering::Relaxed) {
                ticks.tick().await;
                let (client, url, tag) = (client.clone(), url.clone(), tag.clone());
                requests.spawn(async move { ask(&client, &url, &tag, None).await });
                while let Some(done) = requests.try_join_next() {
                    done.unwrap();
                    at_once.fetch_add(1, Ordering::Relaxed);
                }
            }
            requests.join_all().await;
        });
        load
    }

    /// Waits until further requests of both kinds were answered, and fails if one has failed.
    pub(crate) async fn goes_on(&mut self) {
        let counts = || [&self.waited, &self.at_once].map(|count| count.load(Ordering::Relaxed));
        let before = counts();
        poll_until("further answers", async || {
            let after = counts();
            (after[0] > before[0] && after[1] > before[1] + 100).then_some(())
        })
        .await;
        assert!(self.tasks.try_join_next().is_none(), "a client has ended");
    }

    /// Ends the clients, and says how many answers they got.
    pub(crate) async fn end(mut self) -> String {
        self.stopped.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        let [waited, at_once] =
            [self.waited, self.at_once].map(|count| count.load(Ordering::Relaxed));
        format!("{WAITING} clients waited {waited} times, {at_once} requests were answered at once")
    }
}

async fn ask(client: &Client, url: &str, tag: &str, wait: Option<u32>) {
    let mut request = client.get(url).header(IF_NONE_MATCH, tag);
    if let Some(wait) = wait {
        request = request.header("Prefer", format!("modes=snapshot;wait={wait}"));
    }
    let response = request.send().await.unwrap();
    let status = response.status();
    response.bytes().await.unwrap();
    assert!(
        matches!(status, StatusCode::OK | StatusCode::NOT_MODIFIED),
        "{status}"
    );
}
