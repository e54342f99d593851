//! Whose signature counts, and for what.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use serde_json::Value;

use super::{AttestationRule, FulcioExtension, Pattern, PublicKey, TrustRoot, ca::CaRoots};
use crate::oci::{Digest, Repository, cosign};

/// What an artifact needs before it is served: a checked value, so that one which nothing or
/// everything could pass can't be made.
#[derive(Debug, Clone)]
pub struct TrustPolicy {
    name: String,
    rule: Rule,
    /// What an unsigned policy does not accept; a signed one has them in its requirements.
    revoked: BTreeSet<Digest>,
    revision: PolicyRevision,
}

/// The content of a policy.
#[derive(Debug, Clone)]
pub enum Rule {
    /// Nothing, because the configuration says `unsigned`.
    Unsigned,
    /// Signatures.
    /// Shared: any number of bundles have one policy.
    Signed(Arc<Requirements>),
}

/// What signatures have to be like, and how many authorities have to stand behind them.
#[derive(Debug, Clone)]
pub struct Requirements {
    /// Who may vote.
    pub authorities: Vec<Authority>,
    /// How many of them have to, each by a signature of its own.
    pub at_least: usize,
    /// The statements that count as a signature; [`cosign::SIGN_PREDICATE`] unless said otherwise.
    pub predicate_types: BTreeSet<String>,
    /// Further statements that have to be there.
    pub attestations: Vec<Attestation>,
    /// The storage formats that are looked at.
    pub formats: BTreeSet<Format>,
    /// What has to be signed beside the digest, types included: `1` is not `"1"`.
    pub annotations: BTreeMap<String, Value>,
    /// Whether the repository that a legacy signature names has to be the right one.
    pub claimed_repository: ClaimedRepository,
    /// Where signatures are, if not beside the artifact.
    pub signatures: Option<Repository>,
    /// How old a signature may become, by a time that a log or a timestamp authority vouches for.
    pub max_signature_age: Option<Duration>,
    /// What is never served, whoever signed it.
    pub revoked_digests: BTreeSet<Digest>,
}

/// Somebody whose signatures count: one vote.
#[derive(Debug, Clone)]
pub struct Authority {
    /// Its name in the configuration.
    pub name: String,
    /// How it is known.
    pub kind: AuthorityKind,
    /// Whether a transparency log has to have seen the signature.
    pub tlog: TlogPolicy,
    /// The logs and timestamp authorities that are believed, and for keyless the certificate
    /// authorities too.
    pub root: Option<TrustRoot>,
}

/// What makes a signature an authority's.
#[derive(Debug, Clone)]
pub enum AuthorityKind {
    /// One of these keys made it.
    Keys(Vec<AuthorityKey>),
    /// A certificate of the root's authorities says so.
    Keyless(Identity),
    /// A certificate of a private authority says so.
    X509(X509),
}

/// A key and when it speaks.
#[derive(Debug, Clone)]
pub struct AuthorityKey {
    /// The key.
    pub key: PublicKey,
    /// Signatures count from then on.
    pub not_before: Option<Timestamp>,
    /// Signatures count until then: by the time of signing where a log or a timestamp proves
    /// it, otherwise by the clock.
    pub not_after: Option<Timestamp>,
    /// Never again, whenever it signed.
    pub revoked: bool,
}

/// Who a Fulcio certificate has to have been issued to.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The OIDC issuer that vouched for the signer.
    pub issuer: Pattern,
    /// The signer: an e-mail address or a URI.
    pub subject: Pattern,
    /// What else the issuer said about it.
    pub claims: BTreeMap<FulcioExtension, Pattern>,
}

/// Certificates of one's own certificate authority.
#[derive(Debug, Clone)]
pub struct X509 {
    /// The authority's certificates.
    pub roots: CaRoots,
    /// The signer.
    pub subject: San,
    /// What proves when the certificate was used.
    pub time: SigningTime,
}

/// The name in a certificate, by its kind.
#[derive(Debug, Clone)]
pub enum San {
    /// A URI, such as a SPIFFE id.
    Uri(Pattern),
    /// An e-mail address.
    Email(Pattern),
}

/// What proves when a certificate was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SigningTime {
    /// An RFC 3161 timestamp.
    Tsa,
    /// A transparency log.
    Rekor,
    /// Nothing: the certificate has to be valid at the time of judging.
    Now,
}

/// Whether a transparency log has to have seen a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlogPolicy {
    /// No, and what a log says is not looked at.
    None,
    /// What is there must be right.
    IfPresent,
    /// Yes.
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

/// What the repository in a legacy signature has to be. Bundles name none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimedRepository {
    /// Anything, as for cosign: the same digest is the same artifact everywhere.
    Ignore,
    /// The one that the artifact is fetched from.
    Match,
    /// This one: `HOST/REPOSITORY`.
    Exactly(String),
}

/// A statement that has to be there beside the signature, by one of the policy's authorities.
#[derive(Debug, Clone)]
pub struct Attestation {
    /// Its predicate type.
    pub predicate_type: String,
    /// What it has to say.
    pub rule: Option<AttestationRule>,
}

/// Names the content of a policy, trust roots included: two policies with the same revision
/// accept the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PolicyRevision(String);

/// A policy that nothing could ever satisfy, or that asks for nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct InvalidPolicy {
    /// The part of the policy that it is about, as its key in the configuration.
    pub key: &'static str,
    /// What is wrong, and the way out.
    pub sentence: String,
}

impl TrustPolicy {
    /// A policy that accepts everything.
    pub fn unsigned(name: String) -> Self {
        Self { name, rule: Rule::Unsigned, revoked: BTreeSet::new(), revision: PolicyRevision::of("unsigned") }
    }

    /// A policy of these requirements.
    ///
    /// # Errors
    /// When nobody could ever meet them, or anybody could.
    pub fn signed(name: String, requirements: Requirements) -> Result<Self, InvalidPolicy> {
        requirements.check()?;
        Ok(Self::of(name, requirements))
    }

    /// A policy of these requirements, which may turn out to accept nothing.
    pub(super) fn of(name: String, requirements: Requirements) -> Self {
        // Every part has a `Debug` that shows all that it decides by: a new one changes the
        // revision by being there, and can't be forgotten.
        let revision = PolicyRevision::of(&format!("{requirements:?}"));
        Self { name, rule: Rule::Signed(Arc::new(requirements)), revoked: BTreeSet::new(), revision }
    }

    /// The same, but for these digests.
    #[must_use]
    pub(super) fn without(self, revoked: &BTreeSet<Digest>) -> Self {
        if revoked.is_empty() {
            return self;
        }
        let revision = PolicyRevision::of(&format!("{} without {revoked:?}", self.revision));
        Self { revoked: revoked.clone(), revision, ..self }
    }

    /// Whether this is never served, whoever signed it.
    pub fn revokes(&self, digest: &Digest) -> bool {
        let requirements = self.requirements();
        self.revoked.contains(digest)
            || requirements.is_some_and(|requirements| requirements.revoked_digests.contains(digest))
    }

    /// The policy's name in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it asks for.
    pub fn rule(&self) -> &Rule {
        &self.rule
    }

    /// What it asks for, unless it asks for nothing.
    pub fn requirements(&self) -> Option<&Requirements> {
        match &self.rule {
            Rule::Unsigned => None,
            Rule::Signed(requirements) => Some(requirements),
        }
    }

    /// Where signatures are, if not beside the artifact.
    pub fn signatures(&self) -> Option<&Repository> {
        self.requirements()?.signatures.as_ref()
    }

    /// Changes whenever the policy does, or a trust root of it.
    pub fn revision(&self) -> &PolicyRevision {
        &self.revision
    }
}

impl Requirements {
    /// Any one of these authorities, and the defaults for the rest.
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
            return invalid("require", "without an authority nothing could pass; name one of trust.authorities");
        }
        if self.at_least == 0 {
            return invalid("require", "without a vote anything would pass; write at_least: 1 or more");
        }
        if self.at_least > self.authorities.len() {
            let (votes, voters) = (self.at_least, self.authorities.len());
            return invalid("require", format!("{votes} votes of {voters} authorities can't be had; write less"));
        }
        if self.formats.is_empty() {
            return invalid("formats", "no signature could be looked at; write bundle, legacy or both");
        }
        if self.predicate_types.is_empty() && !self.formats.contains(&Format::Legacy) {
            return invalid("predicate_types", "no bundle could count as a signature; name a predicate type");
        }
        for attestation in &self.attestations {
            if !self.formats.contains(&Format::Bundle) {
                return invalid("attestations", "they come as bundles; add bundle to formats");
            }
            if self.predicate_types.contains(&attestation.predicate_type) {
                let sentence = format!(
                    "{} is a signature already (predicate_types); remove it from one of them",
                    attestation.predicate_type
                );
                return invalid("attestations", sentence);
            }
        }
        for authority in &self.authorities {
            authority.check().map_err(|InvalidPolicy { key, sentence }| InvalidPolicy {
                key: "require",
                sentence: format!("{}: {key}: {sentence}", authority.name),
            })?;
        }
        self.check_distinct()?;
        self.check_age()
    }

    /// Nobody must count for two voters.
    fn check_distinct(&self) -> Result<(), InvalidPolicy> {
        let mut owners: BTreeMap<String, &str> = BTreeMap::new();
        for authority in &self.authorities {
            let (signer_keys, what) = match &authority.kind {
                AuthorityKind::Keys(keys) => {
                    (keys.iter().map(|key| key.key.identity().to_owned()).collect(), "share a key")
                }
                // Patterns may overlap in ways that nobody can tell; the same ones are a mistake.
                // Two votes need two signatures in any case.
                same => (vec![format!("{same:?} {:?}", authority.root)], "are the same signer"),
            };
            for signer_key in signer_keys {
                match owners.insert(signer_key, &authority.name) {
                    Some(other) if other != authority.name => {
                        let sentence = format!("{} and {other} {what}; leave one of them out", authority.name);
                        return invalid("require", sentence);
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn check_age(&self) -> Result<(), InvalidPolicy> {
        let Some(untimed) = self.authorities.iter().find(|authority| !authority.proves_time()) else { return Ok(()) };
        if self.max_signature_age.is_none() {
            return Ok(());
        }
        let sentence =
            format!("nothing proves how old a signature of {} is; ask it for a log (tlog: require)", untimed.name);
        invalid("max_signature_age", sentence)
    }
}

impl Authority {
    /// Somebody with these keys, whose signatures no log has seen.
    pub fn with_keys(name: String, keys: impl IntoIterator<Item = PublicKey>) -> Self {
        let kind = AuthorityKind::Keys(keys.into_iter().map(AuthorityKey::from).collect());
        Self { name, kind, tlog: TlogPolicy::None, root: None }
    }

    /// The keys by which it is known, if it is by keys.
    pub fn keys(&self) -> &[AuthorityKey] {
        match &self.kind {
            AuthorityKind::Keys(keys) => keys,
            AuthorityKind::Keyless(_) | AuthorityKind::X509(_) => &[],
        }
    }

    /// Whether a valid signature of it tells how old it is. Of a key's, only a log does: a
    /// timestamp can be had for an old signature at any time.
    pub fn proves_time(&self) -> bool {
        match &self.kind {
            AuthorityKind::Keys(_) => self.tlog == TlogPolicy::Require,
            AuthorityKind::Keyless(_) => true,
            AuthorityKind::X509(x509) => x509.time != SigningTime::Now,
        }
    }

    /// Whether anything could ever be its signature. The keys of the answer are those of an
    /// authority.
    ///
    /// An authority whose keys are all revoked passes: a configuration that revokes the last
    /// key must be taken, not refused in favour of the one before it.
    ///
    /// # Errors
    /// When nothing could.
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
                    && !keys.iter().any(|key| key.revoked || key.key.supports_tlog()) =>
            {
                let sentence = "no signature of its keys can be judged together with a log; write `tlog: none`";
                invalid("tlog", sentence)
            }
            AuthorityKind::Keys(keys) => keys.iter().try_for_each(AuthorityKey::check),
            AuthorityKind::Keyless(_) if !root.is_some_and(TrustRoot::has_certificate_authorities) => invalid(
                "keyless.root",
                format!("this root ({root_name}) has no certificate authority; name one that has"),
            ),
            AuthorityKind::Keyless(_) if self.tlog == TlogPolicy::None && !stamps => {
                let lacks = lacks("timestamp authority", "write `tlog: require`");
                invalid("tlog", format!("without a log only a timestamp proves the time, and {lacks}"))
            }
            AuthorityKind::X509(x509) if x509.time == SigningTime::Tsa && !stamps => {
                invalid("x509.time", lacks("timestamp authority", "write `rekor` or `now`"))
            }
            AuthorityKind::X509(x509) if x509.time == SigningTime::Rekor && !logs => {
                invalid("x509.time", lacks("transparency log", "write `tsa` or `now`"))
            }
            AuthorityKind::Keyless(_) | AuthorityKind::X509(_) => Ok(()),
        }
    }
}

impl AuthorityKey {
    /// Whether it could ever speak. The keys of the answer are those of an entry of `keys`.
    ///
    /// # Errors
    /// When it couldn't.
    pub fn check(&self) -> Result<(), InvalidPolicy> {
        match (self.not_before, self.not_after) {
            (Some(from), Some(until)) if from >= until => invalid(
                "not_after",
                format!("the key would count from {from} until {until}, which is never; correct one of them"),
            ),
            _ => Ok(()),
        }
    }
}

impl From<PublicKey> for AuthorityKey {
    fn from(key: PublicKey) -> Self {
        Self { key, not_before: None, not_after: None, revoked: false }
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
    /// As `/status` and the configuration have it.
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
    Err(InvalidPolicy { key, sentence: sentence.into() })
}
