//! What a private Sigstore signed, keyless and by a key with a log, in every registry: the
//! gateway verifies it under that Sigstore's root and OPA decides by it, and everybody else's
//! policy is refused, for its reason.

use std::fs;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::sigstore::provenance;
use crate::support::{
    Artifact, Author, Cosign, Evidence, Format, GatewayConfig, Identity, KeyKind, Kind, Opa,
    OpaVersion, Registry, Signer, Signing, Sigstore, TestGateway, http, long_polling,
};

const KINDS: [Kind; 3] = [Kind::Debian, Kind::Distribution, Kind::Referrers];

#[tokio::test(flavor = "multi_thread")]
async fn every_private_signature_reaches_opa_and_only_under_its_own_root_and_identity() {
    let (sigstore, other) = tokio::join!(Sigstore::start(), Sigstore::start());
    let scenes = KINDS.map(|kind| signed_and_verified(kind, &sigstore, &other));
    for line in futures_util::future::join_all(scenes).await.concat() {
        println!("keyless matrix | {line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keyless_attestation_is_required_and_verified_by_its_rule() {
    let (sigstore, registry) = (Sigstore::start().await, Registry::start(Kind::Debian).await);
    let job = Identity::release_job();
    let author = Author::with(&[
        ("ours.rego", &rule(BUILDER)),
        ("theirs.rego", &rule("https://example.com/other")),
    ]);
    let policy = |rego: &str| {
        let asked = json!([{ "predicate_type": PROVENANCE, "rego": author.path(rego) }]);
        json!({ "require": { "any_of": ["job"] }, "attestations": asked })
    };
    let keyless =
        json!({ "root": "corp", "issuer": sigstore.issuer.of(&job), "subject": job.subject() });
    let mut config = GatewayConfig::with_trust(json!({
        "roots": { "corp": { "trusted_root": sigstore.trusted_root() } },
        "authorities": { "job": { "keyless": keyless } },
        "policies": { "ours": policy("ours.rego"), "theirs": policy("theirs.rego") },
    }));
    for cosign in [Cosign::V3, Cosign::V2] {
        for attested in [true, false] {
            let signer = Signer::Keyless(job.clone());
            let how = Signing {
                cosign,
                format: Format::Bundle,
                signer,
                evidence: Evidence::LogAndTime,
            };
            let answer = format!("{cosign:?}-{attested}");
            let name = format!("acme/{}", answer.to_lowercase());
            let digest = registry
                .push(
                    &format!("{name}:v1"),
                    &Artifact::answering(&answer).await.file(),
                )
                .await;
            let pinned = format!("{name}@{digest}");
            sigstore.sign(&how, &registry, &pinned).await;
            if attested {
                sigstore
                    .attest(
                        &how,
                        &registry,
                        &pinned,
                        "slsaprovenance1",
                        &provenance(BUILDER),
                    )
                    .await;
            }
            for policy in ["ours", "theirs"] {
                let bundle = format!("{answer}-{policy}");
                config = config.bundle(&bundle, &registry, &format!("{name}:v1"));
                config.0["bundles"][&bundle]["trust"] = json!(policy);
            }
        }
    }
    let gate = TestGateway::start(config).await;
    for cosign in ["V3", "V2"] {
        let opa = Opa::polling(
            OpaVersion::Newest,
            &gate.url,
            &format!("{cosign}-true-ours"),
        )
        .await;
        opa.answers(&format!("{cosign}-true")).await;
        for (bundle, why) in [
            ("true-theirs", "does not satisfy the rule"),
            ("false-ours", "is missing"),
            ("false-theirs", "is missing"),
        ] {
            let bundle = format!("{cosign}-{bundle}");
            let message = refusal_of(&gate, &bundle).await;
            assert!(
                message.contains("required attestation") && message.contains(why),
                "{bundle}: {message}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_takes_cosigns_flags_and_matches_whole_names() {
    let (sigstore, other) = tokio::join!(Sigstore::start(), Sigstore::start());
    let (registry, author) = (Registry::start(Kind::Referrers).await, Author::new());
    let signer = Signer::Keyless(Identity::person("ann@example.com"));
    for how in Signing::ways(&signer)
        .into_iter()
        .filter(|how| how.evidence == Evidence::LogAndTime)
    {
        let row = how.label();
        let digest = registry
            .push(
                &format!("acme/{row}:v1"),
                &Artifact::answering(&row).await.file(),
            )
            .await;
        sigstore
            .sign(&how, &registry, &format!("acme/{row}@{digest}"))
            .await;
        let reference = registry.reference(&format!("acme/{row}:v1"));
        let verify = async |identity: &str, of: &Sigstore, root: &Sigstore| {
            let issuer = of.issuer.of(&Identity::person(""));
            let (issuer, root) = (
                format!("--certificate-oidc-issuer={issuer}"),
                root.trusted_root(),
            );
            let root = format!("--trusted-root={}", root.display());
            author
                .run(&[
                    "verify",
                    &reference,
                    "--plain-http",
                    identity,
                    &issuer,
                    &root,
                ])
                .await
        };
        let (ann, somebody) = (
            "--certificate-identity=ann@example.com",
            "--certificate-identity-regexp=[a-z]+@example.com",
        );
        for identity in [ann, somebody] {
            assert!(
                verify(identity, &sigstore, &sigstore)
                    .await
                    .ok()
                    .contains("ann@example.com"),
                "{row}"
            );
        }
        // A part of the name is enough for cosign.
        for identity in [
            "--certificate-identity=bob@example.com",
            "--certificate-identity-regexp=example.com",
        ] {
            verify(identity, &sigstore, &sigstore)
                .await
                .refused("another identity");
        }
        verify(ann, &other, &sigstore)
            .await
            .refused("another identity");
        verify(ann, &sigstore, &other)
            .await
            .refused("without a proven signing time");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_exchanged_while_serving_withdraws_its_bundles_and_gives_them_back() {
    let (sigstore, other) = tokio::join!(Sigstore::start(), Sigstore::start());
    let (mut registry, author) = (Registry::start(Kind::Distribution).await, Author::new());
    let job = Identity::release_job();
    let how = Signing {
        cosign: Cosign::V3,
        format: Format::Bundle,
        signer: Signer::Keyless(job.clone()),
        evidence: Evidence::TilesAndTime,
    };
    let digest = registry
        .push(
            "acme/authz:v1",
            &Artifact::answering("keyless").await.file(),
        )
        .await;
    sigstore
        .sign(&how, &registry, &format!("acme/authz@{digest}"))
        .await;
    let root =
        |of: &Sigstore| author.write("root.json", &fs::read_to_string(of.trusted_root()).unwrap());
    root(&sigstore);
    let keyless =
        json!({ "root": "corp", "issuer": sigstore.issuer.of(&job), "subject": job.subject() });
    let config = GatewayConfig::with_trust(json!({
        "roots": { "corp": { "trusted_root": author.path("root.json") } },
        "authorities": { "job": { "keyless": keyless } },
        "policies": { "release": { "require": { "any_of": ["job"] } } },
    }));
    let gate = TestGateway::start(config.bundle("authz", &registry, "acme/authz:v1")).await;
    let opa = Opa::polling(OpaVersion::Newest, &gate.url, "authz").await;
    opa.answers("keyless").await;
    // The evidence is at hand: nobody is asked before something is taken away.
    registry.kill();
    let state = async |wanted: &str| {
        let began = Instant::now();
        gate.status_when("authz", wanted, |status| status["state"] == wanted)
            .await;
        began.elapsed().as_secs_f64()
    };
    root(&other);
    let withdrawn = state("withdrawn").await;
    let reasons = gate
        .log()
        .into_iter()
        .filter_map(|mut line| line.get_mut("reason").map(Value::take));
    let told = reasons.into_iter().any(|reason| {
        reason
            .as_str()
            .unwrap_or_default()
            .contains("without a proven signing time")
    });
    assert!(told, "{:?}", gate.log());
    assert_eq!(
        opa.decision("authz/answer").await,
        Some(json!("keyless")),
        "OPA keeps what it has"
    );
    registry.restart().await;
    root(&sigstore);
    let served = state("serving").await;
    println!(
        "keyless | root exchanged: withdrawn after {withdrawn:.2} s with the registry dead, back after {served:.2} s"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_key_is_verified_with_as_much_evidence_as_possible() {
    let (sigstore, registry, author) = (
        Sigstore::start().await,
        Registry::start(Kind::Debian).await,
        Author::new(),
    );
    // P-256, the usual one, has its matrix above.
    let kinds = KeyKind::ALL
        .into_iter()
        .filter(|kind| *kind != KeyKind::P256);
    for kind in kinds.clone() {
        sigstore.make_key(kind).await;
    }
    let config = json!({ "version": 1, "registries": { &registry.host: registry.settings() }, "trust": keys(&sigstore) });
    author.write("bundlegate.yaml", &config.to_string());
    for how in kinds.flat_map(|kind| Signing::ways(&Signer::Key(kind))) {
        let Signer::Key(kind) = how.signer else {
            unreachable!()
        };
        let row = how.label();
        let digest = registry
            .push(
                &format!("acme/{row}:v1"),
                &Artifact::answering(&row).await.file(),
            )
            .await;
        let pinned = format!("acme/{row}@{digest}");
        let signed = sigstore.try_to_sign(&how, &registry, &pinned).await;
        if signed.code != Some(0) {
            assert_ne!(kind, KeyKind::Rsa, "{row}: {signed:?}");
            println!("keys and logs | {row:28} | cosign can't");
            continue;
        }
        let mut line = format!("keys and logs | {row:28}");
        for asked in Asked::ALL
            .into_iter()
            .filter(|asked| (kind, *asked) != (KeyKind::P521, Asked::Logged))
        {
            let (reference, policy) = (registry.reference(&pinned), asked.policy(kind));
            let ran = author
                .run(&[
                    "verify",
                    &reference,
                    "--config",
                    "bundlegate.yaml",
                    "--policy",
                    &policy,
                ])
                .await;
            let outcome = match asked.lacking(kind, how.evidence) {
                None => ran.ok().lines().last().map(|_| "verified"),
                Some(why) => ran.refused(why).contains(why).then_some(why),
            };
            line.push_str(&format!(" | {asked:?}: {}", outcome.unwrap()));
        }
        println!("{line}");
    }
}

/// Requirements for a key's signature beside its validity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// An entry in the log.
    Logged,
    /// A good timestamp if there is one.
    Stamped,
    /// Nothing.
    Nothing,
}

impl Asked {
    const ALL: [Self; 3] = [Self::Logged, Self::Stamped, Self::Nothing];

    fn policy(self, kind: KeyKind) -> String {
        format!("{}-{self:?}", kind.label()).to_lowercase()
    }

    /// What a signature with this evidence is refused for. sigstore-verify judges logs and
    /// timestamps, and knows neither P-521 nor the scheme that cosign uses with Ed25519; of
    /// the first Rekor it knows entries with SHA-256 alone, of the second those by P-256.
    fn lacking(self, kind: KeyKind, evidence: Evidence) -> Option<&'static str> {
        let strange = matches!(kind, KeyKind::P521 | KeyKind::Ed25519);
        match self {
            Self::Nothing => None,
            Self::Stamped => {
                (strange && evidence != Evidence::Log).then_some("of an unsupported kind")
            }
            Self::Logged if strange => Some("of an unsupported kind"),
            Self::Logged => {
                let unknown = kind == KeyKind::P384 || evidence == Evidence::TilesAndTime;
                (unknown || evidence == Evidence::Time)
                    .then_some("without valid transparency log proof")
            }
        }
    }
}

/// A policy for each kind of key and each demand.
fn keys(sigstore: &Sigstore) -> Value {
    let mut trust = json!({ "roots": { "corp": { "trusted_root": sigstore.trusted_root() } } });
    for kind in KeyKind::ALL
        .into_iter()
        .filter(|kind| *kind != KeyKind::P256)
    {
        for asked in Asked::ALL {
            let mut authority =
                json!({ "keys": [declared(sigstore, kind)], "root": "corp", "tlog": "none" });
            match asked {
                // No signature of this kind could be, and the configuration may not ask for one.
                Asked::Logged if kind == KeyKind::P521 => continue,
                Asked::Logged => authority["tlog"] = json!("require"),
                Asked::Stamped => {}
                Asked::Nothing => drop(authority.as_object_mut().unwrap().remove("root")),
            }
            let name = asked.policy(kind);
            trust["authorities"][&name] = authority;
            trust["policies"][&name] = json!({ "require": { "any_of": [name] } });
        }
    }
    trust
}

/// A key as the configuration has it. The scheme that cosign uses with Ed25519 has to be said.
fn declared(sigstore: &Sigstore, kind: KeyKind) -> Value {
    let file = sigstore.key(kind);
    match kind {
        KeyKind::Ed25519 => json!({ "file": file, "schemes": ["ed25519ph", "ed25519"] }),
        KeyKind::P256 | KeyKind::P384 | KeyKind::P521 | KeyKind::Rsa => json!(file),
    }
}

/// Signs in every way, and gives a line about what became of each.
async fn signed_and_verified(kind: Kind, sigstore: &Sigstore, other: &Sigstore) -> Vec<String> {
    let registry = Registry::start(kind).await;
    let mut config = GatewayConfig::with_trust(trust(sigstore, other));
    let ways = Signing::every();
    for how in &ways {
        let row = how.label();
        sign(&registry, sigstore, how).await;
        for voter in voters(how) {
            let name = format!("{row}.{}", voter.name);
            config = config.bundle(&name, &registry, &format!("acme/{row}:v1"));
            config.0["bundles"][&name]["trust"] = json!(voter.policy(how));
            // Once is enough.
            config.0["bundles"][&name]["poll"] = json!("10m");
        }
    }
    let gate = TestGateway::start(config).await;
    let opa = Opa::start(OpaVersion::Newest, &polling(&gate, &ways)).await;
    let mut lines = Vec::new();
    for how in &ways {
        let row = how.label();
        opa.decides(&format!("{row}/answer"), &json!(row)).await;
        let mut refusals = Vec::new();
        for voter in voters(how) {
            refusals.extend(outcome(&gate, how, &voter).await);
        }
        lines.push(format!(
            "{kind:12?} | {row:28} | served | {}",
            refusals.join(", ")
        ));
    }
    lines
}

/// Pushes a bundle in which `data.<row>.answer` is the row's name, and signs it.
async fn sign(registry: &Registry, sigstore: &Sigstore, how: &Signing) {
    let row = how.label();
    let manifest = json!({ "roots": [&row] }).to_string();
    let policy = format!("package {row}\n\nanswer := \"{row}\"\n");
    let artifact =
        Artifact::built(&row, &[(".manifest", &manifest), ("policy.rego", &policy)]).await;
    let digest = registry
        .push(&format!("acme/{row}:v1"), &artifact.file())
        .await;
    sigstore
        .sign(how, registry, &format!("acme/{row}@{digest}"))
        .await;
}

/// The way that a bundle goes under the policy of one authority; the refusal in words.
async fn outcome(gate: &TestGateway, how: &Signing, voter: &Voter) -> Option<String> {
    let name = format!("{}.{}", how.label(), voter.name);
    let Some(refusal) = voter.refusal else {
        let status = gate
            .status_when(&name, "served", |status| status["state"] == "serving")
            .await;
        let signer = &status["signers"][0];
        assert_eq!(
            (&signer["authority"], &signer["format"]),
            (&json!(voter.policy(how)), &json!(how.format.label()))
        );
        return None;
    };
    let message = refusal_of(gate, &name).await;
    let told = refusal.iter().find(|words| message.contains(*words));
    let told = told.unwrap_or_else(|| panic!("{name} wants {refusal:?}: {message}"));
    Some(format!("{}: {told}", voter.name))
}

/// The gateway's error for a bundle that it doesn't serve.
async fn refusal_of(gate: &TestGateway, name: &str) -> String {
    let refused = |status: &Value| status["last_failure"]["step"] == "verify";
    let status = gate.status_when(name, "refused", refused).await;
    let reply = http()
        .get(format!("{}/bundles/{name}", gate.url))
        .send()
        .await
        .unwrap();
    assert!(!reply.status().is_success(), "{name}: {}", reply.status());
    status["last_failure"]["message"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// An authority, and what it says of what somebody signed.
struct Voter {
    name: &'static str,
    /// The message of a refusal; none for the right evidence.
    refusal: Option<&'static [&'static str]>,
}

impl Voter {
    /// Its name in the configuration, and that of the policy that asks it alone.
    fn policy(&self, how: &Signing) -> String {
        let evidence = if how.evidence == Evidence::Time {
            "timed"
        } else {
            "logged"
        };
        format!("{}-{}-{evidence}", how.signer.label(), self.name)
    }
}

/// The program that verifies a signature.
fn voters(how: &Signing) -> Vec<Voter> {
    let voter = |name, refusal| Voter { name, refusal };
    let mut voters = vec![
        voter("right", None),
        voter(
            "other-root",
            Some(
                &[
                    "without valid transparency log proof",
                    "without a proven signing time",
                ][..],
            ),
        ),
    ];
    voters.extend(match &how.signer {
        Signer::Key(_) => vec![voter("other-key", Some(&["by another key"][..]))],
        Signer::Keyless(Identity::Person(_)) => vec![
            voter("other-subject", Some(&["by another identity"][..])),
            voter("other-issuer", Some(&["by another identity"][..])),
        ],
        Signer::Keyless(Identity::Job(_)) => vec![
            voter("other-subject", Some(&["by another identity"][..])),
            voter("other-issuer", Some(&["by another identity"][..])),
            voter(
                "other-claim",
                Some(&["certificate claims do not match"][..]),
            ),
        ],
    });
    voters
}

/// Two roots, and authorities that differ in one respect each.
fn trust(sigstore: &Sigstore, other: &Sigstore) -> Value {
    let mut trust = json!({
        "roots": {
            "corp": { "trusted_root": sigstore.trusted_root() },
            "elsewhere": { "trusted_root": other.trusted_root() },
        },
        "authorities": {},
        "policies": {},
    });
    for how in Signing::every() {
        for voter in voters(&how) {
            let name = voter.policy(&how);
            let root = if voter.name == "other-root" {
                "elsewhere"
            } else {
                "corp"
            };
            let issuing = if voter.name == "other-issuer" {
                other
            } else {
                sigstore
            };
            let mut authority = match &how.signer {
                Signer::Key(kind) => {
                    let owner = if voter.name == "other-key" {
                        other
                    } else {
                        sigstore
                    };
                    json!({ "keys": [owner.key(*kind)], "root": root })
                }
                Signer::Keyless(identity) => json!({ "keyless": {
                    "root": root,
                    "issuer": issuing.issuer.of(identity),
                    "subject": if voter.name == "other-subject" { "nobody@example.com".to_owned() } else { identity.subject() },
                    "claims": claims(identity, &voter),
                } }),
            };
            authority["tlog"] = json!(if how.evidence == Evidence::Time {
                "none"
            } else {
                "require"
            });
            trust["authorities"][&name] = authority;
            trust["policies"][&name] = json!({ "require": { "any_of": [name] } });
        }
    }
    trust
}

fn claims(identity: &Identity, voter: &Voter) -> Value {
    let Identity::Job(claims) = identity else {
        return json!({});
    };
    let repository = if voter.name == "other-claim" {
        &json!("654321")
    } else {
        &claims["repository_id"]
    };
    json!({ "source_repository_id": repository, "runner_environment": claims["runner_environment"] })
}

/// An OPA that takes everything that is served.
fn polling(gate: &TestGateway, ways: &[Signing]) -> Value {
    let mut config = json!({ "bundles": {} });
    for how in ways {
        let name = format!("{}.right", how.label());
        let mut one = long_polling(&gate.url, &name);
        config["services"] = one["services"].take();
        config["bundles"][&name] = one["bundles"][&name].take();
    }
    config
}

/// Allows what `builder` built.
fn rule(builder: &str) -> String {
    format!("package signature\n\nallow if input.predicate.runDetails.builder.id == {builder:?}\n")
}

const PROVENANCE: &str = "https://slsa.dev/provenance/v1";
const BUILDER: &str = "https://example.com/builder";
