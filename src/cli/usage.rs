//! What is told to somebody who calls the program in a way that it does not know: the flags of
//! other tools lead to ours, and never to less security than was asked for.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Flags of docker, cosign, oras, skopeo, podman, opa and the policy CLI, and what to write
/// instead.
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
        "for a registry that speaks plain HTTP write --plain-http, for one with a certificate of your own CA --ca-file FILE",
    ),
    (&["--allow-http-registry", "--http", "--use-http"], "write --plain-http"),
    (
        &["-p", "--password"],
        "a password on the command line can be read by every user of the machine; write --password-stdin",
    ),
    (
        &["--insecure-ignore-tlog", "--ignore-tlog"],
        "leave it out: with --key no transparency log is asked for unless --tlog require says so, and keyless \
         signatures need one",
    ),
    (
        &["--insecure-ignore-sct", "--private-infrastructure", "--insecure-skip-log-verify", "--offline"],
        "leave it out: what a certificate has to prove is in the trusted root; name your own with --trusted-root FILE",
    ),
    (
        &["--rekor-url", "--fulcio-url", "--certificate-chain", "--certificate", "--tuf-url"],
        "name the trusted root of your Sigstore instance with --trusted-root FILE",
    ),
    (
        &["--tlog-upload", "-y", "--yes", "--use-signing-config"],
        "leave it out: nothing is asked and no log is written to",
    ),
    (&["--no-trunc", "--all", "-a", "--force", "-f", "--force-rm"], "leave it out"),
    (&["-b", "--bundle", "-d", "--data"], "leave it out: name the folder or tarball as an argument"),
    (
        &["--output", "-o"],
        "`bundlegate build` fills the image store; write the bundle to a file with `bundlegate save`",
    ),
    (&["--format"], "write --json"),
    (
        &["--registry", "--server"],
        "the registry is part of REF; BUNDLEGATE_REGISTRY is put in front of one without a host",
    ),
];
/// Never suggested by a similar spelling: it has to be looked for.
const DANGEROUS: &str = "--insecure-skip-tls-verify";

/// One line that says what is wrong with the call, and what to write.
pub(super) fn sentence(error: &clap::Error) -> String {
    let unknown = (error.kind() == ErrorKind::UnknownArgument).then(|| flag(error)).flatten();
    if let Some(flag) = unknown
        && let Some(hint) = hint(flag)
    {
        return format!("unexpected argument '{flag}'; {hint}; see --help");
    }
    let text = error.render().to_string();
    let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with("For more"));
    let lines: Vec<_> = lines.filter(|line| !(line.starts_with("tip:") && line.contains(DANGEROUS))).collect();
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
    FLAGS.iter().find(|(flags, _)| flags.contains(&flag)).map(|(_, hint)| *hint)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn told(line: &str) -> String {
        sentence(&crate::cli::Arguments::try_parse_from(line.split(' ')).unwrap_err())
    }

    #[test]
    fn flags_of_other_tools_lead_to_ours() {
        for (line, expected) in [
            ("bundlegate pull r.io/a:v1 --insecure", "--plain-http"),
            ("bundlegate pull r.io/a:v1 --tls-verify=false", "--ca-file"),
            ("bundlegate verify r.io/a:v1 --key k --allow-http-registry", "write --plain-http"),
            ("bundlegate verify r.io/a:v1 --key k --insecure-ignore-tlog", "no transparency log is asked for"),
            ("bundlegate verify r.io/a:v1 --key k --insecure-ignore-tlog=true", "no transparency log is asked for"),
            ("bundlegate login r.io -u me -p secret", "--password-stdin"),
            ("bundlegate sign r.io/a:v1 --key k -y", "leave it out"),
            ("bundlegate build . -t r.io/a:v1 -o bundle.tar.gz", "bundlegate save"),
        ] {
            let told = told(line);
            assert!(told.contains(expected) && told.ends_with("; see --help"), "{line}: {told}");
            assert!(!told.contains(DANGEROUS) && !told.contains("secret;"), "{line}: {told}");
        }
    }

    #[test]
    fn no_slip_of_the_pen_leads_to_less_security() {
        for flag in ["--insecure-skip-tls", "--insecure-skip-tls-verfy", "--insecure-skip", "--skip-tls", "--insecur"] {
            let told = told(&format!("bundlegate pull r.io/a:v1 {flag}"));
            assert!(!told.contains(DANGEROUS), "{told}");
        }
    }
}
