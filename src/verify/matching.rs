//! Counts authorities by a maximum bipartite matching: one vote for each authority, each by
//! another signer.

/// Chooses votes such that as many authorities as possible count and no two of them with the same
/// signer. A vote is an authority and a signer key; the result is the positions of the chosen
/// votes.
///
/// A signer that matches two authorities counts once: otherwise one signer that matches two
/// patterns would reach a threshold of two alone.
pub(super) fn max_matching(votes: &[(usize, &str)]) -> Vec<usize> {
    let mut voters: Vec<usize> = votes.iter().map(|(voter, _)| *voter).collect();
    voters.sort_unstable();
    voters.dedup();
    let mut counted = Vec::new();
    for voter in voters {
        let mut tried = Vec::new();
        augment(voter, votes, &mut counted, &mut tried);
    }
    counted.sort_unstable();
    counted
}

/// Finds a vote for `voter`, moving other voters to another of their votes where that helps (an
/// augmenting path).
fn augment<'a>(
    voter: usize,
    votes: &[(usize, &'a str)],
    counted: &mut Vec<usize>,
    tried: &mut Vec<&'a str>,
) -> bool {
    for (position, (_, key)) in votes.iter().enumerate().filter(|(_, (of, _))| *of == voter) {
        if tried.contains(key) {
            continue;
        }
        tried.push(key);
        let holder = counted.iter().position(|taken| votes[*taken].1 == *key);
        let free = match holder {
            None => true,
            Some(holder) => {
                let taken = counted.remove(holder);
                let moved = augment(votes[taken].0, votes, counted, tried);
                if !moved {
                    counted.push(taken);
                }
                moved
            }
        };
        if free {
            counted.push(position);
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_signature_is_one_vote() {
        assert_eq!(max_matching(&[(0, "k"), (1, "k")]).len(), 1);
        assert_eq!(max_matching(&[(0, "k"), (0, "l"), (0, "m")]).len(), 1);
        assert_eq!(max_matching(&[(0, "k"), (1, "l")]), [0, 1]);
        assert!(max_matching(&[]).is_empty());
    }

    #[test]
    fn a_voter_with_another_vote_moves_to_it() {
        assert_eq!(max_matching(&[(0, "k"), (0, "l"), (1, "k")]), [1, 2]);
        assert_eq!(
            max_matching(&[(0, "a"), (0, "b"), (1, "b"), (1, "c"), (2, "a"), (2, "b")]).len(),
            3
        );
    }

    proptest! {
        #[test]
        fn the_matching_is_maximal(votes in prop::collection::vec((0usize..4, 0usize..4), 0..10)) {
            const KEYS: [&str; 4] = ["a", "b", "c", "d"];
            let votes: Vec<_> = votes.into_iter().map(|(voter, key)| (voter, KEYS[key])).collect();
            let counted = max_matching(&votes);
            for (index, one) in counted.iter().enumerate() {
                for other in &counted[index + 1..] {
                    prop_assert!(votes[*one].0 != votes[*other].0 && votes[*one].1 != votes[*other].1);
                }
            }
            let best = (0u32..1 << votes.len()).filter(|set| {
                let chosen: Vec<_> = (0..votes.len()).filter(|bit| set >> bit & 1 == 1).collect();
                chosen.iter().enumerate().all(|(index, one)| chosen[index + 1..].iter().all(|other| {
                    votes[*one].0 != votes[*other].0 && votes[*one].1 != votes[*other].1
                }))
            }).map(u32::count_ones).max().unwrap_or(0);
            prop_assert_eq!(counted.len(), best as usize);
        }
    }
}
