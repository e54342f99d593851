//! `bundlegate repl`: evaluates queries on a policy, one per line.

use std::io::{self, BufRead, IsTerminal as _, Read as _};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use rustyline::{
    CompletionType, Context, Editor, Helper, completion::Completer, error::ReadlineError,
    highlight::Highlighter, hint::Hinter, history::MemHistory, validate::Validator,
};

use super::{
    eprint,
    eval::{PolicyArgs, check_query, set_input},
    print, read,
};
use crate::bundle::{Exact, Policy};

/// The maximum length of a line, which holds a query or an input document. In bytes.
const LINE_LIMIT: u64 = 16 << 20;

const HELP: &str =
    "Enter a query, such as data.authz.allow or input.user; x := 1 prints the bindings.
  :input JSON      set the input document (JSON or YAML, on one line)
  :input @FILE     set it from a file
  :input           clear it
  :packages        list the packages
  :help            show this help
  :quit            exit, like Ctrl-D";

/// Arguments of `repl`.
#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    policy_args: PolicyArgs,
    /// Initial input document, JSON or YAML.
    #[arg(short, long, value_name = "FILE")]
    input: Option<String>,
}

/// The result of a line.
enum Reply {
    Text(String),
    Nothing,
    Quit,
}

pub(super) const EXAMPLES: &str = "Examples:
  bundlegate repl ghcr.io/acme/authz:v1 --input input.json
  printf ':input {\"user\": \"alice\"}\\ndata.authz.allow\\n' | bundlegate repl ghcr.io/acme/authz:v1";

pub(super) async fn run(options: Options) -> anyhow::Result<()> {
    let mut policy = options.policy_args.load().await?;
    if let Some(file) = &options.input {
        execute(&mut policy, &format!(":input @{file}")).context("--input")?;
    }
    if io::stdin().is_terminal() {
        run_interactive(&mut policy, &options)
    } else {
        run_script(&mut policy)
    }
}

/// Runs the prompt on a terminal, with a line editor.
fn run_interactive(policy: &mut Policy, options: &Options) -> anyhow::Result<()> {
    let settings = rustyline::Config::builder()
        .completion_type(CompletionType::List)
        .build();
    let mut editor: Editor<Completions, MemHistory> =
        Editor::with_history(settings, MemHistory::new()).context("terminal")?;
    editor.set_helper(Some(Completions::of(policy)));
    eprint(&format!(
        "{}: {}; :help lists the commands",
        options.policy_args.source,
        policy.packages().join(", ")
    ));
    loop {
        let line = match editor.readline("> ") {
            Ok(line) => line,
            // As in a shell, Ctrl-C discards the line.
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(error).context("terminal"),
        };
        let _ = editor.add_history_entry(&line);
        match execute(policy, &line) {
            Ok(Reply::Text(text)) => print(&text)?,
            Ok(Reply::Nothing) => {}
            Ok(Reply::Quit) => return Ok(()),
            Err(error) => eprint(&format!("{error:#}")),
        }
    }
}

/// Runs all lines of a script, and fails at the end if one of them failed.
fn run_script(policy: &mut Policy) -> anyhow::Result<()> {
    let mut failed = 0;
    let mut input = io::stdin().lock();
    for at in 0.. {
        let Some(line) = next_line(&mut input)? else {
            break;
        };
        match execute(policy, &line) {
            Ok(Reply::Text(text)) => print(&text)?,
            Ok(Reply::Nothing) => {}
            Ok(Reply::Quit) => break,
            Err(error) => {
                failed += 1;
                eprint(&format!("line {}: {error:#}", at + 1));
            }
        }
    }
    match failed {
        0 => Ok(()),
        1 => bail!("one line failed; see above"),
        many => bail!("{many} lines failed; see above"),
    }
}

/// The next line of a script; an error above [`LINE_LIMIT`].
fn next_line(input: &mut impl BufRead) -> anyhow::Result<Option<String>> {
    let mut line = Vec::new();
    input
        .take(LINE_LIMIT + 1)
        .read_until(b'\n', &mut line)
        .context("standard input")?;
    if line.len() as u64 > LINE_LIMIT {
        bail!(
            "standard input: a line is longer than {} MiB",
            LINE_LIMIT >> 20
        );
    }
    let text = String::from_utf8(line).map_err(|_| anyhow!("standard input: not UTF-8 text"))?;
    Ok((!text.is_empty()).then_some(text))
}

fn execute(policy: &mut Policy, line: &str) -> anyhow::Result<Reply> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(Reply::Nothing);
    }
    let Some(command) = line.strip_prefix(':') else {
        return Ok(Reply::Text(evaluate(policy, line)?));
    };
    let (name, rest) = command
        .split_once(char::is_whitespace)
        .unwrap_or((command, ""));
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
        _ => bail!(":{name}: unknown command; see :help"),
    }
}

/// The name of an input document in errors.
fn text_place(rest: &str) -> &str {
    rest.trim().strip_prefix('@').unwrap_or("input")
}

/// Evaluates a query. Each result is a line: the values of the expressions, or the variable
/// bindings if there are any.
fn evaluate(policy: &mut Policy, query: &str) -> anyhow::Result<String> {
    check_query(query)?;
    let answers = policy.query(query)?.0.result;
    if answers.is_empty() {
        return Ok("undefined".to_owned());
    }
    let lines = answers
        .iter()
        .map(|answer| match answer.expressions.as_slice() {
            [only]
                if answer
                    .bindings
                    .as_object()
                    .is_ok_and(|bindings| bindings.is_empty()) =>
            {
                Exact(&only.value).to_string()
            }
            _ if answer
                .bindings
                .as_object()
                .is_ok_and(|bindings| bindings.is_empty()) =>
            {
                let values: Vec<_> = answer
                    .expressions
                    .iter()
                    .map(|expression| Exact(&expression.value).to_string())
                    .collect();
                values.join(" ")
            }
            _ => Exact(&answer.bindings).to_string(),
        });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// The words that Tab completes: packages and commands.
struct Completions(Vec<String>);

impl Completions {
    fn of(policy: &Policy) -> Self {
        let commands = [":input", ":packages", ":help", ":quit", "input"];
        Self(
            policy
                .packages()
                .iter()
                .cloned()
                .chain(commands.map(str::to_owned))
                .collect(),
        )
    }
}

impl Completer for Completions {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        at: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let typed = line.get(..at).unwrap_or_default();
        let is_word_char =
            |character: char| character.is_alphanumeric() || "_.:".contains(character);
        let start = typed.trim_end_matches(is_word_char).len();
        let prefix = &typed[start..];
        let matching = self
            .0
            .iter()
            .filter(|word| !prefix.is_empty() && word.starts_with(prefix));
        Ok((start, matching.cloned().collect()))
    }
}

impl Hinter for Completions {
    type Hint = String;
}

impl Highlighter for Completions {}
impl Validator for Completions {}
impl Helper for Completions {}
