//! Counting votes: one for each authority, each by a key of its own.

/// For each voter one of its ballots, so that as many voters as possible vote and no two of
/// them with the same voice. A ballot is a voter and a voice; the result holds their positions.
///
/// Whoever two authorities would stand behind is one vote: else one signer who matches two
/// patterns would reach a threshold of two alone.
pub(super) fn max_matching(ballots: &[(usize, &str)]) -> Vec<usize> {
    let mut voters: Vec<usize> = ballots.iter().map(|(voter, _)| *voter).collect();
    voters.sort_unstable();
    voters.dedup();
    let mut counted = Vec::new();
    for voter in voters {
        let mut tried = Vec::new();
        place(voter, ballots, &mut counted, &mut tried);
    }
    counted.sort_unstable();
    counted
}

/// Finds a ballot for `voter`, moving others to another of theirs where that helps (an
/// augmenting path).
fn place<'a>(voter: usize, ballots: &[(usize, &'a str)], counted: &mut Vec<usize>, tried: &mut Vec<&'a str>) -> bool {
    for (position, (_, key)) in ballots.iter().enumerate().filter(|(_, (of, _))| *of == voter) {
        if tried.contains(key) {
            continue;
        }
        tried.push(key);
        let holder = counted.iter().position(|taken| ballots[*taken].1 == *key);
        let free = match holder {
            None => true,
            Some(holder) => {
                let taken = counted.remove(holder);
                let moved = place(ballots[taken].0, ballots, counted, tried);
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
    fn whoever_can_vote_otherwise_makes_room() {
        assert_eq!(max_matching(&[(0, "k"), (0, "l"), (1, "k")]), [1, 2]);
        assert_eq!(max_matching(&[(0, "a"), (0, "b"), (1, "b"), (1, "c"), (2, "a"), (2, "b")]).len(), 3);
    }

    proptest! {
        #[test]
        fn as_many_vote_as_can(ballots in prop::collection::vec((0usize..4, 0usize..4), 0..10)) {
            const KEYS: [&str; 4] = ["a", "b", "c", "d"];
            let ballots: Vec<_> = ballots.into_iter().map(|(voter, key)| (voter, KEYS[key])).collect();
            let counted = max_matching(&ballots);
            for (index, one) in counted.iter().enumerate() {
                for other in &counted[index + 1..] {
                    prop_assert!(ballots[*one].0 != ballots[*other].0 && ballots[*one].1 != ballots[*other].1);
                }
            }
            let best = (0u32..1 << ballots.len()).filter(|set| {
                let chosen: Vec<_> = (0..ballots.len()).filter(|bit| set >> bit & 1 == 1).collect();
                chosen.iter().enumerate().all(|(index, one)| chosen[index + 1..].iter().all(|other| {
                    ballots[*one].0 != ballots[*other].0 && ballots[*one].1 != ballots[*other].1
                }))
            }).map(u32::count_ones).max().unwrap_or(0);
            prop_assert_eq!(counted.len(), best as usize);
        }
    }
}
