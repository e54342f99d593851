//! `bundlegate build`.

mod compile;

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use serde_json::json;
use tokio::task::spawn_blocking;

use super::{
    diagnostics::SourceErrors,
    interruptible,
    opa::{lacks_wasm, located},
    progress::Working,
    say, say_json,
    store_flag::{LIMITS, StoreFlag, annotation, reference, source_date},
    table, tell,
};
use crate::{
    bundle::{Artifact, Folder, Ignore, Labels, Limits, PackError, PackOptions, Packed, Parse, RegoVersion},
    config::Size,
    images::Images,
    oci::Reference,
    opa_check::{Checker, Verdict},
};

/// How to run `build`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Folders with policy and data, or single files; several become one bundle.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// What to call the image, such as ghcr.io/acme/authz:v1.
    #[arg(short, long, value_name = "REF", value_parser = reference)]
    tag: Reference,
    /// Pass over files and folders with this name (`old_*`) or path (`lib/*.rego`); repeatable.
    #[arg(long, value_name = "PATTERN")]
    ignore: Vec<String>,
    /// The bundle's revision; default: what .manifest says, or else derived from the content.
    #[arg(short, long)]
    revision: Option<String>,
    /// A part of `data` that the bundle owns, instead of those in .manifest; repeatable.
    #[arg(long = "root", value_name = "PATH")]
    roots: Vec<String>,
    /// An annotation for manifest and layer; repeatable.
    #[arg(short, long = "annotation", value_name = "KEY=VALUE", value_parser = annotation)]
    annotations: Vec<(String, String)>,
    /// The Rego is written for OPA before 1.0 (Rego v0).
    #[arg(long)]
    v0_compatible: bool,
    /// Run the tests (test_… rules of *_test.rego) first, and build only if all pass.
    #[arg(long)]
    test: bool,
    /// Don't parse the Rego: the built-in parser lags behind the newest OPA.
    #[arg(long)]
    no_parse: bool,
    #[command(flatten)]
    compiler: compile::Compiler,
    /// The largest bundle to build.
    #[arg(long, value_name = "SIZE", default_value = "2GiB")]
    max_size: Size,
    #[command(flatten)]
    store: StoreFlag,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Braces that are nested without end would take the stack.
const PATTERN_BYTES: usize = 1024;

pub(super) const EXAMPLES: &str = "Examples:
  bundlegate build policy -t ghcr.io/acme/authz:v1             check and pack a folder
  bundlegate build policy common -t ghcr.io/acme/authz:v1 --test -r \"$(git describe)\"
  bundlegate build policy -t ghcr.io/acme/authz:v1 --opa -e authz/allow --target wasm

The same files give the same digest on every machine and day; SOURCE_DATE_EPOCH sets the
image's date where it is wanted.";

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    let created = source_date()?.to_string();
    let labels = Labels { created, annotations: options.annotations.iter().cloned().collect() };
    Images::check_name(&options.tag)?;
    let working = Working::on("packing");
    // Until here nothing is written anywhere but to files without a name.
    let (options, packed) = interruptible(checked(options)).await??;
    let (name, store) = (options.tag.clone(), options.store.clone());
    let artifact = Artifact::new(&packed, &labels)?;
    let kept = artifact.clone();
    spawn_blocking(move || anyhow::Ok(store.open()?.put(&kept, &name)?)).await??;
    drop(working);
    report(&options, &artifact, &packed)
}

/// What is packed, once the real opa has loaded it where there is one.
async fn checked(options: Options) -> anyhow::Result<(Options, Packed)> {
    let (options, packed) = spawn_blocking(move || {
        let packed = pack(&options);
        (options, packed)
    })
    .await?;
    let packed = packed?;
    if let Some(checker) = options.compiler.check().checker().await? {
        load(&checker, &packed, &options.paths).await?;
    }
    Ok((options, packed))
}

/// An opa that gives no answer says nothing about the bundle.
async fn load(checker: &Checker, packed: &Packed, paths: &[PathBuf]) -> anyhow::Result<()> {
    let verdict = match checker.opa().await {
        Ok(opa) if lacks_wasm(&opa, &packed.bundle) => {
            tell("--opa=auto: this opa has no WebAssembly; going on without it");
            return Ok(());
        }
        Ok(opa) => checker.check(&opa, packed.bundle.blob()).await,
        Err(error) => Err(error),
    };
    match verdict {
        Ok(Verdict::Passed { .. }) => Ok(()),
        Ok(Verdict::Refused(problems)) => {
            bail!("build: opa can't load it: {}; mend it, or build with --opa=none", located(&problems, paths))
        }
        Err(error) => {
            tell(&format!("--opa=auto: {error}; going on without it"));
            Ok(())
        }
    }
}

fn pack(options: &Options) -> anyhow::Result<Packed> {
    if let Some(long) = options.ignore.iter().find(|pattern| pattern.len() > PATTERN_BYTES) {
        bail!(
            "--ignore: a pattern has {PATTERN_BYTES} bytes at most, and this one {}; write a shorter one",
            long.len()
        );
    }
    let ignore = Ignore::new(&options.ignore).map_err(|reason| anyhow::anyhow!("--ignore {reason}"))?;
    let sources = Folder::gather(&options.paths, &ignore)?;
    if let Some(file) = sources.unsigned() {
        tell(&format!("{} is left out: packing anew breaks OPA's own signature", file.display()));
    }
    let how = PackOptions {
        limits: Limits { bundle: options.max_size.bytes(), ..LIMITS },
        parse: if options.no_parse || options.compiler.is_wanted() { Parse::No } else { Parse::Strictly },
        revision: options.revision.clone(),
        roots: options.roots.clone(),
        rego_version: options.v0_compatible.then_some(RegoVersion::V0),
    };
    let packed = if options.compiler.is_wanted() {
        options.compiler.compile(&sources, &how)?
    } else {
        sources.pack(&how).map_err(with_way_out)?
    };
    if options.test {
        test(&sources, &how)?;
    }
    Ok(packed)
}

/// The tests are about what the author wrote, not about what a compiler made of it.
fn test(sources: &Folder, how: &PackOptions) -> anyhow::Result<()> {
    let run = sources.test(how).map_err(with_way_out)?;
    for failure in &run.failures {
        tell(&format!("FAIL {failure}"));
    }
    let count = run.passed + run.failures.len();
    match (count, run.failures.len()) {
        (0, _) => bail!("--test: no test_… rule in a *_test.rego file; write one, or leave --test out"),
        (_, 0) => {
            tell(&format!("{count} test{} passed", if count == 1 { "" } else { "s" }));
            Ok(())
        }
        (_, failed) => bail!("--test: {failed} of {count} tests failed; nothing was built"),
    }
}

fn with_way_out(error: PackError) -> anyhow::Error {
    match error {
        PackError::Refused(refused) => anyhow::Error::new(refused).context("build"),
        error => SourceErrors::of(
            error,
            "if only the built-in parser can't read it, --opa asks the real opa, --no-parse skips this",
        ),
    }
}

fn report(options: &Options, artifact: &Artifact, packed: &Packed) -> anyhow::Result<()> {
    let (digest, layer) = (&artifact.descriptor.digest, artifact.layer.digest());
    let manifest = packed.bundle.manifest();
    let (size, revision, roots) = (artifact.layer.size(), manifest.revision.as_str(), &manifest.roots);
    if options.json {
        let reference = options.tag.to_string();
        let report = json!({ "reference": reference, "digest": digest, "layer": layer,
            "size": size, "revision": revision, "roots": roots });
        return say_json(&report);
    }
    let roots = if manifest.owns("") { "everything".to_owned() } else { roots.join(", ") };
    say(&table::facts(&[
        ("reference", options.tag.to_string()),
        ("digest", digest.to_string()),
        ("layer", layer.to_string()),
        ("size", format!("{}, {} files", table::size(size), packed.files)),
        ("revision", revision.to_owned()),
        ("roots", roots),
    ]))
}
