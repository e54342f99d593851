//! A private Sigstore, from the real programs.

mod issuer;
mod services;

use std::path::PathBuf;

use serde_json::Value;
use services::{Services, TILES_ORIGIN};

use super::{Author, Cosign, Format, Ran, Registry};

pub(crate) use issuer::{Identity, Issuer};

/// An issuer of identities, Fulcio, a CT log, both versions of Rekor, and an authority for
/// timestamps, on loopback and with keys of their own, until it is dropped.
#[derive(Debug)]
pub(crate) struct Sigstore {
    pub(crate) issuer: Issuer,
    services: Services,
    /// Whoever signs and verifies, with the trusted root and a key pair at hand.
    author: Author,
}

/// How something is signed.
#[derive(Debug, Clone)]
pub(crate) struct Signing {
    pub(crate) cosign: Cosign,
    pub(crate) format: Format,
    pub(crate) signer: Signer,
    pub(crate) evidence: Evidence,
}

/// By what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Signer {
    /// A key of the moment, and a certificate for it.
    Keyless(Identity),
    /// A key pair of its own.
    Key(KeyKind),
}

/// The kinds of keys that cosign signs with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyKind {
    P256,
    P384,
    P521,
    Rsa,
    Ed25519,
}

/// The evidence that a signature was made, and of its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Evidence {
    /// An entry in Rekor.
    Log,
    /// The same, and an RFC 3161 timestamp.
    LogAndTime,
    /// An entry in Rekor's second version, which knows no time, and a timestamp.
    TilesAndTime,
    /// A timestamp alone.
    Time,
}

impl Sigstore {
    pub(crate) async fn start() -> Self {
        let author = Author::new();
        let issuer = Issuer::start().await;
        let services = Services::start(author.home(), &issuer).await;
        let sigstore = Self {
            issuer,
            services,
            author,
        };
        sigstore.make_trusted_root().await;
        for evidence in Evidence::ALL {
            sigstore.make_signing_config(evidence).await;
        }
        sigstore.make_key(KeyKind::P256).await;
        sigstore
    }

    /// The trust root that verifies its signatures.
    pub(crate) fn trusted_root(&self) -> PathBuf {
        self.author.path(TRUSTED_ROOT)
    }

    /// The public key of [`Signer::Key`].
    pub(crate) fn key(&self, kind: KeyKind) -> PathBuf {
        self.author.path(&format!("{}.pub", kind.label()))
    }

    /// Makes a key pair, if there is none of that kind; the usual one is there.
    pub(crate) async fn make_key(&self, kind: KeyKind) {
        if self.key(kind).exists() {
            return;
        }
        let (name, file) = (kind.label(), format!("{}.pem", kind.label()));
        let make = [&["genpkey", "-out", &file, "-algorithm"], kind.algorithm()].concat();
        self.author.peer("openssl", &make).await.ok();
        self.author
            .peer(
                "cosign",
                &[
                    "import-key-pair",
                    "--key",
                    &file,
                    "--output-key-prefix",
                    name,
                ],
            )
            .await
            .ok();
    }

    /// Signs `name`, such as `acme/authz@sha256:…`.
    pub(crate) async fn sign(&self, how: &Signing, registry: &Registry, name: &str) {
        self.try_to_sign(how, registry, name).await.ok();
    }

    /// The same where it may be more than that cosign can do.
    pub(crate) async fn try_to_sign(&self, how: &Signing, registry: &Registry, name: &str) -> Ran {
        self.make(how, registry, name, &["sign"]).await
    }

    /// Attests `name`: a predicate of a type that cosign knows by name, or of any URI.
    pub(crate) async fn attest(
        &self,
        how: &Signing,
        registry: &Registry,
        name: &str,
        kind: &str,
        predicate: &Value,
    ) {
        self.author.write("predicate.json", &predicate.to_string());
        self.make(
            how,
            registry,
            name,
            &["attest", "--predicate=predicate.json", "--type", kind],
        )
        .await
        .ok();
    }

    async fn make(&self, how: &Signing, registry: &Registry, name: &str, verb: &[&str]) -> Ran {
        let mut words: Vec<_> = verb.iter().copied().map(str::to_owned).collect();
        words.extend(["-y".to_owned(), registry.reference(name)]);
        words.extend(self.means(how));
        words.extend(registry.cosign_flags());
        self.cosign_as(&how.signer, how.cosign, &words).await
    }

    /// Has `cosign` look for a signature like this on `name`, under the root of `trusted`.
    pub(crate) async fn verify(
        &self,
        cosign: Cosign,
        how: &Signing,
        trusted: &Self,
        registry: &Registry,
        name: &str,
    ) -> Ran {
        self.look_for(&["verify"], cosign, how, trusted, registry, name)
            .await
    }

    /// The same for an attestation of a type.
    pub(crate) async fn verify_attestation(
        &self,
        kind: &str,
        how: &Signing,
        trusted: &Self,
        registry: &Registry,
        name: &str,
    ) -> Ran {
        self.look_for(
            &["verify-attestation", "--type", kind],
            how.cosign,
            how,
            trusted,
            registry,
            name,
        )
        .await
    }

    async fn look_for(
        &self,
        verb: &[&str],
        cosign: Cosign,
        how: &Signing,
        trusted: &Self,
        registry: &Registry,
        name: &str,
    ) -> Ran {
        let mut words: Vec<_> = verb.iter().copied().map(str::to_owned).collect();
        words.push(registry.reference(name));
        words.extend(self.expected(cosign, how));
        words.push(format!(
            "--trusted-root={}",
            trusted.trusted_root().display()
        ));
        words.extend(registry.cosign_flags());
        self.cosign(cosign, &words).await
    }

    /// The flags by which cosign signs like this.
    fn means(&self, how: &Signing) -> Vec<String> {
        let mut flags = vec![format!(
            "--new-bundle-format={}",
            how.format == Format::Bundle
        )];
        if let Signer::Key(kind) = how.signer {
            flags.push(format!("--key={}.key", kind.label()));
        }
        if how.format == Format::Bundle {
            flags.push(format!("--trusted-root={TRUSTED_ROOT}"));
            flags.push(format!("--signing-config={}", how.evidence.config()));
            return flags;
        }
        if how.cosign == Cosign::V3 {
            flags.push("--use-signing-config=false".to_owned());
        }
        flags.push(format!("--fulcio-url={}", self.services.fulcio));
        match how.evidence {
            Evidence::Log | Evidence::LogAndTime => {
                flags.push(format!("--rekor-url={}", self.services.rekor))
            }
            Evidence::Time => flags.push("--tlog-upload=false".to_owned()),
            Evidence::TilesAndTime => panic!("cosign knows no way to do this: {how:?}"),
        }
        if how.evidence != Evidence::Log {
            flags.push(format!(
                "--timestamp-server-url={}",
                self.services.timestamps
            ));
        }
        flags
    }

    /// The flags by which `cosign` expects a signature like this.
    fn expected(&self, cosign: Cosign, how: &Signing) -> Vec<String> {
        let mut flags = match &how.signer {
            Signer::Keyless(identity) => vec![
                format!("--certificate-identity={}", identity.subject()),
                format!("--certificate-oidc-issuer={}", self.issuer.of(identity)),
            ],
            Signer::Key(kind) => vec![format!("--key={}.pub", kind.label())],
        };
        if (cosign, how.format) == (Cosign::V2, Format::Bundle) {
            flags.push("--new-bundle-format".to_owned());
        }
        if how.evidence != Evidence::Log {
            flags.push("--use-signed-timestamps".to_owned());
        }
        if how.evidence == Evidence::Time {
            flags.push("--insecure-ignore-tlog".to_owned());
        }
        flags
    }

    /// With a token where there is no key. As a flag, only one signed by RSA is taken.
    async fn cosign_as(&self, signer: &Signer, cosign: Cosign, words: &[String]) -> Ran {
        match signer {
            Signer::Keyless(identity) => {
                let token = format!("SIGSTORE_ID_TOKEN={}", self.issuer.token(identity));
                self.cosign_with(&[&token], cosign, words).await
            }
            Signer::Key(_) => self.cosign(cosign, words).await,
        }
    }

    async fn cosign(&self, cosign: Cosign, words: &[String]) -> Ran {
        self.cosign_with(&[], cosign, words).await
    }

    /// With what legacy signatures are made and judged by, which no flag tells.
    async fn cosign_with(&self, more: &[&str], cosign: Cosign, words: &[String]) -> Ran {
        let program = match cosign {
            Cosign::V3 => "cosign",
            Cosign::V2 => "cosign-2",
        };
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        self.author
            .peer(
                "env",
                &[&ENVIRONMENT[..], more, &[program], &words].concat(),
            )
            .await
    }

    async fn make_trusted_root(&self) {
        let Services {
            fulcio,
            ct,
            rekor,
            timestamps,
            ..
        } = &self.services;
        let words = [
            "trusted-root".to_owned(),
            "create".to_owned(),
            format!("--out={TRUSTED_ROOT}"),
            format!("--fulcio=url={fulcio},certificate-chain=fulcio.pem,start-time={BEGINNING}"),
            format!("--ctfe=url={ct},public-key=ct.pub,start-time={BEGINNING}"),
            format!("--rekor=url={rekor},public-key=rekor.pub,start-time={BEGINNING}"),
            // Verifiers expect the name in the URL to be the one in the checkpoint.
            format!(
                "--rekor=url=https://{TILES_ORIGIN},public-key=tiles.pub,start-time={BEGINNING},origin={TILES_ORIGIN}"
            ),
            format!("--tsa=url={timestamps},certificate-chain=tsa.pem,start-time={BEGINNING}"),
        ];
        self.cosign(Cosign::V3, &words).await.ok();
    }

    async fn make_signing_config(&self, evidence: Evidence) {
        let Services {
            fulcio,
            rekor,
            tiles,
            timestamps,
            ..
        } = &self.services;
        let service = |flag: &str, url: &str, version: u8| {
            format!(
                "--{flag}=url={url},api-version={version},start-time={BEGINNING},operator=example.com"
            )
        };
        let mut words = vec![
            "signing-config".to_owned(),
            "create".to_owned(),
            format!("--out={}", evidence.config()),
            service("fulcio", fulcio, 1),
            service("oidc-provider", &self.issuer.people(), 1),
        ];
        match evidence {
            Evidence::Log | Evidence::LogAndTime => words.push(service("rekor", rekor, 1)),
            Evidence::TilesAndTime => words.push(service("rekor", tiles, 2)),
            Evidence::Time => {}
        }
        if evidence != Evidence::Time {
            words.push("--rekor-config=ANY".to_owned());
        }
        if evidence != Evidence::Log {
            words.extend([service("tsa", timestamps, 1), "--tsa-config=ANY".to_owned()]);
        }
        self.cosign(Cosign::V3, &words).await.ok();
    }
}

impl Signing {
    /// Every way that a cosign can sign, keyless as a job and by a key, and as a person in
    /// each format.
    pub(crate) fn every() -> Vec<Self> {
        let person = Self::ways(&Signer::Keyless(Identity::person("ann@example.com")));
        let mut every: Vec<_> = person
            .into_iter()
            .filter(|how| how.evidence == Evidence::Log)
            .collect();
        every.extend(Self::ways(&Signer::Keyless(Identity::release_job())));
        every.extend(Self::ways(&Signer::Key(KeyKind::P256)));
        every
    }

    /// Every way in which a cosign can sign for somebody.
    pub(crate) fn ways(signer: &Signer) -> Vec<Self> {
        let ways = PROGRAMS_AND_FORMATS
            .into_iter()
            .flat_map(|(cosign, format)| {
                Evidence::ALL.map(|evidence| Self {
                    cosign,
                    format,
                    signer: signer.clone(),
                    evidence,
                })
            });
        ways.filter(Self::is_possible).collect()
    }

    /// The new log takes entries for DSSE in one form alone, which only cosign 3 writes.
    fn is_possible(&self) -> bool {
        self.evidence != Evidence::TilesAndTime
            || (self.cosign, self.format) == (Cosign::V3, Format::Bundle)
    }

    /// A name for a repository, such as `v3_bundle_job_rekor`.
    pub(crate) fn label(&self) -> String {
        let Self {
            cosign,
            format,
            signer,
            evidence,
        } = self;
        let parts = [
            &format!("{cosign:?}"),
            format.label(),
            signer.label(),
            evidence.label(),
        ];
        parts
            .join("_")
            .replace(" + ", "_")
            .replace(' ', "")
            .to_lowercase()
    }
}

impl Signer {
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Keyless(Identity::Person(_)) => "person",
            Self::Keyless(Identity::Job(_)) => "job",
            Self::Key(kind) => kind.label(),
        }
    }
}

impl KeyKind {
    pub(crate) const ALL: [Self; 5] =
        [Self::P256, Self::P384, Self::P521, Self::Rsa, Self::Ed25519];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::P256 => "p256",
            Self::P384 => "p384",
            Self::P521 => "p521",
            Self::Rsa => "rsa",
            Self::Ed25519 => "ed25519",
        }
    }

    /// The arguments by which openssl generates such a key.
    fn algorithm(self) -> &'static [&'static str] {
        match self {
            Self::P256 => &["EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
            Self::P384 => &["EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
            Self::P521 => &["EC", "-pkeyopt", "ec_paramgen_curve:P-521"],
            Self::Rsa => &["RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
            Self::Ed25519 => &["ed25519"],
        }
    }
}

impl Evidence {
    pub(crate) const ALL: [Self; 4] = [Self::Log, Self::LogAndTime, Self::TilesAndTime, Self::Time];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Log => "Rekor",
            Self::LogAndTime => "Rekor + TSA",
            Self::TilesAndTime => "Rekor 2 + TSA",
            Self::Time => "TSA",
        }
    }

    fn config(self) -> String {
        format!("signing-{}.json", self.label().replace([' ', '+'], ""))
    }
}

const PROGRAMS_AND_FORMATS: [(Cosign, Format); 4] = [
    (Cosign::V3, Format::Bundle),
    (Cosign::V3, Format::Legacy),
    (Cosign::V2, Format::Bundle),
    (Cosign::V2, Format::Legacy),
];

const TRUSTED_ROOT: &str = "trusted_root.json";

/// Before everything that is signed in a test.
const BEGINNING: &str = "2025-01-01T00:00:00Z";

const ENVIRONMENT: [&str; 4] = [
    "SIGSTORE_CT_LOG_PUBLIC_KEY_FILE=ct.pub",
    "SIGSTORE_ROOT_FILE=fulcio.pem",
    "SIGSTORE_REKOR_PUBLIC_KEY=rekor.pub",
    "SIGSTORE_TSA_CERTIFICATE_FILE=tsa.pem",
];
