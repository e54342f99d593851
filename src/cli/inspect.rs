//! `bundlegate inspect`.

use clap::Args;
use serde_json::{Value, json};

use super::{
    flags::RegistryFlags,
    found::{self, Found},
    interruptible,
    place::{LIMITS, StoreFlag, reference},
    say, table,
};
use crate::{
    bundle::{Bundle, Contents, Limits},
    config::Size,
    oci::{Descriptor, Reference},
};

/// Signatures that are listed at most; whoever can push can attach more.
const MAX_SIGNATURES: usize = 256;

/// How to run `inspect`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// An image of the store or of a registry, or oci-layout:FOLDER:TAG.
    #[arg(value_name = "REF", value_parser = reference)]
    reference: Reference,
    /// The largest bundle to look into.
    #[arg(long, value_name = "SIZE", default_value = "2GiB")]
    max_size: Size,
    /// Look in the registry alone; without it, in the store first.
    #[arg(long)]
    remote: bool,
    #[command(flatten)]
    store: StoreFlag,
    #[command(flatten)]
    registry: RegistryFlags,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) const EXAMPLES: &str = "Examples:
  bundlegate inspect ghcr.io/acme/authz:v1
  bundlegate inspect --remote ghcr.io/acme/authz:v1
  bundlegate inspect ghcr.io/acme/authz:v1 --json | jq .packages

Signatures are listed, not judged: `bundlegate verify` does that.";

/// What there is to say about an artifact.
struct Report {
    found: Found,
    layers: Vec<Descriptor>,
    /// The bundle and what it holds, or why there is none.
    bundle: Result<(Bundle, Contents), String>,
    signatures: Vec<Signature>,
}

struct Signature {
    format: &'static str,
    /// The manifest that holds it.
    manifest: String,
}

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    let report = interruptible(look(&options)).await??;
    if options.json { say(&format!("{:#}", report.in_json())) } else { say(&report.in_words()) }
}

async fn look(options: &Options) -> anyhow::Result<Report> {
    let found = found::anywhere(&options.store, &options.registry, options.remote, &options.reference).await?;
    let signatures = signatures(&found).await?;
    let limits = Limits { bundle: options.max_size.bytes(), ..LIMITS };
    let mut layers = found.manifest.layers().to_vec();
    let bundle = match found.recipe(None) {
        Ok(recipe) => {
            layers = recipe.layers().to_vec();
            let bundle = found.bundle(&recipe, limits).await;
            let contents = bundle.and_then(|bundle| Ok((Contents::of(&bundle)?, bundle)));
            contents.map(|(contents, bundle)| (bundle, contents)).map_err(|error| format!("{error:#}"))
        }
        Err(error) => Err(format!("{error:#}")),
    };
    Ok(Report { found, layers, bundle, signatures })
}

async fn signatures(found: &Found) -> anyhow::Result<Vec<Signature>> {
    let digest = found.pinned.digest();
    let mut signatures = Vec::new();
    for referrer in found.source.referrers(&found.pinned, MAX_SIGNATURES).await?.entries {
        let kind = referrer.artifact_type.unwrap_or_default();
        let format = if kind.starts_with("application/vnd.dev.sigstore.bundle") { "bundle" } else { "other" };
        signatures.push(Signature { format, manifest: referrer.digest.to_string() });
    }
    let legacy = found.source.tagged_manifest(&format!("{}-{}.sig", digest.algorithm(), digest.hex())).await?;
    if let Some(manifest) = legacy {
        let one = || Signature { format: "legacy", manifest: manifest.digest().to_string() };
        signatures.extend(manifest.layers().iter().map(|_| one()));
    }
    Ok(signatures)
}

/// Metadata as a value, or as its text where a number in it is too large for one.
fn metadata(text: &str) -> Value {
    if text.is_empty() { json!({}) } else { serde_json::from_str(text).unwrap_or_else(|_| text.into()) }
}

impl Report {
    fn in_json(&self) -> Value {
        let manifest = &self.found.manifest;
        let signatures = self
            .signatures
            .iter()
            .map(|signature| json!({ "format": signature.format, "manifest": signature.manifest }));
        let mut report = json!({
            "reference": self.found.reference.to_string(), "digest": self.found.pinned.digest(),
            "annotations": manifest.annotations(),
            "layer": self.layers.first().map(|layer| &layer.digest),
            "size": Descriptor::total(&self.layers),
            "manifest": null, "packages": [], "entrypoints": [], "files": [],
            "signatures": signatures.collect::<Value>(),
        });
        match &self.bundle {
            Ok((bundle, contents)) => {
                let said = bundle.manifest();
                report["manifest"] = json!({ "revision": said.revision.as_str(), "roots": said.roots,
                    "rego_version": said.rego_version, "metadata": metadata(&contents.metadata) });
                report["packages"] = contents.packages().into();
                report["entrypoints"] = contents.entrypoints.clone().into();
                let files = contents.files.iter().map(|(name, size)| json!({ "path": name, "size": size }));
                report["files"] = files.collect();
            }
            Err(reason) => report["error"] = reason.clone().into(),
        }
        report
    }

    fn in_words(&self) -> String {
        let manifest = &self.found.manifest;
        let size = Descriptor::total(&self.layers);
        let mut facts =
            vec![("reference", self.found.reference.to_string()), ("digest", self.found.pinned.digest().to_string())];
        if let Some(kind) = manifest.artifact_type() {
            facts.push(("artifact type", kind.to_owned()));
        }
        facts.extend(self.layers.iter().map(|layer| ("layer", format!("{} ({})", layer.digest, layer.media_type))));
        facts.push(("size", format!("{size} bytes")));
        match &self.bundle {
            Ok((bundle, contents)) => {
                let said = bundle.manifest();
                let roots = if said.owns("") { "everything".to_owned() } else { said.roots.join(", ") };
                facts.push(("revision", said.revision.to_string()));
                facts.push(("roots", roots));
                if !contents.metadata.is_empty() {
                    facts.push(("metadata", contents.metadata.clone()));
                }
                facts.push(("packages", contents.packages().join(", ")));
                facts.push(("entrypoints", contents.entrypoints.join(", ")));
            }
            Err(reason) => facts.push(("no bundle", reason.clone())),
        }
        let mut parts = vec![table::facts(&facts)];
        let annotations: Vec<_> =
            manifest.annotations().iter().map(|(key, value)| [key.clone(), value.clone()]).collect();
        if !annotations.is_empty() {
            parts.push(table::columns(["ANNOTATION", ""], &annotations));
        }
        if let Ok((_, contents)) = &self.bundle {
            let files: Vec<_> =
                contents.files.iter().map(|(name, size)| [name.clone(), format!("{size} bytes")]).collect();
            parts.push(table::columns(["FILE", "SIZE"], &files));
        }
        let signatures: Vec<_> =
            self.signatures.iter().map(|signature| [signature.format.to_owned(), signature.manifest.clone()]).collect();
        parts.push(match signatures.as_slice() {
            [] => "no signatures".to_owned(),
            signatures => table::columns(["SIGNATURE", "MANIFEST"], signatures),
        });
        parts.join("\n\n")
    }
}
