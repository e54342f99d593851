//! `bundlegate completion`.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Arguments, print};

pub(super) const EXAMPLES: &str = "Examples:
  source <(bundlegate completion bash)                                   for the current bash session
  bundlegate completion zsh > \"${fpath[1]}/_bundlegate\"                  for new zsh sessions
  bundlegate completion fish > ~/.config/fish/completions/bundlegate.fish";

pub(super) fn run(shell: Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "bundlegate", &mut script);
    print(String::from_utf8(script)?.trim_end())
}
