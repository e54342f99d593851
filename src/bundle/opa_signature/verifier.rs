//! Verifying bundles by OPA's rules (`v1/bundle/verify.go`), with these differences: hashes that can
//! be forged are refused, and so is a signature whose header is not JSON.

use std::collections::HashMap;

use super::{
    MAX_DOCUMENT_BYTES, OpaSignatureError, PublicKey, SigningAlgorithm,
    hash::{self, HashAlgorithm, is_structured, signed_name},
    token::{FileClaim, Token},
};
use crate::bundle::{
    Bundle, LayerError,
    archive::{Entry, MAX_YAML_BYTES},
    document::{Detail, Document},
    manifest::SignatureFile,
    paths::base,
};

/// The keys by which bundles are verified, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verifier {
    keys: Vec<VerificationKey>,
}

/// One of the keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerificationKey {
    /// Its name in signatures.
    pub kid: String,
    /// The scope of its signatures; empty for those without one.
    pub scope: String,
    /// The key, with the algorithm of its signatures.
    pub key: PublicKey,
}

/// The name that the plug-in of OPA itself has.
const DEFAULT_PLUGIN: &str = "_default";

impl Verifier {
    /// A verifier with these keys; `None` if there are none, because nothing would be accepted.
    pub fn new(keys: Vec<VerificationKey>) -> Option<Self> {
        (!keys.is_empty()).then_some(Self { keys })
    }

    /// The algorithms of the keys.
    pub fn algorithms(&self) -> impl Iterator<Item = SigningAlgorithm> {
        self.keys.iter().map(|key| key.key.algorithm())
    }

    /// Verifies the signature of a bundle, and that it covers every file. Reads the bundle twice, so
    /// it blocks; one document is in memory at a time.
    ///
    /// # Errors
    /// `OpaSignature` when the bundle is not signed by one of the keys, or was changed.
    pub(in crate::bundle) fn verify(&self, bundle: &Bundle) -> Result<(), LayerError> {
        let signed = signature_file(bundle)?.filter(|file| !file.is_empty());
        let file = signed.ok_or(OpaSignatureError::Unsigned)?;
        let mut unread = self.claims(&file)?;
        bundle.walk(|entry| {
            if base(entry.name()) == super::SIGNATURE_FILE {
                return Ok(());
            }
            let name = signed_name(entry.name()).to_owned();
            // JSON can't express a name that is not UTF-8.
            let claim = Some(&name)
                .filter(|_| entry.has_utf8_name())
                .and_then(|name| unread.remove(name));
            let claim = claim.ok_or_else(|| OpaSignatureError::Unlisted(name.clone()))?;
            let algorithm = HashAlgorithm::named(&claim.algorithm, &name)?;
            if hash_of(entry, algorithm)?.eq_ignore_ascii_case(&claim.hash) {
                return Ok(());
            }
            Err(LayerError::from(OpaSignatureError::OtherContent(name)))
        })?;
        match unread.keys().min() {
            None => Ok(()),
            Some(first) => Err(OpaSignatureError::Missing {
                first: first.clone(),
                further: unread.len() - 1,
            }
            .into()),
        }
    }

    /// The files that a verified signature covers, by name.
    fn claims(
        &self,
        file: &SignatureFile,
    ) -> Result<HashMap<String, FileClaim>, OpaSignatureError> {
        if !matches!(file.plugin.as_str(), "" | DEFAULT_PLUGIN) {
            return Err(OpaSignatureError::Plugin(file.plugin.clone()));
        }
        let signatures = file.signatures.as_deref().unwrap_or_default();
        let [text] = signatures else {
            return Err(OpaSignatureError::Count(signatures.len()));
        };
        let token = Token::read(text)?;
        if token.kid.is_empty() {
            return Err(OpaSignatureError::NoKeyId);
        }
        let kid = token.kid;
        let Some(known) = self.keys.iter().find(|known| known.kid == kid) else {
            return Err(OpaSignatureError::UnknownKey { kid });
        };
        if !known.key.verifies(token.message, &token.signature) {
            let algorithm = known.key.algorithm();
            return Err(OpaSignatureError::Invalid { kid, algorithm });
        }
        let claims = token.claims;
        if claims.scope != known.scope {
            return Err(OpaSignatureError::Scope {
                found: claims.scope,
                expected: known.scope.clone(),
            });
        }
        let files = claims.files.into_iter();
        Ok(files.map(|file| (file.name.clone(), file)).collect())
    }
}

/// The signature file of a bundle; opening it has checked that there is at most one.
fn signature_file(bundle: &Bundle) -> Result<Option<SignatureFile>, LayerError> {
    let mut found = None;
    bundle.walk(|entry| {
        if base(entry.name()) == super::SIGNATURE_FILE {
            let file = SignatureFile::parse(&entry.content()?);
            found = Some(file.map_err(OpaSignatureError::Malformed)?);
        }
        Ok::<_, LayerError>(())
    })?;
    Ok(found)
}

/// The hash of a file, in hexadecimal.
fn hash_of(entry: &mut Entry<'_>, algorithm: HashAlgorithm) -> Result<String, LayerError> {
    if !is_structured(entry.name()) {
        let mut hasher = algorithm.hasher();
        entry.copy_to(|_, content| std::io::copy(content, &mut hasher).map(drop))?;
        return Ok(hasher.hex());
    }
    let detail = Detail::ValuesWithin(MAX_DOCUMENT_BYTES);
    if entry.size() > MAX_YAML_BYTES {
        return Ok(hash::of_document(&entry.document(detail)?, algorithm));
    }
    let name = entry.name().to_owned();
    // OPA reads even `data.json` as YAML here if it is not JSON as a whole.
    let document = Document::of_yaml(&entry.content()?, detail);
    let document = document.map_err(|error| OpaSignatureError::Unhashable {
        name,
        reason: error.to_string(),
    })?;
    Ok(hash::of_document(&document, algorithm))
}
