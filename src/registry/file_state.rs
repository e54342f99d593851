//! Whether files have changed, without anything of their contents.

use std::{
    fmt,
    hash::{BuildHasher as _, RandomState},
    sync::LazyLock,
};

/// The key is that of this process, so that a state says nothing about a password.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// The state of the files that are read when a registry is accessed. Two states of one process are
/// equal if all files had the same contents, or were equally missing.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct FileState(u64);

impl FileState {
    /// The state of files with these contents, in a fixed order; `None` for a missing one.
    pub fn of(contents: &[Option<impl AsRef<[u8]>>]) -> Self {
        let contents: Vec<_> = contents
            .iter()
            .map(|content| content.as_ref().map(AsRef::as_ref))
            .collect();
        Self(HASHER.hash_one(contents))
    }
}

impl fmt::Debug for FileState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FileState").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_no_empty_one_and_contents_do_not_run_together() {
        let of = |contents: &[Option<&str>]| FileState::of(contents);
        assert_eq!(of(&[Some("a"), None]), of(&[Some("a"), None]));
        assert_ne!(of(&[Some("")]), of(&[None]));
        assert_ne!(of(&[Some("ab"), Some("c")]), of(&[Some("a"), Some("bc")]));
    }
}
