//! `bundlegate build`.

mod compile;

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;
use tokio::task::spawn_blocking;

use super::{
    diagnostics::SourceErrors,
    eprint, interruptible,
    opa::{describe_problems, lacks_wasm},
    opa_signing::BundleSigningFlags,
    path::path_value,
    print, print_json,
    progress::Spinner,
    store_flag::{LIMITS, StoreFlag, annotation, reference, source_date},
    table,
};
use crate::{
    bundle::{
        Annotations, Artifact, Folder, Ignore, Limits, PackError, PackOptions, Packed, Parse,
        RegoVersion,
    },
    config::Size,
    images::Images,
    oci::Reference,
    opa_check::{Checker, Verdict},
};

/// Arguments of `build`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Folders with policy and data, or single files; several are merged into one bundle.
    #[arg(required = true, value_name = "PATH", value_parser = path_value())]
    paths: Vec<PathBuf>,
    /// Name of the image, such as ghcr.io/acme/authz:v1.
    #[arg(short, long, value_name = "REF", value_parser = reference)]
    tag: Reference,
    /// Ignore files and folders with this name (`old_*`) or path (`lib/*.rego`); repeatable.
    #[arg(long, value_name = "PATTERN")]
    ignore: Vec<String>,
    /// Revision of the bundle; default: the one in .manifest, or else a hash of the content.
    #[arg(short, long)]
    revision: Option<String>,
    /// Root in `data` that the bundle owns; replaces the roots in .manifest; repeatable.
    #[arg(long = "root", value_name = "PATH")]
    roots: Vec<String>,
    /// Annotation of manifest and layer; repeatable.
    #[arg(short, long = "annotation", value_name = "KEY=VALUE", value_parser = annotation)]
    annotations: Vec<(String, String)>,
    /// Parse the Rego as v0, the language of OPA before 1.0.
    #[arg(long)]
    v0_compatible: bool,
    /// Run the tests (test_… rules in *_test.rego) first, and build only if all pass.
    #[arg(long)]
    test: bool,
    /// Don't parse the Rego: the built-in parser may lag behind the newest OPA.
    #[arg(long)]
    no_parse: bool,
    #[command(flatten)]
    compiler: compile::Compiler,
    /// Maximum size of the bundle.
    #[arg(long, value_name = "SIZE", default_value = "2GiB")]
    max_size: Size,
    #[command(flatten)]
    store: StoreFlag,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    // Last: its heading would hold for the flags after it as well.
    #[command(flatten)]
    signing: BundleSigningFlags,
}

/// The maximum length of a pattern, in bytes: deeply nested braces would overflow the stack.
const MAX_PATTERN_BYTES: usize = 1024;

pub(super) const EXAMPLES: &str = "Examples:
  bundlegate build policy -t ghcr.io/acme/authz:v1             check and pack a folder
  bundlegate build policy common -t ghcr.io/acme/authz:v1 --test -r \"$(git describe)\"
  bundlegate build policy -t ghcr.io/acme/authz:v1 --opa -e authz/allow --target wasm
  bundlegate build policy -t ghcr.io/acme/authz:v1 --signing-key opa.pem --signing-alg ES256

The same files give the same digest on every machine and at any time; SOURCE_DATE_EPOCH sets
the creation date of the image. With --signing-key this holds for RS and HS algorithms only.

--signing-key writes OPA's own signature (.signatures.json), which an OPA with `signing` in its
configuration verifies. It is no cosign signature: that is what `bundlegate sign` attaches to the
image, and what the gateway verifies. YAML data becomes JSON, because versions of OPA hash YAML
differently.";

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    let created = source_date()?.to_string();
    let annotations = Annotations {
        created,
        further: options.annotations.iter().cloned().collect(),
    };
    Images::check_name(&options.tag)?;
    let working = Spinner::on("packing");
    // Until this point only unlinked files are written, so an interruption leaves nothing.
    let (options, packed) = interruptible(pack_and_check(options)).await??;
    let (name, store) = (options.tag.clone(), options.store.clone());
    let artifact = Artifact::new(&packed, &annotations)?;
    let kept = artifact.clone();
    spawn_blocking(move || anyhow::Ok(store.open()?.put(&kept, &name)?)).await??;
    drop(working);
    report(&options, &artifact, &packed)
}

/// Packs the folders, has opa load the bundle if opa is available, and signs it for OPA if there is a
/// key.
async fn pack_and_check(options: Options) -> anyhow::Result<(Options, Packed)> {
    // Before anything that takes long.
    let signer = options.signing.signer()?;
    let (options, packed) = spawn_blocking(move || {
        let packed = pack(&options);
        (options, packed)
    })
    .await?;
    let packed = packed?;
    if let Some(checker) = options.compiler.check().checker().await? {
        check_with_opa(&checker, &packed, &options.paths).await?;
    }
    match signer {
        Some(signer) => {
            let signed = spawn_blocking(move || packed.signed_by(&signer)).await?;
            Ok((options, signed.context("build")?))
        }
        None => Ok((options, packed)),
    }
}

/// Has opa load the bundle. An opa that cannot be run is reported and does not fail the build.
async fn check_with_opa(
    checker: &Checker,
    packed: &Packed,
    paths: &[PathBuf],
) -> anyhow::Result<()> {
    let verdict = match checker.opa().await {
        Ok(opa) if lacks_wasm(&opa, &packed.bundle) => {
            eprint("--opa=auto: this opa has no WebAssembly; continuing without it");
            return Ok(());
        }
        Ok(opa) => checker.check(&opa, packed.bundle.blob()).await,
        Err(error) => Err(error),
    };
    match verdict {
        Ok(Verdict::Passed { .. }) => Ok(()),
        Ok(Verdict::Refused(problems)) => {
            bail!(
                "build: opa can't load the bundle: {}; fix it, or build with --opa=none",
                describe_problems(&problems, paths)
            )
        }
        Err(error) => {
            eprint(&format!("--opa=auto: {error}; continuing without it"));
            Ok(())
        }
    }
}

fn pack(options: &Options) -> anyhow::Result<Packed> {
    if let Some(long) = options
        .ignore
        .iter()
        .find(|pattern| pattern.len() > MAX_PATTERN_BYTES)
    {
        bail!(
            "--ignore: the pattern has {} bytes, above the maximum of {MAX_PATTERN_BYTES}; shorten it",
            long.len()
        );
    }
    let ignore =
        Ignore::new(&options.ignore).map_err(|reason| anyhow::anyhow!("--ignore {reason}"))?;
    let limits = Limits {
        bundle: options.max_size.bytes(),
        ..LIMITS
    };
    let sources = Folder::gather(&options.paths, &ignore, &limits)?;
    if let Some(file) = sources.ignored_signatures() {
        eprint(&format!(
            "{} is left out: repacking invalidates OPA's own signature",
            file.display()
        ));
    }
    let how = PackOptions {
        limits,
        parse: if options.no_parse || options.compiler.is_requested() {
            Parse::No
        } else {
            Parse::Strictly
        },
        revision: options.revision.clone(),
        roots: options.roots.clone(),
        rego_version: options.v0_compatible.then_some(RegoVersion::V0),
    };
    let packed = if options.compiler.is_requested() {
        options.compiler.compile(&sources, &how)?
    } else {
        sources.pack(&how).map_err(with_hint)?
    };
    if options.test {
        test(&sources, &how)?;
    }
    Ok(packed)
}

/// Runs the tests on the sources, not on the output of a compiler.
fn test(sources: &Folder, how: &PackOptions) -> anyhow::Result<()> {
    let run = sources.test(how).map_err(with_hint)?;
    for failure in &run.failures {
        eprint(&format!("FAIL {failure}"));
    }
    let count = run.passed + run.failures.len();
    match (count, run.failures.len()) {
        (0, _) => bail!("--test: no test_… rule in a *_test.rego file; write one, or omit --test"),
        (_, 0) => {
            eprint(&format!(
                "{count} test{} passed",
                if count == 1 { "" } else { "s" }
            ));
            Ok(())
        }
        (_, failed) => bail!("--test: {failed} of {count} tests failed; nothing was built"),
    }
}

fn with_hint(error: PackError) -> anyhow::Error {
    match error {
        PackError::Refused(refused) => anyhow::Error::new(refused).context("build"),
        error => SourceErrors::of(
            error,
            "if only the built-in parser can't read it, use --opa to compile with opa, or --no-parse to skip parsing",
        ),
    }
}

fn report(options: &Options, artifact: &Artifact, packed: &Packed) -> anyhow::Result<()> {
    let (digest, layer) = (&artifact.descriptor.digest, artifact.layer.digest());
    let manifest = packed.bundle.manifest();
    let (size, revision, roots) = (
        artifact.layer.size(),
        manifest.revision.as_str(),
        &manifest.roots,
    );
    if options.json {
        let reference = options.tag.to_string();
        let report = json!({ "reference": reference, "digest": digest, "layer": layer,
            "size": size, "revision": revision, "roots": roots });
        return print_json(&report);
    }
    let roots = if manifest.owns("") {
        "everything".to_owned()
    } else {
        roots.join(", ")
    };
    print(&table::facts(&[
        ("reference", options.tag.to_string()),
        ("digest", digest.to_string()),
        ("layer", layer.to_string()),
        (
            "size",
            format!("{}, {} files", table::size(size), packed.files),
        ),
        ("revision", revision.to_owned()),
        ("roots", roots),
    ]))
}
