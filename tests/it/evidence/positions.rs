//! One malformed piece of each kind at every position among signatures: the good one counts, and
//! the registry is not asked more than for the others.

use bundlegate::{
    oci::{Manifest, PinnedReference, media_type},
    registry::Source,
    verify::{self, Report, VerificationContext, VerificationError, Verified},
};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::kinds::{Malformed, foreign_layer, foreign_referrer, layers, referrers};
use crate::{
    attacks::Fixture,
    forge::{By, Envelope, Key, Legacy},
};

/// Signatures beside the malformed piece, with the good one.
const SIGNATURES: usize = 5;
/// Entries on a page of the referrers API.
const PAGE: usize = 2;
/// Requests for the lists: up to three pages, the referrers tag, the `.sig` tag.
const LISTS: usize = 5;

/// Where the list is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The layers of the `.sig` image.
    Legacy,
    /// The referrers API, with pages.
    Pages,
    /// The index under the referrers tag.
    Tag,
}

struct Positions {
    fixture: Fixture,
    source: Source,
    pinned: PinnedReference,
    manifest: Manifest,
    place: Place,
    good: Value,
    foreign: Vec<Value>,
}

impl Positions {
    async fn new(place: Place) -> Self {
        let fixture = Fixture::new().await;
        let source = fixture.registry.source();
        let pinned = fixture.gather_pin().await;
        let manifest = source.manifest(&pinned).await.unwrap();
        let good = match place {
            Place::Legacy => {
                let good = Legacy::sign(&fixture.key, &fixture.payload());
                fixture.registry.put_signature(&good)
            }
            Place::Pages | Place::Tag => {
                let good = fixture.bare(&fixture.statement()).to_string();
                fixture
                    .registry
                    .put_referrer(&fixture.digest, good.as_bytes(), |_| {})
            }
        };
        let foreign = |number| match place {
            Place::Legacy => foreign_layer(&fixture, number),
            Place::Pages | Place::Tag => foreign_referrer(&fixture, number),
        };
        let foreign = (1..SIGNATURES).map(foreign).collect();
        Self {
            source,
            pinned,
            manifest,
            place,
            good,
            foreign,
            fixture,
        }
    }

    fn kinds(&self) -> Vec<Malformed> {
        match self.place {
            Place::Legacy => layers(&self.fixture),
            Place::Pages | Place::Tag => referrers(&self.fixture),
        }
    }

    /// The list, and no other.
    fn put(&self, entries: &[Value]) {
        let (registry, digest) = (&self.fixture.registry, &self.fixture.digest);
        let index = |entries: &[Value]| {
            let kind = media_type::OCI_INDEX;
            json!({"schemaVersion": 2, "mediaType": kind, "manifests": entries}).to_string()
        };
        match self.place {
            Place::Legacy => registry.put_signature_image(digest, entries),
            Place::Tag => {
                let tag = format!("manifests/sha256-{}", digest.hex());
                registry.put(&tag, media_type::OCI_INDEX, index(entries));
            }
            Place::Pages => {
                let path = |page: usize| match page {
                    0 => format!("referrers/{digest}"),
                    _ => format!("referrers/{digest}?page={page}"),
                };
                let pages: Vec<_> = entries.chunks(PAGE).collect();
                registry.unlink();
                for (number, page) in pages.iter().enumerate() {
                    registry.put(&path(number), media_type::OCI_INDEX, index(page));
                    if number + 1 < pages.len() {
                        registry.link(&path(number), &path(number + 1));
                    }
                }
            }
        }
    }

    /// Collects and verifies; with the number of requests.
    async fn verify(&self, what: &str) -> (Result<(), VerificationError>, Report, usize) {
        let asked = || self.fixture.registry.count();
        let before = asked();
        let evidence = verify::collect(&self.source, &self.pinned, 8 << 20).await;
        let evidence = evidence.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(
            evidence.unavailable().is_none(),
            "{what}: {:?}",
            evidence.unavailable()
        );
        let requests = asked() - before;
        let (verdict, report) = Verified::verify_with_report(
            &self.fixture.trusts_key(),
            &self.pinned,
            self.manifest.clone(),
            &evidence,
            VerificationContext::now(),
        );
        (verdict.map(drop), report, requests)
    }

    /// One list with the malformed piece at each position, and one without the good signature.
    async fn check(&self, (what, malformed): &Malformed, number: usize) -> usize {
        let mut signatures = self.foreign.clone();
        signatures.insert(number % SIGNATURES, self.good.clone());
        let mut most = 0;
        for position in 0..=SIGNATURES {
            let what = format!("{what}, at {position}");
            let mut entries = signatures.clone();
            entries.insert(position, malformed.clone());
            self.put(&entries);
            let (verdict, report, requests) = self.verify(&what).await;
            if let Err(error) = verdict {
                panic!("{what}: {error}\n{report:#?}\n{malformed:#}");
            }
            most = most.max(requests);
            // A manifest and a blob for each entry, the malformed one included.
            let bound = LISTS + 2 * (SIGNATURES + 1);
            assert!(requests <= bound, "{what}: {requests} requests");
        }
        let mut foreign = self.foreign.clone();
        foreign.insert(number % SIGNATURES, malformed.clone());
        self.put(&foreign);
        let (verdict, report, _) = self.verify(what).await;
        assert!(verdict.is_err(), "{what} counts: {report:#?}");
        most
    }

    async fn check_all(self) {
        let (kinds, began, before) = (self.kinds(), Instant::now(), self.fixture.registry.count());
        let mut most = 0;
        for (number, kind) in kinds.iter().enumerate() {
            most = most.max(self.check(kind, number).await);
        }
        println!(
            "{:?}: {} kinds at {} positions: {} requests, at most {most} for a list, {:?}",
            self.place,
            kinds.len(),
            SIGNATURES + 1,
            self.fixture.registry.count() - before,
            began.elapsed()
        );
        // All of them at once, before the good one.
        let mut entries: Vec<_> = kinds.iter().map(|(_, entry)| entry.clone()).collect();
        entries.push(self.good.clone());
        self.put(&entries);
        let began = Instant::now();
        let (verdict, report, requests) = self.verify("all kinds").await;
        println!("all at once: {requests} requests, {:?}", began.elapsed());
        if let Err(error) = verdict {
            panic!("all kinds: {error}\n{report:#?}");
        }
        let pages = entries.len().div_ceil(PAGE);
        assert!(
            requests <= LISTS + pages + 2 * entries.len(),
            "{requests} requests"
        );
    }
}

#[tokio::test]
async fn one_malformed_layer_of_each_kind_at_every_position_of_the_sig_image_hides_nothing() {
    Positions::new(Place::Legacy).await.check_all().await;
}

#[tokio::test]
async fn one_malformed_referrer_of_each_kind_at_every_position_of_the_pages_hides_nothing() {
    Positions::new(Place::Pages).await.check_all().await;
}

#[tokio::test]
async fn one_malformed_referrer_of_each_kind_at_every_position_of_the_tag_hides_nothing() {
    Positions::new(Place::Tag).await.check_all().await;
}

/// With signatures of their own, by a key that nobody trusts, on pages of a hundred.
#[tokio::test]
async fn four_thousand_foreign_referrers_cost_two_requests_each_and_hide_nothing() {
    const FOREIGN: usize = 4000;
    let fixture = Fixture::new().await;
    let key = Key::p256();
    let mut entries = Vec::new();
    for number in 0..FOREIGN {
        let mut statement = fixture.statement();
        statement["predicate"]["number"] = number.into();
        let envelope = Envelope::sign(&key, &statement);
        let text = envelope.bundle(By::Key(&key), &[], &[]).to_string();
        entries.push(
            fixture
                .registry
                .put_referrer(&fixture.digest, text.as_bytes(), |_| {}),
        );
    }
    let good = fixture.bare(&fixture.statement()).to_string();
    let good = fixture
        .registry
        .put_referrer(&fixture.digest, good.as_bytes(), |_| {});
    entries.push(good);
    let path = |page: usize| match page {
        0 => format!("referrers/{}", fixture.digest),
        _ => format!("referrers/{}?page={page}", fixture.digest),
    };
    let pages: Vec<_> = entries.chunks(100).collect();
    for (number, page) in pages.iter().enumerate() {
        let kind = media_type::OCI_INDEX;
        let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": page}).to_string();
        fixture.registry.put(&path(number), kind, index);
        if number + 1 < pages.len() {
            fixture.registry.link(&path(number), &path(number + 1));
        }
    }
    let (began, before) = (Instant::now(), fixture.registry.count());
    let outcome = fixture.verify(&fixture.trusts_key()).await;
    let requests = fixture.registry.count() - before;
    println!(
        "{FOREIGN} foreign referrers: {requests} requests, {:?}",
        began.elapsed()
    );
    assert_eq!(outcome.report.signatures.len(), FOREIGN + 1);
    outcome.accepted();
    // A manifest and a bundle each; the tag, the artifact, and the lists.
    assert!(
        requests <= 2 * (FOREIGN + 1) + pages.len() + 4,
        "{requests} requests"
    );
}

#[tokio::test]
async fn a_thousand_foreign_layers_with_payloads_of_their_own_cost_a_request_each() {
    const FOREIGN: usize = 1000;
    let fixture = Fixture::new().await;
    let mut layers: Vec<_> = (0..FOREIGN)
        .map(|number| foreign_layer(&fixture, number))
        .collect();
    let good = Legacy::sign(&fixture.key, &fixture.payload());
    layers.push(fixture.registry.put_signature(&good));
    fixture
        .registry
        .put_signature_image(&fixture.digest, &layers);
    let (began, before) = (Instant::now(), fixture.registry.count());
    let outcome = fixture.verify(&fixture.trusts_key()).await;
    let requests = fixture.registry.count() - before;
    println!(
        "{FOREIGN} foreign layers: {requests} requests, {:?}",
        began.elapsed()
    );
    assert_eq!(outcome.report.signatures.len(), FOREIGN + 1);
    outcome.accepted();
    assert!(requests <= FOREIGN + 1 + 6, "{requests} requests");
}
