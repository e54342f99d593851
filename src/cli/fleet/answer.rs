//! The JSON of `GET /fleet`. Unknown keys are ignored, so that the command understands newer gateways.

use std::collections::BTreeMap;

use anyhow::bail;
use serde::Deserialize;
use serde_json::Value;

use super::State;

/// The answer: all bundles, and the clients if the request has a parameter.
#[derive(Debug, Deserialize)]
pub(super) struct Fleet {
    /// The time of the answer.
    #[serde(default)]
    pub(super) at: String,
    /// `replica` if other replicas may see other clients.
    #[serde(default)]
    pub(super) scope: String,
    /// Clients that were not remembered, because there were too many.
    #[serde(default)]
    pub(super) dropped: u64,
    pub(super) bundles: BTreeMap<String, Bundle>,
    #[serde(default)]
    pub(super) clients: Vec<Client>,
    /// Whether there are more clients.
    pub(super) next: Option<String>,
}

/// The clients of a bundle in numbers.
#[derive(Debug, Deserialize)]
pub(super) struct Bundle {
    pub(super) serving: Option<Version>,
    #[serde(default)]
    pub(super) clients: u64,
    #[serde(default)]
    pub(super) states: BTreeMap<String, u64>,
    #[serde(default)]
    pub(super) shared_addresses: u64,
}

/// A version of a bundle. Only the entity tag is known of one that the gateway has never served.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, serde::Serialize)]
pub(super) struct Version {
    pub(super) etag: Option<String>,
    pub(super) manifest: Option<String>,
    pub(super) revision: Option<String>,
}

/// A client, with what it runs of each bundle.
#[derive(Debug, Deserialize)]
pub(super) struct Client {
    pub(super) id: String,
    pub(super) name: Option<String>,
    pub(super) address: Option<String>,
    #[serde(default)]
    pub(super) shared_address: bool,
    pub(super) opa: Option<Opa>,
    #[serde(default)]
    pub(super) bundles: BTreeMap<String, ClientBundle>,
}

/// What OPA reports of itself.
#[derive(Debug, Deserialize)]
pub(super) struct Opa {
    pub(super) version: Option<String>,
}

/// A bundle of a client.
#[derive(Debug, Deserialize)]
pub(super) struct ClientBundle {
    pub(super) state: String,
    pub(super) runs: Option<Version>,
    pub(super) since: Option<String>,
    pub(super) seen: Option<String>,
    pub(super) offered: Option<Offer>,
    pub(super) error: Option<Failure>,
}

/// The version that a client was offered last.
#[derive(Debug, Deserialize)]
pub(super) struct Offer {
    #[serde(flatten)]
    pub(super) version: Version,
    #[serde(default)]
    pub(super) times: u64,
}

/// What a client reports of a failed activation.
#[derive(Debug, Deserialize)]
pub(super) struct Failure {
    pub(super) message: Option<String>,
    pub(super) code: Option<String>,
}

impl Fleet {
    /// Reads an answer.
    ///
    /// # Errors
    /// When it is not one of `/fleet`.
    pub(super) fn read(document: &Value) -> anyhow::Result<Self> {
        match Self::deserialize(document) {
            Ok(fleet) => Ok(fleet),
            Err(_) => bail!("fleet: the answer is not one of bundlegate; check --admin"),
        }
    }

    /// The clients in these states, counted once for each bundle.
    pub(super) fn count(&self, states: &[State]) -> u64 {
        let bundles = self.bundles.values();
        bundles.map(|bundle| bundle.count(states)).sum()
    }
}

impl Bundle {
    /// The clients in these states.
    pub(super) fn count(&self, states: &[State]) -> u64 {
        let counts = states
            .iter()
            .filter_map(|state| self.states.get(state.word()));
        counts.sum()
    }
}

impl Version {
    /// The revision, or the beginning of the manifest's digest or of the entity tag.
    pub(super) fn short(&self) -> String {
        let cut = |text: &str| text.chars().take(SHORT).collect::<String>();
        let named = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        match (
            named(&self.revision),
            named(&self.manifest),
            named(&self.etag),
        ) {
            (Some(revision), ..) => revision,
            (None, Some(digest), _) => match digest.split_once(':') {
                Some((_, hex)) => cut(hex),
                None => cut(&digest),
            },
            (None, None, Some(etag)) => format!("unknown {}", cut(etag.trim_matches('"'))),
            (None, None, None) => ABSENT.to_owned(),
        }
    }
}

impl Client {
    /// The name, or else the address.
    pub(super) fn label(&self) -> String {
        match (&self.name, &self.address) {
            (Some(name), _) => name.clone(),
            (None, Some(address)) if self.shared_address => format!("{address} (shared)"),
            (None, Some(address)) => address.clone(),
            (None, None) => self.id.clone(),
        }
    }
}

impl ClientBundle {
    /// The running version, or `-`.
    pub(super) fn running(&self) -> String {
        let short = self.runs.as_ref().map(Version::short);
        short.unwrap_or_else(|| ABSENT.to_owned())
    }

    /// Why the client fails: what it reports, or the version that it refuses. `-` for other clients.
    pub(super) fn reason(&self) -> String {
        let reported = self.error.as_ref().map(|error| {
            let message = error.message.as_deref().filter(|text| !text.is_empty());
            message
                .or(error.code.as_deref())
                .unwrap_or("unknown error")
                .to_owned()
        });
        let refused = || {
            let offer = self.offered.as_ref();
            let offer = offer.filter(|_| self.state == State::Failing.word())?;
            let (version, times) = (offer.version.short(), offer.times);
            Some(format!(
                "was offered {version} {times} times, and does not run it"
            ))
        };
        reported
            .or_else(refused)
            .unwrap_or_else(|| ABSENT.to_owned())
    }
}

/// The characters of a short digest.
const SHORT: usize = 12;
/// Stands for a value that is absent.
pub(super) const ABSENT: &str = "-";
