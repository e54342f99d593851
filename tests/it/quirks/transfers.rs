//! Blobs whose connection breaks.

use bundlegate::{
    oci::Descriptor,
    registry::{Class, RegistryError},
};

use crate::faulty::{Asked, Fault, FaultyRegistry, Ranges};

const SIZE: usize = 200_000;

fn content() -> Vec<u8> {
    (0..SIZE).map(|number| (number % 251) as u8).collect()
}

/// Whether the bytes are those of the blob.
async fn fetch(registry: &FaultyRegistry, layer: &Descriptor) -> Result<bool, (Class, String)> {
    let told = |error: RegistryError| (error.class(), error.to_string());
    let stream = registry.source().blob(layer).await.map_err(told)?;
    let blob = stream.collect().await.map_err(told)?;
    Ok(*blob.in_memory().unwrap() == content())
}

fn ranges(registry: &FaultyRegistry) -> Vec<String> {
    let asked = registry.asked("/blobs/").into_iter();
    let range = |asked: Asked| {
        let range = asked.headers.get("range");
        range.map_or_else(String::new, |range| range.to_str().unwrap().to_owned())
    };
    asked.map(range).collect()
}

#[tokio::test]
async fn a_broken_transfer_is_continued_where_it_ended() {
    let registry = FaultyRegistry::start().await;
    let layer = registry.put_blob(&content());
    registry.serve_ranges(Ranges::Served);
    registry.fail("/blobs/", 1, Fault::Truncate(150_000));
    assert!(fetch(&registry, &layer).await.unwrap());
    let asked = ranges(&registry);
    assert_eq!(asked, ["", "bytes=150000-"]);
}

#[tokio::test]
async fn a_registry_without_ranges_sends_the_whole_again() {
    let registry = FaultyRegistry::start().await;
    let layer = registry.put_blob(&content());
    registry.fail("/blobs/", 3, Fault::Truncate(150_000));
    assert!(fetch(&registry, &layer).await.unwrap());
    assert_eq!(ranges(&registry).len(), 4);
}

#[tokio::test]
async fn a_silent_connection_counts_as_a_broken_one() {
    let registry = FaultyRegistry::start().await;
    let layer = registry.put_blob(&content());
    registry.serve_ranges(Ranges::Served);
    registry.fail("/blobs/", 1, Fault::Halt(150_000));
    assert!(fetch(&registry, &layer).await.unwrap());
}

#[tokio::test]
async fn an_answer_that_is_not_the_rest_ends_the_transfer() {
    for (answer, requests) in [
        (Ranges::Shifted, 2),
        (Ranges::Unnamed, 2),
        (Ranges::Unsatisfiable, 2),
    ] {
        let registry = FaultyRegistry::start().await;
        let layer = registry.put_blob(&content());
        registry.serve_ranges(answer);
        registry.fail("/blobs/", 1, Fault::Truncate(150_000));
        let (class, error) = fetch(&registry, &layer).await.unwrap_err();
        assert_eq!(class, Class::Transient, "{answer:?}: {error}");
        assert_eq!(ranges(&registry).len(), requests, "{answer:?}");
    }
}

/// The number of attempts is bounded, and the bytes are verified as a whole.
#[tokio::test]
async fn a_transfer_that_breaks_again_and_again_fails_and_other_bytes_are_refused() {
    let registry = FaultyRegistry::start().await;
    let layer = registry.put_blob(&content());
    registry.fail("/blobs/", usize::MAX, Fault::Truncate(150_000));
    let (class, error) = fetch(&registry, &layer).await.unwrap_err();
    assert_eq!(class, Class::Transient, "{error}");
    assert_eq!(ranges(&registry).len(), 5);
    registry.heal();
    // The rest is that of other content.
    registry.fail("/blobs/", 1, Fault::Truncate(150_000));
    registry.fail("/blobs/", 1, Fault::Replace(vec![7; SIZE].into()));
    let (class, error) = fetch(&registry, &layer).await.unwrap_err();
    assert_eq!(class, Class::Transient, "{error}");
    assert!(error.contains("corrupt"), "{error}");
}

/// Another silence at the same byte is not that of a connection.
#[tokio::test]
async fn a_transfer_that_falls_silent_again_at_the_same_byte_is_given_up() {
    for answer in [Ranges::Ignored, Ranges::Served] {
        let registry = FaultyRegistry::start().await;
        let layer = registry.put_blob(&content());
        registry.serve_ranges(answer);
        registry.fail("/blobs/", 1, Fault::Halt(150_000));
        registry.fail("/blobs/", usize::MAX, Fault::Halt(0));
        let (class, error) = fetch(&registry, &layer).await.unwrap_err();
        assert_eq!(class, Class::Transient, "{error}");
        assert_eq!(ranges(&registry).len(), 2, "{answer:?}");
    }
}
