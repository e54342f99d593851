//! Blobs whose transfer fails at a mirror.

use bundlegate::{oci::Descriptor, registry::Class};

use super::Mirrored;
use crate::faulty::{Asked, Fault, FaultyRegistry, Ranges};

const SIZE: usize = 200_000;

fn content() -> Vec<u8> {
    (0..SIZE).map(|number| (number % 251) as u8).collect()
}

async fn hosts(mirrors: usize) -> (Mirrored, Descriptor) {
    let mut layer = None;
    let hosts = Mirrored::with(mirrors, |registry| {
        layer = Some(registry.put_blob(&content()))
    })
    .await;
    for host in hosts.mirrors.iter().chain([&hosts.registry]) {
        host.serve_ranges(Ranges::Served);
    }
    (hosts, layer.unwrap())
}

async fn assert_fetched(hosts: &Mirrored, layer: &Descriptor) {
    let blob = hosts
        .source()
        .blob(layer)
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    assert!(*blob.in_memory().unwrap() == content());
}

fn ranges(registry: &FaultyRegistry) -> Vec<String> {
    let range = |asked: Asked| {
        let range = asked.headers.get("range");
        range.map_or_else(String::new, |range| range.to_str().unwrap().to_owned())
    };
    registry.asked("/blobs/").into_iter().map(range).collect()
}

#[tokio::test]
async fn a_transfer_that_breaks_at_a_mirror_is_continued_there() {
    let (hosts, layer) = hosts(1).await;
    hosts.mirror().fail("/blobs/", 1, Fault::Truncate(150_000));
    assert_fetched(&hosts, &layer).await;
    assert_eq!(ranges(hosts.mirror()), ["", "bytes=150000-"]);
    assert_eq!(ranges(&hosts.registry), [""; 0]);
}

#[tokio::test]
async fn a_transfer_that_breaks_again_is_continued_at_the_next_host_from_the_bytes_in_hand() {
    let (hosts, layer) = hosts(2).await;
    let fails = Fault::Status(503, vec![]);
    hosts.mirrors[0].fail("/blobs/", 1, Fault::Truncate(50_000));
    hosts.mirrors[0].fail("/blobs/", usize::MAX, fails);
    hosts.mirrors[1].fail("/blobs/", usize::MAX, Fault::Status(500, vec![]));
    assert_fetched(&hosts, &layer).await;
    assert_eq!(ranges(&hosts.mirrors[0]), ["", "bytes=50000-"]);
    assert_eq!(ranges(&hosts.mirrors[1]), ["bytes=50000-"]);
    assert_eq!(ranges(&hosts.registry), ["bytes=50000-"]);
}

#[tokio::test]
async fn a_mirror_that_dies_within_a_transfer_leaves_the_rest_to_the_others() {
    let (hosts, layer) = hosts(1).await;
    hosts
        .mirror()
        .fail("/blobs/", usize::MAX, Fault::Halt(100_000));
    let mut stream = hosts.source().blob(&layer).await.unwrap();
    let mut bytes = stream.next().await.unwrap().unwrap().to_vec();
    let Mirrored { registry, mirrors } = hosts;
    drop(mirrors);
    while let Some(piece) = stream.next().await.unwrap() {
        bytes.extend_from_slice(&piece);
    }
    assert!(bytes == content());
    assert_eq!(ranges(&registry), ["bytes=100000-"]);
}

#[tokio::test]
async fn a_mirror_whose_connections_break_is_asked_again_while_no_other_host_answers() {
    let (hosts, layer) = hosts(1).await;
    hosts.mirror().fail("/blobs/", 4, Fault::Truncate(10_000));
    hosts.registry.fail("", usize::MAX, Fault::Unanswered);
    assert_fetched(&hosts, &layer).await;
    assert_eq!(ranges(hosts.mirror()).len(), 5);
    hosts
        .mirror()
        .fail("/blobs/", usize::MAX, Fault::Truncate(10_000));
    let stream = hosts.source().blob(&layer).await.unwrap();
    let error = stream.collect().await.unwrap_err();
    assert_eq!(error.class(), Class::Transient, "{error}");
    assert_eq!(ranges(hosts.mirror()).len(), 10);
}

#[tokio::test]
async fn a_host_without_ranges_sends_the_whole_again() {
    let (hosts, layer) = hosts(1).await;
    hosts.registry.serve_ranges(Ranges::Ignored);
    hosts.mirror().fail("/blobs/", 1, Fault::Truncate(150_000));
    hosts
        .mirror()
        .fail("/blobs/", usize::MAX, Fault::Status(404, vec![]));
    assert_fetched(&hosts, &layer).await;
    assert_eq!(ranges(&hosts.registry), ["bytes=150000-"]);
}

/// The bytes are verified as a whole, whichever hosts they come from.
#[tokio::test]
async fn wrong_bytes_of_a_mirror_are_replaced_by_those_of_the_next_host() {
    let (hosts, layer) = hosts(1).await;
    hosts
        .mirror()
        .fail("/blobs/", usize::MAX, Fault::Replace(vec![7; SIZE].into()));
    assert_fetched(&hosts, &layer).await;
    assert_eq!(
        (ranges(hosts.mirror()).len(), ranges(&hosts.registry).len()),
        (1, 1)
    );
    assert_eq!(ranges(&hosts.registry), [""]);
}

/// What the registry sent after the wrong bytes of the mirror may be right: it is asked for all.
#[tokio::test]
async fn wrong_bytes_at_the_beginning_do_not_condemn_the_host_that_sent_the_end() {
    let (hosts, layer) = hosts(1).await;
    let path = format!("blobs/{}", layer.digest);
    hosts
        .mirror()
        .put(&path, "application/octet-stream", vec![7; SIZE]);
    hosts.mirror().fail("/blobs/", 1, Fault::Truncate(150_000));
    hosts
        .mirror()
        .fail("/blobs/", usize::MAX, Fault::Status(503, vec![]));
    assert_fetched(&hosts, &layer).await;
    assert_eq!(ranges(&hosts.registry), ["bytes=150000-", ""]);
}

#[tokio::test]
async fn a_blob_that_every_host_has_wrong_is_an_error() {
    let (hosts, layer) = hosts(1).await;
    for host in [hosts.mirror(), &hosts.registry] {
        host.fail("/blobs/", usize::MAX, Fault::Replace(vec![7; SIZE].into()));
    }
    let stream = hosts.source().blob(&layer).await.unwrap();
    let error = stream.collect().await.unwrap_err();
    assert!(error.to_string().contains("corrupt"), "{error}");
}
