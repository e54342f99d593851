//! Progress bars for blob transfers and a spinner for other long work. Drawn only on a terminal.

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

const BAR_TEMPLATE: &str =
    "{prefix} [{bar:30}] {bytes:>11}/{total_bytes:<11} {bytes_per_sec:>13} {msg}";
const FINISHED_TEMPLATE: &str = "{prefix} {total_bytes:>11} {msg}";
const SPINNER_TEMPLATE: &str = "{spinner} {msg} {elapsed}";
const TICK_INTERVAL: Duration = Duration::from_millis(200);
/// The minimum size of a blob with a bar, in bytes.
const MIN_BAR_BYTES: u64 = 1 << 20;

/// Draws all bars and spinners, and hides them while other lines are printed.
static DISPLAY: LazyLock<MultiProgress> = LazyLock::new(|| {
    MultiProgress::with_draw_target(match std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    })
});

/// Hides bars and spinners while `write` runs.
pub(super) fn suspend(write: impl FnOnce()) {
    DISPLAY.suspend(write);
}

/// Progress bars, one for each large blob.
#[derive(Debug)]
pub(super) struct Bars {
    display: MultiProgress,
    bars: Mutex<HashMap<Digest, ProgressBar>>,
}

impl Bars {
    /// Bars on stderr, if it is a terminal.
    pub(super) fn new() -> Self {
        Self {
            display: DISPLAY.clone(),
            bars: Mutex::default(),
        }
    }

    fn bar(&self, blob: &Descriptor) -> ProgressBar {
        let mut bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = bars.entry(blob.digest.clone()).or_insert_with(|| {
            let bar = self
                .display
                .add(ProgressBar::new(blob.size).with_style(style(BAR_TEMPLATE)));
            bar.with_prefix(blob.digest.hex()[..12].to_owned())
        });
        bar.clone()
    }
}

/// A spinner for work of unknown length; removed on drop.
#[derive(Debug)]
pub(super) struct Spinner(ProgressBar);

impl Spinner {
    /// A spinner on stderr, if it is a terminal. `what` names the work.
    pub(super) fn on(what: &str) -> Self {
        let bar = ProgressBar::new_spinner()
            .with_style(style(SPINNER_TEMPLATE))
            .with_message(what.to_owned());
        let bar = DISPLAY.add(bar);
        bar.enable_steady_tick(TICK_INTERVAL);
        Self(bar)
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.0.finish_and_clear();
        DISPLAY.remove(&self.0);
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

impl Progress for Bars {
    fn update(&self, blob: &Descriptor, done: u64) {
        if blob.size >= MIN_BAR_BYTES {
            self.bar(blob).set_position(done);
        }
    }

    fn finished(&self, blob: &Descriptor, how: BlobTransfer) {
        if blob.size < MIN_BAR_BYTES {
            return;
        }
        let bar = self.bar(blob);
        bar.set_style(style(FINISHED_TEMPLATE));
        bar.finish_with_message(match how {
            BlobTransfer::Sent => "done",
            BlobTransfer::Present => "already exists",
            BlobTransfer::Mounted => "mounted from another repository",
        });
    }
}
