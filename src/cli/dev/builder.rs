//! Builds the policy folder into a signed artifact, again after every change.

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
        eprint, eprint_lines,
        opa::{describe_problems, lacks_wasm},
        table,
    },
    layout::DevLayout,
    test_run,
};
use crate::{
    bundle::{Folder, Limits, PackError, PackOptions, Packed, Parse},
    opa_check::{Checker, Opa, Verdict},
    sign::KeyPair,
};

/// Delay after an event before a build starts: editors write a file in several steps.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// The interval at which the identity of the folder is checked: a folder that replaces it sends no
/// events.
const IDENTITY_INTERVAL: Duration = Duration::from_secs(1);

/// The options of a builder.
#[derive(Debug)]
pub(super) struct Options {
    pub(super) policy: PathBuf,
    /// Whether the built-in parser must accept the Rego.
    pub(super) parse: bool,
    pub(super) limits: Limits,
    pub(super) key: KeyPair,
    /// The layout folder for signed artifacts.
    pub(super) layout: PathBuf,
    /// The opa that loads builds and runs tests, if there is one.
    pub(super) checker: Option<Checker>,
}

/// Watches a folder and builds it after every change.
pub(super) struct Builder {
    task: BuildTask,
    watcher: RecommendedWatcher,
    changed: Arc<Notify>,
    /// Device and inode of the watched folder.
    watched: Option<(u64, u64)>,
    /// The last printed build error; `None` after a successful build.
    last_error: Option<String>,
    /// The last printed test report.
    tests: Vec<String>,
}

/// The blocking part, which moves to a blocking thread and back.
struct BuildTask {
    options: Options,
    layout: DevLayout,
}

struct BuildResult {
    packed: Packed,
    /// The package of the first Rego file.
    package: Option<String>,
    /// Whether the artifact differs from the previous one.
    is_new: bool,
    /// The test report.
    tests: Vec<String>,
}

impl Builder {
    /// Starts watching, so that no edit is missed between the first build and the first event.
    pub(super) fn open(options: Options) -> anyhow::Result<Self> {
        let changed = Arc::new(Notify::new());
        let notified = Arc::clone(&changed);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading the files causes access events.
            if event.is_ok_and(|event| !event.kind.is_access()) {
                notified.notify_one();
            }
        })?;
        let layout = DevLayout::open(&options.layout)?;
        let mut builder = Self {
            task: BuildTask { options, layout },
            watcher,
            changed,
            watched: None,
            last_error: None,
            tests: Vec::new(),
        };
        builder.watch()?;
        Ok(builder)
    }

    /// Runs the first build. Returns the package of the first Rego file.
    pub(super) async fn first_build(mut self) -> anyhow::Result<(Self, Option<String>)> {
        let (task, built) = self.task.run().await?;
        self.task = task;
        let built = built?;
        built.report();
        self.report_tests(&built);
        Ok((self, built.package))
    }

    /// Builds after every change, without end. After a failed build the last good one stays.
    pub(super) async fn follow(mut self) -> anyhow::Result<()> {
        loop {
            self.next_change().await;
            let (task, built) = self.task.run().await?;
            self.task = task;
            match built {
                Ok(built) => {
                    if built.is_new || self.last_error.is_some() {
                        built.report();
                    }
                    self.report_tests(&built);
                    self.last_error = None;
                }
                Err(error) => {
                    let last_error = format!("{error:#}; the last good build is still served");
                    if self.last_error.as_ref() != Some(&last_error) {
                        eprint(&last_error);
                        eprint_lines(&diagnostics::source_excerpts(&error));
                    }
                    self.last_error = Some(last_error);
                }
            }
        }
    }

    /// Prints the test report after each new build, and when only the report changed.
    fn report_tests(&mut self, built: &BuildResult) {
        if built.is_new || built.tests != self.tests {
            built.tests.iter().for_each(|line| eprint(line));
            self.tests.clone_from(&built.tests);
        }
    }

    async fn next_change(&mut self) {
        loop {
            if timeout(IDENTITY_INTERVAL, self.changed.notified())
                .await
                .is_ok()
            {
                return sleep(DEBOUNCE).await;
            }
            if identity(&self.task.options.policy) != self.watched {
                // A failure is retried after the next interval, and the build reports the cause.
                let _ = self.watch();
                return;
            }
        }
    }

    fn watch(&mut self) -> anyhow::Result<()> {
        let policy = &self.task.options.policy;
        let _ = self.watcher.unwatch(policy);
        self.watched = identity(policy);
        self.watcher
            .watch(policy, RecursiveMode::Recursive)
            .with_context(|| format!("watch {}", policy.display()))
    }
}

impl BuildTask {
    /// Runs a build on a blocking thread, which waits for opa in between.
    async fn run(mut self) -> anyhow::Result<(Self, anyhow::Result<BuildResult>)> {
        let runtime = Handle::current();
        Ok(spawn_blocking(move || {
            let built = self.build(&runtime);
            (self, built)
        })
        .await?)
    }

    fn build(&mut self, runtime: &Handle) -> anyhow::Result<BuildResult> {
        let folder = Folder::read(&self.options.policy, &self.options.limits)?;
        let parse = if self.options.parse {
            Parse::Strictly
        } else {
            Parse::No
        };
        let options = PackOptions {
            parse,
            ..PackOptions::new(self.options.limits)
        };
        let packed = folder.pack(&options).map_err(with_hint)?;
        let opa = runtime.block_on(self.load(&packed))?;
        let package = packed
            .modules
            .iter()
            .find_map(|module| module.package.clone());
        let is_new = self.layout.publish(&packed, &self.options.key)?;
        let tests = match (&self.options.checker, opa) {
            (Some(checker), Some(opa)) => runtime.block_on(test_run::with_opa(
                checker,
                &opa,
                &self.options.policy,
                &packed,
            )),
            _ => test_run::built_in(&folder, &options),
        };
        Ok(BuildResult {
            packed,
            package,
            is_new,
            tests,
        })
    }

    /// Has opa load the packed bundle. Returns the opa, or `None` if it could not be run.
    async fn load(&self, packed: &Packed) -> anyhow::Result<Option<Arc<Opa>>> {
        let Some(checker) = &self.options.checker else {
            return Ok(None);
        };
        let opa = match checker.opa().await {
            Ok(opa) if lacks_wasm(&opa, &packed.bundle) => return Ok(None),
            Ok(opa) => opa,
            Err(error) => {
                eprint(&format!("--opa: {error}; continuing without it"));
                return Ok(None);
            }
        };
        match checker.check(&opa, packed.bundle.blob()).await {
            Ok(Verdict::Passed { .. }) => Ok(Some(opa)),
            Ok(Verdict::Refused(problems)) => {
                bail!(
                    "opa can't load the bundle: {}",
                    describe_problems(&problems, std::slice::from_ref(&self.options.policy))
                )
            }
            Err(error) => {
                eprint(&format!("--opa: {error}; continuing without it"));
                Ok(None)
            }
        }
    }
}

impl BuildResult {
    fn report(&self) {
        let (files, bundle) = (self.packed.files, &self.packed.bundle);
        eprint(&format!(
            "built and signed revision {}: {files} files, {}",
            bundle.revision(),
            table::size(bundle.blob().size())
        ));
        if self.packed.modules.is_empty() {
            eprint("no .rego file left: OPA gets only data, and every decision is undefined");
        }
    }
}

fn with_hint(error: PackError) -> anyhow::Error {
    SourceErrors::of(
        error,
        "if only the built-in parser can't read it, --no-parse serves it anyway",
    )
}

fn identity(folder: &Path) -> Option<(u64, u64)> {
    fs::metadata(folder)
        .ok()
        .map(|folder| (folder.dev(), folder.ino()))
}
