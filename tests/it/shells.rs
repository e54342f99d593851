//! `completion`, `version` and `--help`.

use crate::command::Author;

#[test]
fn every_shell_gets_a_script_that_knows_the_verbs() {
    let author = Author::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = author.run(&["completion", shell]).ok();
        for word in ["generate-key-pair", "verify", "plain-http"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    assert_eq!(author.run(&["completion", "tcsh"]).code, 2);
}

#[test]
fn the_version_is_told_to_people_and_programs() {
    let author = Author::new();
    assert!(author.run(&["version"]).ok().starts_with(concat!(
        "bundlegate ",
        env!("CARGO_PKG_VERSION"),
        " ("
    )));
    assert_eq!(
        author.run(&["version", "--json"]).json()["version"],
        env!("CARGO_PKG_VERSION")
    );
}

/// Every verb, wherever it comes from: a sentence, an example, and no line that a terminal
/// would break.
#[test]
fn the_help_of_every_verb_teaches() {
    let author = Author::new();
    let help = author.run(&["--help"]).ok();
    let verbs = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty());
    // A continuation line is indented more.
    let verbs = verbs
        .filter_map(|line| line.strip_prefix("  "))
        .filter(|line| !line.starts_with(' '));
    let verbs: Vec<_> = verbs
        .filter_map(|line| line.split_whitespace().next())
        .filter(|verb| *verb != "help")
        .collect();
    assert!(verbs.len() > 10, "{help}");
    for verb in verbs {
        let help = author.run(&[verb, "--help"]).ok();
        assert!(help.contains("Usage: bundlegate "), "{verb}: {help}");
        if !["serve", "dev", "config", "version"].contains(&verb) {
            assert!(help.contains("Example"), "{verb} shows no example:\n{help}");
        }
        for line in help.lines() {
            assert!(line.chars().count() <= 120, "{verb}: {line}");
        }
    }
}
