//! Finds all errors of a configuration, not only the first: each erroneous value is removed, and
//! the rest is checked again.

use std::path::{Path, PathBuf};

use super::{
    files::Files,
    key_path::{Segment, render},
    load::{Config, check_tree, read},
    problem::{ConfigError, Problem},
    tree::Node,
};

/// The maximum number of errors. Each costs another pass.
const MAX_ERRORS: usize = 50;
/// The maximum number of passes, including those that find only consequences of earlier errors.
const MAX_PASSES: usize = 150;
/// Replaces an invalid reference: without one, the rest of the bundle would not be checked.
const PLACEHOLDER_REFERENCE: &str = "bundlegate.invalid/x:x";

impl Config {
    /// Loads a configuration file, or returns all errors in it, ordered by line. Errors that only
    /// follow from another one are left out, and the number is limited to a few dozen.
    ///
    /// # Errors
    /// The errors; never empty.
    pub fn load_or_errors(file: &Path) -> Result<Self, Vec<ConfigError>> {
        ConfigText::read(file).map_err(|error| vec![error])?.parse()
    }
}

/// The text of a configuration that is checked.
#[derive(Debug, Clone)]
pub struct ConfigText {
    name: PathBuf,
    text: String,
    folder: PathBuf,
}

impl ConfigText {
    /// A text; `name` stands for its file in errors, and relative paths in it are relative to
    /// `folder`.
    pub fn new(name: impl Into<PathBuf>, text: String, folder: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            text,
            folder: folder.into(),
        }
    }

    /// Reads a configuration file.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        read(file, |text, folder| {
            Ok(Self::new(file, text.to_owned(), folder))
        })
    }

    /// The configuration, or all errors in it, as [`Config::load_or_errors`] returns them.
    ///
    /// # Errors
    /// The errors; never empty.
    pub fn parse(&self) -> Result<Config, Vec<ConfigError>> {
        Config::parse(&self.text, &self.folder).map_err(|first| {
            let (mut errors, _) = all(&self.text, &self.folder);
            if errors.is_empty() {
                errors.push(first);
            }
            self.named(errors)
        })
    }

    /// Checks the configuration on a machine that lacks some of the files that it names, such as
    /// those of secrets, and returns these files. Whatever depends on the content of one of them is
    /// not checked; files that exist are.
    ///
    /// # Errors
    /// The other errors; never empty.
    pub fn check_without_files(&self) -> Result<Vec<PathBuf>, Vec<ConfigError>> {
        let (mut errors, missing) = all(&self.text, &self.folder);
        errors.retain(|error| error.missing_file().is_none());
        if errors.is_empty() {
            return Ok(missing);
        }
        Err(self.named(errors))
    }

    fn named(&self, errors: Vec<ConfigError>) -> Vec<ConfigError> {
        let named = errors.into_iter().map(|error| error.in_file(&self.name));
        named.collect()
    }
}

/// All errors, ordered by place, and the files that do not exist.
pub(super) fn all(text: &str, folder: &Path) -> (Vec<ConfigError>, Vec<PathBuf>) {
    let mut root = match Node::parse(text) {
        Ok(root) => root,
        Err(error) => return (vec![error], Vec::new()),
    };
    let files = Files::new(folder);
    let mut unique = false;
    let mut removed: Vec<Vec<Segment>> = Vec::new();
    let mut found: Vec<ConfigError> = Vec::new();
    for _ in 0..MAX_PASSES {
        let roots = &|name: &str, source: &crate::verify::RootSource| source.initial(name);
        // This check visits every key, so it is not repeated once it has passed.
        let duplicate = if unique {
            None
        } else {
            root.unique_keys().err()
        };
        unique = duplicate.is_none();
        let checked = match duplicate {
            Some(problem) => Err(problem),
            None => {
                check_tree(&root, &files, |raw, files| Config::check(raw, roots, files)).map(drop)
            }
        };
        let Err(problem) = checked else { break };
        let path = root.in_file(&problem.path());
        let is_consequence = is_consequence(&problem, &path, &removed);
        let error = root.locate(problem);
        if !is_consequence {
            found.push(error);
        }
        match remove(&mut root, &path) {
            Some(path) if found.len() < MAX_ERRORS => removed.push(path),
            _ => break,
        }
    }
    found.sort_by_key(ConfigError::place);
    (found, files.missing())
}

fn remove(root: &mut Node, path: &[Segment]) -> Option<Vec<Segment>> {
    if let [Segment::Key(bundles), Segment::Key(_), Segment::Key(key)] = path
        && (bundles.as_str(), key.as_str()) == ("bundles", "reference")
        && root.replace(path, PLACEHOLDER_REFERENCE)
    {
        return Some(path.to_vec());
    }
    root.remove(path)
}

/// Whether a problem exists only because of a removed value: the problem is about that value, an
/// ancestor, or a reference to it by name.
fn is_consequence(problem: &Problem, path: &[Segment], removed: &[Vec<Segment>]) -> bool {
    let message = problem.to_string();
    if message.contains(
        PLACEHOLDER_REFERENCE
            .split('/')
            .next()
            .unwrap_or(PLACEHOLDER_REFERENCE),
    ) {
        return true;
    }
    removed.iter().any(|removed| {
        // The whole path, such as `server.tls.client_ca`, of a removed value or of one inside it.
        if message.contains(&format!("`{}", render(removed))) {
            return true;
        }
        let Some((Segment::Key(name), holder)) = removed.split_last() else { return removed.starts_with(path) };
        let names_it = message.contains(&format!("has no {name:?}"));
        // `KEY` stands for `KEY_regex` as well.
        let name = name.strip_suffix("_regex").unwrap_or(name);
        let sibling = path.starts_with(holder) && message.contains(&format!("`{name}"));
        // A removed policy matches nothing.
        let policy = matches!(holder, [Segment::Key(trust), Segment::Key(policies), ..] if trust == "trust" && policies == "policies");
        removed.starts_with(path) || names_it || sibling || (policy && message.starts_with("no policy matches"))
    })
}
