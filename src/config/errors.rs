//! Every mistake of a configuration, not the first alone: what a mistake is about is taken out,
//! and the rest is read again.

use std::path::Path;

use super::{
    Config, ConfigError, check_tree,
    files::Files,
    problem::{Problem, Segment},
    tree::Node,
};

/// More are told together by nobody's wish, and each takes another reading.
const MOST: usize = 50;
/// Readings, of which some find only what follows from an earlier mistake.
const READINGS: usize = 150;
/// Stands in for a reference that is wrong: without any, the rest of its bundle would not be
/// read.
const REFERENCE: &str = "bundlegate.invalid/x:x";

/// The mistakes in the order of their lines.
pub(super) fn all(text: &str, folder: &Path) -> Vec<ConfigError> {
    let mut root = match Node::parse(text) {
        Ok(root) => root,
        Err(error) => return vec![error],
    };
    let files = Files::new(folder);
    let mut unique = false;
    let mut removed: Vec<Vec<Segment>> = Vec::new();
    let mut found: Vec<ConfigError> = Vec::new();
    for _ in 0..READINGS {
        let roots = &|name: &str, source: &crate::verify::RootSource| source.initial(name);
        // Looks at every key, so it is done until it passes, and not for each mistake.
        let duplicate = if unique { None } else { root.unique_keys().err() };
        unique = duplicate.is_none();
        let checked = match duplicate {
            Some(problem) => Err(problem),
            None => check_tree(&root, &files, |raw, files| Config::check(raw, roots, files)).map(drop),
        };
        let Err(problem) = checked else { break };
        let path = root.in_file(&problem.path());
        let follows = follows(&problem, &path, &removed);
        let error = problem.into_error(&root);
        if !follows {
            found.push(error);
        }
        match take_out(&mut root, &path) {
            Some(path) if found.len() < MOST => removed.push(path),
            _ => break,
        }
    }
    found.sort_by_key(ConfigError::line);
    found
}

fn take_out(root: &mut Node, path: &[Segment]) -> Option<Vec<Segment>> {
    if let [Segment::Key(bundles), Segment::Key(_), Segment::Key(key)] = path
        && (bundles.as_str(), key.as_str()) == ("bundles", "reference")
        && root.replace(path, REFERENCE)
    {
        return Some(path.to_vec());
    }
    root.remove(path)
}

/// Whether a problem is there only because something was taken out: that which is missing now,
/// what holds it, or what refers to it by name.
fn follows(problem: &Problem, path: &[Segment], removed: &[Vec<Segment>]) -> bool {
    let sentence = problem.to_string();
    if sentence.contains(REFERENCE.split('/').next().unwrap_or(REFERENCE)) {
        return true;
    }
    removed.iter().any(|removed| {
        let Some((Segment::Key(name), holder)) = removed.split_last() else { return removed.starts_with(path) };
        let names_it = sentence.contains(&format!("has no {name:?}"));
        let sibling = path.starts_with(holder) && sentence.contains(&format!("`{name}"));
        // A policy that was taken out matches nothing.
        let policy = matches!(holder, [Segment::Key(trust), Segment::Key(policies), ..] if trust == "trust" && policies == "policies");
        removed.starts_with(path) || names_it || sibling || (policy && sentence.starts_with("no policy matches"))
    })
}
