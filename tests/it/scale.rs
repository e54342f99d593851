//! Thousands of bundles at once: what they take is bounded, and nobody waits for those that hang.

use std::time::Duration;

use bundlegate::{
    metrics::Metrics,
    registry::{Options, Timeouts},
    store::{self, Store, StoreMetrics},
};
use tokio::{task::JoinSet, time::timeout};

use crate::{
    faulty::{Fault, FaultyRegistry},
    gateway::{PATIENCE, eventually},
};

fn store() -> Store {
    let options = store::Options {
        directory: None,
        disk: 0,
        memory: 1 << 20,
    };
    Store::open(options, StoreMetrics::new(&Metrics::new()).unwrap())
}

/// Each took one for as long as the registry let it wait: 516 threads were seen.
#[test]
fn transfers_that_stand_still_keep_no_thread() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (registry, store) = (FaultyRegistry::start().await, store());
        let source = registry.source_with(Options {
            timeouts: Timeouts::default(),
            ..registry.options()
        });
        // Longer than what is hashed on the spot.
        let bytes = |number: u8| vec![number; 100_000];
        let mut transfers = JoinSet::new();
        for number in 0..8 {
            let descriptor = registry.put_blob(&bytes(number));
            registry.fail(descriptor.digest.as_str(), usize::MAX, Fault::Halt(1_000));
            let (source, store) = (source.clone(), store.clone());
            transfers.spawn(async move { store.blob(&source, &descriptor).await });
        }
        eventually("all are on their way", || {
            registry.asked("blobs/").len() == 8
        })
        .await;
        let other = registry.put_blob(&bytes(9));
        let served = timeout(PATIENCE, store.blob(&source, &other))
            .await
            .expect("no thread is left")
            .unwrap();
        assert_eq!(served.in_memory().unwrap(), &bytes(9));
    });
}

/// Otherwise those who start together open thousands of connections to one registry.
#[tokio::test]
async fn a_registry_gets_a_bounded_number_of_requests_at_a_time() {
    let registry = FaultyRegistry::start().await;
    registry.put_artifact("live", b"x");
    registry.fail("", usize::MAX, Fault::Stall);
    let source = registry.source_with(Options {
        timeouts: Timeouts::default(),
        ..registry.options()
    });
    let mut waiting = JoinSet::new();
    for _ in 0..200 {
        let (source, reference) = (source.clone(), registry.reference("live"));
        waiting.spawn(async move { source.resolve(&reference).await.is_ok() });
    }
    eventually("some are on their way", || registry.asked("").len() >= 128).await;
    assert!(
        timeout(Duration::from_millis(500), waiting.join_next())
            .await
            .is_err()
    );
    assert_eq!(registry.asked("").len(), 128);
}

#[tokio::test]
async fn so_many_artifacts_of_one_host_are_fetched_at_a_time_and_more_of_another() {
    let (registry, other) = (FaultyRegistry::start().await, FaultyRegistry::start().await);
    let source = registry.source();
    let mut turns = Vec::new();
    while let Ok(turn) = timeout(Duration::from_millis(100), source.transfer_permit()).await {
        turns.push(turn);
    }
    assert_eq!(turns.len(), 64);
    timeout(PATIENCE, other.source().transfer_permit())
        .await
        .unwrap();
    turns.pop();
    timeout(PATIENCE, source.transfer_permit())
        .await
        .expect("a turn that is over is another's");
}
