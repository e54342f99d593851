//! `limits.evidence`: how many bytes of signature material are fetched for one artifact, and
//! what is told of the material that is not.

use std::collections::VecDeque;

use crate::oci::Descriptor;

/// One piece of signature material: bundles have a few KiB.
pub(super) const MAX_PIECE_BYTES: u64 = 1 << 20;
/// No shorter text is a manifest: a config needs its media type, digest and size. One that is
/// said to be shorter costs nothing of the budget and is not asked for.
pub(super) const MIN_MANIFEST_BYTES: u64 = 128;
/// A signature, or what is signed, is longer than this; a request for less costs as much.
const MIN_COST_BYTES: u64 = 128;
/// Sentences about what can't be used; of more, their number.
const MAX_NOTES: usize = 32;

/// Bytes that are left.
#[derive(Debug)]
pub(super) struct Budget {
    left: u64,
}

impl Budget {
    pub(super) fn new(limit: u64) -> Self {
        Self { left: limit }
    }

    /// Takes what `size` bytes cost, if that leaves `reserve`.
    pub(super) fn spend(&mut self, size: u64, reserve: u64) -> bool {
        match self.left.checked_sub(size.max(MIN_COST_BYTES)) {
            Some(left) if left >= reserve => {
                self.left = left;
                true
            }
            _ => false,
        }
    }

    /// The first of `queue` that can be paid for, in order; those that can't stay in it.
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

/// What can't be used, in words: the first sentences, and how many more there would be.
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
            self.sentences.push(format!("{} more pieces of signature material can't be used", self.more));
        }
        self.sentences
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_paid_for_is_chosen_in_order_and_the_rest_waits() {
        let queue = [300, 5000, 200, 300].map(|size| Descriptor { size, ..Descriptor::of("a/b", b"x") });
        let mut queue = VecDeque::from(queue);
        let mut budget = Budget::new(1000);
        let sizes = |chosen: Vec<Descriptor>| chosen.iter().map(|one| one.size).collect::<Vec<_>>();
        assert_eq!(sizes(budget.choose(&mut queue, 400, |one| one)), [300, 200]);
        assert_eq!(sizes(budget.choose(&mut queue, 0, |one| one)), [300]);
        assert_eq!(queue.len(), 1, "5000 bytes are more than there were");
        assert!(budget.spend(1, 0) && !budget.spend(128, 0), "a request costs at least 128 bytes");
    }

    #[test]
    fn ten_thousand_notes_are_a_few_and_their_number() {
        let mut notes = Notes::default();
        (0..10_000).for_each(|number| notes.add(format!("{number} is missing")));
        let sentences = notes.into_sentences();
        assert_eq!((sentences.len(), sentences[0].as_str()), (MAX_NOTES + 1, "0 is missing"));
        assert_eq!(
            sentences[MAX_NOTES],
            format!("{} more pieces of signature material can't be used", 10_000 - MAX_NOTES)
        );
    }
}
