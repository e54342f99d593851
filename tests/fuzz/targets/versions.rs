//! Version ranges, and the tags that are chosen by them: a range in the first line, a tag in each of
//! the others.

#![no_main]

use bundlegate::oci::{TagOrder, TagRule, Version, VersionRange};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let (range, tags) = text.split_once('\n').unwrap_or((text, ""));
    let Ok(range) = range.parse::<VersionRange>() else {
        return;
    };
    let rule = TagRule::new(TagOrder::Version(range.clone()), None);
    let tags: Vec<&str> = tags.lines().collect();
    let candidates = rule.candidates(tags.iter().copied());
    let chosen = rule.choose(tags.iter().rev().copied());
    assert_eq!(chosen.map(|choice| choice.tag), candidates.first().copied());
    let versions: Vec<Version> = candidates
        .iter()
        .map(|tag| tag.parse().expect("it was chosen as a version"))
        .collect();
    assert!(versions.iter().all(|version| range.contains(version)));
    assert!(versions.is_sorted_by(|one, other| one >= other));
});
