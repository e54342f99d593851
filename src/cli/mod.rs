//! The command line: one file per verb, and all terminal output.

mod build;
mod completion;
mod copy;
mod dev;
mod diagnostics;
mod each;
mod eval;
mod flags;
mod found;
mod generate_key_pair;
mod images;
mod init;
mod inspect;
mod local;
mod location;
mod login;
mod opa;
mod password;
mod place;
mod progress;
mod pull;
mod push;
mod read;
mod remote;
mod repl;
mod rm;
mod save;
mod serve;
mod sign;
mod table;
mod tag;
mod tags;
mod trust;
mod usage;
mod verify;
mod verify_bundle;
mod version;

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand, error::ErrorKind};
use tokio::signal::{
    ctrl_c,
    unix::{SignalKind, signal},
};

use crate::{config::Config, gateway, opa_check, telemetry};

/// Serves cosign-verified OPA policy bundles from any OCI registry.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "Examples:
  bundlegate dev                              build, sign and serve an example policy
  bundlegate dev policies/                    the same with a policy folder of your own
  bundlegate config check bundlegate.yaml     is this configuration right?
  bundlegate serve --config bundlegate.yaml   serve what the configuration names

Environment:
  BUNDLEGATE_REGISTRY   put in front of references without a host, such as ghcr.io/acme
  BUNDLEGATE_STORE      the image store's folder
  BUNDLEGATE_LOG        log filter of serve and dev, such as debug
  COSIGN_PASSWORD       opens and seals private keys
  DOCKER_CONFIG         the folder of docker's config.json, for credentials";

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve the bundles that a configuration file names.
    ///
    /// Watches the registries, verifies signatures, and answers OPA's bundle requests until
    /// SIGTERM or Ctrl-C, which drain; a second signal exits at once. Logs go to stderr
    /// (BUNDLEGATE_LOG=debug for more).
    Serve {
        /// The configuration; see config/bundlegate.yaml for every key.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Build, sign and serve a policy folder, again after every change.
    ///
    /// Builds the folder into a bundle, signs it with a key made for the purpose, and serves
    /// it verified with long polling: the code behind `serve`, on an OCI layout in a folder.
    /// A broken edit keeps the last good build and prints why. After each build the tests of
    /// the folder are run and reported; a build is served even if a test fails. Where there is
    /// an opa in PATH, it loads each build first and runs the tests, or else a built-in
    /// evaluator does. Prints the commands to try it.
    Dev(dev::Options),
    /// Start a policy project: Rego with a test, and CI that builds, signs and pushes.
    #[command(after_help = init::EXAMPLES)]
    Init(init::Options),
    /// Pack a policy folder into an image in the store on this machine.
    ///
    /// Checks what OPA would refuse at load, and parses every Rego file. Where there is an opa
    /// in PATH, it loads the bundle, too: only OPA's own compiler finds an unsafe variable, say.
    #[command(after_help = build::EXAMPLES)]
    Build(build::Options),
    /// Show what is in an image: manifest, annotations, packages, files, signatures.
    #[command(after_help = inspect::EXAMPLES)]
    Inspect(inspect::Options),
    /// Write an image's bundle to a file, byte for byte.
    #[command(after_help = save::EXAMPLES)]
    Save(save::Options),
    /// Give an image of the store another name.
    #[command(after_help = tag::EXAMPLES)]
    Tag(tag::Options),
    /// Remove images from the store.
    #[command(after_help = rm::EXAMPLES, visible_alias = "rmi")]
    Rm(rm::Options),
    /// List the images of the store, newest first.
    #[command(after_help = images::EXAMPLES, visible_aliases = ["ls", "list"])]
    Images(images::Options),
    /// List the tags that a repository has in its registry.
    #[command(after_help = tags::EXAMPLES)]
    Tags(tags::Options),
    /// Send images of the store to their registries.
    ///
    /// With the signatures that lie in the store. What the registry has is not sent again, so
    /// a push that broke goes on when it is repeated.
    #[command(after_help = push::EXAMPLES)]
    Push(push::Options),
    /// Fetch artifacts of registries into the store.
    ///
    /// With their signatures. Given a key or a configuration with trust policies, verifies
    /// them first, and fetches nothing that the gateway would not serve.
    #[command(after_help = pull::EXAMPLES)]
    Pull(pull::Options),
    /// Copy an artifact with its signatures and referrers, between registries and folders.
    ///
    /// Byte for byte, so every digest stays, and whoever verifies the copy needs the first
    /// registry no more.
    #[command(after_help = copy::EXAMPLES, visible_alias = "cp")]
    Copy(copy::Options),
    /// Check a user name and password with a registry, and keep them as docker does.
    #[command(after_help = login::EXAMPLES)]
    Login(login::Options),
    /// Forget a registry's user name and password.
    #[command(after_help = login::LOGOUT_EXAMPLES)]
    Logout(login::LogoutOptions),
    /// Make a key pair as cosign makes them.
    ///
    /// Writes cosign.key, the private key (ECDSA P-256) sealed with a password, and
    /// cosign.pub. The password comes from COSIGN_PASSWORD, or is asked for twice. cosign
    /// signs with these files, and bundlegate with cosign's.
    #[command(after_help = generate_key_pair::EXAMPLES)]
    GenerateKeyPair(generate_key_pair::Options),
    /// Sign an artifact with a key of cosign's.
    ///
    /// Resolves REF once and signs that digest, so that cosign and the gateway accept it: by
    /// default with a Sigstore bundle attached as a referrer, which cosign 3 writes; with
    /// --legacy as cosign 2 does. Signatures that are there stay.
    #[command(after_help = sign::EXAMPLES)]
    Sign(sign::Options),
    /// Check who signed an artifact, as the gateway would.
    ///
    /// Resolves REF once, gathers every signature of that digest in both of cosign's
    /// formats, and tells what each is worth to the keys or the policy: every check, and why
    /// one failed. Succeeds only if the gateway would serve it.
    #[command(after_help = verify::EXAMPLES)]
    Verify(verify::Options),
    /// Speak the client protocol of sigstore-conformance.
    #[command(hide = true)]
    VerifyBundle(verify_bundle::Options),
    /// Ask a policy a question.
    ///
    /// Evaluates a query over the rules and data of a bundle with the built-in evaluator
    /// and prints the JSON that `opa eval` prints; an undefined answer is {}. For a quick
    /// look: what decides in production is OPA, which knows more than this evaluator.
    #[command(after_help = eval::EXAMPLES)]
    Eval(eval::Options),
    /// Ask a policy questions, line by line.
    ///
    /// A prompt over the rules and data of a bundle. Without a terminal it reads queries
    /// from standard input, one a line, and fails if one of them has no answer.
    #[command(after_help = repl::EXAMPLES)]
    Repl(repl::Options),
    /// Print what completes bundlegate's commands in a shell.
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
        verb: ConfigVerb,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigVerb {
    /// Read a configuration and every file that it names, as `serve` would, start the `opa` of
    /// its `opa_check`, and stop.
    Check {
        /// The configuration.
        file: PathBuf,
    },
}

/// Runs the program: 0 done, 1 failed, 2 usage.
pub fn main() -> ExitCode {
    let verb = match Arguments::try_parse() {
        Ok(arguments) => arguments.verb,
        Err(error) => return misused(&error),
    };
    let done = match verb {
        Verb::Serve { config } => {
            telemetry::init();
            block_on(serve::run(&config))
        }
        Verb::Dev(options) => {
            // What the author needs is told by `dev` itself.
            telemetry::init_with(dev::LOG);
            block_on(dev::run(options))
        }
        Verb::Init(options) => init::run(&options),
        Verb::Build(options) => block_on(build::run(options)),
        Verb::Inspect(options) => block_on(inspect::run(options)),
        Verb::Save(options) => block_on(save::run(options)),
        Verb::Tag(options) => tag::run(&options),
        Verb::Rm(options) => rm::run(&options),
        Verb::Images(options) => block_on(images::run(options)),
        Verb::Tags(options) => block_on(tags::run(options)),
        Verb::Push(options) => block_on(push::run(options)),
        Verb::Pull(options) => block_on(pull::run(options)),
        Verb::Copy(options) => block_on(copy::run(options)),
        Verb::Login(options) => block_on(login::run(options)),
        Verb::Logout(options) => block_on(login::logout(options)),
        Verb::Config { verb: ConfigVerb::Check { file } } => block_on(check(&file)),
        Verb::GenerateKeyPair(options) => generate_key_pair::run(&options),
        Verb::Sign(options) => block_on(sign::run(options)),
        Verb::Verify(options) => block_on(verify::run(options)),
        Verb::VerifyBundle(options) => verify_bundle::run(&options),
        Verb::Eval(options) => block_on(eval::run(options)),
        Verb::Repl(options) => block_on(repl::run(options)),
        Verb::Completion { shell } => completion::run(shell),
        Verb::Version { json } => version::run(json),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line: WHAT: WHY; WAY OUT. Only errors in source files have more, below it.
            tell(&sentence(&error));
            tell_more(&diagnostics::pictures(&error));
            ExitCode::FAILURE
        }
    }
}

/// Help and version are answers; anything else is told in one line, as every error is.
fn misused(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
    } else {
        tell(&usage::sentence(error));
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

async fn check(file: &std::path::Path) -> anyhow::Result<()> {
    // Read once: a pipe can't be read again for the other mistakes.
    let config = Config::load_or_mistakes(file).or_else(|mistakes| match mistakes.as_slice() {
        [only] => Err(anyhow::Error::new(only.clone())),
        all => {
            all.iter().for_each(|mistake| tell(&mistake.to_string()));
            bail!("{}: {} mistakes; correct them", file.display(), all.len())
        }
    })?;
    gateway::start_opas(&config).await.with_context(|| file.display().to_string())?;
    let count = config.bundles.len();
    say(&format!("{}: ok, {count} bundle{}", file.display(), if count == 1 { "" } else { "s" }))
}

/// Threads for files and computing, beside two for each core that verify and open bundles.
/// Everything that uses them has a bound of its own; this one is for all of it together, and
/// leaves some to the rest where a few disks hang.
const BLOCKING_THREADS: usize = 96;

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(BLOCKING_THREADS + 2 * cores)
        .enable_all()
        .build()?;
    let done = runtime.block_on(work);
    // Dropping it would wait for a disk that hangs, or a bundle that is being inflated.
    runtime.shutdown_background();
    opa_check::end_all();
    done
}

/// Lets Ctrl-C and SIGTERM end `work`, which must leave nothing behind. What follows it is
/// brought to its end.
async fn interruptible<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        done = work => Ok(done),
        _ = ctrl_c() => bail!("interrupted; nothing was changed"),
        _ = terminate.recv() => bail!("interrupted; nothing was changed"),
    }
}

/// A result, on stdout.
fn say(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        // Whoever read has seen enough (`| head`).
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        said => said.context("standard output"),
    }
}

/// A result for programs: one JSON document on stdout. What could steer a terminal is escaped
/// in it as it is in text.
fn say_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    say(&table::printable_json(&serde_json::to_string_pretty(value)?))
}

/// An error with its causes, of which one that the error itself tells is not told again.
fn sentence(error: &anyhow::Error) -> String {
    let mut sentence = String::new();
    for cause in error.chain().map(|cause| cause.to_string().replace(['\n', '\r'], " ")) {
        if sentence.is_empty() {
            sentence = cause;
        } else if !sentence.contains(&cause) {
            sentence = format!("{sentence}: {cause}");
        }
    }
    sentence
}

/// Anything else, on stderr, where nobody may be listening.
fn tell(text: &str) {
    tell_more(&[format!("bundlegate: {}", table::printable(text))]);
}

/// Lines as they are, on stderr; bars and spinners make room for them.
fn tell_more(lines: &[String]) {
    progress::hidden(|| lines.iter().for_each(|line| drop(writeln!(std::io::stderr(), "{line}"))));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_that_says_nothing_twice() {
        let io = || std::io::Error::other("disk on fire");
        let told = crate::oci::LayoutError::Io { operation: "write", path: "x".into(), source: io() };
        assert_eq!(sentence(&told.into()), "write x: disk on fire");
        let untold = Err::<(), _>(io()).context("write y").unwrap_err();
        assert_eq!(sentence(&untold), "write y: disk on fire");
    }
}
