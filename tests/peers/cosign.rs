//! Keys and signatures, to and fro between bundlegate and both generations of cosign.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Artifact, Author, Ca, Cosign, Format, Kind, Ran, Registry, run};

const KINDS: [Kind; 3] = [Kind::Debian, Kind::Distribution, Kind::Referrers];
const FORMATS: [Format; 2] = [Format::Bundle, Format::Legacy];

#[tokio::test(flavor = "multi_thread")]
async fn both_cosigns_verify_what_is_signed_here() {
    for kind in KINDS {
        let fixture = Fixture::start(kind).await;
        for format in FORMATS {
            let name = fixture.push(format.label()).await;
            fixture
                .sign("cosign.key", format, &name, &["-a", "env=prod"])
                .await
                .ok();
            for cosign in [Cosign::V3, Cosign::V2] {
                fixture
                    .cosign_verify(cosign, format, "cosign.pub", &name, &["-a", "env=prod"])
                    .await
                    .ok();
                if (cosign, format) != (Cosign::V2, Format::Bundle) {
                    // cosign 2 does not look for annotations in a bundle.
                    fixture
                        .cosign_verify(cosign, format, "cosign.pub", &name, &["-a", "env=dev"])
                        .await
                        .failed();
                }
                fixture
                    .cosign_verify(cosign, format, "other.pub", &name, &[])
                    .await
                    .failed();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_key_that_cosign_imports_signs_here_as_it_does_there() {
    let fixture = Fixture::start(Kind::Debian).await;
    for (kind, algorithm) in [
        (
            "rsa",
            &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"][..],
        ),
        ("ed25519", &["-algorithm", "ed25519"]),
        (
            "p384",
            &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
        ),
    ] {
        let file = format!("{kind}.pem");
        fixture
            .author
            .peer(
                "openssl",
                &[&["genpkey", "-out", &file], algorithm].concat(),
            )
            .await
            .ok();
        fixture
            .cosign(
                Cosign::V3,
                &[
                    "import-key-pair",
                    "--key",
                    &file,
                    "--output-key-prefix",
                    kind,
                ],
            )
            .await
            .ok();
        let (private, public) = (format!("{kind}.key"), format!("{kind}.pub"));
        // cosign takes SHA-256 for granted, also of its own signatures by such a key.
        let hash = if kind == "p384" {
            &["--signature-digest-algorithm", "sha384"][..]
        } else {
            &[]
        };
        for format in FORMATS {
            let name = fixture.push(&format!("{kind}-{}", format.label())).await;
            fixture.sign(&private, format, &name, &[]).await.ok();
            for cosign in [Cosign::V3, Cosign::V2] {
                fixture
                    .cosign_verify(cosign, format, &public, &name, hash)
                    .await
                    .ok();
            }
            fixture.verify(&public, &name).await.ok();
            if kind == "ed25519" {
                // cosign hashes first what such a key signs (Ed25519ph), a scheme that is not
                // verified here; it does verify the plain one.
                continue;
            }
            let name = fixture
                .push(&format!("{kind}-{}-theirs", format.label()))
                .await;
            fixture
                .cosign_sign(Cosign::V3, format, &private, &name)
                .await
                .ok();
            fixture.verify(&public, &name).await.ok();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cosigns_key_files_open_here_and_ours_open_there() {
    let fixture = Fixture::start(Kind::Debian).await;
    let name = fixture.push("v1").await;
    for (cosign, prefix) in [(Cosign::V3, "three"), (Cosign::V2, "two")] {
        fixture
            .cosign(
                cosign,
                &["generate-key-pair", "--output-key-prefix", prefix],
            )
            .await
            .ok();
        let (private, public) = (format!("{prefix}.key"), format!("{prefix}.pub"));
        fixture
            .sign(&private, Format::Legacy, &name, &[])
            .await
            .ok();
        fixture
            .cosign_verify(cosign, Format::Legacy, &public, &name, &[])
            .await
            .ok();
        let ours = fixture
            .cosign(cosign, &["public-key", "--key", "cosign.key"])
            .await
            .ok();
        assert_eq!(
            ours,
            fs::read_to_string(fixture.author.path("cosign.pub")).unwrap(),
            "{cosign:?}"
        );
        let other = fixture.push(prefix).await;
        fixture
            .cosign_sign(cosign, Format::Legacy, "cosign.key", &other)
            .await
            .ok();
        fixture.verify("cosign.pub", &other).await.ok();
    }
    let sign = format!(
        "bundlegate sign {} --plain-http --key three.key",
        fixture.registry.reference(&name)
    );
    fixture
        .author
        .shell(&format!("COSIGN_PASSWORD=wrong {sign}"))
        .await
        .refused("password");
    // No password is a password.
    fixture
        .author
        .shell("COSIGN_PASSWORD= bundlegate generate-key-pair --output-key-prefix empty")
        .await
        .ok();
    let shown = fixture
        .author
        .shell("COSIGN_PASSWORD= cosign public-key --key empty.key")
        .await
        .ok();
    assert_eq!(
        shown,
        fs::read_to_string(fixture.author.path("empty.pub")).unwrap()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_of_all_programs_lie_side_by_side() {
    for kind in KINDS {
        let fixture = Fixture::start(kind).await;
        let name = fixture.push("v1").await;
        for (cosign, prefix) in [(Cosign::V3, "three"), (Cosign::V2, "two")] {
            fixture
                .cosign(
                    cosign,
                    &["generate-key-pair", "--output-key-prefix", prefix],
                )
                .await
                .ok();
        }
        fixture
            .cosign_sign(Cosign::V3, Format::Legacy, "three.key", &name)
            .await
            .ok();
        fixture
            .sign("cosign.key", Format::Legacy, &name, &[])
            .await
            .ok();
        fixture
            .cosign_sign(Cosign::V2, Format::Legacy, "two.key", &name)
            .await
            .ok();
        for public in ["cosign.pub", "three.pub", "two.pub"] {
            // cosign 2 looks at `.sig` alone, cosign 3 at it while there is no bundle.
            fixture
                .cosign_verify(Cosign::V2, Format::Legacy, public, &name, &[])
                .await
                .ok();
            fixture
                .cosign_verify(Cosign::V3, Format::Legacy, public, &name, &[])
                .await
                .ok();
            assert_eq!(
                fixture.votes(public, &name).await,
                [("legacy", false), ("legacy", false), ("legacy", true)].map(votes_of),
                "{kind:?}"
            );
        }
        fixture
            .cosign_sign(Cosign::V3, Format::Bundle, "three.key", &name)
            .await
            .ok();
        fixture
            .sign("cosign.key", Format::Bundle, &name, &[])
            .await
            .ok();
        for public in ["cosign.pub", "three.pub"] {
            fixture
                .cosign_verify(Cosign::V3, Format::Bundle, public, &name, &[])
                .await
                .ok();
            let expected = [
                ("bundle", false),
                ("bundle", true),
                ("legacy", false),
                ("legacy", false),
                ("legacy", true),
            ];
            assert_eq!(
                fixture.votes(public, &name).await,
                expected.map(votes_of),
                "{kind:?}"
            );
        }
        fixture
            .verify("other.pub", &name)
            .await
            .refused("signature by another key");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_protected_registry_is_signed_into_and_verified_with_the_gateways_configuration() {
    let ca = Ca::new();
    for kind in [Kind::Debian, Kind::Distribution] {
        let fixture = Fixture::at(Registry::protected(kind, &ca).await).await;
        let name = fixture.push("v1").await;
        let config = json!({ "version": 1, "registries": { &fixture.registry.host: fixture.registry.settings() },
            "trust": { "authorities": { "us": { "keys": ["cosign.pub"], "tlog": "none" },
                                        "them": { "keys": ["other.pub"], "tlog": "none" } },
                       "policies": { "release": { "require": { "any_of": ["us"] }, "match": format!("{}/**", fixture.registry.host) },
                                     "strict": { "require": { "any_of": ["them"] } } } } });
        fixture.author.write("bundlegate.yaml", &config.to_string());
        let reference = fixture.registry.reference(&name);
        let with = |verb: &'static str, rest: &'static [&'static str]| {
            let reference = reference.clone();
            let author = &fixture.author;
            async move {
                author
                    .run(&[&[verb, &reference, "--config", "bundlegate.yaml"], rest].concat())
                    .await
            }
        };
        with("verify", &[]).await.refused("no signature");
        with("sign", &["--key", "cosign.key"]).await.ok();
        with("sign", &["--key", "cosign.key", "--legacy"])
            .await
            .ok();
        let verified = with("verify", &["--json"]).await.json();
        assert_eq!(
            (&verified["policy"], &verified["signatures"][0]["authority"]),
            (&json!("release"), &json!("us"))
        );
        with("verify", &["--policy", "strict"])
            .await
            .refused("signature by another key");
        for format in FORMATS {
            fixture
                .cosign_verify(Cosign::V3, format, "cosign.pub", &name, &[])
                .await
                .ok();
        }
        // Without credentials the error is about them, and not that there is no signature.
        let ca = ca.file();
        let stranger = [
            "verify",
            &reference,
            "--key",
            "cosign.pub",
            "--ca-file",
            ca.to_str().unwrap(),
        ];
        fixture.author.run(&stranger).await.refused("401");
    }
}

/// A registry, and somebody with key pairs of bundlegate's: `cosign` and `other`.
struct Fixture {
    registry: Registry,
    author: Author,
}

impl Fixture {
    async fn start(kind: Kind) -> Self {
        Self::at(Registry::start(kind).await).await
    }

    async fn at(registry: Registry) -> Self {
        let author = Author::new();
        for prefix in ["cosign", "other"] {
            author
                .run(&["generate-key-pair", "--output-key-prefix", prefix])
                .await
                .ok();
        }
        run(
            "cosign",
            author.home(),
            &["trusted-root", "create", "--out", "trusted-root.json"],
        )
        .await;
        Self { registry, author }
    }

    /// Pushes another artifact, and gives its name.
    async fn push(&self, tag: &str) -> String {
        let digest = self
            .registry
            .push(
                &format!("acme/authz:{tag}"),
                &Artifact::answering(tag).await.file(),
            )
            .await;
        format!("acme/authz@{digest}")
    }

    async fn sign(&self, key: &str, format: Format, name: &str, flags: &[&str]) -> Ran {
        let reference = self.registry.reference(name);
        let legacy = if format == Format::Legacy {
            &["--legacy"][..]
        } else {
            &[]
        };
        let arguments = ["sign", &reference, "--plain-http", "--key", key];
        self.author.run(&[&arguments, legacy, flags].concat()).await
    }

    async fn verify(&self, key: &str, name: &str) -> Ran {
        let reference = self.registry.reference(name);
        self.author
            .run(&["verify", &reference, "--plain-http", "--key", key, "--json"])
            .await
    }

    /// Format and worth of each signature, sorted.
    async fn votes(&self, key: &str, name: &str) -> Vec<(String, bool)> {
        let verified = self.verify(key, name).await.json();
        let signatures = verified["signatures"].as_array().unwrap().iter();
        let vote = |one: &Value| {
            (
                one["format"].as_str().unwrap().to_owned(),
                one["verified"].as_bool().unwrap(),
            )
        };
        let mut votes: Vec<_> = signatures.map(vote).collect();
        votes.sort();
        votes
    }

    async fn cosign(&self, cosign: Cosign, arguments: &[&str]) -> Ran {
        let name = match cosign {
            Cosign::V3 => "cosign",
            Cosign::V2 => "cosign-2",
        };
        self.author.peer(name, arguments).await
    }

    async fn cosign_sign(&self, cosign: Cosign, format: Format, key: &str, name: &str) -> Ran {
        let reference = self.registry.reference(name);
        let new_format = format!("--new-bundle-format={}", format == Format::Bundle);
        let mut arguments = vec![
            "sign",
            "-y",
            "--key",
            key,
            "--tlog-upload=false",
            &new_format,
            &reference,
        ];
        if cosign == Cosign::V3 {
            arguments.push("--use-signing-config=false");
        }
        let flags = self.registry.cosign_flags();
        arguments.extend(flags.iter().map(String::as_str));
        self.cosign(cosign, &arguments).await
    }

    async fn cosign_verify(
        &self,
        cosign: Cosign,
        format: Format,
        key: &str,
        name: &str,
        more: &[&str],
    ) -> Ran {
        let reference = self.registry.reference(name);
        let mut arguments = vec!["verify", "--insecure-ignore-tlog", "--key", key, &reference];
        if (cosign, format) == (Cosign::V2, Format::Bundle) {
            arguments.extend(["--new-bundle-format", "--trusted-root", "trusted-root.json"]);
        }
        let flags = self.registry.cosign_flags();
        arguments.extend(flags.iter().map(String::as_str).chain(more.iter().copied()));
        self.cosign(cosign, &arguments).await
    }
}

fn votes_of((format, verified): (&str, bool)) -> (String, bool) {
    (format.to_owned(), verified)
}
