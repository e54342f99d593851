//! How often a client is moved from one version to another.

use super::{Millis, TagHash};

/// Offers of one candidate before they become rare.
const QUICK_OFFERS: u32 = 2;
/// The pause after the quick offers; it doubles with each further offer.
const FIRST_PAUSE: Millis = 60 * 1000;
const MAX_PAUSE: Millis = 600 * 1000;
/// Moves from one version to another within [`WINDOW`].
const MAX_MOVES: usize = 4;
/// Moves to the same version within [`WINDOW`].
const MAX_RETURNS: usize = 2;
const WINDOW: Millis = 60 * 1000;

/// The versions that this replica has sent to one client of a staged bundle.
///
/// Of one candidate a client gets two offers, and then one after 60, 120 … 600 s: an OPA that can't activate
/// it asks again at once, OPA 0.70 dozens of times a second. Of all versions together it gets four a minute,
/// and of each of them two: where replicas disagree, a client that reaches both would otherwise alternate
/// without a pause, and each return is two changes for the client.
#[derive(Debug, Clone, Default)]
pub struct Moves {
    candidate: Option<TagHash>,
    offers: u32,
    next_offer: Millis,
    /// The last moves, oldest first.
    recent: [Option<Move>; MAX_MOVES],
}

/// A version that a client may be sent.
#[derive(Debug, Clone, Copy)]
pub struct Sending {
    /// Its tag.
    pub version: TagHash,
    /// Whether it is the candidate.
    pub is_candidate: bool,
    /// Whether the client runs another version.
    pub is_move: bool,
}

#[derive(Debug, Clone, Copy)]
struct Move {
    at: Millis,
    version: TagHash,
}

impl Moves {
    /// When the client may be sent this version next; now or earlier if it may be at once.
    pub fn allowed_at(&self, sending: Sending) -> Millis {
        let is_known = sending.is_candidate && self.candidate == Some(sending.version);
        let offer = if is_known { self.next_offer } else { 0 };
        if !sending.is_move {
            return offer;
        }
        let moves = self.recent.iter().flatten();
        let mut returns = moves.rev().filter(|one| one.version == sending.version);
        let counted = [self.recent[0].as_ref(), returns.nth(MAX_RETURNS - 1)];
        let ends = counted.into_iter().flatten().map(|one| one.at + WINDOW);
        ends.fold(offer, Millis::max)
    }

    /// Records that the client is being sent a version.
    pub fn record(&mut self, sending: Sending, now: Millis) {
        let version = sending.version;
        if sending.is_move {
            self.recent.rotate_left(1);
            self.recent[MAX_MOVES - 1] = Some(Move { at: now, version });
        }
        if !sending.is_candidate {
            return;
        }
        if self.candidate != Some(version) {
            (self.candidate, self.offers, self.next_offer) = (Some(version), 0, 0);
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

    fn offer(version: &str, is_move: bool) -> Sending {
        Sending {
            version: TagHash::of(version),
            is_candidate: true,
            is_move,
        }
    }

    fn stable(version: &str, is_move: bool) -> Sending {
        Sending {
            is_candidate: false,
            ..offer(version, is_move)
        }
    }

    #[test]
    fn offers_of_a_candidate_become_rare() {
        let mut moves = Moves::default();
        let (mut now, mut at) = (1_000_000, Vec::new());
        let start = now;
        while now < start + 3_600_000 {
            if moves.allowed_at(offer("c", true)) <= now {
                at.push((now - start) / 1000);
                moves.record(offer("c", true), now);
            }
            now += 1000;
        }
        assert_eq!(at, [0, 1, 61, 181, 421, 901, 1501, 2101, 2701, 3301]);
        assert!(
            moves.allowed_at(offer("d", false)) <= now,
            "another candidate"
        );
    }

    #[test]
    fn all_versions_together_are_four_a_minute() {
        let (mut moves, mut now, mut sent) = (Moves::default(), 1_000_000, 0);
        for step in 0..600 {
            let version = step.to_string();
            let sending = match step % 2 {
                0 => offer(&version, true),
                _ => stable(&version, true),
            };
            if moves.allowed_at(sending) <= now {
                moves.record(sending, now);
                sent += 1;
            }
            assert!(
                moves.allowed_at(stable("s", false)) <= now,
                "a client that runs nothing is not moved"
            );
            now += 1000;
        }
        assert_eq!(sent, 40);
    }

    /// Another replica moves the client back each time.
    #[test]
    fn returns_to_one_version_are_two_a_minute_and_leave_others_possible() {
        let (mut moves, mut sent) = (Moves::default(), Vec::new());
        for now in 1000..1180 {
            let now = now * 1000;
            if moves.allowed_at(stable("s", true)) <= now {
                moves.record(stable("s", true), now);
                sent.push(now / 1000 - 1000);
            }
            assert!(moves.allowed_at(offer("c", true)) <= now);
        }
        assert_eq!(sent, [0, 1, 60, 61, 120, 121]);
    }
}
