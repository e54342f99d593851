//! Usage errors as one line. Flags of other tools get a hint to the matching flag, and no hint
//! suggests less security than the user requested.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Flags of docker, cosign, oras, skopeo, podman, opa and the policy CLI, with a hint for each.
const FLAGS: &[(&[&str], &str)] = &[
    (
        &[
            "--insecure",
            "--allow-insecure-registry",
            "--insecure-registry",
            "--tls-verify",
            "--src-tls-verify",
            "--dest-tls-verify",
            "--from-insecure",
            "--to-insecure",
            "--skip-tls-verify",
            "-k",
        ],
        "for a registry with plain HTTP use --plain-http, for one with a certificate of your own CA --ca-file FILE",
    ),
    (
        &["--allow-http-registry", "--http", "--use-http"],
        "use --plain-http",
    ),
    (
        &["-p", "--password"],
        "a password on the command line can be read by every user of the machine; use --password-stdin",
    ),
    (
        &["--insecure-ignore-tlog", "--ignore-tlog"],
        "omit it: with --key a transparency log is required only with --tlog require, and keyless \
         signatures need one",
    ),
    (
        &[
            "--insecure-ignore-sct",
            "--private-infrastructure",
            "--insecure-skip-log-verify",
            "--offline",
        ],
        "omit it: the trusted root decides what a certificate must prove; name your own with --trusted-root FILE",
    ),
    (
        &[
            "--rekor-url",
            "--fulcio-url",
            "--certificate-chain",
            "--certificate",
            "--tuf-url",
        ],
        "use the trusted root of your Sigstore instance: --trusted-root FILE",
    ),
    (
        &["--tlog-upload", "-y", "--yes", "--use-signing-config"],
        "omit it: there are no confirmation prompts, and no log is written to",
    ),
    (
        &["--no-trunc", "--all", "-a", "--force", "-f", "--force-rm"],
        "omit it",
    ),
    (
        &["-b", "--bundle", "-d", "--data"],
        "omit it: the folder or tarball is an argument",
    ),
    (
        &["--output", "-o"],
        "`bundlegate build` writes to the image store; use `bundlegate save` to write the bundle to a file",
    ),
    (&["--format"], "use --json"),
    (
        &["--registry", "--server"],
        "the registry is part of REF; BUNDLEGATE_REGISTRY is the prefix for a REF without a host",
    ),
];
/// The flag that is never suggested for a similar spelling.
const DANGEROUS: &str = "--insecure-skip-tls-verify";

/// The error as one line, with a hint.
pub(super) fn one_line(error: &clap::Error) -> String {
    let unknown = (error.kind() == ErrorKind::UnknownArgument)
        .then(|| flag(error))
        .flatten();
    if let Some(flag) = unknown
        && let Some(hint) = hint(flag)
    {
        return format!("unexpected argument '{flag}'; {hint}; see --help");
    }
    let text = error.render().to_string();
    let lines = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:"));
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with("For more"));
    let lines: Vec<_> = lines
        .filter(|line| !(line.starts_with("tip:") && line.contains(DANGEROUS)))
        .collect();
    let line = lines.join(" ").replace(" tip: ", "; ");
    format!("{}; see --help", line.trim_start_matches("error: "))
}

fn flag(error: &clap::Error) -> Option<&str> {
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(flag)) => Some(flag.split('=').next().unwrap_or(flag)),
        _ => None,
    }
}

fn hint(flag: &str) -> Option<&'static str> {
    FLAGS
        .iter()
        .find(|(flags, _)| flags.contains(&flag))
        .map(|(_, hint)| *hint)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn message(line: &str) -> String {
        one_line(&crate::cli::Arguments::try_parse_from(line.split(' ')).unwrap_err())
    }

    #[test]
    fn flags_of_other_tools_get_hints() {
        for (line, expected) in [
            ("bundlegate pull r.io/a:v1 --insecure", "--plain-http"),
            ("bundlegate pull r.io/a:v1 --tls-verify=false", "--ca-file"),
            (
                "bundlegate verify r.io/a:v1 --key k --allow-http-registry",
                "use --plain-http",
            ),
            (
                "bundlegate verify r.io/a:v1 --key k --insecure-ignore-tlog",
                "a transparency log is required only with --tlog require",
            ),
            (
                "bundlegate verify r.io/a:v1 --key k --insecure-ignore-tlog=true",
                "a transparency log is required only with --tlog require",
            ),
            ("bundlegate login r.io -u me -p secret", "--password-stdin"),
            ("bundlegate sign r.io/a:v1 --key k -y", "omit it"),
            (
                "bundlegate build . -t r.io/a:v1 -o bundle.tar.gz",
                "bundlegate save",
            ),
        ] {
            let message = message(line);
            assert!(
                message.contains(expected) && message.ends_with("; see --help"),
                "{line}: {message}"
            );
            assert!(
                !message.contains(DANGEROUS) && !message.contains("secret;"),
                "{line}: {message}"
            );
        }
    }

    #[test]
    fn no_typo_leads_to_less_security() {
        for flag in [
            "--insecure-skip-tls",
            "--insecure-skip-tls-verfy",
            "--insecure-skip",
            "--skip-tls",
            "--insecur",
        ] {
            let message = message(&format!("bundlegate pull r.io/a:v1 {flag}"));
            assert!(!message.contains(DANGEROUS), "{message}");
        }
    }
}
