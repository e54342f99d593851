//! Checks bundles with one `opa` and one set of options.

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
    sandbox::{self, Deadline, Output, Unavailable},
    scratch::{BUNDLE, CAPABILITIES, Scratch},
};
use crate::oci::Blob;

/// Concurrent checks: each may take one CPU and up to 2 GiB of memory.
const MAX_CONCURRENT: usize = 2;

/// The maximum number of failed tests whose failing expression is determined.
const MAX_EXPLAINED: usize = 10;

/// The options of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The program; a name without `/` is searched in `PATH`.
    pub program: PathBuf,
    /// Whether the tests in the bundle must pass as well. A bundle without tests passes.
    pub tests: bool,
    /// The timeout of one check, tests included.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            program: "opa".into(),
            tests: false,
            timeout: Duration::from_secs(30),
        }
    }
}

/// Creates checkers, which share their programs and the limit of concurrent checks.
#[derive(Debug)]
pub struct Checkers {
    programs: HashMap<PathBuf, Arc<Program>>,
    permits: Arc<Semaphore>,
}

/// Checks bundles. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Checker {
    program: Arc<Program>,
    permits: Arc<Semaphore>,
    tests: bool,
    timeout: Duration,
}

impl Default for Checkers {
    fn default() -> Self {
        Self {
            programs: HashMap::new(),
            permits: Arc::new(Semaphore::new(MAX_CONCURRENT)),
        }
    }
}

impl Checkers {
    /// Creates a checker. The first one for a program runs it for its version and capabilities.
    ///
    /// # Errors
    /// When the program is missing, does not work as `opa`, or is older than 1.0.
    pub async fn start(&mut self, options: &Options) -> Result<Checker, StartError> {
        let missing = || StartError::Missing {
            program: options.program.clone(),
        };
        let path = program::find(&options.program).ok_or_else(missing)?;
        let program = match self.programs.get(&path) {
            Some(program) => Arc::clone(program),
            None => {
                let program = Arc::new(Program::start(path.clone(), options.timeout).await?);
                self.programs.insert(path, Arc::clone(&program));
                program
            }
        };
        let permits = Arc::clone(&self.permits);
        Ok(Checker {
            program,
            permits,
            tests: options.tests,
            timeout: options.timeout,
        })
    }
}

/// The result of running the tests of a bundle.
#[derive(Debug)]
pub enum TestOutcome {
    /// The bundle, or a test in it, does not compile.
    NotLoaded(Problems),
    /// The tests ran.
    Ran(TestRun),
}

impl Checker {
    /// The program that is on disk now.
    ///
    /// # Errors
    /// When it was replaced by a program that does not work as `opa` 1.0 or newer.
    pub async fn opa(&self) -> Result<Arc<Opa>, Unavailable> {
        self.program.current(self.timeout).await
    }

    #[cfg(test)]
    pub(super) fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The timeout of one check.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The options that a verdict depends on, as a short text. The timeout is not one of them: a
    /// check that runs into it gives no verdict.
    pub fn options_key(&self) -> &'static str {
        if self.tests { "load,tests" } else { "load" }
    }

    /// Checks whether a bundle loads and, if configured, whether its tests pass. At most two checks
    /// run concurrently; the time spent waiting for others does not count.
    ///
    /// # Errors
    /// When `opa` gives no verdict.
    pub async fn check(&self, opa: &Opa, bundle: &Blob) -> Result<Verdict, Unavailable> {
        let _permit = self.permit().await?;
        let deadline = Deadline::after(self.timeout);
        let scratch = Scratch::with_bundle(opa.capabilities(), bundle).await?;
        let run = Run {
            opa,
            folder: scratch.path(),
            deadline,
        };
        let verdict = match run.load().await? {
            Some(problems) => Verdict::Refused(problems),
            None if self.tests => run.test().await?.into_verdict(),
            None => Verdict::Passed { tests: 0 },
        };
        drop_in_background(scratch);
        opa.ensure_current().await?;
        Ok(verdict)
    }

    /// Runs the tests of a bundle, regardless of the options.
    ///
    /// # Errors
    /// When `opa` gives no result.
    pub async fn test(&self, opa: &Opa, bundle: &Blob) -> Result<TestOutcome, Unavailable> {
        let _permit = self.permit().await?;
        let deadline = Deadline::after(self.timeout);
        let scratch = Scratch::with_bundle(opa.capabilities(), bundle).await?;
        let run = Run {
            opa,
            folder: scratch.path(),
            deadline,
        };
        let tested = match run.load().await? {
            Some(problems) => TestOutcome::NotLoaded(problems),
            None => run.test().await?,
        };
        drop_in_background(scratch);
        Ok(tested)
    }

    /// The places of the expressions at which tests fail, by the full name of the test. Limited to
    /// the first tests, and to those whose trace names a place.
    pub async fn failing_places(
        &self,
        opa: &Opa,
        bundle: &Blob,
        tests: &[&str],
    ) -> HashMap<String, Place> {
        let Ok(_permit) = self.permit().await else {
            return HashMap::new();
        };
        let deadline = Deadline::after(self.timeout);
        let Ok(scratch) = Scratch::with_bundle(opa.capabilities(), bundle).await else {
            return HashMap::new();
        };
        let names: Vec<_> = tests
            .iter()
            .take(MAX_EXPLAINED)
            .map(|name| regex::escape(name))
            .collect();
        let run = Run {
            opa,
            folder: scratch.path(),
            deadline,
        };
        let output = run
            .opa_test(&[
                "--explain",
                "fails",
                "--run",
                &format!("^({})$", names.join("|")),
            ])
            .await;
        drop_in_background(scratch);
        output.map_or_else(
            |_| HashMap::new(),
            |output| report::failing_places(&output.stdout),
        )
    }

    async fn permit(&self) -> Result<tokio::sync::OwnedSemaphorePermit, Unavailable> {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        permit.map_err(|error| Unavailable::Internal(error.to_string()))
    }
}

impl TestOutcome {
    fn into_verdict(self) -> Verdict {
        match self {
            Self::NotLoaded(problems) => Verdict::Refused(problems),
            Self::Ran(run) => {
                let failures = run.failures.into_iter().map(|(_, problem)| problem);
                Problems::of(failures)
                    .map_or(Verdict::Passed { tests: run.passed }, Verdict::Refused)
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
    /// The problems that keep OPA from loading the bundle. `opa eval` activates it as a running OPA
    /// does (`bundle.Activate`) and prints errors as JSON; the query does not use the bundle.
    async fn load(&self) -> Result<Option<Problems>, Unavailable> {
        let output = self
            .opa(&[
                "eval",
                "--bundle",
                BUNDLE,
                "--capabilities",
                CAPABILITIES,
                "--format",
                "json",
                "true",
            ])
            .await?;
        match report::evaluation(output.status.success(), &output.stdout) {
            Some(Loaded::Yes) => Ok(None),
            Some(Loaded::No {
                only_types: true, ..
            }) if self.loads_without_schemas().await? => Ok(None),
            Some(Loaded::No { problems, .. }) => Ok(Some(problems)),
            None => Err(output.unreadable()),
        }
    }

    /// Whether a running OPA loads the bundle. `opa eval` also checks types by the schemas in
    /// annotations, which a running OPA ignores (1.22: `WithUseTypeCheckAnnotations` in `rego.go`,
    /// not in `runtime.go`), so OPA may still load a bundle with type errors. The prompt of `opa
    /// run` ends at once, because its input is empty.
    async fn loads_without_schemas(&self) -> Result<bool, Unavailable> {
        // All versions have this flag; it turns off the check for updates.
        Ok(self
            .opa(&[
                "run",
                "--disable-telemetry",
                // `opa eval` never verifies OPA's own signatures; here there are no keys either.
                "--skip-verify",
                "--bundle",
                BUNDLE,
            ])
            .await?
            .status
            .success())
    }

    /// Runs the tests of a bundle that loads.
    async fn test(&self) -> Result<TestOutcome, Unavailable> {
        let output = self.opa_test(&[]).await?;
        let tested = match output.status.code() {
            Some(0 | 2) => report::tests(&output.stdout).map(TestOutcome::Ran),
            Some(1) if output.stdout.is_empty() => {
                report::compile_errors(&output.stderr).map(TestOutcome::NotLoaded)
            }
            _ => None,
        };
        tested.ok_or_else(|| output.unreadable())
    }

    async fn opa_test(&self, further: &[&str]) -> Result<Output, Unavailable> {
        // The timeout of one test; OPA's default is five seconds.
        let timeout = format!("{}s", self.deadline.seconds());
        let arguments = [
            "test",
            "--bundle",
            BUNDLE,
            "--capabilities",
            CAPABILITIES,
            "--format",
            "json",
            "--timeout",
        ];
        self.opa(&[&arguments[..], &[&timeout], further].concat())
            .await
    }

    async fn opa(&self, arguments: &[&str]) -> Result<Output, Unavailable> {
        sandbox::run(self.opa.path(), arguments, self.folder, self.deadline).await
    }
}

/// Removes the folder on a blocking thread.
fn drop_in_background(scratch: Scratch) {
    tokio::task::spawn_blocking(move || drop(scratch));
}
