//! The author's way to a registry and back: push, pull and copy, among real registries, clients and
//! signers.

use std::{fs, path::Path};

use serde_json::json;
use tokio::time::Instant;

use crate::support::{
    Author, Cosign, Format, KeyPair, Kind, Opa, OpaVersion, Ran, Registry, Terminal, poll_until,
    run,
};

const KINDS: [Kind; 3] = [Kind::Debian, Kind::Distribution, Kind::Referrers];
const MB: usize = 1_000_000;

/// Builds the policy in the author's home under a name, and returns its digest.
pub(crate) async fn build(author: &Author, reference: &str) -> String {
    let built = author
        .run(&["build", "policy", "-t", reference, "--json"])
        .await
        .json();
    built["digest"].as_str().unwrap().to_owned()
}

/// A layout with one artifact whose layer has so many random bytes, as oras makes it.
async fn large(author: &Author, name: &str, size: usize) {
    let mut bytes = vec![0; size];
    fastrand::fill(&mut bytes);
    fs::write(author.path("large.bin"), bytes).unwrap();
    let layer = "large.bin:application/vnd.oci.image.layer.v1.tar+gzip";
    run(
        "oras",
        author.home(),
        &["push", "--oci-layout", &format!("{name}:v1"), layer],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_registry_takes_a_push_and_every_client_reads_it() {
    for kind in KINDS {
        let (registry, author) = (Registry::start(kind).await, Author::new());
        author.policy("first");
        let (one, two) = (
            registry.reference("acme/authz:v1"),
            registry.reference("acme/authz:live"),
        );
        let digest = build(&author, &one).await;
        author.run(&["tag", &one, &two]).await.ok();
        let pushed = author
            .run(&["push", "--plain-http", &one, &two])
            .await
            .told();
        let pinned = registry.reference(&format!("acme/authz@{digest}"));
        assert_eq!(pushed, format!("{pinned}\n{pinned}"), "{kind:?}");
        let before = puts(&registry);
        assert!(
            before > 0 || registry.kind != Kind::Debian,
            "the log of uploads is not understood"
        );
        let again = author
            .run(&["push", "--plain-http", "--json", &one])
            .await
            .json();
        assert_eq!(again, json!([{ "reference": one, "digest": digest }]));
        if kind == Kind::Debian {
            assert_eq!(puts(&registry), before, "no blob goes over twice");
        }
        registry
            .oras(&["pull", &two, "--output", author.home().to_str().unwrap()])
            .await;
        let seen = run("crane", author.home(), &["digest", "--insecure", &two]).await;
        assert_eq!(seen, digest, "{kind:?}");
        let to = format!("docker://{two}");
        let seen = run(
            "skopeo",
            author.home(),
            &["inspect", "--raw", "--tls-verify=false", &to],
        )
        .await;
        assert!(
            seen.contains("org.openpolicyregistry.type"),
            "{kind:?}: {seen}"
        );
        let listed = author
            .run(&[
                "images",
                "--remote",
                &registry.reference("acme/authz"),
                "--plain-http",
                "--json",
            ])
            .await
            .json();
        let tags: Vec<_> = listed
            .as_array()
            .unwrap()
            .iter()
            .map(|one| &one["tag"])
            .collect();
        assert_eq!(tags, ["live", "v1"], "{kind:?}");
        let listed = author
            .run(&[
                "images",
                "--remote",
                &registry.host,
                "--search",
                "auth",
                "--plain-http",
            ])
            .await
            .ok();
        assert!(
            listed.contains(&registry.reference("acme/authz")),
            "{kind:?}: {listed}"
        );
    }
}

/// How many uploads docker-registry has finished.
fn puts(registry: &Registry) -> usize {
    let uploads = |line: &&str| {
        line.contains("/blobs/uploads/") && line.contains("\"http.request.method\":\"PUT\"")
    };
    registry
        .log()
        .lines()
        .filter(uploads)
        .filter(|line| line.contains("response completed"))
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pushed_goes_wherever_others_take_it() {
    let (registry, second, author) = (
        Registry::start(Kind::Debian).await,
        Registry::start(Kind::Referrers).await,
        Author::new(),
    );
    author.policy("first");
    let name = registry.reference("acme/authz:v1");
    let digest = build(&author, &name).await;
    author.run(&["push", "--plain-http", &name]).await.ok();
    let crane = second.reference("crane/authz:v1");
    run(
        "crane",
        author.home(),
        &["copy", "--insecure", &name, &crane],
    )
    .await;
    let skopeo = second.reference("skopeo/authz:v1");
    let to = format!("docker://{skopeo}");
    let flags = [
        "copy",
        "--insecure-policy",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
    ];
    run(
        "skopeo",
        author.home(),
        &[&flags[..], &[&format!("docker://{name}"), &to]].concat(),
    )
    .await;
    for copy in [&crane, &skopeo] {
        assert_eq!(
            run("crane", author.home(), &["digest", "--insecure", copy]).await,
            digest,
            "{copy}"
        );
    }
    run(
        "conftest",
        author.home(),
        &[
            "pull",
            "--tls=false",
            &format!("oci://{name}"),
            "--policy",
            "pulled",
        ],
    )
    .await;
    assert!(held(&author.path("pulled")) > 0);
    // OPA's own downloader, from the registry without a gateway.
    for version in [OpaVersion::Newest, OpaVersion::V0_70] {
        let config = json!({
            "services": { "registry": { "url": format!("http://{}", registry.host), "type": "oci" } },
            "bundles": { "authz": { "service": "registry", "resource": name } },
        });
        let opa = Opa::start(version, &config).await;
        opa.answers("first").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_of_another_repository_is_mounted_and_not_sent() {
    let (registry, author) = (Registry::start(Kind::Debian).await, Author::new());
    author.policy("first");
    let (base, other) = (
        registry.reference("acme/base:v1"),
        registry.reference("acme/other:v1"),
    );
    build(&author, &base).await;
    author.run(&["push", "--plain-http", &base]).await.ok();
    let before = puts(&registry);
    assert!(
        before > 0 || registry.kind != Kind::Debian,
        "the log of uploads is not understood"
    );
    author.run(&["tag", &base, &other]).await.ok();
    author.run(&["push", "--plain-http", &other]).await.ok();
    assert_eq!(puts(&registry), before, "nothing was uploaded");
    registry
        .oras(&["pull", &other, "--output", author.home().to_str().unwrap()])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pull_verifies_before_anything_has_a_name_and_brings_the_signatures() {
    let (registry, author, key) = (
        Registry::start(Kind::Debian).await,
        Author::new(),
        KeyPair::generate().await,
    );
    author.policy("first");
    let name = registry.reference("acme/authz:v1");
    let digest = build(&author, &name).await;
    author.run(&["push", "--plain-http", &name]).await.ok();
    let other = Author::new();
    let public = key.public();
    let pull = [
        "pull",
        "--plain-http",
        &name,
        "--key",
        public.to_str().unwrap(),
    ];
    other.run(&pull).await.refused("no signature");
    assert_eq!(other.run(&["images", "--json"]).await.json(), json!([]));
    let pinned = format!("acme/authz@{digest}");
    key.sign_with(Cosign::V3, Format::Bundle, &registry, &pinned)
        .await;
    key.sign_with(Cosign::V2, Format::Legacy, &registry, &pinned)
        .await;
    assert_eq!(other.run(&pull).await.told(), registry.reference(&pinned));
    let images = other.run(&["images", "--json"]).await.json();
    assert_eq!(images[0]["signed"], true);
    // The same by a configuration, which names the scheme, too; and a policy for others.
    for (pattern, code) in [("**", 0), ("elsewhere.example/**", 1)] {
        let config = json!({
            "version": 1,
            "registries": { &registry.host: { "scheme": "http" } },
            "trust": {
                "authorities": { "release": { "keys": [public], "tlog": "none" } },
                "policies": { "release": { "require": { "any_of": ["release"] }, "match": [pattern] } },
            },
        });
        other.write("bundlegate.yaml", &config.to_string());
        let done = other
            .run(&["pull", &name, "--config", "bundlegate.yaml"])
            .await;
        assert_eq!(done.code, Some(code), "{pattern}: {}", done.stderr);
    }
    // The pulled image is pushed to another registry with its signatures, under another name.
    let second = Registry::start(Kind::Referrers).await;
    let there = second.reference("acme/authz:v1");
    other.run(&["tag", &name, &there]).await.ok();
    other.run(&["push", "--plain-http", &there]).await.ok();
    drop(registry);
    for format in [Format::Bundle, Format::Legacy] {
        cosign_verifies(&key, &second, &there, format).await;
    }
}

async fn cosign_verifies(key: &KeyPair, registry: &Registry, reference: &str, format: Format) {
    let new_format = format!("--new-bundle-format={}", format == Format::Bundle);
    let public = key.public();
    let mut words = vec![
        "verify",
        "--key",
        public.to_str().unwrap(),
        "--insecure-ignore-tlog",
        &new_format,
    ];
    let flags = registry.cosign_flags();
    words.extend(flags.iter().map(String::as_str));
    words.push(reference);
    run("cosign", Path::new("/"), &words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_verified_with_the_first_registry_gone() {
    let ways = [
        (Kind::Debian, Kind::Referrers),
        (Kind::Referrers, Kind::Distribution),
    ];
    for (first, second) in ways {
        let (registry, author, key) = (
            Registry::start(first).await,
            Author::new(),
            KeyPair::generate().await,
        );
        author.policy("first");
        let name = registry.reference("acme/authz:v1");
        let digest = build(&author, &name).await;
        author.run(&["push", "--plain-http", &name]).await.ok();
        let pinned = format!("acme/authz@{digest}");
        key.sign_with(Cosign::V3, Format::Bundle, &registry, &pinned)
            .await;
        key.sign_with(Cosign::V2, Format::Legacy, &registry, &pinned)
            .await;
        let copied = author
            .run(&["copy", &name, "oci-layout:carry", "--plain-http"])
            .await
            .told();
        assert_eq!(copied, format!("oci-layout:carry@{digest}"));
        drop(registry);
        let public = key.public();
        let public = public.to_str().unwrap();
        author
            .run(&["verify", "oci-layout:carry:v1", "--key", public])
            .await
            .ok();
        author
            .run(&["verify", "oci-layout:carry", "--key", public])
            .await
            .ok();
        let registry = Registry::start(second).await;
        let there = registry.reference("other/name:v2");
        author
            .run(&["copy", "oci-layout:carry:v1", &there, "--to-plain-http"])
            .await
            .ok();
        fs::remove_dir_all(author.path("carry")).unwrap();
        author
            .run(&["verify", &there, "--key", public, "--plain-http"])
            .await
            .ok();
        for format in [Format::Bundle, Format::Legacy] {
            cosign_verifies(&key, &registry, &there, format).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_megabytes_go_over_in_little_memory() {
    let author = Author::new();
    large(&author, "large", 200 * MB).await;
    for kind in KINDS {
        let registry = Registry::start(kind).await;
        let (theirs, ours) = (
            registry.reference("acme/theirs:v1"),
            registry.reference("acme/ours:v1"),
        );
        let began = Instant::now();
        run(
            "oras",
            author.home(),
            &[
                "cp",
                "--from-oci-layout",
                "--to-plain-http",
                "large:v1",
                &theirs,
            ],
        )
        .await;
        let oras_push = began.elapsed();
        let began = Instant::now();
        run(
            "oras",
            author.home(),
            &["pull", "--plain-http", &theirs, "--output", "pulled"],
        )
        .await;
        let oras_pull = began.elapsed();
        let began = Instant::now();
        // Another host's name for the same place, so that nothing can be mounted or skipped.
        let fresh = Registry::start(kind).await;
        let ours_there = ours.replace(&registry.host, &fresh.host);
        let push = author
            .run(&["copy", "oci-layout:large:v1", &ours_there, "--plain-http"])
            .await;
        let our_push = began.elapsed();
        assert_eq!(push.code, Some(0), "{kind:?}: {}", push.stderr);
        let began = Instant::now();
        let pull = author
            .run(&[
                "pull",
                &ours_there,
                "--plain-http",
                "--store",
                &format!("{kind:?}"),
            ])
            .await;
        let our_pull = began.elapsed();
        assert_eq!(pull.code, Some(0), "{kind:?}: {}", pull.stderr);
        println!(
            "pushes: 200 MB, {kind:?}: push {our_push:.2?} in {} MiB (oras {oras_push:.2?}, ratio {:.2}); pull {our_pull:.2?} in {} MiB (oras {oras_pull:.2?}, ratio {:.2})",
            push.peak >> 20,
            our_push.div_duration_f64(oras_push),
            pull.peak >> 20,
            our_pull.div_duration_f64(oras_pull),
        );
        for done in [push, pull] {
            assert!(
                done.peak > 0 && done.peak < 100 << 20,
                "{kind:?}: {} bytes",
                done.peak
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_outlives_a_restart_of_its_registry() {
    let author = Author::new();
    large(&author, "large", 200 * MB).await;
    for kind in [Kind::Debian, Kind::Distribution] {
        let mut registry = Registry::start(kind).await;
        let name = registry.reference("acme/large:v1");
        let push = ["copy", "oci-layout:large:v1", &name, "--plain-http"];
        let child = author.start(&push);
        let uploads = registry
            .folder()
            .join("docker/registry/v2/repositories/acme/large/_uploads");
        poll_until("the first chunk", async || {
            (held(&uploads) > 10 * MB as u64).then_some(())
        })
        .await;
        let before = held(&uploads);
        registry.restart().await;
        let done = Ran::of(child).await;
        assert_eq!(done.code, Some(0), "{kind:?}: {}", done.stderr);
        // distribution knows an upload by its length at the last whole chunk: one that was
        // cut within a chunk is lost to it, and is begun anew. Beside it, the config's.
        let begun = |line: &&str| {
            line.contains("/acme/large/blobs/uploads/\"") && line.contains("\"POST\"")
        };
        let log = registry.log();
        let begun = log
            .lines()
            .filter(begun)
            .filter(|line| line.contains("response completed"))
            .count();
        let fate = if begun == 1 { "went on" } else { "began anew" };
        println!(
            "pushes: {kind:?} killed with {} MB of 200 and started again: the same push {fate} and ended well",
            before / MB as u64
        );
        // Killed for good, the push fails, and another one later does what is left.
        let name = registry.reference("acme/other:v1");
        let push = ["copy", "oci-layout:large:v1", &name, "--plain-http"];
        registry.kill();
        let done = author.run(&push).await;
        assert_eq!(
            (done.code, done.stderr.lines().count()),
            (Some(1), 1),
            "{kind:?}: {}",
            done.stderr
        );
        registry.restart().await;
        author.run(&push).await.ok();
    }
}

/// Bytes of every file below a folder.
fn held(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    entries
        .filter_map(Result::ok)
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => held(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_push_leaves_no_tag() {
    let (registry, author) = (Registry::start(Kind::Debian).await, Author::new());
    large(&author, "large", 200 * MB).await;
    let name = registry.reference("acme/large:v1");
    let child = author.start(&["copy", "oci-layout:large:v1", &name, "--plain-http"]);
    let uploads = registry
        .folder()
        .join("docker/registry/v2/repositories/acme/large/_uploads");
    poll_until("the first bytes", async || {
        (held(&uploads) > 0).then_some(())
    })
    .await;
    let interrupt = format!("kill -INT {}", child.id().unwrap());
    run("sh", author.home(), &["-c", &interrupt]).await;
    let done = Ran::of(child).await;
    assert_eq!(done.code, Some(1));
    assert!(done.stderr.contains("interrupted"), "{}", done.stderr);
    author
        .run(&["pull", &name, "--plain-http"])
        .await
        .refused("no such tag");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bar_moves_on_a_terminal_and_nothing_is_drawn_elsewhere() {
    let (registry, author) = (Registry::start(Kind::Debian).await, Author::new());
    large(&author, "large", 100 * MB).await;
    let line = |name: &str| {
        format!(
            "copy oci-layout:large:v1 {} --plain-http",
            registry.reference(name)
        )
    };
    let mut terminal = Terminal::running(
        &format!("TERM=xterm bundlegate {}", line("acme/one:v1")),
        author.home(),
    );
    terminal.shows("[=").await;
    terminal.shows("MiB/95.37 MiB").await;
    terminal.shows("done").await;
    terminal
        .shows(&registry.reference("acme/one@sha256:"))
        .await;
    assert_eq!(terminal.ended().await, Some(0));
    let done = author
        .run(&line("acme/two:v1").split(' ').collect::<Vec<_>>())
        .await;
    assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""));
}
