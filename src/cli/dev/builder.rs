//! From a folder to a signed artifact, again after every change.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::{
    runtime::Handle,
    sync::Notify,
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::{
    super::{
        diagnostics::{self, SourceErrors},
        opa::{lacks_wasm, located},
        table, tell, tell_more,
    },
    layout::Shelf,
    test_run,
};
use crate::{
    bundle::{Folder, Limits, PackError, PackOptions, Packed, Parse},
    opa_check::{Checker, Opa, Verdict},
    sign::KeyPair,
};

/// Editors write a file in several steps.
const SETTLE: Duration = Duration::from_millis(100);
/// How often a folder that was replaced as a whole is looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What a workshop works with.
#[derive(Debug)]
pub(super) struct Options {
    pub(super) policy: PathBuf,
    /// Whether Rego must be readable by our own parser.
    pub(super) parse: bool,
    pub(super) limits: Limits,
    pub(super) key: KeyPair,
    /// Where signed artifacts go.
    pub(super) layout: PathBuf,
    /// The real opa, where there is one.
    pub(super) checker: Option<Checker>,
}

/// A folder under watch, and where its artifacts go.
pub(super) struct Workshop {
    bench: Bench,
    watcher: RecommendedWatcher,
    changed: Arc<Notify>,
    /// The device and inode of the folder that is watched: a folder that replaces it sends
    /// no events.
    watched: Option<(u64, u64)>,
    /// What was said last about a build that failed.
    complaint: Option<String>,
    /// What was said last about the tests.
    tests: Vec<String>,
}

/// The part that blocks, and so travels between threads.
struct Bench {
    options: Options,
    shelf: Shelf,
}

struct Built {
    packed: Packed,
    /// Of the first Rego file.
    package: Option<String>,
    /// Whether it is another one than before.
    is_new: bool,
    /// What to say about the tests.
    tests: Vec<String>,
}

impl Workshop {
    /// Watches from now on, so that no edit falls between the first build and the first
    /// look.
    pub(super) fn open(options: Options) -> anyhow::Result<Self> {
        let changed = Arc::new(Notify::new());
        let notified = Arc::clone(&changed);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Our own reading makes events, too.
            if event.is_ok_and(|event| !event.kind.is_access()) {
                notified.notify_one();
            }
        })?;
        let shelf = Shelf::open(&options.layout)?;
        let mut workshop = Self {
            bench: Bench { options, shelf },
            watcher,
            changed,
            watched: None,
            complaint: None,
            tests: Vec::new(),
        };
        workshop.watch()?;
        Ok(workshop)
    }

    /// Builds for the first time; gives the package of the first Rego file.
    pub(super) async fn first_build(mut self) -> anyhow::Result<(Self, Option<String>)> {
        let (bench, built) = self.bench.build_elsewhere().await?;
        self.bench = bench;
        let built = built?;
        built.tell();
        self.tell_tests(&built);
        Ok((self, built.package))
    }

    /// Builds after every change, for ever. A build that fails leaves what is served.
    pub(super) async fn follow(mut self) -> anyhow::Result<()> {
        loop {
            self.next_change().await;
            let (bench, built) = self.bench.build_elsewhere().await?;
            self.bench = bench;
            match built {
                Ok(built) => {
                    if built.is_new || self.complaint.is_some() {
                        built.tell();
                    }
                    self.tell_tests(&built);
                    self.complaint = None;
                }
                Err(error) => {
                    let complaint = format!("{error:#}; the last good build is still served");
                    if self.complaint.as_ref() != Some(&complaint) {
                        tell(&complaint);
                        tell_more(&diagnostics::pictures(&error));
                    }
                    self.complaint = Some(complaint);
                }
            }
        }
    }

    /// After each new build, and when nothing but a test changed.
    fn tell_tests(&mut self, built: &Built) {
        if built.is_new || built.tests != self.tests {
            built.tests.iter().for_each(|line| tell(line));
            self.tests.clone_from(&built.tests);
        }
    }

    async fn next_change(&mut self) {
        loop {
            if timeout(LOOK_AGAIN, self.changed.notified()).await.is_ok() {
                return sleep(SETTLE).await;
            }
            if identity(&self.bench.options.policy) != self.watched {
                // What fails now is tried again, and the build says what is wrong.
                let _ = self.watch();
                return;
            }
        }
    }

    fn watch(&mut self) -> anyhow::Result<()> {
        let policy = &self.bench.options.policy;
        let _ = self.watcher.unwatch(policy);
        self.watched = identity(policy);
        self.watcher.watch(policy, RecursiveMode::Recursive).with_context(|| format!("watch {}", policy.display()))
    }
}

impl Bench {
    /// Builds off the async threads, where what blocks is done in between with opa's answers.
    async fn build_elsewhere(mut self) -> anyhow::Result<(Self, anyhow::Result<Built>)> {
        let runtime = Handle::current();
        Ok(spawn_blocking(move || {
            let built = self.build(&runtime);
            (self, built)
        })
        .await?)
    }

    fn build(&mut self, runtime: &Handle) -> anyhow::Result<Built> {
        let folder = Folder::read(&self.options.policy)?;
        let parse = if self.options.parse { Parse::Strictly } else { Parse::No };
        let options = PackOptions { parse, ..PackOptions::new(self.options.limits) };
        let packed = folder.pack(&options).map_err(with_way_out)?;
        let opa = runtime.block_on(self.load(&packed))?;
        let package = packed.modules.iter().find_map(|module| module.package.clone());
        let is_new = self.shelf.publish(&packed, &self.options.key)?;
        let tests = match (&self.options.checker, opa) {
            (Some(checker), Some(opa)) => {
                runtime.block_on(test_run::with_opa(checker, &opa, &self.options.policy, &packed))
            }
            _ => test_run::built_in(&folder, &options),
        };
        Ok(Built { packed, package, is_new, tests })
    }

    /// Lets opa load what was packed. Gives the opa, unless it gave no answer.
    async fn load(&self, packed: &Packed) -> anyhow::Result<Option<Arc<Opa>>> {
        let Some(checker) = &self.options.checker else { return Ok(None) };
        let opa = match checker.opa().await {
            Ok(opa) if lacks_wasm(&opa, &packed.bundle) => return Ok(None),
            Ok(opa) => opa,
            Err(error) => {
                tell(&format!("--opa: {error}; going on without it"));
                return Ok(None);
            }
        };
        match checker.check(&opa, packed.bundle.blob()).await {
            Ok(Verdict::Passed { .. }) => Ok(Some(opa)),
            Ok(Verdict::Refused(problems)) => {
                bail!("opa can't load it: {}", located(&problems, std::slice::from_ref(&self.options.policy)))
            }
            Err(error) => {
                tell(&format!("--opa: {error}; going on without it"));
                Ok(None)
            }
        }
    }
}

impl Built {
    fn tell(&self) {
        let (files, bundle) = (self.packed.files, &self.packed.bundle);
        tell(&format!(
            "built and signed revision {}: {files} files, {}",
            bundle.revision(),
            table::size(bundle.blob().size())
        ));
        if self.packed.modules.is_empty() {
            tell("no .rego file is left: OPA gets the data and no policy, and every decision is undefined");
        }
    }
}

fn with_way_out(error: PackError) -> anyhow::Error {
    SourceErrors::of(error, "if only the built-in parser can't read it, --no-parse serves it all the same")
}

fn identity(folder: &Path) -> Option<(u64, u64)> {
    fs::metadata(folder).ok().map(|folder| (folder.dev(), folder.ino()))
}
