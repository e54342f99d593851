//! `bundlegate repl`: questions to a policy, one a line.

use std::io::{self, BufRead, IsTerminal as _, Read as _};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use rustyline::{
    CompletionType, Context, Editor, Helper, completion::Completer, error::ReadlineError, highlight::Highlighter,
    hint::Hinter, history::MemHistory, validate::Validator,
};

use super::{
    eval::{Which, check_query, set_input},
    read, say, tell,
};
use crate::bundle::{Exact, Policy};

/// A line holds a query or an input document, in bytes.
const LINE_LIMIT: u64 = 16 << 20;

const HELP: &str = "Type a query, such as data.authz.allow, or input.user; x := 1 prints what x is bound to.
  :input JSON      set the input document (JSON or YAML, in one line)
  :input @FILE     set it from a file
  :input           forget it
  :packages        list the packages
  :help            this
  :quit            or Ctrl-D, leave";

/// Which policy.
#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    which: Which,
    /// The input document to begin with, JSON or YAML.
    #[arg(short, long, value_name = "FILE")]
    input: Option<String>,
}

/// What a line comes to.
enum Reply {
    Text(String),
    Nothing,
    Quit,
}

pub(super) const EXAMPLES: &str = "Examples:
  bundlegate repl ghcr.io/acme/authz:v1 --input input.json
  printf ':input {\"user\": \"alice\"}\\ndata.authz.allow\\n' | bundlegate repl ghcr.io/acme/authz:v1";

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    let mut policy = options.which.load().await?;
    if let Some(file) = &options.input {
        answer(&mut policy, &format!(":input @{file}")).context("--input")?;
    }
    if io::stdin().is_terminal() { converse(&mut policy, &options) } else { follow(&mut policy) }
}

/// With a line editor, for people.
fn converse(policy: &mut Policy, options: &Options) -> anyhow::Result<()> {
    let settings = rustyline::Config::builder().completion_type(CompletionType::List).build();
    let mut editor: Editor<Words, MemHistory> =
        Editor::with_history(settings, MemHistory::new()).context("terminal")?;
    editor.set_helper(Some(Words::of(policy)));
    tell(&format!("{}: {}; :help lists what can be typed", options.which.subject, policy.packages().join(", ")));
    loop {
        let line = match editor.readline("> ") {
            Ok(line) => line,
            // As in a shell: the line goes, the prompt stays.
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(error).context("terminal"),
        };
        let _ = editor.add_history_entry(&line);
        match answer(policy, &line) {
            Ok(Reply::Text(text)) => say(&text)?,
            Ok(Reply::Nothing) => {}
            Ok(Reply::Quit) => return Ok(()),
            Err(error) => tell(&format!("{error:#}")),
        }
    }
}

/// Without a terminal, for scripts: answers every line, and fails if one of them did.
fn follow(policy: &mut Policy) -> anyhow::Result<()> {
    let mut failed = 0;
    let mut input = io::stdin().lock();
    for at in 0.. {
        let Some(line) = next_line(&mut input)? else { break };
        match answer(policy, &line) {
            Ok(Reply::Text(text)) => say(&text)?,
            Ok(Reply::Nothing) => {}
            Ok(Reply::Quit) => break,
            Err(error) => {
                failed += 1;
                tell(&format!("line {}: {error:#}", at + 1));
            }
        }
    }
    match failed {
        0 => Ok(()),
        1 => bail!("one line has no answer; see above"),
        many => bail!("{many} lines have no answer; see above"),
    }
}

/// The next line of a script, if there is one; what never ends is no line.
fn next_line(input: &mut impl BufRead) -> anyhow::Result<Option<String>> {
    let mut line = Vec::new();
    input.take(LINE_LIMIT + 1).read_until(b'\n', &mut line).context("standard input")?;
    if line.len() as u64 > LINE_LIMIT {
        bail!("standard input: a line is longer than {} MiB", LINE_LIMIT >> 20);
    }
    let text = String::from_utf8(line).map_err(|_| anyhow!("standard input: it is no text in UTF-8"))?;
    Ok((!text.is_empty()).then_some(text))
}

fn answer(policy: &mut Policy, line: &str) -> anyhow::Result<Reply> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(Reply::Nothing);
    }
    let Some(command) = line.strip_prefix(':') else { return Ok(Reply::Text(ask(policy, line)?)) };
    let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
    match (name, rest.trim()) {
        ("help", _) => Ok(Reply::Text(HELP.to_owned())),
        ("quit" | "q" | "exit", _) => Ok(Reply::Quit),
        ("packages", _) => Ok(Reply::Text(policy.packages().join("\n"))),
        ("input", "") => {
            policy.clear_input();
            Ok(Reply::Nothing)
        }
        ("input", text) => {
            let text = match text.strip_prefix('@') {
                Some(file) => read::text(":input", file.as_ref(), read::DOCUMENT_LIMIT)?,
                None => text.to_owned(),
            };
            set_input(policy, text_place(rest), &text)?;
            Ok(Reply::Nothing)
        }
        _ => bail!(":{name}: no such command; :help lists them"),
    }
}

/// What errors of an input document call it.
fn text_place(rest: &str) -> &str {
    rest.trim().strip_prefix('@').unwrap_or("input")
}

/// Every answer on a line of its own: the value of a single expression, else what the
/// variables are bound to.
fn ask(policy: &mut Policy, question: &str) -> anyhow::Result<String> {
    check_query(question)?;
    let answers = policy.query(question)?.0.result;
    if answers.is_empty() {
        return Ok("undefined".to_owned());
    }
    let lines = answers.iter().map(|answer| match answer.expressions.as_slice() {
        [only] if answer.bindings.as_object().is_ok_and(|bindings| bindings.is_empty()) => {
            Exact(&only.value).to_string()
        }
        _ if answer.bindings.as_object().is_ok_and(|bindings| bindings.is_empty()) => {
            let values: Vec<_> =
                answer.expressions.iter().map(|expression| Exact(&expression.value).to_string()).collect();
            values.join(" ")
        }
        _ => Exact(&answer.bindings).to_string(),
    });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// What Tab completes: packages and commands.
struct Words(Vec<String>);

impl Words {
    fn of(policy: &Policy) -> Self {
        let commands = [":input", ":packages", ":help", ":quit", "input"];
        Self(policy.packages().iter().cloned().chain(commands.map(str::to_owned)).collect())
    }
}

impl Completer for Words {
    type Candidate = String;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let typed = line.get(..at).unwrap_or_default();
        let of_a_word = |character: char| character.is_alphanumeric() || "_.:".contains(character);
        let start = typed.trim_end_matches(of_a_word).len();
        let begun = &typed[start..];
        let fitting = self.0.iter().filter(|word| !begun.is_empty() && word.starts_with(begun));
        Ok((start, fitting.cloned().collect()))
    }
}

impl Hinter for Words {
    type Hint = String;
}

impl Highlighter for Words {}
impl Validator for Words {}
impl Helper for Words {}
