//! `bundlegate sign`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::anyhow;
use clap::Args;
use serde::Serialize;
use serde_json::json;
use tokio::task::spawn_blocking;

use super::{
    flags::RegistryFlags,
    interruptible,
    opa_signing::{SIGNS_FOR_OPA, SignatureFlags},
    password,
    path::path_value,
    print, print_json, read, save,
    store_flag::{ImageName, LIMITS, StoreFlag, annotation, image_name},
    target::Target,
};
use crate::{
    bundle::{SIGNATURE_FILE, sign_folder},
    oci::{PinnedReference, Reference},
    sign::{Attachment, KeyPair, LegacySignature, SigningRequest},
    verify::Format,
};

/// Arguments of `sign`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The artifact: HOST/REPOSITORY:TAG, …@sha256:…, or oci-layout:PATH; with --local also a
    /// digest prefix. With --opa a folder.
    #[arg(value_name = "REF", value_parser = SignTarget::parse)]
    target: SignTarget,
    /// Private key file of `cosign generate-key-pair` or `cosign import-key-pair`. The password
    /// comes from COSIGN_PASSWORD or a prompt. With --opa a private key in PEM, not encrypted, or a
    /// secret for HS256.
    #[arg(long, value_name = "FILE", value_parser = path_value())]
    key: PathBuf,
    /// Write OPA's own signature of a folder, .signatures.json, instead.
    #[arg(long, group = SIGNS_FOR_OPA, conflicts_with_all = ["annotations", "legacy", "local"])]
    opa: bool,
    /// With --opa: the folder for .signatures.json; default: the signed folder.
    #[arg(short, long, value_name = "FOLDER", requires = "opa", value_parser = path_value())]
    output_file_path: Option<PathBuf>,
    /// Annotation to sign as well; repeatable.
    #[arg(short, long = "annotations", value_name = "KEY=VALUE", value_parser = annotation)]
    annotations: Vec<(String, String)>,
    /// Write the format of cosign 2, with the tag sha256-….sig, instead of a Sigstore bundle.
    #[arg(long)]
    legacy: bool,
    /// Sign an image in the store; `push` pushes the signature as well.
    #[arg(long)]
    local: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreFlag,
    #[command(flatten)]
    registry: RegistryFlags,
    // Last: its heading would hold for the flags after it as well.
    #[command(flatten)]
    signature: SignatureFlags,
}

pub(super) const EXAMPLES: &str = "Examples:
  bundlegate sign ghcr.io/acme/authz:v1 --key cosign.key
  bundlegate sign ghcr.io/acme/authz:v1 --key cosign.key --legacy -a env=prod
  bundlegate sign --opa --key opa.pem --signing-alg ES256 policy/

With --opa, all files of the folder are listed in policy/.signatures.json by their path in it, as
`opa sign -b .` lists them there: pack the folder so that names have no ./ in front, for example
with `tar -C policy -czf bundle.tar.gz $(ls -A policy)`. To sign an image for OPA, build it with
--signing-key; for images of others, the gateway has `resign`.";

/// What is signed: an artifact, or a folder for OPA.
#[derive(Debug, Clone)]
struct SignTarget {
    text: String,
    /// `None` for the path of a folder that is no reference.
    image: Option<ImageName>,
}

impl SignTarget {
    fn parse(text: &str) -> Result<Self, String> {
        let image = match image_name(text) {
            Err(_) if Path::new(text).is_dir() => None,
            parsed => Some(parsed?),
        };
        let text = text.to_owned();
        Ok(Self { text, image })
    }

    fn image(&self) -> anyhow::Result<&ImageName> {
        let folder = || {
            anyhow!(
                "{}: a folder; sign it for OPA with --opa, or name an artifact",
                self.text
            )
        };
        self.image.as_ref().ok_or_else(folder)
    }

    fn folder(&self) -> anyhow::Result<&Path> {
        let path = Path::new(&self.text);
        match path.is_dir() {
            true => Ok(path),
            false => Err(anyhow!(
                "--opa {}: no such folder; name one, or omit --opa to sign an artifact",
                self.text
            )),
        }
    }
}

#[derive(Serialize)]
struct Signed {
    reference: String,
    digest: String,
    format: &'static str,
    identity: String,
}

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    if options.opa {
        return spawn_blocking(move || sign_for_opa(&options)).await?;
    }
    let image = options.target.image()?;
    let key = options.open_key()?;
    let reference = image.resolve_name(&options.store, options.local).await?;
    let pinned = interruptible(sign(&options, &reference, &key)).await??;
    // The name that the user gave, also if the image is in the store.
    let name = format!("{}@{}", reference.repository(), pinned.digest());
    let format = if options.legacy {
        Format::Legacy
    } else {
        Format::Bundle
    }
    .label();
    if options.json {
        let (reference, digest) = (reference.to_string(), pinned.digest().to_string());
        return print_json(&Signed {
            reference,
            digest,
            format,
            identity: key.identity(),
        });
    }
    print(&format!("{name}\nsigned by {} ({format})", key.identity()))
}

/// Writes the signature file of a folder. Blocks.
fn sign_for_opa(options: &Options) -> anyhow::Result<()> {
    let folder = options.target.folder()?;
    let signer = options.signature.signer("--key", &options.key)?;
    let (text, files) = sign_folder(folder, &signer, LIMITS.unpacked)?;
    let output = options.output_file_path.as_deref().unwrap_or(folder);
    let path = output.join(SIGNATURE_FILE);
    save::replace(&path, text.as_bytes())?;
    let (path, algorithm, kid) = (path.display(), signer.algorithm().name(), signer.kid());
    if options.json {
        return print_json(&json!({
            "file": path.to_string(), "files": files, "algorithm": algorithm, "kid": kid,
        }));
    }
    let plural = if files == 1 { "" } else { "s" };
    print(&format!(
        "{path}\n{files} file{plural}, signed by {kid} ({algorithm})"
    ))
}

/// Resolves the reference once, and signs that digest.
async fn sign(
    options: &Options,
    reference: &Reference,
    key: &KeyPair,
) -> anyhow::Result<PinnedReference> {
    let cli_config = options.registry.cli_config()?;
    let target = Target::new(
        reference,
        options.local,
        &options.store,
        &options.registry,
        cli_config.as_ref(),
    )?;
    // What is signed is what the registry has, and not what a mirror has.
    let target = target.at_origin();
    let pinned = target.resolve(reference).await?;
    let subject = target.source().manifest(&pinned).await?.descriptor();
    let claim = SigningRequest {
        subject,
        annotations: options
            .annotations
            .iter()
            .cloned()
            .collect::<BTreeMap<_, _>>(),
    };
    let destination = target.destination()?;
    if options.legacy {
        let repository = reference.repository().to_string();
        let signature = LegacySignature::sign(key, &claim, &repository)?;
        signature
            .append(&pinned, target.source(), &destination)
            .await?;
    } else {
        Attachment::sign(key, &claim)?
            .attach(&pinned, &destination)
            .await?;
    }
    Ok(pinned)
}

impl Options {
    fn open_key(&self) -> anyhow::Result<KeyPair> {
        let file = self.key.display();
        let text = read::text("--key", &self.key, read::KEY_LIMIT)?;
        KeyPair::check(&text).map_err(|error| anyhow!("--key {file}: {error}"))?;
        let password = password::for_key_file(&self.key)?;
        KeyPair::open(&text, password.as_bytes()).map_err(|error| anyhow!("--key {file}: {error}"))
    }
}
