//! Version ranges: the same answers as Masterminds/semver, the library of Flux and Helm; and what a
//! real OPA decides while versions come and go in real registries.

use std::{fs, process::Stdio};

use bundlegate::oci::{Version, VersionRange};
use fastrand::Rng;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, process::Command};

use crate::support::{
    Artifact, GatewayConfig, KeyPair, Kind, Opa, OpaVersion, Registry, TestGateway, http, program,
};

/// The answers that `src/oci/version_range.rs` is tested with.
const ANSWERS: &str = include_str!("semver-oracle/answers.tsv");
const RANDOM_RANGES: usize = 4000;
const RANDOM_VERSIONS: usize = 300;

/// The lines of the oracle for these questions.
async fn ask(questions: &str) -> String {
    let mut oracle = Command::new(program("semver-oracle"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut input = oracle.stdin.take().unwrap();
    let questions = questions.to_owned();
    let writing = tokio::spawn(async move { input.write_all(questions.as_bytes()).await });
    let output = oracle.wait_with_output().await.unwrap();
    writing.await.unwrap().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn masterminds_semver_gives_the_answers_that_are_checked_in() {
    let answers = ask(ANSWERS).await;
    assert!(
        answers == ANSWERS,
        "renew tests/peers/semver-oracle/answers.tsv"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn random_ranges_have_the_random_versions_that_they_have_for_masterminds_semver() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = Rng::with_seed(seed);
    let question = |kind: &str, text: String| format!("{kind}\t{}\n", json!(text));
    let versions = (0..RANDOM_VERSIONS).map(|_| question("version", version(&mut random)));
    let mut questions: String = versions.collect();
    for _ in 0..RANDOM_RANGES {
        questions += &question("range", range(&mut random));
    }
    let (mut versions, mut wrong) = (Vec::new(), Vec::new());
    let (mut pairs, mut invalid) = (0, 0);
    for line in ask(&questions).await.lines() {
        let fields: Vec<_> = line.split('\t').collect();
        let [kind, text, theirs] = fields.as_slice() else {
            panic!("{line}")
        };
        let text: String = serde_json::from_str(text).unwrap();
        let ours = if *kind == "version" {
            text.parse::<Version>().map_or_else(
                |_| "invalid".to_owned(),
                |version| {
                    versions.push(version.clone());
                    version.to_string()
                },
            )
        } else if let Ok(range) = text.parse::<VersionRange>() {
            pairs += versions.len();
            members(&range, &versions)
        } else {
            "invalid".to_owned()
        };
        invalid += usize::from(ours == "invalid");
        if ours != *theirs {
            wrong.push(format!("{kind} {text:?}: {ours} instead of {theirs}"));
        }
    }
    println!("{pairs} pairs of valid ranges and versions, {invalid} invalid texts");
    assert!(pairs > 100_000 && invalid > 100, "{pairs} {invalid}");
    assert!(wrong.is_empty(), "seed {seed}:\n{}", wrong.join("\n"));
}

/// The numbers of the versions in a range, and that of the highest, as the oracle writes them.
fn members(range: &VersionRange, versions: &[Version]) -> String {
    let mut highest: Option<usize> = None;
    let mut numbers = Vec::new();
    for (number, version) in versions.iter().enumerate() {
        if range.contains(version) {
            numbers.push(number.to_string());
            if highest.is_none_or(|highest| *version > versions[highest]) {
                highest = Some(number);
            }
        }
    }
    match highest {
        Some(highest) => format!("{} {highest}", numbers.join(",")),
        None => "- -".to_owned(),
    }
}

fn pick<'a>(random: &mut Rng, from: &[&'a str]) -> &'a str {
    from[random.usize(..from.len())]
}

/// A version, most often a valid one.
fn version(random: &mut Rng) -> String {
    let number = |random: &mut Rng| match random.u8(..20) {
        0 => "18446744073709551615".to_owned(),
        1 => format!("0{}", random.u8(..3)),
        _ => random.u8(..4).to_string(),
    };
    let numbers = match random.u8(..20) {
        0 => 2,
        1 => 4,
        _ => 3,
    };
    let numbers: Vec<_> = (0..numbers).map(|_| number(random)).collect();
    let mut text = pick(random, &["", "", "", "v", "V"]).to_owned() + &numbers.join(".");
    if random.bool() {
        text = format!("{text}-{}", identifiers(random));
    }
    if random.u8(..4) == 0 {
        text += pick(random, &["_", "+"]);
        text += &identifiers(random);
    }
    text
}

fn identifiers(random: &mut Rng) -> String {
    const IDENTIFIERS: [&str; 16] = [
        "0",
        "1",
        "2",
        "10",
        "alpha",
        "beta",
        "rc",
        "a",
        "A",
        "-",
        "-1",
        "1a",
        "01",
        "18446744073709551616",
        "99999999999999999999",
        "",
    ];
    let count = random.usize(1..4);
    let identifiers = (0..count).map(|_| pick(random, &IDENTIFIERS));
    identifiers.collect::<Vec<_>>().join(".")
}

/// A range, often a valid one.
fn range(random: &mut Rng) -> String {
    let mut text = String::new();
    for part in 0..random.usize(1..4) {
        if part > 0 {
            text += pick(
                random,
                &["||", " || ", " ", ", ", ",", " - ", " , ", "|", ""],
            );
        }
        text += pick(
            random,
            &[
                "", "", "", "=", "!=", ">", "<", ">=", "=>", "<=", "=<", "~", "~>", "^", "^", "<>",
            ],
        );
        text += pick(random, &["", "", "", " "]);
        text += &partial(random);
    }
    text
}

fn partial(random: &mut Rng) -> String {
    const NUMBERS: [&str; 12] = ["0", "0", "1", "1", "2", "3", "x", "X", "*", "01", "1x", "|"];
    let count = random.usize(1..5).min(3);
    let numbers: Vec<_> = (0..count).map(|_| pick(random, &NUMBERS)).collect();
    let mut text = pick(random, &["", "", "", "v"]).to_owned() + &numbers.join(".");
    if random.u8(..3) == 0 {
        text = format!("{text}-{}", identifiers(random));
    }
    if random.u8(..10) == 0 {
        text = format!("{text}+{}", identifiers(random));
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_follows_pushes_and_deletions_in_a_real_registry_and_opa_enforces_it() {
    for kind in [Kind::Debian, Kind::Distribution, Kind::Referrers] {
        let (registry, key) = (Registry::start(kind).await, KeyPair::generate().await);
        let push = async |version: &str, answer: &str| {
            let artifact = Artifact::answering(answer).await;
            let name = format!("acme/authz:{version}");
            registry.push(&name, &artifact.file()).await
        };
        let sign = async |digest: &str| {
            key.sign(&registry, &format!("acme/authz@{digest}")).await;
        };
        for (version, answer) in [("1.0.0", "one"), ("v1.1.0", "two"), ("2.0.0", "other")] {
            sign(&push(version, answer).await).await;
        }
        let config = GatewayConfig::trusting(&key)
            .bundle("authz", &registry, "acme/authz")
            .with("/bundles/authz/semver", json!("^1"));
        let gate = TestGateway::start(config).await;
        let opa = Opa::polling(OpaVersion::Newest, &gate.url, "authz").await;
        opa.answers("two").await;

        let third = push("1.2.0", "three").await;
        let unsigned = |status: &Value| status["last_failure"]["class"] == "evidence";
        let status = gate.status_when("authz", "refused", unsigned).await;
        assert_eq!(status["chosen"]["tag"], "1.2.0", "{kind:?}");
        assert_eq!(opa.decision("authz/answer").await, Some(json!("two")));
        sign(&third).await;
        opa.answers("three").await;

        // A rollback by deletion. Distribution deletes a manifest with its tags, and no tag alone;
        // go-containerregistry keeps the tags of a manifest.
        let name = match kind {
            Kind::Debian | Kind::Distribution => third.as_str(),
            Kind::Referrers => "1.2.0",
        };
        let url = format!("http://{}/v2/acme/authz/manifests/{name}", registry.host);
        let deleted = http().delete(url).send().await.unwrap();
        assert_eq!(deleted.status(), 202, "{kind:?}");
        opa.answers("two").await;
        let status = gate.bundle_status("authz").await;
        assert!(status["older"].is_string(), "{kind:?}: {status}");
        let reason = &status["chosen"]["reason"];
        assert_eq!(
            reason, "the highest of 2 versions in ^1; 1.2.0 is gone",
            "{kind:?}"
        );

        if kind != Kind::Referrers {
            // More tags than fit on one page.
            let tags = registry
                .folder()
                .join("docker/registry/v2/repositories/acme/authz/_manifests/tags");
            for number in 0..1100 {
                let (from, to) = (tags.join("1.0.0"), tags.join(format!("0.1.{number}")));
                let link = fs::read(from.join("current/link")).unwrap();
                fs::create_dir_all(to.join("current")).unwrap();
                fs::write(to.join("current/link"), link).unwrap();
            }
        }
        sign(&push("1.3.0", "four").await).await;
        opa.answers("four").await;
        println!("{kind:?}: {}", gate.bundle_status("authz").await["chosen"]);
    }
}
