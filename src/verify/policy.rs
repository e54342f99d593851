//! Trust policies: the signers that count, and the requirements on an artifact.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use serde_json::Value;

use super::{AttestationRule, FulcioExtension, Pattern, PublicKey, TrustRoot, ca::CaRoots};
use crate::oci::{Digest, Manifest, Repository, cosign};

/// The requirements on an artifact before it is served. A checked value: a policy that accepts
/// nothing or everything can't be constructed.
#[derive(Debug, Clone)]
pub struct TrustPolicy {
    name: String,
    rule: Rule,
    /// Digests that an unsigned policy rejects; a signed one has them in its requirements.
    revoked: BTreeSet<Digest>,
    revision: PolicyRevision,
}

/// The content of a policy.
#[derive(Debug, Clone)]
pub enum Rule {
    /// No signature is required: the configuration has `unsigned`.
    Unsigned,
    /// Signatures that meet the requirements. Shared, since any number of bundles have one
    /// policy.
    Signed(Arc<Requirements>),
}

/// The requirements on signatures and the number of authorities that have to sign.
#[derive(Debug, Clone)]
pub struct Requirements {
    /// The authorities that may sign.
    pub authorities: Vec<Authority>,
    /// The number of them that have to sign, each with a signature of its own.
    pub at_least: usize,
    /// The predicate types that count as a signature; by default [`cosign::SIGN_PREDICATE`].
    pub predicate_types: BTreeSet<String>,
    /// Attestations that are required besides the signature.
    pub attestations: Vec<Attestation>,
    /// The storage formats that are allowed.
    pub formats: BTreeSet<Format>,
    /// Annotations that have to be signed with the digest. Types count: `1` is not `"1"`.
    pub annotations: BTreeMap<String, Value>,
    /// The repository that a legacy signature has to name.
    pub claimed_repository: ClaimedRepository,
    /// The repository with the signatures, if not the artifact's own.
    pub signatures: Option<Repository>,
    /// The maximum age of a signature, counted from a time that a log or a timestamp authority
    /// proves.
    pub max_signature_age: Option<Duration>,
    /// Digests that are rejected no matter who signed them.
    pub revoked_digests: BTreeSet<Digest>,
}

/// A signer or a group of signers with one vote.
#[derive(Debug, Clone)]
pub struct Authority {
    /// The name in the configuration.
    pub name: String,
    /// The keys or certificates that its signatures are made with.
    pub kind: AuthorityKind,
    /// Whether a transparency log entry is required.
    pub tlog: TlogPolicy,
    /// The trusted logs and timestamp authorities, and for keyless the certificate authorities.
    pub root: Option<TrustRoot>,
}

/// The keys or certificates that an authority's signatures are made with.
#[derive(Debug, Clone)]
pub enum AuthorityKind {
    /// One of these keys.
    Keys(Vec<AuthorityKey>),
    /// A certificate of one of the root's certificate authorities, for this identity.
    Keyless(Identity),
    /// A certificate of a private certificate authority.
    X509(X509),
}

/// A key and its validity.
#[derive(Debug, Clone)]
pub struct AuthorityKey {
    /// The key.
    pub key: PublicKey,
    /// The start of the validity.
    pub not_before: Option<Timestamp>,
    /// The end of the validity. It is compared with the time of signing if a log or a timestamp
    /// proves that, otherwise with the clock.
    pub not_after: Option<Timestamp>,
    /// Whether the key is revoked: none of its signatures counts, regardless of the time of
    /// signing.
    pub revoked: bool,
}

/// The identity in a Fulcio certificate.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The OIDC issuer that authenticated the signer.
    pub issuer: Pattern,
    /// The signer: an e-mail address or a URI.
    pub subject: Pattern,
    /// Further claims in the certificate.
    pub claims: BTreeMap<FulcioExtension, Pattern>,
}

/// Certificates of a private certificate authority.
#[derive(Debug, Clone)]
pub struct X509 {
    /// The certificates of the authority.
    pub roots: CaRoots,
    /// The signer.
    pub subject: San,
    /// The proof of the time of signing.
    pub time: SigningTime,
}

/// A subject alternative name, by its kind.
#[derive(Debug, Clone)]
pub enum San {
    /// A URI, such as a SPIFFE id.
    Uri(Pattern),
    /// An e-mail address.
    Email(Pattern),
}

/// The proof of the time of signing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SigningTime {
    /// An RFC 3161 timestamp.
    Tsa,
    /// A transparency log.
    Rekor,
    /// No proof: the certificate has to be valid at the time of verification.
    Now,
}

/// Whether a transparency log entry is required.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlogPolicy {
    /// Not required; log entries are ignored.
    None,
    /// Not required, but an entry that is present has to be valid.
    IfPresent,
    /// Required.
    Require,
}

/// The storage formats of cosign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// Sigstore bundle v0.3 as an OCI referrer.
    Bundle,
    /// Simple signing under the `.sig` tag.
    Legacy,
}

/// The repository that a legacy signature has to name. Bundles name none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimedRepository {
    /// Any repository, as cosign accepts: the same digest is the same artifact everywhere.
    Ignore,
    /// The repository that the artifact is fetched from.
    Match,
    /// This `HOST/REPOSITORY`.
    Exactly(String),
}

/// A statement that is required besides the signature, by one of the policy's authorities.
#[derive(Debug, Clone)]
pub struct Attestation {
    /// The predicate type.
    pub predicate_type: String,
    /// A rule that the statement has to satisfy.
    pub rule: Option<AttestationRule>,
}

/// Identifies the content of a policy and of its trust roots: two policies with the same revision
/// accept the same artifacts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PolicyRevision(String);

/// A policy that could accept nothing, or that would accept everything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct InvalidPolicy {
    /// The configuration key of the invalid part.
    pub key: &'static str,
    /// The problem and its correction.
    pub sentence: String,
}

impl TrustPolicy {
    /// A policy that accepts everything.
    pub fn unsigned(name: String) -> Self {
        Self {
            name,
            rule: Rule::Unsigned,
            revoked: BTreeSet::new(),
            revision: PolicyRevision::of("unsigned"),
        }
    }

    /// A policy with these requirements.
    ///
    /// # Errors
    /// When no artifact could meet them, or every artifact would.
    pub fn signed(name: String, requirements: Requirements) -> Result<Self, InvalidPolicy> {
        requirements.check()?;
        Ok(Self::of(name, requirements))
    }

    /// A policy with these requirements, which may accept nothing.
    pub(super) fn of(name: String, requirements: Requirements) -> Self {
        // The `Debug` output of every part has all fields that a decision depends on, so that a new
        // field changes the revision without being listed here.
        let revision = PolicyRevision::of(&format!("{requirements:?}"));
        Self {
            name,
            rule: Rule::Signed(Arc::new(requirements)),
            revoked: BTreeSet::new(),
            revision,
        }
    }

    /// The same policy without these digests.
    #[must_use]
    pub(super) fn without(self, revoked: &BTreeSet<Digest>) -> Self {
        if revoked.is_empty() {
            return self;
        }
        let revision = PolicyRevision::of(&format!("{} without {revoked:?}", self.revision));
        Self {
            revoked: revoked.clone(),
            revision,
            ..self
        }
    }

    /// Whether `digest` is rejected, no matter who signed it.
    pub fn revokes(&self, digest: &Digest) -> bool {
        let requirements = self.requirements();
        self.revoked.contains(digest)
            || requirements
                .is_some_and(|requirements| requirements.revoked_digests.contains(digest))
    }

    /// Whether the policy revokes a manifest that was found as `named`, by that digest or by one of
    /// another algorithm.
    pub fn revokes_manifest(&self, named: &Digest, manifest: &Manifest) -> bool {
        let own = manifest.digest();
        let revoked = self.requirements().map(|wanted| &wanted.revoked_digests);
        let mut revoked = self.revoked.iter().chain(revoked.into_iter().flatten());
        self.revokes(named)
            || self.revokes(own)
            || revoked
                .find(|other| other.algorithm() != own.algorithm())
                .is_some_and(|other| self.revokes(&other.recompute(manifest.raw())))
    }

    /// The policy's name in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The rule.
    pub fn rule(&self) -> &Rule {
        &self.rule
    }

    /// The requirements; `None` if the policy is `unsigned`.
    pub fn requirements(&self) -> Option<&Requirements> {
        match &self.rule {
            Rule::Unsigned => None,
            Rule::Signed(requirements) => Some(requirements),
        }
    }

    /// The repository with the signatures, if not the artifact's own.
    pub fn signatures(&self) -> Option<&Repository> {
        self.requirements()?.signatures.as_ref()
    }

    /// Changes whenever the policy or one of its trust roots does.
    pub fn revision(&self) -> &PolicyRevision {
        &self.revision
    }
}

impl Requirements {
    /// A signature by any one of these authorities, with the defaults for everything else.
    pub fn any_of(authorities: Vec<Authority>) -> Self {
        Self {
            authorities,
            at_least: 1,
            predicate_types: BTreeSet::from([cosign::SIGN_PREDICATE.to_owned()]),
            attestations: Vec::new(),
            formats: BTreeSet::from([Format::Bundle, Format::Legacy]),
            annotations: BTreeMap::new(),
            claimed_repository: ClaimedRepository::Ignore,
            signatures: None,
            max_signature_age: None,
            revoked_digests: BTreeSet::new(),
        }
    }

    fn check(&self) -> Result<(), InvalidPolicy> {
        if self.authorities.is_empty() {
            return invalid(
                "require",
                "without an authority nothing could pass; name one of trust.authorities",
            );
        }
        if self.at_least == 0 {
            return invalid(
                "require",
                "at_least: 0 would accept anything; write 1 or more",
            );
        }
        if self.at_least > self.authorities.len() {
            let (votes, voters) = (self.at_least, self.authorities.len());
            return invalid(
                "require",
                format!("{votes} of {voters} authorities can never sign; lower at_least"),
            );
        }
        if self.formats.is_empty() {
            return invalid(
                "formats",
                "no signature could be accepted; write bundle, legacy or both",
            );
        }
        if self.predicate_types.is_empty() && !self.formats.contains(&Format::Legacy) {
            return invalid(
                "predicate_types",
                "no bundle could count as a signature; name a predicate type",
            );
        }
        for attestation in &self.attestations {
            if !self.formats.contains(&Format::Bundle) {
                return invalid(
                    "attestations",
                    "attestations are bundles; add bundle to formats",
                );
            }
            if self.predicate_types.contains(&attestation.predicate_type) {
                let sentence = format!(
                    "{} already counts as a signature (predicate_types); remove it from one of them",
                    attestation.predicate_type
                );
                return invalid("attestations", sentence);
            }
        }
        for authority in &self.authorities {
            authority
                .check()
                .map_err(|InvalidPolicy { key, sentence }| InvalidPolicy {
                    key: "require",
                    sentence: format!("{}: {key}: {sentence}", authority.name),
                })?;
        }
        self.check_distinct()?;
        self.check_age()
    }

    /// Checks that no signer counts for two authorities.
    fn check_distinct(&self) -> Result<(), InvalidPolicy> {
        let mut owners: BTreeMap<String, &str> = BTreeMap::new();
        for authority in &self.authorities {
            let (signer_keys, what) = match &authority.kind {
                AuthorityKind::Keys(keys) => (
                    keys.iter()
                        .map(|key| key.key.identity().to_owned())
                        .collect(),
                    "share a key",
                ),
                // Whether two patterns overlap can't be decided in general; equal ones are a
                // mistake. Two votes need two signatures in any case.
                same => (
                    vec![format!("{same:?} {:?}", authority.root)],
                    "are the same signer",
                ),
            };
            for signer_key in signer_keys {
                match owners.insert(signer_key, &authority.name) {
                    Some(other) if other != authority.name => {
                        let sentence = format!(
                            "{} and {other} {what}; leave one of them out",
                            authority.name
                        );
                        return invalid("require", sentence);
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn check_age(&self) -> Result<(), InvalidPolicy> {
        let Some(untimed) = self
            .authorities
            .iter()
            .find(|authority| !authority.proves_time())
        else {
            return Ok(());
        };
        if self.max_signature_age.is_none() {
            return Ok(());
        }
        let sentence = format!(
            "nothing proves the age of a signature by {}; require a log (tlog: require)",
            untimed.name
        );
        invalid("max_signature_age", sentence)
    }
}

impl Authority {
    /// An authority with these keys and without a transparency log.
    pub fn with_keys(name: String, keys: impl IntoIterator<Item = PublicKey>) -> Self {
        let kind = AuthorityKind::Keys(keys.into_iter().map(AuthorityKey::from).collect());
        Self {
            name,
            kind,
            tlog: TlogPolicy::None,
            root: None,
        }
    }

    /// Its keys; empty if it is known by certificates.
    pub fn keys(&self) -> &[AuthorityKey] {
        match &self.kind {
            AuthorityKind::Keys(keys) => keys,
            AuthorityKind::Keyless(_) | AuthorityKind::X509(_) => &[],
        }
    }

    /// Whether a valid signature proves its own age. With keys, only a log does: a timestamp can
    /// be obtained for an old signature at any time.
    pub fn proves_time(&self) -> bool {
        match &self.kind {
            AuthorityKind::Keys(_) => self.tlog == TlogPolicy::Require,
            AuthorityKind::Keyless(_) => true,
            AuthorityKind::X509(x509) => x509.time != SigningTime::Now,
        }
    }

    /// Checks that a signature by this authority is possible. The error's key is one of an
    /// authority.
    ///
    /// An authority whose keys are all revoked passes: a configuration that revokes the last key
    /// must be applied, not rejected in favour of the one before it.
    ///
    /// # Errors
    /// When no signature could match.
    pub fn check(&self) -> Result<(), InvalidPolicy> {
        let root = self.root.as_ref();
        let root_name = root.map_or("none", TrustRoot::name);
        let logs = root.is_some_and(TrustRoot::has_logs);
        let stamps = root.is_some_and(TrustRoot::has_timestamp_authorities);
        let lacks = |what: &str, way_out: &str| {
            format!("its root ({root_name}) has no {what}; {way_out}, or name another root")
        };
        if self.tlog == TlogPolicy::Require && !logs {
            return invalid("tlog", lacks("transparency log", "write `tlog: none`"));
        }
        match &self.kind {
            AuthorityKind::Keys(keys)
                if self.tlog == TlogPolicy::Require
                    && !keys
                        .iter()
                        .any(|key| key.revoked || key.key.supports_tlog()) =>
            {
                let sentence =
                    "signatures by these keys can't be verified against a log; write `tlog: none`";
                invalid("tlog", sentence)
            }
            AuthorityKind::Keys(keys) => keys.iter().try_for_each(AuthorityKey::check),
            AuthorityKind::Keyless(_)
                if !root.is_some_and(TrustRoot::has_certificate_authorities) =>
            {
                invalid(
                    "keyless.root",
                    format!(
                        "this root ({root_name}) has no certificate authority; name one that has"
                    ),
                )
            }
            AuthorityKind::Keyless(_) if self.tlog == TlogPolicy::None && !stamps => {
                let lacks = lacks("timestamp authority", "write `tlog: require`");
                invalid(
                    "tlog",
                    format!("without a log only a timestamp proves the time, and {lacks}"),
                )
            }
            AuthorityKind::X509(x509) if x509.time == SigningTime::Tsa && !stamps => invalid(
                "x509.time",
                lacks("timestamp authority", "write `rekor` or `now`"),
            ),
            AuthorityKind::X509(x509) if x509.time == SigningTime::Rekor && !logs => invalid(
                "x509.time",
                lacks("transparency log", "write `tsa` or `now`"),
            ),
            AuthorityKind::Keyless(_) | AuthorityKind::X509(_) => Ok(()),
        }
    }
}

impl AuthorityKey {
    /// Checks that the key's validity is not empty. The error's key is one of an entry of `keys`.
    ///
    /// # Errors
    /// When it is.
    pub fn check(&self) -> Result<(), InvalidPolicy> {
        match (self.not_before, self.not_after) {
            (Some(from), Some(until)) if from >= until => invalid(
                "not_after",
                format!(
                    "the key would never be valid (from {from} until {until}); correct one of them"
                ),
            ),
            _ => Ok(()),
        }
    }
}

impl From<PublicKey> for AuthorityKey {
    fn from(key: PublicKey) -> Self {
        Self {
            key,
            not_before: None,
            not_after: None,
            revoked: false,
        }
    }
}

impl PolicyRevision {
    fn of(content: &str) -> Self {
        Self(Digest::sha256(content.as_bytes()).to_string())
    }
}

impl fmt::Display for PolicyRevision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Format {
    /// The name in `/status` and in the configuration.
    pub fn label(self) -> &'static str {
        match self {
            Self::Bundle => "bundle",
            Self::Legacy => "legacy",
        }
    }

    pub(super) fn in_words(self) -> &'static str {
        match self {
            Self::Bundle => "Sigstore bundle v0.3",
            Self::Legacy => "simple signing payload",
        }
    }
}

fn invalid<T>(key: &'static str, sentence: impl Into<String>) -> Result<T, InvalidPolicy> {
    Err(InvalidPolicy {
        key,
        sentence: sentence.into(),
    })
}
