//! `bundlegate completion`.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Arguments, say};

pub(super) const EXAMPLES: &str = "Examples:
  source <(bundlegate completion bash)                                   now, in bash
  bundlegate completion zsh > \"${fpath[1]}/_bundlegate\"                  from the next zsh on
  bundlegate completion fish > ~/.config/fish/completions/bundlegate.fish";

pub(super) fn run(shell: Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "bundlegate", &mut script);
    say(String::from_utf8(script)?.trim_end())
}
