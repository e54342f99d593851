//! A program that runs beside the test and ends with it.

use std::{
    io::{BufRead as _, BufReader, Read},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use super::poll_until;

/// A running program, which is killed when this is dropped. Its output is shown if the test fails.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    output: Arc<Mutex<String>>,
}

impl Process {
    pub(crate) fn start(name: &str, command: &mut Command) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let output = Arc::default();
        collect(child.stdout.take().unwrap(), &output);
        collect(child.stderr.take().unwrap(), &output);
        Self {
            name: name.to_owned(),
            child,
            output,
        }
    }

    /// Everything that the program wrote so far, on either stream.
    pub(crate) fn log(&self) -> String {
        self.output
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits for a line for which `find` returns a value, and returns that value, or `None` if the
    /// program ends first.
    pub(crate) async fn try_line<T>(&mut self, find: impl Fn(&str) -> Option<T>) -> Option<T> {
        let name = self.name.clone();
        let (found, _) = poll_until(&format!("a line of {name}"), async || {
            // The end is checked before the log is read, because output before the end counts.
            let ended = self.has_ended();
            let found = self.log().lines().find_map(&find);
            (found.is_some() || ended).then_some(found)
        })
        .await;
        found
    }

    /// Like [`Self::try_line`], but fails the test if the program ends first.
    pub(crate) async fn line<T>(&mut self, find: impl Fn(&str) -> Option<T>) -> T {
        let found = self.try_line(find).await;
        found.unwrap_or_else(|| panic!("{} ended early", self.name))
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Sends SIGKILL and waits until the process has ended.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends a signal by its name, such as `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let line = format!("kill -{name} {}", self.child.id());
        assert!(
            Command::new("sh")
                .args(["-c", &line])
                .status()
                .unwrap()
                .success(),
            "{line}"
        );
    }

    /// Waits until the program ends by itself.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let name = self.name.clone();
        poll_until(&format!("the end of {name}"), async || {
            self.child.try_wait().unwrap()
        })
        .await
        .0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("---- {} ----\n{}", self.name, self.log());
        }
    }
}

fn collect(stream: impl Read + Send + 'static, output: &Arc<Mutex<String>>) {
    let output = Arc::clone(output);
    thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        while stream
            .read_until(b'\n', &mut line)
            .is_ok_and(|length| length > 0)
        {
            output
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push_str(&String::from_utf8_lossy(&line));
            line.clear();
        }
    });
}
