//! A short stand-in for an entity tag.

use std::num::NonZeroU64;

/// A hash of an entity tag. It is not a cryptographic one: a client that sends a tag with the hash of
/// another one misrepresents only itself, which it can do by sending that tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TagHash(NonZeroU64);

impl TagHash {
    /// The hash of a tag with or without quotes and `W/`. It is the same on every replica and in every
    /// release.
    pub fn of(tag: &str) -> Self {
        let hash = mix_bytes(0x9e37_79b9_7f4a_7c15, opaque_tag(tag).as_bytes());
        Self(NonZeroU64::new(hash).unwrap_or(NonZeroU64::MIN))
    }

    /// The hash with this number; `None` for zero.
    pub fn from_number(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(Self)
    }

    /// Its number, which is not zero.
    pub fn number(self) -> u64 {
        self.0.get()
    }
}

/// Continues a hash with bytes and their length. It costs a multiplication for each eight bytes. Where
/// senders choose the bytes, collisions are harmless or `hash` begins with a secret.
pub fn mix_bytes(mut hash: u64, bytes: &[u8]) -> u64 {
    let (chunks, rest) = bytes.as_chunks::<8>();
    for chunk in chunks {
        hash = mix(hash, u64::from_le_bytes(*chunk));
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    hash = mix(hash, u64::from_le_bytes(last));
    mix(hash, bytes.len() as u64)
}

fn mix(hash: u64, chunk: u64) -> u64 {
    (hash.rotate_left(23) ^ chunk).wrapping_mul(0xff51_afd7_ed55_8ccd)
}

/// A tag without quotes and `W/`.
pub fn opaque_tag(tag: &str) -> &str {
    let tag = tag.strip_prefix("W/").unwrap_or(tag);
    tag.strip_prefix('"')
        .and_then(|tag| tag.strip_suffix('"'))
        .unwrap_or(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_has_one_hash_however_it_is_written() {
        let hash = TagHash::of("3fPz0Ss5bXq1wB3Fq3qJ0x8k6oM1nE2Yc9rTqf0Vd7A");
        for tag in [
            "\"3fPz0Ss5bXq1wB3Fq3qJ0x8k6oM1nE2Yc9rTqf0Vd7A\"",
            "W/\"3fPz0Ss5bXq1wB3Fq3qJ0x8k6oM1nE2Yc9rTqf0Vd7A\"",
        ] {
            assert_eq!(TagHash::of(tag), hash);
        }
        let tags = [
            "",
            "a",
            "b",
            "ab",
            "a\0",
            "aaaaaaaa",
            "aaaaaaaaa",
            "aaaaaaaa\0",
        ];
        let mut hashes: Vec<_> = tags.map(TagHash::of).to_vec();
        hashes.push(hash);
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), tags.len() + 1);
        assert_eq!(TagHash::from_number(hash.number()), Some(hash));
        assert_eq!(TagHash::from_number(0), None);
    }

    /// Replicas of different releases compare these.
    #[test]
    fn the_hash_of_a_tag_stays() {
        let hash = TagHash::of("3fPz0Ss5bXq1wB3Fq3qJ0x8k6oM1nE2Yc9rTqf0Vd7A");
        assert_eq!(hash.number(), 0xe44c_7e0f_3e20_df8a);
    }
}
