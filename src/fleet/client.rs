//! A client: its names, its address and its OPA, and the bundles that it asks for.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{BundleVersions, ClientBundle, ClientKey, Identity, IdentitySource, OpaInstance};

/// A client, with the bundles that it asks for.
#[derive(Debug)]
pub struct Client {
    key: ClientKey,
    details: Mutex<ClientDetails>,
    bundles: Mutex<Vec<Arc<ClientBundle>>>,
}

/// How operators recognise a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientDetails {
    /// The name that it sends; `None` for a client that is known by its address alone.
    pub name: Option<Box<str>>,
    /// The name of the configured client whose credential it has.
    pub credential: Option<Box<str>>,
    /// The address of its last connection, or the one that a trusted proxy forwards.
    pub address: IpAddr,
    /// Its `User-Agent`, cut.
    pub agent: Option<Box<str>>,
    /// What its OPA reports about itself.
    pub opa: Option<Arc<OpaInstance>>,
}

impl Client {
    pub(super) fn new(key: ClientKey, details: ClientDetails) -> Self {
        Self {
            key,
            details: Mutex::new(details),
            bundles: Mutex::default(),
        }
    }

    /// Its key.
    pub fn key(&self) -> ClientKey {
        self.key
    }

    /// How operators recognise it.
    pub fn details(&self) -> ClientDetails {
        self.lock_details().clone()
    }

    /// Follows what its last request says. Returns whether that differs from before.
    pub(super) fn update(&self, details: &ClientDetails) -> bool {
        let mut known = self.lock_details();
        let opa = details.opa.clone().or_else(|| known.opa.clone());
        let is_changed =
            known.address != details.address || known.agent != details.agent || known.opa != opa;
        if is_changed {
            *known = ClientDetails {
                opa,
                ..details.clone()
            };
        }
        is_changed
    }

    /// What it runs of each bundle.
    pub fn bundles(&self) -> Vec<Arc<ClientBundle>> {
        self.lock_bundles().clone()
    }

    /// What it runs of one bundle.
    pub fn bundle(&self, name: &str) -> Option<Arc<ClientBundle>> {
        let bundles = self.lock_bundles();
        let found = bundles.iter().find(|one| &**one.bundle().name() == name);
        found.cloned()
    }

    /// Whether it asks for a bundle.
    pub(super) fn has(&self, versions: &Arc<BundleVersions>) -> bool {
        let bundles = self.lock_bundles();
        bundles
            .iter()
            .any(|one| Arc::ptr_eq(one.bundle(), versions))
    }

    /// What it runs of one bundle, which is added if it is not there. Returns whether it was added.
    pub(super) fn add_bundle(
        &self,
        versions: &Arc<BundleVersions>,
        is_by_address: bool,
    ) -> (Arc<ClientBundle>, bool) {
        let mut bundles = self.lock_bundles();
        if let Some(known) = bundles
            .iter()
            .find(|one| Arc::ptr_eq(one.bundle(), versions))
        {
            return (Arc::clone(known), false);
        }
        let added = ClientBundle::new(self.key, Arc::clone(versions), is_by_address);
        let added = Arc::new(added);
        bundles.push(Arc::clone(&added));
        (added, true)
    }

    /// Keeps the bundles for which `is_kept`, and detaches the others. Returns how many those are, and
    /// whether any are kept.
    pub(super) fn retain(&self, mut is_kept: impl FnMut(&ClientBundle) -> bool) -> (usize, bool) {
        let mut bundles = self.lock_bundles();
        let before = bundles.len();
        bundles.retain(|one| {
            let is_kept = is_kept(one);
            if !is_kept {
                one.detach();
            }
            is_kept
        });
        bundles.shrink_to_fit();
        (before - bundles.len(), !bundles.is_empty())
    }

    /// When it was last seen, and whether one of its requests is held.
    pub(super) fn last_seen(&self) -> (super::Millis, bool) {
        let bundles = self.lock_bundles();
        let seen = bundles.iter().map(|one| one.last_seen());
        seen.fold((0, false), |(last, waits), (seen, is_waiting)| {
            (last.max(seen), waits || is_waiting)
        })
    }

    fn lock_details(&self) -> MutexGuard<'_, ClientDetails> {
        self.details.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_bundles(&self) -> MutexGuard<'_, Vec<Arc<ClientBundle>>> {
        self.bundles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientDetails {
    /// Those of a client that only other replicas have seen, until they report them.
    pub(super) fn unknown() -> Self {
        Self {
            name: None,
            credential: None,
            address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            agent: None,
            opa: None,
        }
    }

    /// Those of a client with this identity, which has connected from this address.
    pub fn new(identity: &Identity<'_>, address: IpAddr, agent: Option<&str>) -> Self {
        Self {
            name: match identity.source {
                IdentitySource::Name(name) => Some(name.into()),
                IdentitySource::Address(_) => None,
            },
            credential: identity.credential.map(Into::into),
            address: address.to_canonical(),
            agent: agent.map(Into::into),
            opa: None,
        }
    }
}
