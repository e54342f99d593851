//! `resign`, `opa_signature` and `opa_keys` of a bundle: OPA's own signatures.

use std::{path::Path, sync::Arc};

use super::{files::Base, problem::Problem, raw, values};
use crate::{
    bundle::{KeyError, PublicKey, Signer, SigningAlgorithm, VerificationKey, Verifier},
    watch::ArtifactOptions,
};

/// What happens to OPA's own signature of a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OpaSignature {
    /// It is served as it is, or replaced by `resign`.
    Ignore,
    /// A bundle without a signature by one of `opa_keys` is refused.
    Verify,
}

/// The words of `opa_signature`; the first is the default.
pub(super) const OPA_SIGNATURE: [(&str, OpaSignature); 2] = [
    ("ignore", OpaSignature::Ignore),
    ("verify", OpaSignature::Verify),
];
/// The longest name of a key, in bytes. It is part of every signature and of the entity tag.
pub(super) const MAX_KID_BYTES: usize = 256;
/// The most keys of a bundle.
pub(super) const MAX_KEYS: usize = 64;

/// The keys of one bundle as they are written.
#[derive(Debug, Default)]
pub(super) struct Keys {
    pub(super) resign: Option<raw::Resign>,
    pub(super) opa_signature: Option<String>,
    pub(super) opa_keys: Option<Vec<raw::OpaKey>>,
    /// Whether the bundle has deltas.
    pub(super) has_delta: bool,
}

/// Reads the keys into the options of the artifact.
pub(super) fn read(
    keys: Keys,
    artifact: ArtifactOptions,
    base: Base<'_>,
) -> Result<ArtifactOptions, Problem> {
    check_combination(&keys)?;
    let verifier = keys
        .opa_keys
        .map(|keys| verifier(keys, base).map_err(|problem| problem.at("opa_keys")));
    let signer = keys
        .resign
        .map(|resign| signer(resign, base).map_err(|problem| problem.at("resign")));
    Ok(ArtifactOptions {
        opa_verifier: verifier.transpose()?.map(Arc::new),
        signer: signer.transpose()?.map(Arc::new),
        ..artifact
    })
}

/// Checks that the keys go together.
fn check_combination(keys: &Keys) -> Result<(), Problem> {
    if keys.has_delta && keys.resign.is_some() {
        return Err(Problem::new(
            "can't be used together with `delta`: an OPA that requires signatures refuses every delta, which can't be \
             signed; remove one of the two",
        )
        .at("resign"));
    }
    let word = keys.opa_signature.as_deref();
    let word = word.map_or(Ok(OpaSignature::Ignore), |word| {
        values::word(word, &OPA_SIGNATURE).map_err(|problem| problem.at("opa_signature"))
    });
    let refused = |message| Err(Problem::new(message).at("opa_keys"));
    match (word?, &keys.opa_keys) {
        (OpaSignature::Verify, None) => {
            refused("missing; `opa_signature: verify` needs the keys that may have signed")
        }
        (OpaSignature::Ignore, Some(_)) => {
            refused("without effect; write `opa_signature: verify` as well, or remove it")
        }
        (OpaSignature::Verify, Some(_)) | (OpaSignature::Ignore, None) => Ok(()),
    }
}

fn signer(raw: raw::Resign, base: Base<'_>) -> Result<Signer, Problem> {
    let algorithm = algorithm(raw.algorithm.as_deref())?;
    let kid = kid(raw.kid)?;
    let file = base.bytes(&raw.key).map_err(|problem| problem.at("key"))?;
    Signer::new(&file, algorithm, kid, raw.scope.unwrap_or_default()).map_err(|error| {
        let what = format!("can't sign with {algorithm}");
        unusable(&raw.key, &what, &error).at("key")
    })
}

fn verifier(raw: Vec<raw::OpaKey>, base: Base<'_>) -> Result<Verifier, Problem> {
    if raw.len() > MAX_KEYS {
        let message = format!("more than {MAX_KEYS} keys; remove those that are no longer used");
        return Err(Problem::new(message));
    }
    let mut keys: Vec<VerificationKey> = Vec::new();
    for (index, raw) in raw.into_iter().enumerate() {
        let key = verification_key(raw, base).and_then(|key| distinct(key, &keys));
        keys.push(key.map_err(|problem| problem.at_index(index))?);
    }
    Verifier::new(keys).ok_or_else(|| Problem::new("empty; name at least one key"))
}

fn verification_key(raw: raw::OpaKey, base: Base<'_>) -> Result<VerificationKey, Problem> {
    let algorithm = algorithm(raw.algorithm.as_deref())?;
    let kid = kid(raw.kid)?;
    let file = base
        .bytes(&raw.file)
        .map_err(|problem| problem.at("file"))?;
    let key = PublicKey::parse(&file, algorithm).map_err(|error| {
        let what = format!("can't verify signatures by {algorithm}");
        unusable(&raw.file, &what, &error).at("file")
    })?;
    let scope = raw.scope.unwrap_or_default();
    Ok(VerificationKey { kid, scope, key })
}

/// Checks that no two keys have one name: a signature could mean either.
fn distinct(key: VerificationKey, others: &[VerificationKey]) -> Result<VerificationKey, Problem> {
    if others.iter().any(|other| other.kid == key.kid) {
        let message = format!("another key has the name {:?}; rename one of them", key.kid);
        return Err(Problem::new(message).at("kid"));
    }
    Ok(key)
}

fn algorithm(word: Option<&str>) -> Result<SigningAlgorithm, Problem> {
    word.map_or(Ok(SigningAlgorithm::Es256), |word| {
        values::word(word, &SigningAlgorithm::ALL).map_err(|problem| problem.at("algorithm"))
    })
}

fn kid(text: String) -> Result<String, Problem> {
    let refused = |what: &str| {
        let message = format!("{what}; write the name of the key in OPA's `keys`, such as gateway");
        Err(Problem::new(message).at("kid"))
    };
    match () {
        () if text.is_empty() => refused("the name is empty"),
        () if text.len() > MAX_KID_BYTES => {
            refused(&format!("the name is longer than {MAX_KID_BYTES} bytes"))
        }
        () if text.chars().any(char::is_control) => refused("the name has control characters"),
        () => Ok(text),
    }
}

fn unusable(file: &Path, what: &str, error: &KeyError) -> Problem {
    let file = file.display();
    Problem::new(format!(
        "{file} {what}: it has {error}; name the right file, or another `algorithm`"
    ))
}

/// A key of which the configuration should be changed, although it can be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigWarning {
    /// The key, such as `bundles.authz.resign`.
    pub key: String,
    /// The reason, and what to do.
    pub message: String,
}

/// The warnings about the signatures of one bundle or pattern; `at` is its key.
pub(super) fn warnings(at: &str, artifact: &ArtifactOptions) -> Vec<ConfigWarning> {
    let warning = |key: &str, algorithm: SigningAlgorithm, advice: &str| ConfigWarning {
        key: format!("{at}.{key}"),
        message: format!(
            "with {algorithm} every OPA that can check a signature can forge one; {advice}"
        ),
    };
    let signer = artifact.signer.iter().map(|signer| signer.algorithm());
    let signer = signer
        .filter(|algorithm| algorithm.is_symmetric())
        .map(|algorithm| warning("resign", algorithm, "use ES256 with a key pair"));
    let keys = artifact.opa_verifier.iter().flat_map(|it| it.algorithms());
    let keys = keys
        .filter(|algorithm| algorithm.is_symmetric())
        .take(1)
        .map(|algorithm| warning("opa_keys", algorithm, "sign with a key pair"));
    signer.chain(keys).collect()
}
