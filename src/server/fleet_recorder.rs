//! Records in the fleet view what requests say about their clients.
//!
//! A client has a connection of its own or shares one with others, behind a proxy. Each connection
//! remembers the client of its last request, so that the next one of the same client needs neither its
//! key, which is a cryptographic hash, nor the table.

use std::{net::IpAddr, sync::Arc};

use super::{
    clients::{Caller, Clients},
    connection::Peer,
    reply::Reply,
    request_head::{IdentityHeader, ReadMethod},
};
use crate::{
    fleet::{
        ClientBundle, ClientDetails, Fleet, Identity, IdentitySource, Offer, Poll, Sending,
        TagHash, Version, WaitingPoll, usable_name,
    },
    publish::{Snapshot, mix_bytes},
    rollout::Variant,
    telemetry::{NAME_BYTES, cut, now_millis},
};

/// Records requests in the fleet view.
#[derive(Debug)]
pub(super) struct FleetRecorder {
    pub(super) fleet: Fleet,
    identity: IdentityHeader,
    /// Secret, because clients choose what is hashed with it.
    seed: u64,
}

/// The client of the last request of a connection, for one bundle.
#[derive(Debug)]
pub(super) struct LastClient {
    /// A hash of everything in a request that identifies its client.
    inputs: u64,
    client_bundle: Arc<ClientBundle>,
}

/// A request whose client is recorded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sighting<'a> {
    pub(super) clients: &'a Clients,
    pub(super) caller: &'a Caller,
    pub(super) peer: &'a Peer,
    /// The name that the client sends.
    pub(super) name: Option<&'a [u8]>,
    /// `None` for the address of the connection.
    pub(super) forwarded: Option<IpAddr>,
    pub(super) authorization: Option<&'a [u8]>,
    pub(super) user_agent: Option<&'a [u8]>,
    pub(super) bundle: &'a str,
}

impl FleetRecorder {
    pub(super) fn new(fleet: Fleet) -> Self {
        Self {
            identity: IdentityHeader::new(fleet.options.identity.clone()),
            fleet,
            seed: fastrand::u64(..),
        }
    }

    /// The header that names a client.
    pub(super) fn identity_header(&self) -> &IdentityHeader {
        &self.identity
    }

    /// Records a request that is answered at once: with 304, or with a version for a client that names
    /// none.
    pub(super) fn record_answered(
        &self,
        sighting: &Sighting<'_>,
        method: ReadMethod,
        reply: &Reply,
    ) {
        let (snapshot, is_current) = match reply {
            Reply::NotModified { snapshot, .. } => (snapshot, true),
            Reply::Bundle { snapshot, .. } => (snapshot, false),
            Reply::Other(_) => return,
        };
        // HEAD downloads nothing, and no OPA sends it.
        if method == ReadMethod::Head {
            return;
        }
        let served = snapshot.tag_hash();
        let poll = Poll {
            tag: is_current.then_some(served),
            is_current,
        };
        self.record(sighting, poll, |client_bundle| {
            client_bundle.bundle().record(served, || version(snapshot));
        });
    }

    /// Records a request for a bundle whose versions are rolled out in steps. `choose` makes the reply, if there
    /// is one at once, of what is known of the client.
    pub(super) fn record_staged(
        &self,
        sighting: &Sighting<'_>,
        choose: impl FnOnce(Option<&ClientBundle>) -> (Poll, Option<Reply>),
    ) -> Option<Reply> {
        let Some(client_bundle) = self.client_bundle(sighting) else {
            return choose(None).1;
        };
        let (poll, reply) = choose(Some(&client_bundle));
        if let Some(reply) = &reply {
            let now = now_millis();
            if !self.fleet.table.record_poll(&client_bundle, poll, now) {
                // The table has removed it; the next request of the client adds it again.
                *sighting.peer.slot.last_client() = None;
            }
            self.record_version(&client_bundle, reply);
            if let Reply::Bundle {
                snapshot,
                variant: Some(Variant::Candidate),
                ..
            } = reply
            {
                let sending = Sending {
                    version: snapshot.tag_hash(),
                    is_candidate: true,
                    is_move: poll.tag.is_some(),
                };
                client_bundle.record_move(sending, now);
            }
        }
        reply
    }

    /// Remembers the version that a reply names.
    fn record_version(&self, client_bundle: &ClientBundle, reply: &Reply) {
        if let Reply::NotModified { snapshot, .. } | Reply::Bundle { snapshot, .. } = reply {
            let served = snapshot.tag_hash();
            client_bundle.bundle().record(served, || version(snapshot));
        }
    }

    /// The version that a reply sends at once to a client that names none, where it is the candidate of a
    /// roll-out: if the client can't activate it, that has to be noticed.
    pub(super) fn offer_at_once(&self, sighting: &Sighting<'_>, reply: &Reply) -> Option<Offer> {
        let Reply::Bundle {
            snapshot,
            variant: Some(Variant::Candidate),
            ..
        } = reply
        else {
            return None;
        };
        let client_bundle = self.client_bundle(sighting)?;
        Some(self.fleet.table.offer(client_bundle, snapshot.tag_hash()))
    }

    /// Records a request that is held. `first_tag`: the version that the client names; `served`: the
    /// version that it would get now.
    pub(super) fn record_waiting(
        &self,
        sighting: &Sighting<'_>,
        first_tag: Option<&str>,
        served: Option<&Snapshot>,
    ) -> Option<WaitingPoll> {
        let served = served.map(|snapshot| (snapshot.tag_hash(), snapshot));
        let tag = match (first_tag, served) {
            // For OPA it is the same version.
            (Some(first), Some((tag, snapshot))) if snapshot.is_same_as(first) => Some(tag),
            _ => first_tag.map(TagHash::of),
        };
        let is_current = tag.is_some() && tag == served.map(|(tag, _)| tag);
        let poll = Poll { tag, is_current };
        let client_bundle = self.record(sighting, poll, Arc::clone)?;
        if let Some((tag, snapshot)) = served {
            client_bundle.bundle().record(tag, || version(snapshot));
        }
        if let (Some(tag), Some(text), false) = (tag, first_tag, is_current) {
            client_bundle.bundle().record_unknown(tag, text);
        }
        Some(self.fleet.table.begin_waiting(&client_bundle, now_millis()))
    }

    /// The version that a reply to a held request sends to a client that names another one. A client that
    /// names none proves nothing by its downloads, whatever becomes of them, except those of a candidate.
    /// `live_candidate`: the candidate of the bundle, while some clients get it.
    pub(super) fn offer(
        &self,
        waiting: &WaitingPoll,
        method: ReadMethod,
        reply: &Reply,
        live_candidate: Option<TagHash>,
    ) -> Option<Offer> {
        waiting.record_seen(now_millis());
        let (
            Reply::Bundle {
                snapshot, variant, ..
            },
            ReadMethod::Get,
        ) = (reply, method)
        else {
            return None;
        };
        let (served, client_bundle) = (snapshot.tag_hash(), waiting.client_bundle());
        let (is_candidate, is_move) = (
            *variant == Some(Variant::Candidate),
            client_bundle.runs_any(),
        );
        if variant.is_some() {
            let sending = Sending {
                version: served,
                is_candidate,
                is_move,
            };
            client_bundle.record_move(sending, now_millis());
        }
        if !is_move && !is_candidate {
            return None;
        }
        // What is known of a candidate that the client could not activate is not lost to the stable version.
        let offered = client_bundle.offered().map(|(tag, ..)| tag);
        if !is_candidate && live_candidate.is_some() && offered == live_candidate {
            client_bundle.bundle().record(served, || version(snapshot));
            return None;
        }
        client_bundle.bundle().record(served, || version(snapshot));
        Some(self.fleet.table.offer(Arc::clone(client_bundle), served))
    }

    /// What is known of the client of a request. `None` if the table is full.
    fn client_bundle(&self, sighting: &Sighting<'_>) -> Option<Arc<ClientBundle>> {
        let inputs = sighting.inputs(self.seed);
        let mut last = sighting.peer.slot.last_client();
        if let Some(last) = &*last
            && last.inputs == inputs
            && &**last.client_bundle.bundle().name() == sighting.bundle
        {
            return Some(Arc::clone(&last.client_bundle));
        }
        let client_bundle = sighting.look_up(&self.fleet)?;
        *last = Some(LastClient {
            inputs,
            client_bundle: Arc::clone(&client_bundle),
        });
        Some(client_bundle)
    }

    /// Records a request. Returns what `then` makes of what its client runs; `None` if the table is full.
    fn record<T>(
        &self,
        sighting: &Sighting<'_>,
        poll: Poll,
        then: impl FnOnce(&Arc<ClientBundle>) -> T,
    ) -> Option<T> {
        let (inputs, now) = (sighting.inputs(self.seed), now_millis());
        let table = &self.fleet.table;
        let mut last = sighting.peer.slot.last_client();
        if let Some(last) = &*last
            && last.inputs == inputs
            && &**last.client_bundle.bundle().name() == sighting.bundle
            && table.record_poll(&last.client_bundle, poll, now)
        {
            return Some(then(&last.client_bundle));
        }
        let client_bundle = sighting.look_up(&self.fleet)?;
        // It may be removed in between, if the table is full; then its next request adds it again.
        table.record_poll(&client_bundle, poll, now);
        let result = then(&client_bundle);
        *last = Some(LastClient {
            inputs,
            client_bundle,
        });
        Some(result)
    }
}

impl Sighting<'_> {
    /// A hash of what identifies the client, on this connection.
    fn inputs(&self, seed: u64) -> u64 {
        let mut hash = seed.wrapping_add(self.clients.number());
        if let Some(authorization) = self.authorization {
            hash = mix_bytes(hash, authorization);
        }
        // Each part changes the hash in a way of its own, also if the others are absent.
        hash = hash.rotate_left(1);
        if let Some(name) = self.name {
            hash = mix_bytes(hash, name);
        }
        hash = hash.rotate_left(1);
        match self.forwarded {
            None => hash,
            Some(IpAddr::V4(address)) => mix_bytes(hash, &address.octets()),
            Some(IpAddr::V6(address)) => mix_bytes(hash, &address.octets()),
        }
    }

    fn look_up(&self, fleet: &Fleet) -> Option<Arc<ClientBundle>> {
        let address = self.forwarded.unwrap_or(self.peer.address);
        let identity = identity_of(self.clients, self.caller, self.name, address);
        let agent = self.user_agent.map(String::from_utf8_lossy);
        let agent = agent.as_deref().map(|agent| cut(agent, NAME_BYTES));
        let details = ClientDetails::new(&identity, address, agent.as_deref());
        fleet.table.client_bundle(&identity, &details, self.bundle)
    }
}

/// The identity of a client. `header`: the value of the identity header.
pub(super) fn identity_of<'a>(
    clients: &'a Clients,
    caller: &Caller,
    header: Option<&'a [u8]>,
    address: IpAddr,
) -> Identity<'a> {
    let name = header.and_then(usable_name);
    Identity {
        credential: clients.credential_name(caller),
        source: name.map_or(IdentitySource::Address(address), IdentitySource::Name),
    }
}

/// What operators see of a version.
fn version(snapshot: &Snapshot) -> Version {
    let revision = snapshot.bundle().revision().as_str();
    Version {
        manifest: Some(snapshot.manifest_digest().as_str().into()),
        revision: (!revision.is_empty()).then(|| cut(revision, NAME_BYTES).into()),
        size: Some(snapshot.content().bytes().size()),
        ..Version::unknown(snapshot.etag())
    }
}
