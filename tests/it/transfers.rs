//! push, pull and copy when things go wrong on the way.

use std::{
    fs,
    process::{Command, Stdio},
};

use bundlegate::{
    oci::{Descriptor, Digest, NewManifest, PinnedReference, Reference, media_type},
    registry::{Destination, Source},
    transfer::{Copied, Signatures, Transfer, TransferError},
};
use serde_json::{Value, json};

use crate::{
    command::{Author, Ran},
    faulty::{Fault, FaultyRegistry},
    gateway::eventually,
};

const MIB: u64 = 1 << 20;

/// A registry with an artifact whose layer has so many bytes.
async fn serving(size: usize) -> (FaultyRegistry, Digest) {
    let registry = FaultyRegistry::start().await;
    registry.put_blob(NewManifest::CONFIG);
    let (digest, _) = registry.put_artifact("v1", &vec![b'x'; size]);
    (registry, digest)
}

fn images(author: &Author) -> Value {
    author.run(&["images", "--json"]).json()
}

/// The number of blobs in the store, and of half-written files.
fn lying(author: &Author) -> (usize, usize) {
    let names = |folder: &str| {
        let entries = fs::read_dir(author.path(folder)).into_iter().flatten();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect::<Vec<_>>()
    };
    let halves = names("store")
        .into_iter()
        .filter(|name| name.starts_with(".tmp-"))
        .count();
    (names("store/blobs/sha256").len(), halves)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_pull_leaves_nothing_in_the_store() {
    let (registry, _) = serving(100_000).await;
    registry.fail("GET /v2/acme/authz/blobs", 9, Fault::Stall);
    let author = Author::new();
    let mut pull = author.command(&[
        "pull",
        "--plain-http",
        &registry.reference("v1").to_string(),
    ]);
    let child = pull
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("a blob is asked for", || {
        !registry.asked("GET /v2/acme/authz/blobs").is_empty()
    })
    .await;
    assert!(
        Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    Ran::of(child.wait_with_output().unwrap()).refused("interrupted");
    assert_eq!((images(&author), lying(&author)), (json!([]), (0, 0)));
}

/// After a power cut, a blob that was not synced has its name and other bytes.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_blob_in_the_store_is_pulled_again() {
    let (registry, _) = serving(1000).await;
    let author = Author::new();
    let reference = registry.reference("v1").to_string();
    let blobs = |author: &Author| -> Vec<_> {
        let blobs = fs::read_dir(author.path("store/blobs/sha256")).unwrap();
        blobs.map(|blob| blob.unwrap().path()).collect()
    };
    author.run(&["pull", "--plain-http", &reference]).ok();
    assert_eq!(blobs(&author).len(), 3);
    for blob in blobs(&author) {
        fs::write(blob, "").unwrap();
    }
    author.run(&["pull", "--plain-http", &reference]).ok();
    for blob in blobs(&author) {
        let digest = Digest::sha256(&fs::read(&blob).unwrap());
        assert!(blob.ends_with(digest.hex()), "{}", blob.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_breaks_leaves_the_name_where_it_was() {
    let (registry, first) = serving(1000).await;
    let (author, name) = (Author::new(), registry.reference("v1").to_string());
    let pull = ["pull", "--plain-http", &name];
    let ran = author.run(&pull);
    assert_eq!(
        (ran.code, ran.stdout.trim()),
        (
            0,
            format!("{}/acme/authz@{first}", registry.address).as_str()
        )
    );
    registry.put_artifact("v1", &[b'y'; 200_000]);
    registry.fail("GET /v2/acme/authz/blobs", 99, Fault::Truncate(100_000));
    let ran = author.run(&pull);
    assert_eq!(
        (ran.code, ran.stdout.as_str(), ran.stderr.lines().count()),
        (1, "", 1),
        "{}",
        ran.stderr
    );
    assert_eq!(images(&author)[0]["digest"], first.as_str());
    registry.heal();
    assert_eq!(author.run(&pull).code, 0);
    assert_ne!(images(&author)[0]["digest"], first.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_takes_no_more_is_told_and_nothing_has_a_name() {
    let (registry, _) = serving(4 * MIB as usize).await;
    let author = Author::new();
    // Files of more than a MiB are refused, as on a full disk.
    let line = format!(
        "trap '' XFSZ; ulimit -f 2048; exec {} pull --plain-http {}",
        env!("CARGO_BIN_EXE_bundlegate"),
        registry.reference("v1")
    );
    let mut shell = Command::new("sh");
    Ran::of(author.settle(shell.args(["-c", &line])).output().unwrap()).refused("File too large");
    assert_eq!((images(&author), lying(&author).1), (json!([]), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_before_a_failure_is_told() {
    let (registry, digest) = serving(1000).await;
    let author = Author::new();
    let (name, none) = (
        registry.reference("v1").to_string(),
        registry.reference("none").to_string(),
    );
    let ran = author.run(&["pull", &name, &none, "--plain-http", "--json"]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let pulled: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(
        pulled,
        json!([{ "reference": name, "digest": digest.to_string() }])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_told_in_one_line_with_the_way_out() {
    let (registry, _) = serving(1000).await;
    let (author, host) = (Author::new(), registry.address.to_string());
    let name = registry.reference("v1").to_string();
    let none = registry.reference("none").to_string();
    let other = format!("oci-layout:out@{}", Digest::sha256(b"other"));
    let mistakes: [(&[&str], i32, &str); 8] = [
        (&["push"], 2, "REF"),
        (&["pull", "authz:v1"], 2, "names no registry host"),
        (&["login", "https://ghcr.io"], 2, "write ghcr.io"),
        (
            &["push", &name, "--plain-http"],
            1,
            "see `bundlegate images`",
        ),
        (&["pull", &none, "--plain-http"], 1, "no such tag"),
        (&["pull", "oci-layout:x:v1"], 1, "bundlegate copy"),
        (
            &["images", "--remote", &host, "--plain-http"],
            1,
            "name a repository",
        ),
        (
            &["copy", &name, &other, "--plain-http"],
            1,
            "name a tag for the copy",
        ),
    ];
    for (words, code, says) in mistakes {
        let ran = author.run(words);
        assert_eq!(
            (ran.code, ran.stdout.as_str()),
            (code, ""),
            "{words:?}: {}",
            ran.stderr
        );
        assert!(ran.stderr.contains(says), "{words:?}: {}", ran.stderr);
        assert!(
            ran.stderr.lines().count() == 1 && ran.stderr.starts_with("bundlegate: "),
            "{words:?}: {}",
            ran.stderr
        );
    }
}

/// A place to copy to, with what is copied there from a registry.
struct Way {
    from: Source,
    to: Destination,
    _folder: tempfile::TempDir,
}

impl Way {
    fn from(registry: &FaultyRegistry) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let there: Reference = format!("oci-layout:{}", folder.path().join("out").display())
            .parse()
            .unwrap();
        let registries = registry.registries(registry.options());
        Self {
            from: registry.source(),
            to: registries.destination(there.repository()).unwrap(),
            _folder: folder,
        }
    }

    async fn copy(&self, what: &PinnedReference, max_size: u64) -> Result<Copied, TransferError> {
        let signatures = Signatures::Include;
        let transfer = Transfer {
            from: &self.from,
            to: &self.to,
            signatures,
            mount_from: &[],
            max_size,
            progress: &(),
        };
        transfer.run(what, &["v1".to_owned()]).await
    }
}

fn put_index(registry: &FaultyRegistry, name: &str, entries: &[Descriptor]) -> Descriptor {
    let index =
        json!({ "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": entries })
            .to_string();
    let descriptor = Descriptor::of(media_type::OCI_INDEX, index.as_bytes());
    registry.put(
        &format!("manifests/{name}"),
        media_type::OCI_INDEX,
        index.clone(),
    );
    registry.put(
        &format!("manifests/{}", descriptor.digest),
        media_type::OCI_INDEX,
        index,
    );
    descriptor
}

#[tokio::test]
async fn an_index_comes_with_everything_below_it() {
    let (registry, digest) = serving(1000).await;
    let size = registry
        .held(&format!("manifests/{digest}"))
        .unwrap()
        .1
        .len() as u64;
    let entry = Descriptor::new(media_type::OCI_MANIFEST, digest.clone(), size);
    let index = put_index(&registry, "v1", &[entry.clone(), entry.clone()]);
    let way = Way::from(&registry);
    let pinned = way.from.resolve(&registry.reference("v1")).await.unwrap();
    assert_eq!(pinned.digest(), &index.digest);
    way.copy(&pinned, MIB).await.unwrap();
    assert!(way.to.has_blob(&index).await.unwrap() && way.to.has_blob(&entry).await.unwrap());
    assert_eq!(
        registry.asked("GET /v2/acme/authz/blobs").len(),
        2,
        "each blob once"
    );
}

#[tokio::test]
async fn a_listed_signature_that_is_not_there_is_left_out_and_told() {
    let (registry, digest) = serving(1000).await;
    let gone = Descriptor::of(media_type::OCI_MANIFEST, b"gone");
    put_index(
        &registry,
        &format!("sha256-{}", digest.hex()),
        std::slice::from_ref(&gone),
    );
    let way = Way::from(&registry);
    let pinned = way.from.resolve(&registry.reference("v1")).await.unwrap();
    let copied = way.copy(&pinned, MIB).await.unwrap();
    assert_eq!(copied.referrers, 0);
    assert!(
        copied.skipped[0].contains(gone.digest.as_str()),
        "{copied:?}"
    );
}

#[tokio::test]
async fn limits_are_kept_before_a_byte_is_fetched() {
    let (registry, _) = serving(1000).await;
    let way = Way::from(&registry);
    let pinned = way.from.resolve(&registry.reference("v1")).await.unwrap();
    let error = way.copy(&pinned, 999).await.unwrap_err();
    assert!(
        matches!(
            error,
            TransferError::TooLarge {
                size: 1000,
                limit: 999,
                ..
            }
        ),
        "{error}"
    );
    assert!(registry.asked("GET /v2/acme/authz/blobs").is_empty());
    let mut deepest = Vec::new();
    for _ in 0..6 {
        deepest = vec![put_index(&registry, "deep", &deepest)];
    }
    let pinned = way.from.resolve(&registry.reference("deep")).await.unwrap();
    assert!(matches!(
        way.copy(&pinned, MIB).await.unwrap_err(),
        TransferError::TooDeep(_)
    ));
}
