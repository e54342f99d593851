//! The clients of a step.

use globset::{Glob, GlobSet, GlobSetBuilder};

use super::{Plan, strategy::Order};
use crate::{fleet::ClientKey, publish::mix_bytes};

/// The clients of the current step of a plan.
#[derive(Debug)]
pub struct Cohort {
    /// Two cohorts with one number have the same clients.
    number: u64,
    clients: GlobSet,
    ids: GlobSet,
    salt: u64,
    threshold: u64,
}

/// A client as a cohort sees it.
#[derive(Debug, Clone, Copy)]
pub struct Member<'a> {
    /// Its key.
    pub key: ClientKey,
    /// The name of the configured client whose credential it has.
    pub credential: Option<&'a str>,
    /// Its name in the identity header.
    pub name: Option<&'a str>,
    /// Whether several clients share its key, because they share an address. It joins the last step only:
    /// otherwise a small step would reach none or all of them.
    pub is_shared: bool,
}

impl Cohort {
    /// The clients of the current step; none while there is no candidate to get.
    pub fn new(plan: &Plan) -> Self {
        let steps = plan.strategy.steps.iter().take(plan.step + 1);
        let steps: Vec<_> = steps.filter(|_| plan.phase.is_live()).collect();
        let clients: Vec<_> = steps.iter().flat_map(|step| &step.clients).collect();
        let ids: Vec<_> = steps.iter().flat_map(|step| &step.ids).collect();
        let salt = salt(plan);
        let mut number = mix_bytes(salt, &plan.threshold.to_le_bytes());
        for (list, texts) in [(1_u64, &clients), (2, &ids)] {
            number = mix_bytes(number, &list.to_le_bytes());
            for text in texts {
                number = mix_bytes(number, text.as_bytes());
            }
        }
        Self {
            // Zero stands for no cohort, where numbers are stored.
            number: number.max(1),
            clients: glob_set(&clients),
            ids: glob_set(&ids),
            salt,
            threshold: plan.threshold,
        }
    }

    /// Its number, which is not zero.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether all clients are in it.
    pub fn has_all(&self) -> bool {
        self.threshold == u64::MAX
    }

    /// Whether a client is in it.
    pub fn contains(&self, member: &Member<'_>) -> bool {
        if self.has_all() {
            return true;
        }
        let matches =
            |set: &GlobSet, text: Option<&str>| text.is_some_and(|text| set.is_match(text));
        if matches(&self.clients, member.credential) || matches(&self.ids, member.name) {
            return true;
        }
        !member.is_shared && hash(self.salt, member.key) < self.threshold
    }
}

/// The smallest threshold below which `count` of these clients are; `None` if there are fewer.
pub fn threshold_of(plan: &Plan, keys: impl Iterator<Item = ClientKey>, count: u32) -> Option<u64> {
    let (salt, count) = (salt(plan), count as usize);
    let mut lowest = std::collections::BinaryHeap::with_capacity(count + 1);
    for key in keys {
        lowest.push(hash(salt, key));
        if lowest.len() > count {
            lowest.pop();
        }
    }
    (lowest.len() == count).then(|| lowest.peek().map_or(0, |highest| highest.saturating_add(1)))
}

/// With one salt, the same clients come first.
fn salt(plan: &Plan) -> u64 {
    let salt = mix_bytes(0x62_75_6e_64_6c_65_67_61, plan.strategy.name.as_bytes());
    match (plan.strategy.order, &plan.candidate) {
        (Order::ByVersion, Some(candidate)) => {
            mix_bytes(salt, candidate.manifest.as_str().as_bytes())
        }
        _ => salt,
    }
}

/// The place of a client in the order. It is the same on every replica and in every release.
fn hash(salt: u64, key: ClientKey) -> u64 {
    // The finalizer of SplitMix64: the thresholds compare the upper bits, which a multiplication alone
    // leaves badly mixed.
    let mut hash = mix_bytes(salt, key.as_bytes());
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// The configuration has parsed these; a plan of another release may have one that this one can't read,
/// which then matches nothing.
fn glob_set(texts: &[&String]) -> GlobSet {
    let mut set = GlobSetBuilder::new();
    for glob in texts.iter().filter_map(|text| Glob::new(text).ok()) {
        set.add(glob);
    }
    set.build().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::{
        super::{
            Phase, Share,
            fixture::{plan, version},
        },
        *,
    };
    use crate::fleet::{Identity, IdentitySource};

    fn key(number: u32) -> ClientKey {
        let name = format!("opa-{number}");
        let source = IdentitySource::Name(&name);
        let credential = Some("edge");
        Identity { credential, source }.key()
    }

    fn member(number: u32) -> Member<'static> {
        Member {
            key: key(number),
            credential: None,
            name: None,
            is_shared: false,
        }
    }

    fn members(plan: &Plan, count: u32) -> Vec<u32> {
        let cohort = Cohort::new(plan);
        (0..count)
            .filter(|number| cohort.contains(&member(*number)))
            .collect()
    }

    fn with_share(percent: f64) -> Plan {
        let mut plan = plan(Phase::Progressing);
        (plan.step, plan.threshold) = (1, Share::from_percent(percent).unwrap().threshold());
        plan
    }

    #[test]
    fn a_share_reaches_about_that_part_and_a_larger_one_the_same_clients_and_more() {
        let mut before = Vec::new();
        for (percent, range) in [(1.0, 70..130), (10.0, 910..1090), (50.0, 4850..5150)] {
            let reached = members(&with_share(percent), 10_000);
            assert!(
                range.contains(&reached.len()),
                "{percent}: {}",
                reached.len()
            );
            assert!(before.iter().all(|number| reached.contains(number)));
            before = reached;
        }
        assert_eq!(members(&with_share(100.0), 100).len(), 100);
    }

    #[test]
    fn the_same_clients_come_first_unless_the_order_is_by_version() {
        let (mut plan, mut other) = (with_share(10.0), with_share(10.0));
        other.candidate = Some(version(3));
        let first = members(&plan, 10_000);
        assert_eq!(first, members(&other, 10_000));
        (plan.strategy.order, other.strategy.order) = (Order::ByVersion, Order::ByVersion);
        let both = members(&other, 10_000);
        let both = members(&plan, 10_000)
            .into_iter()
            .filter(|it| both.contains(it));
        assert!(
            both.count() < 200,
            "two independent tenths share a hundredth"
        );
    }

    #[test]
    fn a_ring_has_its_clients_by_name_and_a_shared_address_is_in_the_last_step_only() {
        let mut plan = plan(Phase::Progressing);
        plan.strategy.steps[0].clients = vec!["eu-*".to_owned()];
        let cohort = Cohort::new(&plan);
        for (credential, name, expected) in [
            (Some("eu-edge"), None, true),
            (Some("us-edge"), None, false),
            (Some("us-edge"), Some("canary-1"), true),
            (None, Some("a-canary-1"), false),
        ] {
            let member = Member {
                credential,
                name,
                ..member(1)
            };
            assert_eq!(
                cohort.contains(&member),
                expected,
                "{credential:?} {name:?}"
            );
        }
        let address = IdentitySource::Address(Ipv4Addr::LOCALHOST.into());
        let credential = None;
        let shared = Member {
            key: Identity {
                credential,
                source: address,
            }
            .key(),
            is_shared: true,
            ..member(1)
        };
        assert!(!Cohort::new(&with_share(99.99)).contains(&shared));
        assert!(Cohort::new(&with_share(100.0)).contains(&shared));
    }

    #[test]
    fn another_step_has_another_number_and_the_clients_of_earlier_steps() {
        let ring = Cohort::new(&plan(Phase::Progressing));
        let share = Cohort::new(&with_share(10.0));
        assert_ne!(ring.number(), share.number());
        let canary = Member {
            name: Some("canary-1"),
            ..member(1)
        };
        assert!(ring.contains(&canary) && share.contains(&canary));
        let idle = Cohort::new(&plan(Phase::RolledBack));
        assert!(!idle.contains(&canary));
    }

    #[test]
    fn a_threshold_has_exactly_as_many_clients_as_asked_for() {
        let mut plan = with_share(0.0);
        for count in [1, 7, 99] {
            plan.threshold = threshold_of(&plan, (0..100).map(key), count).unwrap();
            assert_eq!(members(&plan, 100).len(), count as usize);
        }
        assert_eq!(threshold_of(&plan, (0..100).map(key), 101), None);
    }

    /// Replicas of different releases have the same clients in a step.
    #[test]
    fn the_order_of_clients_stays() {
        assert_eq!(members(&with_share(10.0), 60), FIRST_OF_60);
    }

    const FIRST_OF_60: [u32; 4] = [16, 26, 34, 37];
}
