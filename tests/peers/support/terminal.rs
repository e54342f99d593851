//! A program at a terminal, and somebody who types.

use std::{
    io::{Read as _, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use super::{poll_until, program};

/// Gone when dropped; what was on the screen is shown if the test fails.
#[derive(Debug)]
pub(crate) struct Terminal {
    child: Child,
    screen: Arc<Mutex<String>>,
    seen: usize,
}

impl Terminal {
    /// Runs a shell's command line in `folder`, with bundlegate on the path and neither a
    /// password nor a place of the machine's own in the environment.
    pub(crate) fn running(line: &str, folder: &Path) -> Self {
        let bundlegate = Path::new(env!("CARGO_BIN_EXE_bundlegate"))
            .parent()
            .unwrap();
        let path = format!(
            "{}:{}",
            bundlegate.display(),
            std::env::var("PATH").unwrap()
        );
        let mut command = Command::new(program("script"));
        command
            .args(["--quiet", "--return", "--command", line, "/dev/null"])
            .current_dir(folder);
        // Where CI is set, a terminal counts as one with colours whatever TERM says.
        command
            .env("PATH", path)
            .env("HOME", folder)
            .env("TERM", "dumb")
            .env("NO_COLOR", "1");
        for setting in [
            "COSIGN_PASSWORD",
            "BUNDLEGATE_STORE",
            "XDG_DATA_HOME",
            "DOCKER_CONFIG",
        ] {
            command.env_remove(setting);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let screen = Arc::<Mutex<String>>::default();
        let (shown, mut stdout) = (Arc::clone(&screen), child.stdout.take().unwrap());
        thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = stdout.read(&mut piece) {
                let text = String::from_utf8_lossy(&piece[..length]);
                shown
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push_str(&text);
            }
        });
        Self {
            child,
            screen,
            seen: 0,
        }
    }

    /// Waits until `text` appears after everything that was waited for before.
    pub(crate) async fn shows(&mut self, text: &str) {
        let from = self.seen;
        let (at, _) = poll_until(text, async || self.screen()[from..].find(text)).await;
        self.seen = from + at + text.len();
    }

    pub(crate) fn type_in(&mut self, keys: &str) {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin
            .write_all(keys.as_bytes())
            .and_then(|()| stdin.flush())
            .unwrap();
    }

    /// The exit code of the program.
    pub(crate) async fn ended(&mut self) -> Option<i32> {
        poll_until("the end of the program", async || {
            self.child.try_wait().unwrap()
        })
        .await
        .0
        .code()
    }

    pub(crate) fn screen(&self) -> String {
        self.screen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("---- on the screen ----\n{}", self.screen());
        }
    }
}
