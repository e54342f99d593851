//! The subcommands, and the dispatch to them.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, error::ErrorKind};

use super::{
    block_on, block_on_with_server, build, completion, config, copy, dev, diagnostics, eprint,
    eprint_lines, eval, fleet, generate_key_pair, images, init, inspect, login, one_line,
    path::path_value, pull, push, refresh, reload, repl, rm, rollout, save, serve, sign, status,
    tag, tags, usage, verify, verify_bundle, version,
};
use crate::telemetry;

/// Serves cosign-verified OPA policy bundles from any OCI registry.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, after_help = EXAMPLES)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  bundlegate dev                              build, sign and serve an example policy
  bundlegate dev policies/                    the same with your own policy folder
  bundlegate config check                     check the configuration file bundlegate.yaml
  bundlegate serve                            serve the bundles of that configuration

Environment:
  BUNDLEGATE_REGISTRY   prefix for references without a host, such as ghcr.io/acme
  BUNDLEGATE_ADMIN      admin listener for status, fleet, rollout, refresh and reload
  BUNDLEGATE_STORE      folder of the image store
  BUNDLEGATE_LOG        log filter of serve and dev, such as debug
  COSIGN_PASSWORD       password of private key files
  DOCKER_CONFIG         folder of docker's config.json, for credentials";

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the bundles of a configuration file.
    ///
    /// Watches the registries, verifies signatures, and answers OPA's bundle requests. SIGTERM
    /// or Ctrl-C drains; a second signal exits immediately. Logs go to stderr
    /// (BUNDLEGATE_LOG=debug for more; `log` in the configuration has their format and the access
    /// log).
    Serve {
        /// The configuration file; bundlegate.yaml in the current folder if it is absent.
        /// config/bundlegate.yaml documents every key.
        #[arg(long, value_name = "FILE", value_parser = path_value())]
        config: Option<PathBuf>,
    },
    /// Have a running gateway check the registry for a bundle now.
    ///
    /// Waits for the check, and prints what it found. Succeeds if the registry's version is served.
    #[command(after_help = refresh::EXAMPLES)]
    Refresh(refresh::Options),
    /// Have a running gateway read its configuration again.
    ///
    /// Waits for the outcome, and fails with the reason if the configuration is refused. SIGHUP does
    /// the same without an answer.
    #[command(after_help = reload::EXAMPLES)]
    Reload(reload::Options),
    /// Show what a running gateway serves: versions, signers and failures.
    #[command(after_help = status::EXAMPLES)]
    Status(status::Options),
    /// Show which OPA runs which version: by bundle, or client by client.
    ///
    /// Without arguments: a line for each bundle with its clients by state, and the clients that fail,
    /// lag behind or are silent if there are few. With a bundle, a state or a part of a name: the
    /// clients.
    #[command(after_help = fleet::EXAMPLES)]
    Fleet(fleet::Options),
    /// Show and steer staged roll-outs of a running gateway.
    #[command(after_help = rollout::EXAMPLES)]
    Rollout {
        #[command(subcommand)]
        command: rollout::RolloutCommand,
    },
    /// Build, sign and serve a policy folder, and rebuild on every change.
    ///
    /// Builds the folder into a bundle, signs it with a temporary key, and serves it verified,
    /// with long polling: the same code as `serve`, on an OCI image layout. A failed build
    /// leaves the last good one in place and prints the error. After each build the tests of
    /// the folder run and are reported; a build is served even if a test fails. If there is an
    /// opa in PATH, it loads each build and runs the tests; otherwise a built-in evaluator runs
    /// them. Prints the commands to try it.
    Dev(dev::Options),
    /// Start a policy project: Rego with a test, and CI that builds, pushes and signs.
    #[command(after_help = init::EXAMPLES)]
    Init(init::Options),
    /// Build a policy folder into an image in the local store.
    ///
    /// Checks what OPA checks on load, and parses every Rego file. If there is an opa in PATH,
    /// it loads the bundle as well: only OPA's compiler finds an unsafe variable, for example.
    #[command(after_help = build::EXAMPLES)]
    Build(build::Options),
    /// Show the content of an image: manifest, annotations, packages, files, signatures.
    #[command(after_help = inspect::EXAMPLES)]
    Inspect(inspect::Options),
    /// Write the bundle of an image to a file, byte for byte.
    #[command(after_help = save::EXAMPLES)]
    Save(save::Options),
    /// Tag an image.
    #[command(after_help = tag::EXAMPLES)]
    Tag(tag::Options),
    /// Remove images from the store.
    #[command(after_help = rm::EXAMPLES, visible_alias = "rmi")]
    Rm(rm::Options),
    /// List the images of the store, newest first.
    #[command(after_help = images::EXAMPLES, visible_aliases = ["ls", "list"])]
    Images(images::Options),
    /// List the tags of a repository in a registry.
    #[command(after_help = tags::EXAMPLES)]
    Tags(tags::Options),
    /// Push images of the store to their registries.
    ///
    /// Pushes the signatures in the store as well. Blobs that the registry already has are not
    /// sent again, so repeating an interrupted push resumes it.
    #[command(after_help = push::EXAMPLES)]
    Push(push::Options),
    /// Pull artifacts from registries into the store.
    ///
    /// Pulls their signatures as well. With a key, or a configuration that has trust policies,
    /// verifies each artifact first and pulls nothing that the gateway would not serve.
    #[command(after_help = pull::EXAMPLES)]
    Pull(pull::Options),
    /// Copy an artifact with its signatures and referrers between registries and folders.
    ///
    /// Copies byte for byte, so every digest stays the same, and the copy can be verified
    /// without the source registry.
    #[command(after_help = copy::EXAMPLES, visible_alias = "cp")]
    Copy(copy::Options),
    /// Check a user name and password with a registry, and store them as docker does.
    #[command(after_help = login::EXAMPLES)]
    Login(login::Options),
    /// Remove the stored credentials of a registry.
    #[command(after_help = login::LOGOUT_EXAMPLES)]
    Logout(login::LogoutOptions),
    /// Generate a key pair in cosign's format.
    ///
    /// Writes cosign.key, an ECDSA P-256 private key encrypted with a password, and cosign.pub.
    /// The password comes from COSIGN_PASSWORD, or from a prompt that asks twice. cosign can
    /// sign with these files, and bundlegate with those of cosign.
    #[command(after_help = generate_key_pair::EXAMPLES)]
    GenerateKeyPair(generate_key_pair::Options),
    /// Sign an artifact with a cosign key.
    ///
    /// Resolves REF once and signs that digest. cosign and the gateway accept the signature: by
    /// default a Sigstore bundle attached as a referrer, as cosign 3 writes it; with --legacy a
    /// signature in the format of cosign 2. Existing signatures stay.
    ///
    /// With --opa it writes OPA's own signature of a folder instead, as `opa sign` does.
    #[command(after_help = sign::EXAMPLES)]
    Sign(sign::Options),
    /// Verify the signatures of an artifact as the gateway does.
    ///
    /// Resolves REF once, collects every signature of that digest in both cosign formats, and
    /// reports every check of each one against the given keys or policy, with the reason of a
    /// failure. Succeeds only if the gateway would serve the artifact.
    #[command(after_help = verify::EXAMPLES)]
    Verify(verify::Options),
    /// Implement the client protocol of sigstore-conformance.
    #[command(hide = true)]
    VerifyBundle(verify_bundle::Options),
    /// Evaluate a query on a policy.
    ///
    /// Evaluates a query on the rules and data of a bundle with the built-in evaluator, and
    /// prints the JSON that `opa eval` prints; an undefined result is {}. For development: in
    /// production OPA decides, and OPA supports more than this evaluator.
    #[command(after_help = eval::EXAMPLES)]
    Eval(eval::Options),
    /// Query a policy interactively.
    ///
    /// Opens a prompt on the rules and data of a bundle. Without a terminal, reads one query per
    /// line from standard input, and fails if one of them has an error.
    #[command(after_help = repl::EXAMPLES)]
    Repl(repl::Options),
    /// Print a shell completion script.
    #[command(after_help = completion::EXAMPLES)]
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the version.
    Version {
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Work with configuration files.
    Config {
        #[command(subcommand)]
        command: config::ConfigCommand,
    },
}

/// Runs the program. Exit codes: 0 success, 1 failure, 2 usage error; `rollout wait` also exits with 2 if it
/// does not learn how the roll-out ends.
pub fn main() -> ExitCode {
    let command = match Arguments::try_parse() {
        Ok(arguments) => arguments.command,
        Err(error) => return usage_error(&error),
    };
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line: WHAT: WHY; HINT. Only errors in source files have excerpts below it.
            eprint(&one_line(&error));
            eprint_lines(&diagnostics::source_excerpts(&error));
            match error.is::<rollout::Undecided>() {
                true => ExitCode::from(2),
                false => ExitCode::FAILURE,
            }
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve { config } => {
            let config = config::file(config, "bundlegate serve --config FILE")?;
            telemetry::init();
            logged(|| block_on_with_server(|serving| serve::run(&config, serving)))
        }
        Command::Refresh(options) => block_on(refresh::run(options)),
        Command::Reload(options) => block_on(reload::run(options)),
        Command::Status(options) => block_on(status::run(options)),
        Command::Fleet(options) => block_on(fleet::run(options)),
        Command::Rollout { command } => block_on(rollout::run(command)),
        Command::Dev(options) => {
            // `dev` prints its own messages for the author, so only warnings are logged.
            telemetry::init_with(dev::LOG);
            logged(|| block_on_with_server(|serving| dev::run(options, serving)))
        }
        Command::Init(options) => init::run(&options),
        Command::Build(options) => block_on(build::run(options)),
        Command::Inspect(options) => block_on(inspect::run(options)),
        Command::Save(options) => block_on(save::run(options)),
        Command::Tag(options) => tag::run(&options),
        Command::Rm(options) => rm::run(&options),
        Command::Images(options) => block_on(images::run(options)),
        Command::Tags(options) => block_on(tags::run(options)),
        Command::Push(options) => block_on(push::run(options)),
        Command::Pull(options) => block_on(pull::run(options)),
        Command::Copy(options) => block_on(copy::run(options)),
        Command::Login(options) => block_on(login::run(options)),
        Command::Logout(options) => block_on(login::logout(options)),
        Command::Config { command } => block_on(config::run(command)),
        Command::GenerateKeyPair(options) => generate_key_pair::run(&options),
        Command::Sign(options) => block_on(sign::run(options)),
        Command::Verify(options) => block_on(verify::run(options)),
        Command::VerifyBundle(options) => verify_bundle::run(&options),
        Command::Eval(options) => block_on(eval::run(options)),
        Command::Repl(options) => block_on(repl::run(options)),
        Command::Completion { shell } => completion::run(shell),
        Command::Version { json } => version::run(json),
    }
}

/// Runs a subcommand that logs. Its lines come before the error that it ends with.
fn logged<T>(work: impl FnOnce() -> T) -> T {
    let done = work();
    telemetry::flush();
    done
}

/// Prints help and version as results; every other usage error is one line.
fn usage_error(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
    } else {
        eprint(&usage::one_line(error));
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}
