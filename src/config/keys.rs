//! Messages about unknown keys and names, with suggestions.

use super::key_path::Segment;

/// The message about an unknown key, which may be a typo.
pub(super) fn unknown(path: &[Segment], known: &[&str]) -> String {
    let Some(Segment::Key(name)) = path.last() else {
        return "unknown key".to_owned();
    };
    match nearest(name, known.iter().copied()) {
        Some(near) => format!("unknown key; did you mean `{near}`?"),
        None => format!("unknown key; known here: {}", known.join(", ")),
    }
}

/// The candidate that was most likely meant.
pub(super) fn nearest<'a>(
    name: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    // The distance of two long names is expensive: its cost is the product of their lengths.
    if name.len() > MAX_COMPARED_BYTES {
        return None;
    }
    let most = 1 + name.chars().count() / 4;
    candidates
        .filter(|candidate| candidate.len() <= 2 * MAX_COMPARED_BYTES)
        .map(|candidate| (distance(name, candidate), candidate))
        // Accepts `password` for `password_file`.
        .filter(|(distance, candidate)| {
            *distance <= most || (name.len() > 2 && candidate.starts_with(name))
        })
        .min()
        .map(|(_, candidate)| candidate)
}

/// The names as a list such as `release, dev`; `none` if there are none.
pub(super) fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut names = names;
    let mut listed: Vec<String> = names.by_ref().take(MAX_LISTED).map(str::to_owned).collect();
    match names.count() {
        0 if listed.is_empty() => return "none".to_owned(),
        0 => {}
        more => listed.push(format!("and {more} more")),
    }
    listed.join(", ")
}

/// `did you mean …?`, or the list of known names.
pub(super) fn suggestion<'a>(name: &str, names: impl Iterator<Item = &'a str> + Clone) -> String {
    match nearest(name, names.clone()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("available: {}", list(names)),
    }
}

/// The optimal string alignment distance: insertions, deletions, replacements and transpositions.
fn distance(left: &str, right: &str) -> usize {
    let (left, right) = (
        left.chars().collect::<Vec<_>>(),
        right.chars().collect::<Vec<_>>(),
    );
    let mut rows: Vec<Vec<usize>> = vec![(0..=right.len()).collect()];
    for (i, l) in left.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, r) in right.iter().enumerate() {
            let mut cost = (rows[i][j] + usize::from(l != r))
                .min(rows[i][j + 1] + 1)
                .min(row[j] + 1);
            if i > 0 && j > 0 && *l == right[j - 1] && left[i - 1] == *r {
                cost = cost.min(rows[i - 1][j - 1] + 1);
            }
            row.push(cost);
        }
        rows.push(row);
    }
    rows[left.len()][right.len()]
}

/// The maximum length of a compared name, in bytes.
const MAX_COMPARED_BYTES: usize = 64;
/// The maximum number of names in a list.
const MAX_LISTED: usize = 12;

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
