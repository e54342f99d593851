//! `bundlegate config`: checks configuration files, and describes them for editors and CI.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::{eprint, path::path_value, print, print_json, read};
use crate::{
    config::{self, Config, ConfigError, ConfigText, ConfigWarning},
    gateway,
    server::CertificateInUse,
    store, telemetry,
};

/// The configuration where none is named.
const DEFAULT_FILE: &str = "bundlegate.yaml";
/// The argument for standard input, and the name of its text in messages.
const STDIN: (&str, &str) = ("-", "<stdin>");

const CHECK_EXAMPLES: &str = "Examples:
  bundlegate config check
  bundlegate config check /etc/bundlegate/bundlegate.yaml
  helm template gate | yq '.data[\"bundlegate.yaml\"]' | bundlegate config check -
  bundlegate config check --no-environment --json bundlegate.yaml    in CI, without the secrets

Every error has the form FILE:LINE:COLUMN: KEY: PROBLEM; WAY OUT.";

const SCHEMA_EXAMPLES: &str = "Examples:
  bundlegate config schema > bundlegate.schema.json

Editors with yaml-language-server, such as VS Code, use that file with this first line in
bundlegate.yaml:
  # yaml-language-server: $schema=bundlegate.schema.json
CI can use check-jsonschema --schemafile bundlegate.schema.json bundlegate.yaml; `config check` finds
more, because it reads the files that the configuration names.";

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Check a configuration file, every file that it names and `cache.directory`, as `serve` would,
    /// and start the `opa` of its `opa_check`.
    ///
    /// Prints all errors, and changes nothing.
    #[command(after_help = CHECK_EXAMPLES)]
    Check(CheckOptions),
    /// Print the JSON Schema of the configuration, for editors and CI.
    #[command(after_help = SCHEMA_EXAMPLES)]
    Schema,
}

/// Arguments of `config check`.
#[derive(Debug, Args)]
pub(super) struct CheckOptions {
    /// The configuration file, or - for standard input, where relative paths are relative to the
    /// current folder; bundlegate.yaml in the current folder if it is absent.
    #[arg(value_parser = path_value())]
    file: Option<PathBuf>,
    /// Check the configuration on a machine that is not the one that serves it: list the files that
    /// it names and that do not exist here instead of failing, and neither check `cache.directory`
    /// nor start `opa`.
    #[arg(long)]
    no_environment: bool,
    /// Print one JSON document, with all errors and their places.
    #[arg(long)]
    json: bool,
}

/// The result of a check, as JSON.
#[derive(Debug, Serialize)]
struct Report {
    file: String,
    ok: bool,
    errors: Vec<ReportedError>,
    /// The files that do not exist, with `--no-environment`.
    missing_files: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ReportedError {
    /// Empty if the error is about the whole file.
    key: String,
    file: String,
    line: Option<u64>,
    column: Option<u64>,
    message: String,
}

pub(super) async fn run(command: ConfigCommand) -> anyhow::Result<()> {
    match command {
        ConfigCommand::Check(options) => check(&options).await,
        ConfigCommand::Schema => print_json(&config::schema()),
    }
}

/// The file that is named, or else `bundlegate.yaml` in the current folder. `way` names one.
pub(super) fn file(named: Option<PathBuf>, way: &str) -> anyhow::Result<PathBuf> {
    match named {
        Some(file) => Ok(file),
        None if Path::new(DEFAULT_FILE).exists() => Ok(DEFAULT_FILE.into()),
        None => bail!(
            "{DEFAULT_FILE}: the current folder has no such file; write it, or name a \
             configuration by `{way}`"
        ),
    }
}

async fn check(options: &CheckOptions) -> anyhow::Result<()> {
    let file = file(options.file.clone(), "bundlegate config check FILE")?;
    let name = match file == Path::new(STDIN.0) {
        true => STDIN.1.to_owned(),
        false => file.display().to_string(),
    };
    let checked = match text(&file) {
        Ok(text) if options.no_environment => text.check_without_files().map(Checked::Alone),
        // One read finds all errors: a pipe can't be read a second time.
        Ok(text) => text.parse().map(|config| Checked::Here(Box::new(config))),
        Err(error) => Err(vec![error]),
    };
    let checked = match checked {
        Ok(checked) => checked,
        Err(errors) => return refuse(&name, &errors, options.json),
    };
    let missing_files = match &checked {
        Checked::Here(config) => {
            check_cache(&config.cache).with_context(|| name.clone())?;
            warn_of_expired(&name, &config.certificates);
            for ConfigWarning { key, message } in config.warnings() {
                eprint(&format!("{name}: {key}: {message}"));
            }
            let started = gateway::start_opas(config).await;
            started.with_context(|| name.clone())?;
            Vec::new()
        }
        Checked::Alone(missing) => missing
            .iter()
            .map(|file| file.display().to_string())
            .collect(),
    };
    if options.json {
        return print_json(&Report {
            file: name,
            ok: true,
            errors: Vec::new(),
            missing_files,
        });
    }
    for file in &missing_files {
        eprint(&format!("{name}: {file} does not exist here"));
    }
    print(&format!("{name}: {}", checked.summary()))
}

/// `serve` starts with a certificate that has expired: it is refused by the other side.
fn warn_of_expired(name: &str, certificates: &[CertificateInUse]) {
    let now = telemetry::now();
    for CertificateInUse { key, expiry } in certificates {
        if expiry.is_expired_at(now) {
            let (subject, end) = (&expiry.subject, expiry.not_after);
            eprint(&format!(
                "{name}: {key}: the certificate {subject} has expired at {end}, and its peers refuse it; renew it"
            ));
        }
    }
}

/// Reads the configuration. The text on standard input has the limit of a file.
fn text(file: &Path) -> Result<ConfigText, ConfigError> {
    if file != Path::new(STDIN.0) {
        return ConfigText::read(file);
    }
    let text = read::stdin("config check", config::MAX_BYTES)
        .map_err(|error| ConfigError::unreadable(STDIN.1, &format!("{error:#}")))?;
    Ok(ConfigText::new(STDIN.1, text, ""))
}

/// An accepted configuration.
enum Checked {
    /// On the machine that serves it.
    Here(Box<Config>),
    /// On another one, where these files do not exist.
    Alone(Vec<PathBuf>),
}

impl Checked {
    fn summary(&self) -> String {
        match self {
            Self::Here(config) => {
                let bundles = counted(config.bundles.len(), "bundle");
                match config.patterns.len() {
                    0 => format!("ok, {bundles}"),
                    count => format!("ok, {bundles}, {}", counted(count, "pattern")),
                }
            }
            Self::Alone(missing) if missing.is_empty() => "ok".to_owned(),
            Self::Alone(missing) => {
                let files = counted(missing.len(), "file");
                format!("ok, but for {files} that it names and that can't be checked here")
            }
        }
    }
}

/// Prints all errors.
fn refuse(name: &str, errors: &[ConfigError], json: bool) -> anyhow::Result<()> {
    if json {
        let file = |error: &ConfigError| error.file().map(|file| file.display().to_string());
        let errors = errors.iter().map(|error| ReportedError {
            key: error.key().to_owned(),
            file: file(error).unwrap_or_else(|| name.to_owned()),
            line: error.line(),
            column: error.column(),
            message: error.message().to_owned(),
        });
        print_json(&Report {
            file: name.to_owned(),
            ok: false,
            errors: errors.collect(),
            missing_files: Vec::new(),
        })?;
    }
    match errors {
        [only] => Err(anyhow::Error::new(only.clone())),
        all => {
            if !json {
                all.iter().for_each(|error| eprint(&error.to_string()));
            }
            bail!("{name}: {} errors; correct them", all.len())
        }
    }
}

/// Checks the cache folder without changing it. Where it is not required, a problem is a warning.
fn check_cache(cache: &config::Cache) -> anyhow::Result<()> {
    let checked = cache.directory.as_deref().map(store::check_folder);
    match checked {
        Some(Err(error)) if cache.required => {
            bail!("{error}; or write `cache.required: false` to serve without a disk")
        }
        Some(Err(error)) => {
            eprint(&format!("{error}; blobs would be held in memory only"));
            Ok(())
        }
        Some(Ok(())) | None => Ok(()),
    }
}

fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}
