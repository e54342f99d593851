//! Checking bundles with one `opa`, by one set of options.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::Semaphore;

use super::{
    program::{self, Opa, Program, StartError},
    report::{self, Loaded, Place, Problems, TestRun, Verdict},
    sandbox::{self, Deadline, Ended, Unavailable},
    scratch::{BUNDLE, CAPABILITIES, Scratch},
};
use crate::oci::Blob;

/// Checks at a time: each may take a processor and up to 2 GiB of memory.
const MAX_CONCURRENT: usize = 2;

/// Tests whose failing expression is looked for.
const MAX_EXPLAINED: usize = 10;

/// How bundles are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The program; a name without `/` is looked for in `PATH`.
    pub program: PathBuf,
    /// Whether the tests in the bundle have to pass as well. A bundle without tests passes.
    pub tests: bool,
    /// How long one check may take, its tests included.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { program: "opa".into(), tests: false, timeout: Duration::from_secs(30) }
    }
}

/// Makes checkers that share what they know of a program, and the number of checks at a time.
#[derive(Debug)]
pub struct Checkers {
    programs: HashMap<PathBuf, Arc<Program>>,
    turns: Arc<Semaphore>,
}

/// Checks bundles. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Checker {
    program: Arc<Program>,
    turns: Arc<Semaphore>,
    tests: bool,
    timeout: Duration,
}

impl Default for Checkers {
    fn default() -> Self {
        Self { programs: HashMap::new(), turns: Arc::new(Semaphore::new(MAX_CONCURRENT)) }
    }
}

impl Checkers {
    /// A checker; the first one of a program asks it for its version and capabilities.
    ///
    /// # Errors
    /// When there is no such program, it does not work as `opa`, or is older than 1.0.
    pub async fn start(&mut self, options: &Options) -> Result<Checker, StartError> {
        let missing = || StartError::Missing { program: options.program.clone() };
        let path = program::find(&options.program).ok_or_else(missing)?;
        let program = match self.programs.get(&path) {
            Some(program) => Arc::clone(program),
            None => {
                let program = Arc::new(Program::start(path.clone(), options.timeout).await?);
                self.programs.insert(path, Arc::clone(&program));
                program
            }
        };
        let turns = Arc::clone(&self.turns);
        Ok(Checker { program, turns, tests: options.tests, timeout: options.timeout })
    }
}

/// What became of tests.
#[derive(Debug)]
pub enum Tested {
    /// The bundle, or a test in it, does not load.
    NotLoaded(Problems),
    /// They were run.
    Ran(TestRun),
}

impl Checker {
    /// The program as it is on disk now.
    ///
    /// # Errors
    /// When it was replaced by something that does not work as `opa` 1.0 or newer.
    pub async fn opa(&self) -> Result<Arc<Opa>, Unavailable> {
        self.program.current(self.timeout).await
    }

    #[cfg(test)]
    pub(super) fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// How long one check may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// What a verdict depends on beside bundle and program, as a short text. The timeout is
    /// not among it: a check that runs into it gives no verdict.
    pub fn options_key(&self) -> &'static str {
        if self.tests { "load,tests" } else { "load" }
    }

    /// Checks a bundle: does it load, and, where wanted, do its tests pass? At most
    /// two checks run at a time; waiting for others does not count as time of this one.
    ///
    /// # Errors
    /// When `opa` gives no answer, which says nothing about the bundle.
    pub async fn check(&self, opa: &Opa, bundle: &Blob) -> Result<Verdict, Unavailable> {
        let _turn = self.turn().await?;
        let deadline = Deadline::after(self.timeout);
        let scratch = Scratch::with_bundle(opa, bundle).await?;
        let run = Run { opa, folder: scratch.path(), deadline };
        let verdict = match run.load().await? {
            Some(problems) => Verdict::Refused(problems),
            None if self.tests => run.test().await?.into_verdict(),
            None => Verdict::Passed { tests: 0 },
        };
        drop_elsewhere(scratch);
        opa.still_current().await?;
        Ok(verdict)
    }

    /// Runs the tests of a bundle, whatever the options say.
    ///
    /// # Errors
    /// When `opa` gives no answer.
    pub async fn test(&self, opa: &Opa, bundle: &Blob) -> Result<Tested, Unavailable> {
        let _turn = self.turn().await?;
        let deadline = Deadline::after(self.timeout);
        let scratch = Scratch::with_bundle(opa, bundle).await?;
        let run = Run { opa, folder: scratch.path(), deadline };
        let tested = match run.load().await? {
            Some(problems) => Tested::NotLoaded(problems),
            None => run.test().await?,
        };
        drop_elsewhere(scratch);
        Ok(tested)
    }

    /// Where tests of a bundle fail, as far as `opa` can say: by the full name of the test, the
    /// expression that had no answer. Of more than a few tests, those of the first.
    pub async fn failing_places(&self, opa: &Opa, bundle: &Blob, tests: &[&str]) -> HashMap<String, Place> {
        let Ok(_turn) = self.turn().await else { return HashMap::new() };
        let deadline = Deadline::after(self.timeout);
        let Ok(scratch) = Scratch::with_bundle(opa, bundle).await else { return HashMap::new() };
        let names: Vec<_> = tests.iter().take(MAX_EXPLAINED).map(|name| regex::escape(name)).collect();
        let run = Run { opa, folder: scratch.path(), deadline };
        let answer = run.opa_test(&["--explain", "fails", "--run", &format!("^({})$", names.join("|"))]).await;
        drop_elsewhere(scratch);
        answer.map_or_else(|_| HashMap::new(), |answer| report::failing_places(&answer.stdout))
    }

    async fn turn(&self) -> Result<tokio::sync::OwnedSemaphorePermit, Unavailable> {
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        turn.map_err(|error| Unavailable::Internal(error.to_string()))
    }
}

impl Tested {
    fn into_verdict(self) -> Verdict {
        match self {
            Self::NotLoaded(problems) => Verdict::Refused(problems),
            Self::Ran(run) => {
                let failures = run.failures.into_iter().map(|(_, problem)| problem);
                Problems::of(failures).map_or(Verdict::Passed { tests: run.passed }, Verdict::Refused)
            }
        }
    }
}

/// The commands of one check.
struct Run<'a> {
    opa: &'a Opa,
    folder: &'a Path,
    deadline: Deadline,
}

impl Run<'_> {
    /// What keeps OPA from loading the bundle. `opa eval` activates it as a running OPA does
    /// (`bundle.Activate`), and tells errors in JSON; the query needs nothing of it.
    async fn load(&self) -> Result<Option<Problems>, Unavailable> {
        let answer =
            self.opa(&["eval", "--bundle", BUNDLE, "--capabilities", CAPABILITIES, "--format", "json", "true"]).await?;
        match report::evaluation(answer.status.success(), &answer.stdout) {
            Some(Loaded::Yes) => Ok(None),
            Some(Loaded::No { only_types: true, .. }) if self.loads_without_schemas().await? => Ok(None),
            Some(Loaded::No { problems, .. }) => Ok(Some(problems)),
            None => Err(answer.unreadable()),
        }
    }

    /// `opa eval` checks types by the schemas in annotations, too, which a running OPA leaves
    /// aside (1.22: `WithUseTypeCheckAnnotations` in `rego.go`, not in `runtime.go`). What it
    /// does not like may load all the same. The prompt of `opa run` ends at once, for its input
    /// does.
    async fn loads_without_schemas(&self) -> Result<bool, Unavailable> {
        // The flag of all versions; what it turns off is a look for updates.
        Ok(self.opa(&["run", "--disable-telemetry", "--bundle", BUNDLE]).await?.status.success())
    }

    /// Runs the tests of a bundle that loads.
    async fn test(&self) -> Result<Tested, Unavailable> {
        let answer = self.opa_test(&[]).await?;
        let tested = match answer.status.code() {
            Some(0 | 2) => report::tests(&answer.stdout).map(Tested::Ran),
            Some(1) if answer.stdout.is_empty() => report::compile_errors(&answer.stderr).map(Tested::NotLoaded),
            _ => None,
        };
        tested.ok_or_else(|| answer.unreadable())
    }

    async fn opa_test(&self, further: &[&str]) -> Result<Ended, Unavailable> {
        // Of one test; without it OPA breaks a test off after five seconds.
        let timeout = format!("{}s", self.deadline.seconds());
        let arguments = ["test", "--bundle", BUNDLE, "--capabilities", CAPABILITIES, "--format", "json", "--timeout"];
        self.opa(&[&arguments[..], &[&timeout], further].concat()).await
    }

    async fn opa(&self, arguments: &[&str]) -> Result<Ended, Unavailable> {
        sandbox::run(self.opa.path(), arguments, self.folder, self.deadline).await
    }
}

/// Removing a folder blocks.
fn drop_elsewhere(scratch: Scratch) {
    tokio::task::spawn_blocking(move || drop(scratch));
}
