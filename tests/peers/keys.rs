//! Every kind of key that cosign signs with, in every format that it writes, on every
//! registry: bundlegate verifies each, and refuses it to another key of the same kind.

use serde_json::json;

use crate::support::{Artifact, Author, Cosign, Format, Kind, Ran, Registry};

const REGISTRIES: [Kind; 3] = [Kind::Debian, Kind::Distribution, Kind::Referrers];

/// A kind of key: how openssl makes one, and the scheme that cosign has for it where that is
/// not what is usual for such a key.
struct KeyKind {
    name: &'static str,
    openssl: &'static [&'static str],
    scheme: Option<&'static str>,
}

const KEYS: [KeyKind; 6] = [
    KeyKind {
        name: "p256",
        openssl: &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
        scheme: None,
    },
    KeyKind {
        name: "p384",
        openssl: &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
        scheme: None,
    },
    KeyKind {
        name: "p521",
        openssl: &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"],
        scheme: None,
    },
    KeyKind {
        name: "ed25519",
        openssl: &["-algorithm", "ed25519"],
        scheme: Some("ed25519ph"),
    },
    KeyKind {
        name: "rsa2048",
        openssl: &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
        scheme: None,
    },
    KeyKind {
        name: "rsa4096",
        openssl: &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:4096"],
        scheme: None,
    },
];

/// The versions of cosign and their formats, with the name and the flags that select each.
const WRITERS: [(Cosign, Format, &str, &[&str]); 5] = [
    (
        Cosign::V3,
        Format::Bundle,
        "bundle",
        &["--new-bundle-format=true", "--use-signing-config=false"],
    ),
    (
        Cosign::V3,
        Format::Legacy,
        "legacy",
        &["--new-bundle-format=false", "--use-signing-config=false"],
    ),
    (
        Cosign::V2,
        Format::Bundle,
        "bundle",
        &["--new-bundle-format=true"],
    ),
    (
        Cosign::V2,
        Format::Legacy,
        "legacy",
        &["--new-bundle-format=false"],
    ),
    (
        Cosign::V2,
        Format::Legacy,
        "legacy as a referrer",
        &["--registry-referrers-mode=oci-1-1"],
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_format_and_key_that_cosign_can_make_is_verified() {
    let author = Author::new();
    for kind in &KEYS {
        for prefix in [kind.name.to_owned(), format!("other-{}", kind.name)] {
            let file = format!("{prefix}.pem");
            author
                .peer(
                    "openssl",
                    &[&["genpkey", "-out", &file], kind.openssl].concat(),
                )
                .await
                .ok();
            let import = [
                "import-key-pair",
                "--key",
                &file,
                "--output-key-prefix",
                &prefix,
            ];
            author.peer("cosign", &import).await.ok();
        }
    }
    let (mut rows, mut wrong) = (Vec::new(), Vec::new());
    for registry in REGISTRIES {
        let fixture = Fixture {
            registry: Registry::start(registry).await,
            author: &author,
        };
        for kind in &KEYS {
            for (cosign, format, label, flags) in WRITERS {
                let row = format!("{registry:?} | {cosign:?} | {label} | {}", kind.name);
                let outcome = fixture.row(kind, cosign, format, flags).await;
                if let Err(why) = &outcome {
                    wrong.push(format!("{row}: {why}"));
                }
                rows.push(format!("{row} | {}", outcome.as_deref().unwrap_or("WRONG")));
            }
        }
    }
    println!(
        "registry | cosign | format | key | bundlegate verify\n{}",
        rows.join("\n")
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
}

struct Fixture<'a> {
    registry: Registry,
    author: &'a Author,
}

impl Fixture<'_> {
    async fn row(
        &self,
        kind: &KeyKind,
        cosign: Cosign,
        format: Format,
        flags: &[&str],
    ) -> Result<&'static str, String> {
        let tag = format!("acme/authz:{}", fastrand::u64(..));
        let digest = self
            .registry
            .push(&tag, &Artifact::answering(&tag).await.file())
            .await;
        let name = format!("acme/authz@{digest}");
        let signed = self.sign(kind, cosign, &name, flags).await;
        if signed.code != Some(0) {
            return Err(format!("cosign did not sign: {}", signed.stderr));
        }
        // What is usual for the key first; a scheme beyond it has to be declared.
        if kind.scheme.is_some() {
            let undeclared = self.verify(kind.name, None, &name).await;
            undeclared.failed_with("signature in an undeclared scheme")?;
        }
        let verified = self.verify(kind.name, kind.scheme, &name).await;
        if verified.code != Some(0) {
            return Err(format!("refused: {}", verified.stderr));
        }
        let told: serde_json::Value =
            serde_json::from_str(&verified.stdout).map_err(|error| error.to_string())?;
        if told["signatures"][0]["format"] != json!(format.label()) {
            return Err(format!("found in another format: {told}"));
        }
        let other = self
            .verify(&format!("other-{}", kind.name), kind.scheme, &name)
            .await;
        other.failed_with("signature by another key")?;
        Ok("verified")
    }

    async fn sign(&self, kind: &KeyKind, cosign: Cosign, name: &str, flags: &[&str]) -> Ran {
        let (reference, key) = (self.registry.reference(name), format!("{}.key", kind.name));
        let registry = self.registry.cosign_flags();
        let mut arguments = vec![
            "sign",
            "-y",
            "--key",
            &key,
            "--tlog-upload=false",
            &reference,
        ];
        arguments.extend(flags);
        arguments.extend(registry.iter().map(String::as_str));
        let program = if cosign == Cosign::V3 {
            "cosign"
        } else {
            "cosign-2"
        };
        if flags.contains(&"--registry-referrers-mode=oci-1-1") {
            let line = format!("COSIGN_EXPERIMENTAL=1 {program} {}", arguments.join(" "));
            return self.author.shell(&line).await;
        }
        self.author.peer(program, &arguments).await
    }

    async fn verify(&self, key: &str, scheme: Option<&str>, name: &str) -> Ran {
        let (reference, public) = (self.registry.reference(name), format!("{key}.pub"));
        let mut arguments = vec![
            "verify",
            &reference,
            "--plain-http",
            "--key",
            &public,
            "--json",
        ];
        arguments.extend(scheme.iter().flat_map(|scheme| ["--key-scheme", scheme]));
        self.author.run(&arguments).await
    }
}

impl Ran {
    fn failed_with(&self, why: &str) -> Result<(), String> {
        match self.code {
            Some(1) if self.stderr.contains(why) => Ok(()),
            _ => Err(format!("not refused for {why:?}: {self:?}")),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_that_cosign_puts_into_another_repository_are_found_there_and_only_there() {
    let author = Author::new();
    author.run(&["generate-key-pair"]).await.ok();
    for kind in REGISTRIES {
        let fixture = Fixture {
            registry: Registry::start(kind).await,
            author: &author,
        };
        let host = fixture.registry.host.clone();
        // cosign 2 puts its bundles beside the artifact all the same.
        for (cosign, _, label, flags) in [&WRITERS[0], &WRITERS[1], &WRITERS[3]] {
            let tag = format!("acme/authz:{}", fastrand::u64(..));
            let digest = fixture
                .registry
                .push(&tag, &Artifact::answering(&tag).await.file())
                .await;
            let reference = fixture.registry.reference(&format!("acme/authz@{digest}"));
            let program = if *cosign == Cosign::V3 {
                "cosign"
            } else {
                "cosign-2"
            };
            let more = fixture.registry.cosign_flags().join(" ");
            let flags = flags.join(" ");
            let line = format!(
                "COSIGN_REPOSITORY={host}/acme/signatures {program} sign -y --key cosign.key --tlog-upload=false {flags} {more} {reference}"
            );
            fixture.author.shell(&line).await.ok();
            let config = |signatures: serde_json::Value| {
                json!({ "version": 1, "registries": { &host: fixture.registry.settings() },
                    "trust": { "authorities": { "us": { "keys": ["cosign.pub"], "tlog": "none" } },
                        "policies": { "release": { "match": format!("{host}/**"), "require": { "any_of": ["us"] },
                            "signatures": signatures } } } })
                .to_string()
            };
            author.write(
                "there.yaml",
                &config(json!({ "repository": format!("{host}/acme/signatures") })),
            );
            author.write(
                "elsewhere.yaml",
                &config(json!({ "repository": format!("{host}/acme/others") })),
            );
            author
                .run(&["verify", &reference, "--config", "there.yaml"])
                .await
                .ok();
            author
                .run(&["verify", &reference, "--config", "elsewhere.yaml"])
                .await
                .refused("no signature");
            let beside = author
                .run(&["verify", &reference, "--plain-http", "--key", "cosign.pub"])
                .await;
            beside.refused("no signature");
            println!("{kind:?} | {cosign:?} | {label} | found in the other repository");
        }
    }
}
