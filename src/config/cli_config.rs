//! The part of a configuration that the command line uses.

use std::{collections::BTreeMap, path::Path};

use super::{
    load::{parse, read, registries_and_policies},
    problem::ConfigError,
    tag_rule,
    trust::{CurrentRoot, Policies},
};
use crate::{
    oci::{Reference, Repository},
    registry,
    verify::TrustPolicy,
};

/// The part of a configuration that the command line uses: `registries`, `trust`, and the trust
/// policies of the bundles. The other keys must be well-formed, but may be missing.
#[derive(Debug)]
pub struct CliConfig {
    /// Settings by registry host.
    pub registries: BTreeMap<String, registry::Options>,
    /// The trust policies.
    pub trust: Policies,
    /// The bundles, ordered by name.
    bundles: Vec<BundleReference>,
}

/// The reference and policy of a bundle.
#[derive(Debug)]
struct BundleReference {
    name: String,
    reference: Reference,
    /// The name of its policy.
    trust: Option<String>,
}

impl CliConfig {
    /// Loads a configuration file. Relative paths in it are relative to its folder.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        Self::load_with(file, &|name, source| source.initial(name))
    }

    /// Loads a configuration file with the current trust roots.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load_with(file: &Path, roots: CurrentRoot<'_>) -> Result<Self, ConfigError> {
        read(file, |text, folder| {
            parse(text, folder, |raw, files| {
                let bundles = raw.bundles.into_iter().filter_map(|(name, raw)| {
                    let reference = tag_rule::reference(&raw).ok()?.relative_to(folder);
                    Some(BundleReference {
                        name,
                        reference,
                        trust: raw.trust,
                    })
                });
                let bundles = bundles.collect();
                let (registries, trust) =
                    registries_and_policies(raw.registries, raw.trust, roots, files)?;
                Ok(Self {
                    registries,
                    trust,
                    bundles,
                })
            })
        })
    }

    /// The policy that the gateway applies to `reference`: the policy of the bundles with this
    /// reference, or else the one with the longest `match`. `name` overrides both.
    ///
    /// # Errors
    /// A message that lists the known policies.
    pub fn policy_for(
        &self,
        name: Option<&str>,
        reference: &Reference,
    ) -> Result<TrustPolicy, String> {
        if name.is_some() {
            return self.trust.choose(name, reference.repository());
        }
        let wanted = canonical_repository(reference);
        // A bundle whose tag is chosen by a rule may have any tag.
        let is_wanted = |bundle: &Reference| {
            canonical_repository(bundle) == wanted
                && (bundle.selector() == reference.selector()
                    || (bundle.rule().is_some() && reference.tag().is_some()))
        };
        let mut found: Vec<(&str, TrustPolicy)> = Vec::new();
        for bundle in &self.bundles {
            if is_wanted(&bundle.reference) {
                let policy = self
                    .trust
                    .choose(bundle.trust.as_deref(), reference.repository())?;
                if !found.iter().any(|(_, known)| known.name() == policy.name()) {
                    found.push((&bundle.name, policy));
                }
            }
        }
        match found.as_slice() {
            [] => self.trust.choose(None, reference.repository()),
            [(_, policy)] => Ok(policy.clone()),
            [(one, first), (other, second), ..] => Err(format!(
                "the bundles {one} and {other} use two policies for it, {} and {}; name one here",
                first.name(),
                second.name()
            )),
        }
    }
}

/// The repository of a reference, with the canonical path of a layout folder.
fn canonical_repository(reference: &Reference) -> Repository {
    match reference.repository() {
        Repository::Layout { path } => Repository::Layout {
            path: path
                .canonicalize()
                .or_else(|_| std::path::absolute(path))
                .unwrap_or_else(|_| path.clone()),
        },
        repository @ Repository::Registry { .. } => repository.clone(),
    }
}
