//! Output of all subcommands: results on stdout, everything else on stderr.

use std::io::{self, Write as _};

use anyhow::Context as _;

use super::{progress, table};

/// Prints a result on stdout. A closed pipe is no error: its reader has seen enough (`| head`).
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    try_print(text).map(drop)
}

/// As [`print`]; returns false if the pipe is closed, which ends a command that prints until then.
pub(super) fn try_print(text: &str) -> anyhow::Result<bool> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true).context("standard output"),
    }
}

/// Prints a result for programs: one JSON document on stdout. Characters that could control a
/// terminal are escaped, as they are in text.
pub(super) fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&table::printable_json(&serde_json::to_string_pretty(
        value,
    )?))
}

/// Prints a message on stderr, with the program's name in front. Errors are ignored: stderr may
/// be closed.
pub(super) fn eprint(text: &str) {
    eprint_lines(&[format!("bundlegate: {}", table::printable(text))]);
}

/// Prints lines on stderr as they are; progress bars are hidden meanwhile.
pub(super) fn eprint_lines(lines: &[String]) {
    progress::suspend(|| {
        lines
            .iter()
            .for_each(|line| drop(writeln!(io::stderr(), "{line}")))
    });
}

/// An error and its causes as one line. A cause that the text already contains is left out.
pub(super) fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error
        .chain()
        .map(|cause| cause.to_string().replace(['\n', '\r'], " "))
    {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_without_repetitions() {
        let io = || io::Error::other("disk on fire");
        let io_error = crate::oci::LayoutError::Io {
            operation: "write",
            path: "x".into(),
            source: io(),
        };
        assert_eq!(one_line(&io_error.into()), "write x: disk on fire");
        let context_error = Err::<(), _>(io()).context("write y").unwrap_err();
        assert_eq!(one_line(&context_error), "write y: disk on fire");
    }
}
