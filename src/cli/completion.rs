//! `bundlegate completion`.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Arguments, say};

pub(super) fn run(shell: Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "bundlegate", &mut script);
    say(String::from_utf8(script)?.trim_end())
}
