//! A registry, a gateway with a cache, its clients, and what is pushed.

use std::{fs::File, sync::Arc, time::Duration};

use bundlegate::{
    oci::media_type, publish::OnMissing, registry::Credentials, store, watch::WatchOptions,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::{Instant, sleep},
};

use super::{
    clients::{FIRST_WAIT, Kind, Live, Shared, ask, inspect, status},
    model::{BUNDLES, Version},
    schedule::{LAYER, Push, Step},
};
use crate::{
    attacks::{keyed, policy},
    faulty::{FaultyRegistry, Ranges},
    forge::Key,
    gateway::{self, InProcess, Setup, TestGateway},
    quirks::faults::{Signed, sign},
};

/// Sixteen intervals: within this time after the last fault the current version is served. A request
/// that a fault has slowed down lasts for 300 s at most (`timeouts.total`), and after a refusal the
/// next check comes after four intervals.
const RECOVERY: Duration = Duration::from_secs(480);

/// The options of a [`World`].
#[derive(Debug)]
pub(super) struct Options {
    pub(super) referrers_api: bool,
    pub(super) poll: Duration,
    /// The time between two requests of a client.
    pub(super) pause: Duration,
    pub(super) credentials: Option<Credentials>,
}

pub(super) struct World {
    pub(super) registry: FaultyRegistry,
    pub(super) shared: Arc<Shared>,
    /// Used from the next start of the gateway on.
    pub(super) options: Options,
    trusted: Key,
    other: Key,
    cache: TempDir,
    gateway: Option<TestGateway<InProcess>>,
    pushes: usize,
    clients: JoinSet<()>,
    /// The longest time that it took to be up to date after a fault.
    pub(super) recovery: Duration,
}

impl World {
    /// A gateway that serves the first two bundles; the third one has no tag yet.
    pub(super) async fn start(registry: FaultyRegistry, options: Options) -> Self {
        registry.serve_ranges(Ranges::Served);
        let mut world = Self {
            registry,
            shared: Shared::new(),
            options,
            trusted: Key::p256(),
            other: Key::p256(),
            cache: TempDir::new().unwrap(),
            gateway: None,
            pushes: 0,
            clients: JoinSet::new(),
            recovery: Duration::ZERO,
        };
        for bundle in 0..2 {
            world.push(bundle, Push::Good, Signed::Legacy);
        }
        world.start_gateway().await;
        for bundle in 0..BUNDLES.len() {
            for kind in [Kind::Plain, Kind::Conditional, Kind::Behind, Kind::LongPoll] {
                let pause = world.options.pause;
                world
                    .clients
                    .spawn(ask(Arc::clone(&world.shared), bundle, kind, pause));
            }
        }
        world.clients.spawn(inspect(Arc::clone(&world.shared)));
        world
    }

    pub(super) async fn apply(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Faults(faults) => {
                self.registry.heal();
                for one in faults {
                    self.registry.fail(one.part, one.times, one.fault.clone());
                }
            }
            Step::Heal => {
                self.registry.heal();
                self.recover(RECOVERY).await?;
            }
            Step::Push(bundle, push, signed) => self.push(*bundle, *push, *signed),
            Step::SignLater(bundle, signed) => self.sign_later(*bundle, *signed),
            Step::Repack(bundle, signed) => self.repack(*bundle, *signed),
            Step::PushAgain(bundle) => self.move_tag(*bundle, None),
            Step::MoveBack(bundle, number) => self.move_back(*bundle, *number),
            Step::DeleteTag(bundle) => {
                self.registry
                    .remove(&format!("manifests/{}", BUNDLES[*bundle].1));
                self.shared.pushed()[*bundle].tag = None;
            }
            Step::Restart => self.restart().await,
        }
        Ok(())
    }

    pub(super) fn push(&mut self, bundle: usize, push: Push, signed: Signed) {
        self.pushes += 1;
        let text = format!("{} {}", BUNDLES[bundle].0, self.pushes);
        let body = match push {
            Push::Corrupt => text.into_bytes(),
            _ => gateway::bundle(&text),
        };
        let (manifest, layer) = self.registry.put_artifact("pushed", &body);
        let path = format!("blobs/{}", layer.digest);
        self.registry.put(&path, LAYER, body.clone());
        let version = Version::new(body, manifest, push != Push::Corrupt);
        let by = match push {
            Push::Unsigned => None,
            Push::WronglySigned => Some(false),
            Push::Good | Push::Corrupt => Some(true),
        };
        self.add(bundle, version, by, signed);
    }

    /// Signs a version, by the trusted key or by another one, and moves the tag to it.
    fn add(&mut self, bundle: usize, version: Version, by: Option<bool>, signed: Signed) {
        let manifest = version.manifest.clone();
        let index = {
            let pushed = &mut self.shared.pushed()[bundle];
            pushed.versions.push(version);
            pushed.versions.len() - 1
        };
        if self.options.referrers_api {
            self.registry.list_referrers(&manifest, &json!([]));
        }
        match by {
            None => {}
            Some(true) => self.sign(bundle, index, signed),
            Some(false) => sign(&self.registry, &self.other, &manifest, self.place(signed)),
        }
        self.move_tag(bundle, Some(index));
    }

    /// Where a signature can be at this registry.
    fn place(&self, signed: Signed) -> Signed {
        match signed {
            Signed::Listed if !self.options.referrers_api => Signed::Tagged,
            signed => signed,
        }
    }

    fn sign(&self, bundle: usize, version: usize, signed: Signed) {
        let manifest = {
            let version = &mut self.shared.pushed()[bundle].versions[version];
            version.signed = true;
            version.manifest.clone()
        };
        sign(&self.registry, &self.trusted, &manifest, self.place(signed));
    }

    fn sign_later(&self, bundle: usize, signed: Signed) {
        let tag = self.shared.pushed()[bundle].tag;
        if let Some(version) = tag {
            self.sign(bundle, version, signed);
        }
    }

    fn repack(&mut self, bundle: usize, signed: Signed) {
        let version = {
            let pushed = &self.shared.pushed()[bundle];
            pushed.tag.map(|tag| pushed.versions[tag].clone())
        };
        let Some(Version { body, opens, .. }) = version else {
            return;
        };
        self.pushes += 1;
        let number = self.pushes.to_string();
        let annotations = [("number", number.as_str())];
        let (manifest, _) = self.registry.put_annotated("pushed", &body, &annotations);
        self.add(
            bundle,
            Version::new(body, manifest, opens),
            Some(true),
            signed,
        );
    }

    fn move_back(&self, bundle: usize, number: usize) {
        let versions = {
            let pushed = &self.shared.pushed()[bundle];
            let all = 0..pushed.versions.len();
            all.filter(|index| pushed.versions[*index].may_be_served())
                .collect::<Vec<_>>()
        };
        if !versions.is_empty() {
            self.move_tag(bundle, Some(versions[number % versions.len()]));
        }
    }

    /// Moves the tag to a version; `None` for the one that it names.
    fn move_tag(&self, bundle: usize, version: Option<usize>) {
        let manifest = {
            let pushed = &mut self.shared.pushed()[bundle];
            let Some(version) = version.or(pushed.tag) else {
                return;
            };
            pushed.move_tag(version);
            pushed.versions[version].manifest.clone()
        };
        let (_, bytes) = self
            .registry
            .held(&format!("manifests/{manifest}"))
            .unwrap();
        let tag = format!("manifests/{}", BUNDLES[bundle].1);
        self.registry.put(&tag, media_type::OCI_MANIFEST, bytes);
    }

    async fn start_gateway(&mut self) {
        let [(name, tag), others @ ..] = &BUNDLES;
        let setup = Setup {
            name,
            tag,
            others,
            policy: policy([keyed(&self.trusted)]),
            rules: WatchOptions {
                poll: self.options.poll,
                confirm_within: Duration::from_secs(2),
                on_missing: OnMissing::Keep,
                max_stale: None,
                first_wait: FIRST_WAIT,
                is_staged: false,
            },
            cache: store::Options {
                directory: Some(self.cache.path().to_owned()),
                ..Setup::default().cache
            },
            credentials: self.options.credentials.clone(),
            ..Setup::default()
        };
        let gateway = TestGateway::with(&self.registry, setup).await;
        let live = Live {
            data: gateway.url.clone(),
            admin: format!("http://{}", gateway.admin),
            http: gateway.http.clone(),
            since: Instant::now(),
        };
        self.gateway = Some(gateway);
        self.shared.live.send_replace(Some(Arc::new(live)));
    }

    /// Ends the gateway as in a crash, and starts it with its cache.
    pub(super) async fn restart(&mut self) {
        self.shared.live.send_replace(None);
        if let Some(gateway) = self.gateway.take() {
            drop(gateway);
            let lock = File::open(self.cache.path().join(".lock")).unwrap();
            // In real time: writes that have begun are completed.
            spawn_blocking(move || lock.lock().unwrap()).await.unwrap();
        }
        self.start_gateway().await;
    }

    /// Waits until every bundle whose tag names a version that may be served is up to date.
    pub(super) async fn recover(&mut self, most: Duration) -> Result<(), String> {
        let began = Instant::now();
        loop {
            self.shared.verdict()?;
            let live = self.shared.running().await;
            let late = self.late(&status(&live).await?);
            if late.is_empty() {
                self.recovery = self.recovery.max(began.elapsed());
                return Ok(());
            }
            if began.elapsed() > most {
                return Err(format!("not up to date after {most:?}: {late:#?}"));
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    /// The entries of the bundles that are not up to date.
    fn late(&self, status: &Value) -> Vec<Value> {
        let pushed = self.shared.pushed();
        let mut late = Vec::new();
        for ((name, _), pushed) in BUNDLES.iter().zip(pushed.iter()) {
            let entry = &status[name];
            let is_current = pushed.due().is_none_or(|version| {
                entry["state"] == "serving"
                    && entry["manifest"] == version.manifest.to_string()
                    && entry["etag"] == version.etag
                    && entry["last_failure"].is_null()
            });
            if !is_current {
                late.push(entry.clone());
            }
        }
        late
    }

    /// Ends the faults, and checks everything once more.
    pub(super) async fn finish(&mut self) -> Result<(), String> {
        self.apply(&Step::Heal).await?;
        // The clients have got it.
        sleep(2 * self.options.pause).await;
        let ended = self.clients.try_join_next();
        assert!(ended.is_none(), "{ended:?}");
        self.shared.verdict()
    }
}
