//! `bundlegate inspect`.

use clap::Args;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use super::{
    artifact::{self, ResolvedArtifact},
    eprint,
    flags::RegistryFlags,
    interruptible,
    local::{self, ArtifactOrPath},
    print, print_json,
    store_flag::{ImageName, LIMITS, StoreFlag},
    table,
};
use crate::{
    bundle::{Bundle, Contents, Limits, Parse},
    config::Size,
    oci::{Descriptor, cosign, media_type},
};

/// The maximum number of listed signatures: anyone who can push can attach more.
const MAX_SIGNATURES: usize = 256;

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// An image in the store or in a registry, oci-layout:FOLDER:TAG, or a policy folder or bundle
    /// file on this machine.
    #[arg(value_name = "REF|PATH")]
    source: ArtifactOrPath,
    /// Maximum size of the bundle.
    #[arg(long, value_name = "SIZE", default_value = "2GiB")]
    max_size: Size,
    /// Look only in the registry; default: in the store first.
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

Signatures are listed, not verified; `bundlegate verify` verifies them.";

/// A description of an artifact, or of the bundle that a folder would build.
struct Report {
    /// The argument as given.
    name: String,
    artifact: Option<ResolvedArtifact>,
    layers: Vec<Descriptor>,
    /// The bundle and its contents, or the reason why there is none.
    bundle: Result<(Bundle, Contents), String>,
    /// `None` for a folder or file, which cannot be signed.
    signatures: Option<Vec<Signature>>,
}

struct Signature {
    format: &'static str,
    /// Digest of the manifest with the signature.
    manifest: String,
}

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    let report = interruptible(inspect(&options)).await??;
    if options.json {
        print_json(&report.to_json())
    } else {
        print(&report.to_text())
    }
}

async fn inspect(options: &Options) -> anyhow::Result<Report> {
    let limits = Limits {
        bundle: options.max_size.bytes(),
        ..LIMITS
    };
    let image_name = match &options.source {
        ArtifactOrPath::Artifact(image_name) => image_name.clone(),
        ArtifactOrPath::Path(path) => {
            let path = path.clone();
            // Rego that the built-in parser can't read can still be inspected.
            let bundle = spawn_blocking(move || local::bundle(&path, limits, Parse::No)).await??;
            let blob = bundle.blob();
            let layers = vec![Descriptor::new(
                media_type::LAYER_TAR_GZIP,
                blob.digest().clone(),
                blob.size(),
            )];
            let contents = Contents::of(&bundle)?;
            let name = options.source.to_string();
            return Ok(Report {
                name,
                artifact: None,
                layers,
                bundle: Ok((bundle, contents)),
                signatures: None,
            });
        }
    };
    let reference = match image_name {
        ImageName::Reference(reference) => reference,
        digest if options.remote => digest.reference()?.clone(),
        digest => {
            let store = options.store.clone();
            spawn_blocking(move || digest.find(&store.open()?)).await??
        }
    };
    let found = artifact::find(
        &options.store,
        &options.registry,
        options.remote,
        &reference,
    )
    .await?;
    let signatures = signatures(&found).await?;
    let mut layers = found.manifest.layers().to_vec();
    let bundle = match found.layer_plan(None) {
        Ok(plan) => {
            layers = plan.layers().to_vec();
            let bundle = found.bundle(&plan, limits).await;
            let contents = bundle.and_then(|bundle| Ok((Contents::of(&bundle)?, bundle)));
            contents
                .map(|(contents, bundle)| (bundle, contents))
                .map_err(|error| format!("{error:#}"))
        }
        Err(error) => Err(format!("{error:#}")),
    };
    let name = found.reference.to_string();
    Ok(Report {
        name,
        artifact: Some(found),
        layers,
        bundle,
        signatures: Some(signatures),
    })
}

async fn signatures(found: &ResolvedArtifact) -> anyhow::Result<Vec<Signature>> {
    let digest = found.pinned.digest();
    let mut signatures = Vec::new();
    let listed = found
        .source
        .referrers(&found.pinned, MAX_SIGNATURES)
        .await?;
    if let Some(failure) = &listed.failure {
        eprint(&format!(
            "{}: signatures may be missing: {failure}",
            found.reference
        ));
    }
    for referrer in listed.entries {
        let kind = referrer.artifact_type.unwrap_or_default();
        let format = if kind.starts_with("application/vnd.dev.sigstore.bundle") {
            "bundle"
        } else {
            "other"
        };
        signatures.push(Signature {
            format,
            manifest: referrer.digest.to_string(),
        });
    }
    let legacy = match cosign::signature_tag(digest) {
        Some(tag) => found.source.attached_manifest(&tag).await,
        None => Ok(None),
    };
    let legacy = match legacy {
        Err(failure) if found.source.is_out_of_service(&failure) => None,
        legacy => legacy?,
    };
    if let Some(manifest) = legacy {
        let one = || Signature {
            format: "legacy",
            manifest: manifest.digest().to_string(),
        };
        signatures.extend(manifest.layers().iter().map(|_| one()));
    }
    Ok(signatures)
}

/// The metadata as JSON, or as text if it has a number too large for a JSON value.
fn metadata(text: &str) -> Value {
    if text.is_empty() {
        json!({})
    } else {
        serde_json::from_str(text).unwrap_or_else(|_| text.into())
    }
}

impl Report {
    fn to_json(&self) -> Value {
        let artifact = self.artifact.as_ref();
        let signatures =
            self.signatures.iter().flatten().map(
                |signature| json!({ "format": signature.format, "manifest": signature.manifest }),
            );
        let mut report = json!({
            "reference": self.name, "digest": artifact.map(|found| found.pinned.digest()),
            "annotations": artifact.map(|found| found.manifest.annotations()),
            "layer": self.layers.first().map(|layer| &layer.digest),
            "size": Descriptor::total(&self.layers),
            "manifest": null, "packages": [], "entrypoints": [], "files": [],
            "signatures": signatures.collect::<Value>(),
        });
        match &self.bundle {
            Ok((bundle, contents)) => {
                let manifest = bundle.manifest();
                report["manifest"] = json!({ "revision": manifest.revision.as_str(), "roots": manifest.roots,
                    "rego_version": manifest.rego_version, "metadata": metadata(&contents.metadata) });
                report["packages"] = contents.packages().into();
                report["entrypoints"] = contents.entrypoints.clone().into();
                let files = contents
                    .files
                    .iter()
                    .map(|(name, size)| json!({ "path": name, "size": size }));
                report["files"] = files.collect();
            }
            Err(reason) => report["error"] = reason.clone().into(),
        }
        report
    }

    fn to_text(&self) -> String {
        let manifest = self.artifact.as_ref().map(|found| &found.manifest);
        let mut parts = vec![table::facts(&self.facts())];
        let annotations = manifest
            .into_iter()
            .flat_map(|manifest| manifest.annotations());
        let annotations: Vec<_> = annotations
            .map(|(key, value)| [key.clone(), value.clone()])
            .collect();
        if !annotations.is_empty() {
            parts.push(table::columns(["ANNOTATION", ""], &annotations));
        }
        if let Ok((_, contents)) = &self.bundle {
            let files: Vec<_> = contents
                .files
                .iter()
                .map(|(name, size)| [name.clone(), table::size(*size)])
                .collect();
            parts.push(table::columns(["FILE", "SIZE"], &files));
        }
        if let Some(signatures) = &self.signatures {
            let rows: Vec<_> = signatures
                .iter()
                .map(|signature| [signature.format.to_owned(), signature.manifest.clone()])
                .collect();
            parts.push(match rows.as_slice() {
                [] => self.unsigned().to_owned(),
                rows => table::columns(["SIGNATURE", "MANIFEST"], rows),
            });
        }
        parts.join("\n\n")
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let mut facts = vec![("reference", self.name.clone())];
        if let Some(found) = &self.artifact {
            facts.push(("digest", found.pinned.digest().to_string()));
            facts.extend(
                found
                    .manifest
                    .artifact_type()
                    .map(|kind| ("artifact type", kind.to_owned())),
            );
        }
        facts.extend(
            self.layers
                .iter()
                .map(|layer| ("layer", format!("{} ({})", layer.digest, layer.media_type))),
        );
        facts.push(("size", table::size(Descriptor::total(&self.layers))));
        match &self.bundle {
            Ok((bundle, contents)) => {
                let manifest = bundle.manifest();
                let roots = if manifest.owns("") {
                    "everything".to_owned()
                } else {
                    manifest.roots.join(", ")
                };
                facts.push(("revision", manifest.revision.to_string()));
                facts.push(("roots", roots));
                if !contents.metadata.is_empty() {
                    facts.push(("metadata", contents.metadata.clone()));
                }
                facts.push(("packages", contents.packages().join(", ")));
                facts.push(("entrypoints", contents.entrypoints.join(", ")));
            }
            Err(reason) => facts.push(("no bundle", reason.clone())),
        }
        facts
    }

    /// The text for no signatures. The store does not have those in the registry, where `sign`
    /// writes.
    fn unsigned(&self) -> &'static str {
        match &self.artifact {
            Some(found) if found.in_store => {
                "signatures: not in the store; --remote looks in the registry"
            }
            _ => "no signatures",
        }
    }
}
