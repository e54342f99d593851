//! `long_poll.repeat_delay`.

use reqwest::StatusCode;
use tokio::task::JoinSet;

use crate::{
    faulty::FaultyRegistry,
    gateway::{InProcess, Setup, TestGateway, bundle, tag},
    shared::raise_open_files,
};

#[tokio::test]
async fn a_client_that_repeats_its_download_is_delayed_and_others_at_its_address_are_not() {
    const CLIENTS: usize = 1000;
    raise_open_files();
    let registry = FaultyRegistry::start().await;
    let (one, two) = (bundle("one"), bundle("two"));
    registry.put_artifact("live", &one);
    let setup = Setup {
        max_connections: 2 * CLIENTS,
        ..Setup::default()
    };
    let gate = TestGateway::<InProcess>::with(&registry, setup).await;
    let etag = tag(&gate.get("", 0).await);
    let delayed = || gate.count("bundlegate_delayed_downloads_total");
    let mut waiting = JoinSet::new();
    for _ in 0..CLIENTS {
        waiting.spawn(gate.asking(&etag, 60).send());
    }
    gate.until_waiting(CLIENTS as i64).await;
    // A proxy has changed the tag, or removed it.
    for tags in ["\"changed\"", ""] {
        let before = delayed();
        for _ in 0..6 {
            let response = gate.get(tags, 60).await;
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(response.bytes().await.unwrap(), one);
        }
        assert_eq!(delayed() - before, 2, "{tags}");
    }
    // Without a long poll, a client waits between its requests.
    let before = delayed();
    for _ in 0..20 {
        assert_eq!(gate.get("", 0).await.status(), StatusCode::OK);
    }
    registry.put_artifact("live", &two);
    while let Some(response) = waiting.join_next().await {
        assert_eq!(response.unwrap().unwrap().bytes().await.unwrap(), two);
    }
    // One is, by 100 ms, which shows that the others are other clients.
    assert!(delayed() - before <= 1);
}
