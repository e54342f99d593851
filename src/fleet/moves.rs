//! How often a client is moved from one version to another.

use super::{Millis, TagHash};

/// Offers of one candidate before they become rare.
const QUICK_OFFERS: u32 = 2;
/// The pause after the quick offers; it doubles with each further offer.
const FIRST_PAUSE: Millis = 60 * 1000;
const MAX_PAUSE: Millis = 600 * 1000;
/// Moves from one version to another within [`WINDOW`].
const MAX_MOVES: usize = 4;
const WINDOW: Millis = 60 * 1000;

/// The versions that this replica has sent to one client of a staged bundle.
///
/// Of one candidate a client gets two offers, and then one after 60, 120 … 600 s: an OPA that can't activate
/// it asks again at once, OPA 0.70 dozens of times a second. Of all versions together it gets four a minute:
/// where replicas disagree, a client that reaches both would otherwise alternate without a pause.
#[derive(Debug, Clone, Default)]
pub struct Moves {
    candidate: Option<TagHash>,
    offers: u32,
    next_offer: Millis,
    /// When the client was moved last, oldest first; zero for never.
    recent: [Millis; MAX_MOVES],
}

impl Moves {
    /// When the client may be sent this version next; now or earlier if it may be at once. `candidate`: the
    /// version's tag if it is the candidate. `is_move`: whether the client runs another version.
    pub fn allowed_at(&self, candidate: Option<TagHash>, is_move: bool) -> Millis {
        let is_known = candidate.is_some() && candidate == self.candidate;
        let offer = if is_known { self.next_offer } else { 0 };
        match is_move {
            true if self.recent[0] != 0 => offer.max(self.recent[0] + WINDOW),
            _ => offer,
        }
    }

    /// Records that the client is being sent a version.
    pub fn record(&mut self, candidate: Option<TagHash>, is_move: bool, now: Millis) {
        if is_move {
            self.recent.rotate_left(1);
            self.recent[MAX_MOVES - 1] = now.max(1);
        }
        let Some(candidate) = candidate else {
            return;
        };
        if self.candidate != Some(candidate) {
            (self.candidate, self.offers, self.next_offer) = (Some(candidate), 0, 0);
        }
        self.offers = self.offers.saturating_add(1);
        if self.offers >= QUICK_OFFERS {
            let doublings = (self.offers - QUICK_OFFERS).min(8);
            let pause = (FIRST_PAUSE << doublings).min(MAX_PAUSE);
            self.next_offer = now + pause;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_of_a_candidate_become_rare() {
        let (mut moves, candidate) = (Moves::default(), Some(TagHash::of("c")));
        let (mut now, mut at) = (1_000_000, Vec::new());
        let start = now;
        while now < start + 3_600_000 {
            if moves.allowed_at(candidate, true) <= now {
                at.push((now - start) / 1000);
                moves.record(candidate, true, now);
            }
            now += 1000;
        }
        assert_eq!(at, [0, 1, 61, 181, 421, 901, 1501, 2101, 2701, 3301]);
        assert!(
            moves.allowed_at(Some(TagHash::of("d")), false) <= now,
            "another candidate"
        );
    }

    #[test]
    fn all_versions_together_are_four_a_minute() {
        let (mut moves, mut now, mut sent) = (Moves::default(), 1_000_000, 0);
        for step in 0..600 {
            let candidate = (step % 2 == 0).then(|| TagHash::of(&step.to_string()));
            if moves.allowed_at(candidate, true) <= now {
                moves.record(candidate, true, now);
                sent += 1;
            }
            assert!(
                moves.allowed_at(None, false) <= now,
                "a client that runs nothing is not moved"
            );
            now += 1000;
        }
        assert_eq!(sent, 40);
    }
}
