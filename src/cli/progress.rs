//! Bars for blobs on their way, and a sign of life for other long work, on a terminal;
//! elsewhere nothing.

use std::{
    collections::HashMap,
    io::IsTerminal as _,
    sync::{LazyLock, Mutex, PoisonError},
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{
    oci::{Descriptor, Digest},
    registry::{BlobTransfer, Progress},
};

const LINE: &str = "{prefix} [{bar:30}] {bytes:>11}/{total_bytes:<11} {bytes_per_sec:>13} {msg}";
const DONE: &str = "{prefix} {total_bytes:>11} {msg}";
const WORKING: &str = "{spinner} {msg} {elapsed}";
const TURN: Duration = Duration::from_millis(200);
/// A blob that is over in an instant needs no bar.
const LEAST: u64 = 1 << 20;

/// Where everything is drawn: a line that is written meanwhile has to know of it.
static SCREEN: LazyLock<MultiProgress> = LazyLock::new(|| {
    MultiProgress::with_draw_target(match std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    })
});

/// Takes bars and spinners off the screen while `write` writes to it.
pub(super) fn hidden(write: impl FnOnce()) {
    SCREEN.suspend(write);
}

/// A bar for each large blob.
#[derive(Debug)]
pub(super) struct Bars {
    screen: MultiProgress,
    bars: Mutex<HashMap<Digest, ProgressBar>>,
}

impl Bars {
    /// On stderr, if that is a terminal.
    pub(super) fn new() -> Self {
        Self { screen: SCREEN.clone(), bars: Mutex::default() }
    }

    fn bar(&self, blob: &Descriptor) -> ProgressBar {
        let mut bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = bars.entry(blob.digest.clone()).or_insert_with(|| {
            let bar = self.screen.add(ProgressBar::new(blob.size).with_style(style(LINE)));
            bar.with_prefix(blob.digest.hex()[..12].to_owned())
        });
        bar.clone()
    }
}

/// Turns while something goes on whose end is not known; goes away with the value.
#[derive(Debug)]
pub(super) struct Working(ProgressBar);

impl Working {
    /// On stderr, if that is a terminal.
    pub(super) fn on(what: &str) -> Self {
        let bar = ProgressBar::new_spinner().with_style(style(WORKING)).with_message(what.to_owned());
        let bar = SCREEN.add(bar);
        bar.enable_steady_tick(TURN);
        Self(bar)
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.finish_and_clear();
        SCREEN.remove(&self.0);
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

impl Progress for Bars {
    fn update(&self, blob: &Descriptor, done: u64) {
        if blob.size >= LEAST {
            self.bar(blob).set_position(done);
        }
    }

    fn finished(&self, blob: &Descriptor, how: BlobTransfer) {
        if blob.size < LEAST {
            return;
        }
        let bar = self.bar(blob);
        bar.set_style(style(DONE));
        bar.finish_with_message(match how {
            BlobTransfer::Sent => "done",
            BlobTransfer::Present => "already there",
            BlobTransfer::Mounted => "taken over from another repository",
        });
    }
}
