//! Words about keys and names that don't exist.

use super::problem::{Problem, Segment};

/// What to say about a key that the schema lacks: it may be one of a later version, or a
/// slip of the pen.
pub(super) fn unknown(path: &[Segment], known: &[&str]) -> String {
    if LATER.iter().any(|pattern| matches(pattern, path)) {
        return "not supported yet; remove it".to_owned();
    }
    let Some(Segment::Key(name)) = path.last() else { return "unknown key".to_owned() };
    match nearest(name, known.iter().copied()) {
        Some(near) => format!("unknown key; did you mean `{near}`?"),
        None => format!("unknown key; known here: {}", known.join(", ")),
    }
}

/// The candidate that a person most likely meant.
pub(super) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // A longer name is no slip of the pen, and comparing two long ones costs their product.
    if name.len() > COMPARED_BYTES {
        return None;
    }
    let most = 1 + name.chars().count() / 4;
    candidates
        .filter(|candidate| candidate.len() <= 2 * COMPARED_BYTES)
        .map(|candidate| (distance(name, candidate), candidate))
        // `password` for `password_file`.
        .filter(|(distance, candidate)| *distance <= most || (name.len() > 2 && candidate.starts_with(name)))
        .min()
        .map(|(_, candidate)| candidate)
}

/// `release, dev`, or a word for nothing.
pub(super) fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut names = names;
    let mut listed: Vec<String> = names.by_ref().take(LISTED).map(str::to_owned).collect();
    match names.count() {
        0 if listed.is_empty() => return "none".to_owned(),
        0 => {}
        more => listed.push(format!("and {more} more")),
    }
    listed.join(", ")
}

/// `; did you mean …?` or the names that exist.
pub(super) fn suggestion<'a>(name: &str, names: impl Iterator<Item = &'a str> + Clone) -> String {
    match nearest(name, names.clone()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("there is: {}", list(names)),
    }
}

/// The value of the word that is written, or the error that lists the words there are.
pub(super) fn word<T: Copy>(written: &str, words: &[(&str, T)]) -> Result<T, Problem> {
    words.iter().find(|(word, _)| *word == written).map(|(_, value)| *value).ok_or_else(|| {
        let names = words.iter().map(|(word, _)| *word);
        let quoted: Vec<_> = names.clone().map(|word| format!("`{word}`")).collect();
        let none = match quoted.as_slice() {
            [one, other] => format!("neither {one} nor {other}"),
            [rest @ .., last] => format!("none of {} and {last}", rest.join(", ")),
            [] => "no word".to_owned(),
        };
        Problem::new(format!("{written:?} is {none}; {}", suggestion(written, names)))
    })
}

fn matches(pattern: &str, path: &[Segment]) -> bool {
    let mut steps = pattern.split('.');
    let all = path.iter().all(|segment| match (steps.next(), segment) {
        (Some("*"), Segment::Key(_)) | (Some("[]"), Segment::Index(_)) => true,
        (Some(step), Segment::Key(key)) => step == key,
        _ => false,
    });
    all && steps.next().is_none()
}

/// Optimal string alignment: insertions, deletions, replacements and swapped neighbours.
fn distance(left: &str, right: &str) -> usize {
    let (left, right) = (left.chars().collect::<Vec<_>>(), right.chars().collect::<Vec<_>>());
    let mut rows: Vec<Vec<usize>> = vec![(0..=right.len()).collect()];
    for (i, l) in left.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, r) in right.iter().enumerate() {
            let mut cost = (rows[i][j] + usize::from(l != r)).min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *l == right[j - 1] && left[i - 1] == *r {
                cost = cost.min(rows[i - 1][j - 1] + 1);
            }
            row.push(cost);
        }
        rows.push(row);
    }
    rows[left.len()][right.len()]
}

/// Names are compared up to this length.
const COMPARED_BYTES: usize = 64;
/// So many names are listed in a sentence.
const LISTED: usize = 12;
/// Keys with a meaning that this version does not implement.
const LATER: &[&str] = &[
    "server.tls.client_ca",
    "clients.[].basic_file",
    "clients.[].mtls",
    "clients.[].jwt",
    "long_poll.spread",
    "registries.*.credentials.docker_config",
    "registries.*.mirrors",
    "registries.*.proxy",
    "registries.*.client_certificate",
    "bundles.*.semver",
    "bundles.*.filter_tags",
    "patterns",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_near() {
        let names = ["poll", "trust", "reference", "on_missing", "password_file"];
        let near = |name| nearest(name, names.into_iter());
        assert_eq!(near("pol"), Some("poll"));
        assert_eq!(near("turst"), Some("trust"));
        assert_eq!(near("refrence"), Some("reference"));
        assert_eq!(near("on-missing"), Some("on_missing"));
        assert_eq!(near("password"), Some("password_file"));
        assert_eq!(near("zebra"), None);
    }
}
