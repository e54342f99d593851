//! `limits.evidence`: the budget of bytes of signature material for one manifest, and the notes
//! about material that is not used.

use std::collections::VecDeque;

use crate::oci::Descriptor;

/// The largest piece of signature material. Bundles have a few KiB.
pub(super) const MAX_PIECE_BYTES: u64 = 1 << 20;
/// The shortest manifest: a config needs its media type, digest and size. A manifest that is
/// listed as shorter costs no budget and is not fetched.
pub(super) const MIN_MANIFEST_BYTES: u64 = 128;
/// The minimum cost of a request: no signature or payload is smaller, and a smaller request costs
/// as much.
const MIN_COST_BYTES: u64 = 128;
/// The maximum number of notes; further notes are only counted.
const MAX_NOTES: usize = 32;

/// The bytes that are left.
#[derive(Debug)]
pub(super) struct Budget {
    left: u64,
}

impl Budget {
    pub(super) fn new(limit: u64) -> Self {
        Self { left: limit }
    }

    /// Spends the cost of `size` bytes if that leaves at least `reserve`.
    pub(super) fn spend(&mut self, size: u64, reserve: u64) -> bool {
        match self.left.checked_sub(size.max(MIN_COST_BYTES)) {
            Some(left) if left >= reserve => {
                self.left = left;
                true
            }
            _ => false,
        }
    }

    /// Takes the affordable descriptors from `queue`, in order; the others stay in it.
    pub(super) fn choose<T>(
        &mut self,
        queue: &mut VecDeque<T>,
        reserve: u64,
        descriptor: impl Fn(&T) -> &Descriptor,
    ) -> Vec<T> {
        let mut chosen = Vec::new();
        for candidate in std::mem::take(queue) {
            if self.spend(descriptor(&candidate).size, reserve) {
                chosen.push(candidate);
            } else {
                queue.push_back(candidate);
            }
        }
        chosen
    }
}

/// Notes about unusable signature material: the first ones as text, the rest as a number.
#[derive(Debug, Default)]
pub(super) struct Notes {
    sentences: Vec<String>,
    more: usize,
}

impl Notes {
    pub(super) fn add(&mut self, sentence: String) {
        if self.sentences.len() < MAX_NOTES {
            self.sentences.push(sentence);
        } else {
            self.more += 1;
        }
    }

    pub(super) fn into_sentences(mut self) -> Vec<String> {
        if self.more > 0 {
            self.sentences.push(format!(
                "{} more pieces of signature material can't be used",
                self.more
            ));
        }
        self.sentences
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn affordable_descriptors_are_chosen_in_order_and_the_others_stay() {
        let queue = [300, 5000, 200, 300].map(|size| Descriptor {
            size,
            ..Descriptor::of("a/b", b"x")
        });
        let mut queue = VecDeque::from(queue);
        let mut budget = Budget::new(1000);
        let sizes = |chosen: Vec<Descriptor>| chosen.iter().map(|one| one.size).collect::<Vec<_>>();
        assert_eq!(sizes(budget.choose(&mut queue, 400, |one| one)), [300, 200]);
        assert_eq!(sizes(budget.choose(&mut queue, 0, |one| one)), [300]);
        assert_eq!(queue.len(), 1, "5000 bytes are more than there were");
        assert!(
            budget.spend(1, 0) && !budget.spend(128, 0),
            "a request costs at least 128 bytes"
        );
    }

    #[test]
    fn of_ten_thousand_notes_the_first_are_kept_and_the_rest_counted() {
        let mut notes = Notes::default();
        (0..10_000).for_each(|number| notes.add(format!("{number} is missing")));
        let sentences = notes.into_sentences();
        assert_eq!(
            (sentences.len(), sentences[0].as_str()),
            (MAX_NOTES + 1, "0 is missing")
        );
        assert_eq!(
            sentences[MAX_NOTES],
            format!(
                "{} more pieces of signature material can't be used",
                10_000 - MAX_NOTES
            )
        );
    }
}
