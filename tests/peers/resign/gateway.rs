//! Artifacts of several authors behind a gateway that signs each of them for OPA with one key.

use std::{collections::BTreeMap, fs};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Files, GatewayKey, KID, tarball, text};
use crate::support::{
    Artifact, Cosign, Evidence, Format, GatewayConfig, Identity, KeyPair, Kind, Opa, OpaVersion,
    Registry, Signer, Signing, Sigstore, TestGateway, http,
};

/// A bundle of one team in a form of its own. `answer` is in a rule and in data.
fn bundle_of(team: &str, answer: &str) -> Artifact {
    let rego = format!("package {team}\n\nanswer := \"{answer}\"\n");
    let manifest = format!("{{\"revision\":\"{answer}\",\"roots\":[\"{team}\"]}}");
    let yaml = format!("countries: [NO, SE]\nsaid: {answer}\n");
    let files = match team {
        // As `tar czf bundle.tar.gz .` names files.
        "one" => text(&[
            ("./one/p.rego", &rego),
            ("./one/cfg/data.yml", &yaml),
            ("./.manifest", &manifest),
        ]),
        // As `opa build` names them, with a signature of its own and more after the manifest.
        "two" => text(&[
            ("/two/p.rego", &rego),
            ("/two/cfg/data.yaml", &yaml),
            ("/two/cfg/data.json", "{\"n\": 1.50}"),
            ("/.manifest", &format!("{manifest} trailing: [")),
            ("/.signatures.json", "{\"signatures\":[\"e30.e30.AA\"]}"),
        ]),
        _ => text(&[
            ("three/p.rego", &rego),
            ("three/cfg/data.json", "{\"countries\": [\"NO\", \"SE\"]}"),
            ("README ü.md", "read me"),
            ("old/my-signatures.json", "{}"),
            (".manifest", &manifest),
        ]),
    };
    Artifact::raw(&tarball(&files))
}

const TEAMS: [&str; 3] = ["one", "two", "three"];

/// Who signs the artifacts of a team with cosign.
enum Author {
    Key(KeyPair),
    Keyless(Identity),
}

impl Author {
    /// The authority of the configuration for this author.
    fn authority(&self, sigstore: &Sigstore) -> Value {
        match self {
            Self::Key(key) => json!({ "keys": [key.public()], "tlog": "none" }),
            Self::Keyless(identity) => json!({ "keyless": {
                "root": "corp",
                "issuer": sigstore.issuer.of(identity),
                "subject": identity.subject(),
            } }),
        }
    }

    async fn sign(&self, sigstore: &Sigstore, registry: &Registry, name: &str) {
        match self {
            Self::Key(key) => key.sign(registry, name).await,
            Self::Keyless(identity) => {
                let how = Signing {
                    cosign: Cosign::V3,
                    format: Format::Bundle,
                    signer: Signer::Keyless(identity.clone()),
                    evidence: Evidence::LogAndTime,
                };
                sigstore.sign(&how, registry, name).await;
            }
        }
    }
}

/// Three teams, each with an author of its own, behind a gateway with one key for OPA.
struct Fixture {
    sigstore: Sigstore,
    authors: [Author; 3],
    registry: Registry,
    gate: TestGateway,
    key: GatewayKey,
}

impl Fixture {
    async fn start() -> Self {
        let (sigstore, registry, team_key) = tokio::join!(
            Sigstore::start(),
            Registry::start(Kind::Distribution),
            KeyPair::generate()
        );
        let authors = [
            Author::Key(team_key),
            Author::Keyless(Identity::person("ann@example.com")),
            Author::Keyless(Identity::release_job()),
        ];
        let key = GatewayKey::generate();
        let mut config = GatewayConfig::with_trust(trust(&authors, &sigstore));
        for team in TEAMS {
            config = config
                .bundle(team, &registry, &format!("acme/{team}:live"))
                .with(&format!("/bundles/{team}/trust"), json!(team))
                .with(
                    &format!("/bundles/{team}/resign"),
                    json!({ "key": key.file(), "kid": KID }),
                );
        }
        let fixture = Self {
            gate: TestGateway::start(config.cached()).await,
            sigstore,
            authors,
            registry,
            key,
        };
        for team in TEAMS {
            fixture.publish(team, "first").await;
        }
        fixture
    }

    async fn publish(&self, team: &str, answer: &str) {
        let artifact = bundle_of(team, answer);
        let name = format!("acme/{team}:{answer}");
        let digest = self.registry.push(&name, &artifact.file()).await;
        let pinned = format!("acme/{team}@{digest}");
        let place = TEAMS.iter().position(|one| *one == team).unwrap();
        let author = &self.authors[place];
        author.sign(&self.sigstore, &self.registry, &pinned).await;
        self.registry.tag(&pinned, "live").await;
    }

    /// The configuration of an OPA with all bundles, of which it requires signatures by one key.
    fn opa_config(&self) -> Value {
        let bundle = |team: &str| {
            json!({
                "service": "gate",
                "resource": format!("/bundles/{team}"),
                "signing": { "keyid": KID },
                "polling": { "min_delay_seconds": 1, "max_delay_seconds": 2, "long_polling_timeout_seconds": 30 },
            })
        };
        let bundles: BTreeMap<_, _> = TEAMS.map(|team| (team, bundle(team))).into();
        json!({
            "services": { "gate": { "url": self.gate.url } },
            "keys": { KID: { "algorithm": "ES256", "key": self.key.public } },
            "bundles": bundles,
        })
    }
}

/// Each team has the policy of its own author.
fn trust(authors: &[Author; 3], sigstore: &Sigstore) -> Value {
    let (mut authorities, mut policies) = (json!({}), json!({}));
    for (team, author) in TEAMS.iter().zip(authors) {
        authorities[team] = author.authority(sigstore);
        policies[team] = json!({ "require": { "any_of": [team] } });
    }
    let roots = json!({ "corp": { "trusted_root": sigstore.trusted_root() } });
    json!({ "roots": roots, "authorities": authorities, "policies": policies })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_opa_accepts_what_three_identities_have_signed_with_one_key() {
    let mut fixture = Fixture::start().await;
    let config = fixture.opa_config();
    let mut opas = Vec::new();
    for version in [OpaVersion::Newest, OpaVersion::V0_70] {
        opas.push(Opa::start(version, &config).await);
    }
    for opa in &opas {
        for team in TEAMS {
            opa.decides(&format!("{team}/answer"), &json!("first"))
                .await;
            // By the YAML rules of OPA 0.70, `NO` would be false.
            opa.decides(&format!("{team}/cfg/countries"), &json!(["NO", "SE"]))
                .await;
        }
    }

    // One team rotates its key, and another one has a new author. No OPA notices.
    fixture.authors[0] = Author::Key(KeyPair::generate().await);
    fixture.authors[1] = Author::Keyless(Identity::person("ben@example.com"));
    let trust = trust(&fixture.authors, &fixture.sigstore);
    let config = fixture.gate.config().with("/trust", trust);
    fixture.gate.reconfigure(&config);
    for team in ["one", "two"] {
        fixture.publish(team, "second").await;
    }
    for opa in &opas {
        opa.decides("one/answer", &json!("second")).await;
        opa.decides("two/answer", &json!("second")).await;
        opa.decides("three/answer", &json!("first")).await;
    }
    refuses_what_was_changed(&fixture).await;
}

/// A bundle that was changed on its way, and one that was never signed.
async fn refuses_what_was_changed(fixture: &Fixture) {
    let url = format!("{}/bundles/three", fixture.gate.url);
    let served = http().get(url).send().await.unwrap().bytes().await.unwrap();
    let folder = TempDir::new().unwrap();
    let intact = folder.path().join("intact.tar.gz");
    fs::write(&intact, &served).unwrap();
    let mut files = Files::new();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&*served));
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
        files.push((name, content));
    }
    let write = |name: &str, files: &Files| {
        let path = folder.path().join(name);
        fs::write(&path, tarball(files)).unwrap();
        path
    };
    let mut changed = files.clone();
    let rego = changed.iter_mut().find(|(name, _)| name.ends_with(".rego"));
    rego.unwrap().1 = b"package three\n\nanswer := \"forged\"\n".to_vec();
    let changed = write("changed.tar.gz", &changed);
    files.retain(|(name, _)| name != ".signatures.json");
    let unsigned = write("unsigned.tar.gz", &files);
    for version in [OpaVersion::Newest, OpaVersion::V0_70] {
        fixture.key.verify(version, &intact).await.unwrap();
        for (file, words) in [
            (&changed, "three/p.rego: digest mismatch"),
            (&unsigned, "bundle missing .signatures.json file"),
        ] {
            let resource = format!("file://{}", file.display());
            let config = json!({
                "keys": { KID: { "algorithm": "ES256", "key": fixture.key.public } },
                "bundles": { "three": { "resource": resource, "signing": { "keyid": KID } } },
            });
            let opa = Opa::start(version, &config).await;
            opa.fails_with(words).await;
            assert_eq!(opa.decision("three/answer").await, None);
        }
    }
}

/// `signing` without `keyid`, which OPA before 1.21.3 takes for "not required".
#[tokio::test(flavor = "multi_thread")]
async fn an_opa_with_two_keys_follows_the_gateway_from_one_to_the_other() {
    let fixture = Fixture::start().await;
    let next = GatewayKey::generate();
    let mut config = fixture.opa_config();
    config["keys"]["next"] = json!({ "algorithm": "ES256", "key": next.public });
    for team in TEAMS {
        config["bundles"][team]["signing"] = json!({});
    }
    let opa = Opa::start(OpaVersion::Newest, &config).await;
    opa.decides("one/answer", &json!("first")).await;
    let resign = json!({ "key": next.file(), "kid": "next" });
    let config = fixture.gate.config().with("/bundles/one/resign", resign);
    fixture.gate.reconfigure(&config);
    fixture.publish("one", "second").await;
    opa.decides("one/answer", &json!("second")).await;
}
