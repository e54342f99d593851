//! At a terminal: completion in real shells, passwords, and the prompt over a policy.

use std::fs;

use crate::support::{Author, Terminal};

const VERB: &str = "generate-key-pair";

#[tokio::test(flavor = "multi_thread")]
async fn tab_completes_a_verb_in_bash() {
    let author = Author::new();
    author.write(
        "completion",
        &author.run(&["completion", "bash"]).await.ok(),
    );
    let mut bash = Terminal::running("bash --norc --noprofile -i", author.home());
    // The quotes keep the echo of the line from being taken for its result.
    bash.type_in("source ./completion; echo rea''dy\n");
    completes(&mut bash).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tab_completes_a_verb_in_zsh() {
    let author = Author::new();
    author.write(
        "_bundlegate",
        &author.run(&["completion", "zsh"]).await.ok(),
    );
    let mut zsh = Terminal::running("zsh -f -i", author.home());
    zsh.type_in("fpath=($PWD $fpath); autoload -U compinit; compinit -u -d ./dump; echo rea''dy\n");
    completes(&mut zsh).await;
}

async fn completes(shell: &mut Terminal) {
    shell.shows("ready").await;
    shell.type_in("bundlegate gen\t");
    shell.shows(VERB).await;
    shell.type_in("--output\t");
    shell.shows("--output-key-prefix").await;
    // The completed word is a command.
    shell.type_in("x --help\n");
    shell.shows("Usage: bundlegate generate-key-pair").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_prompted_twice_and_not_shown() {
    let author = Author::new();
    let mut terminal = Terminal::running("bundlegate generate-key-pair", author.home());
    terminal.shows("New password for cosign.key").await;
    terminal.type_in("tulip\n");
    terminal.shows("Repeat the password").await;
    terminal.type_in("tulip\n");
    terminal.shows("public key: cosign.pub").await;
    assert_eq!(terminal.ended().await, Some(0));
    assert!(
        !terminal.screen().contains("tulip"),
        "{}",
        terminal.screen()
    );
    let shown = author
        .shell("COSIGN_PASSWORD=tulip cosign public-key --key cosign.key")
        .await
        .ok();
    assert_eq!(
        shown,
        fs::read_to_string(author.path("cosign.pub")).unwrap()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_different_passwords_make_no_key() {
    let author = Author::new();
    let mut terminal = Terminal::running("bundlegate generate-key-pair", author.home());
    terminal.shows("New password for cosign.key").await;
    terminal.type_in("tulip\n");
    terminal.shows("Repeat the password").await;
    terminal.type_in("rose\n");
    terminal.shows("the passwords differ").await;
    assert_eq!(terminal.ended().await, Some(1));
    assert!(!author.path("cosign.key").exists() && !author.path("cosign.pub").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_is_questioned_at_a_prompt() {
    let author = Author::new();
    author.write(
        "policy/authz.rego",
        "package authz\n\ndefault allow := false\n\nallow if input.user == \"alice\"\n",
    );
    author
        .run(&["build", "policy", "-t", "r.example/authz:v1"])
        .await
        .ok();
    let mut terminal = Terminal::running(
        "TERM=xterm bundlegate repl r.example/authz:v1",
        author.home(),
    );
    terminal.shows("data.authz; :help").await;
    terminal.shows("> ").await;
    // Tab completes the package.
    terminal.type_in("data.au\t.allow\n");
    terminal.shows("false").await;
    terminal.shows("> ").await;
    terminal.type_in(":input {\"user\": \"alice\"}\n");
    terminal.shows("\n").await;
    terminal.shows("> ").await;
    terminal.type_in("data.authz.allow\n");
    terminal.shows("true").await;
    terminal.shows("> ").await;
    terminal.type_in("1 +\n");
    terminal.shows("unexpected end of input").await;
    terminal.shows("> ").await;
    // Up brings the line before back, Ctrl-C drops it.
    terminal.type_in("\u{1b}[A");
    terminal.shows("1 +").await;
    terminal.type_in("\u{3}");
    terminal.shows("> ").await;
    terminal.type_in("40 + 2\n");
    terminal.shows("42").await;
    terminal.shows("> ").await;
    terminal.type_in("\u{4}");
    assert_eq!(terminal.ended().await, Some(0));
}
