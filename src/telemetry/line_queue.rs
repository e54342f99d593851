//! The queue of log lines before stderr. A thread of its own writes them, so that a terminal, a pipe
//! or a log collector that is slow to read delays no thread that serves clients.

use std::{
    io, mem,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use tracing::Metadata;
use tracing_subscriber::fmt::MakeWriter;

use super::ACCESS;

/// Bytes of lines that wait, with those of the access log and without. Further lines are dropped. The
/// access log has the smaller share, so that it never displaces other lines.
const MAX_ACCESS_BYTES: usize = 1 << 20;
const MAX_BYTES: usize = 2 << 20;

/// A queue of lines. Clones are one queue.
#[derive(Debug, Clone)]
pub(super) struct LineQueue(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    arrived: Condvar,
    written: Condvar,
    dropped: Dropped,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<u8>,
    is_writing: bool,
    is_waiting: bool,
}

/// The numbers of lines that were dropped, by log.
#[derive(Debug, Default)]
struct Dropped {
    access: AtomicU64,
    events: AtomicU64,
}

/// Adds lines to the queue.
#[derive(Debug)]
pub(super) struct LineWriter {
    queue: LineQueue,
    is_access: bool,
}

/// The number of log lines that were dropped, because stderr was read too slowly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DroppedLines {
    /// Lines of the access log.
    pub access: u64,
    /// All other lines.
    pub events: u64,
}

impl DroppedLines {
    fn total(self) -> u64 {
        self.access + self.events
    }
}

impl LineQueue {
    /// A queue whose lines are written to `output` by a thread. `report` is called on that thread,
    /// with the number of lines that were dropped since the last call, once there is room again.
    ///
    /// # Errors
    /// When the thread can't be started.
    pub(super) fn start(
        output: impl io::Write + Send + 'static,
        report: fn(u64),
    ) -> io::Result<Self> {
        let queue = Self(Arc::default());
        let writer = queue.clone();
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || writer.write_to(output, report))?;
        Ok(queue)
    }

    /// Waits until all lines are written, for at most `limit`.
    pub(super) fn flush(&self, limit: Duration) {
        let state = self.lock();
        let is_pending = |state: &mut State| state.is_writing || !state.lines.is_empty();
        // If it takes longer, the lines are lost.
        let _ = self.0.written.wait_timeout_while(state, limit, is_pending);
    }

    pub(super) fn dropped(&self) -> DroppedLines {
        let Dropped { access, events } = &self.0.dropped;
        DroppedLines {
            access: access.load(Ordering::Relaxed),
            events: events.load(Ordering::Relaxed),
        }
    }

    fn push(&self, line: &[u8], is_access: bool) {
        let dropped = &self.0.dropped;
        let (limit, dropped) = match is_access {
            true => (MAX_ACCESS_BYTES, &dropped.access),
            false => (MAX_BYTES, &dropped.events),
        };
        let mut state = self.lock();
        if state.lines.len() + line.len() > limit {
            drop(state);
            dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.lines.extend_from_slice(line);
        // Woken only if it waits, so that most lines take no system call.
        if mem::take(&mut state.is_waiting) {
            self.0.arrived.notify_one();
        }
    }

    fn write_to(&self, mut output: impl io::Write, report: fn(u64)) {
        let (mut batch, mut reported) = (Vec::new(), 0);
        loop {
            self.take(&mut batch);
            // There is no place to report that stderr is closed.
            let _ = output.write_all(&batch).and_then(|()| output.flush());
            batch.clear();
            let dropped = self.dropped().total();
            if dropped > reported {
                report(dropped - reported);
                reported = dropped;
            }
        }
    }

    /// Waits for lines, and takes all of them.
    fn take(&self, batch: &mut Vec<u8>) {
        let mut state = self.lock();
        state.is_writing = false;
        while state.lines.is_empty() {
            self.0.written.notify_all();
            state.is_waiting = true;
            let waiting = self.0.arrived.wait(state);
            state = waiting.unwrap_or_else(PoisonError::into_inner);
        }
        (state.is_waiting, state.is_writing) = (false, true);
        mem::swap(&mut state.lines, batch);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> MakeWriter<'a> for LineQueue {
    type Writer = LineWriter;

    fn make_writer(&'a self) -> LineWriter {
        LineWriter {
            queue: self.clone(),
            is_access: false,
        }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> LineWriter {
        LineWriter {
            queue: self.clone(),
            is_access: metadata.target() == ACCESS,
        }
    }
}

impl io::Write for LineWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.queue.push(line, self.is_access);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, sync::mpsc};

    use tokio::time::Instant;

    use super::*;

    /// An output that blocks until the test reads from it.
    struct Slow(mpsc::SyncSender<Vec<u8>>);

    impl io::Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn lines_are_written_in_their_order_and_a_flush_waits_for_them() {
        let (output, written) = mpsc::sync_channel(1000);
        let queue = LineQueue::start(Slow(output), |_| {}).unwrap();
        let mut expected = Vec::new();
        for number in 0..100 {
            let line = format!("{number}\n");
            queue.make_writer().write_all(line.as_bytes()).unwrap();
            expected.extend_from_slice(line.as_bytes());
        }
        queue.flush(LONG);
        assert_eq!(written.try_iter().flatten().collect::<Vec<_>>(), expected);
        assert_eq!(queue.dropped(), DroppedLines::default());
    }

    #[test]
    fn an_output_that_is_not_read_blocks_nobody_and_loses_counted_lines_only() {
        static REPORTED: AtomicU64 = AtomicU64::new(0);
        let (output, written) = mpsc::sync_channel(0);
        let queue = LineQueue::start(Slow(output), |dropped| {
            REPORTED.fetch_add(dropped, Ordering::Relaxed);
        })
        .unwrap();
        let line = [[b'x'; 1023].as_slice(), b"\n"].concat();
        let began = Instant::now();
        let pushed = 5000_u64;
        for _ in 0..pushed {
            queue.push(&line, true);
        }
        // Other lines have room that those of the access log can't take.
        queue.push(&line, false);
        assert!(began.elapsed() < LONG, "{:?}", began.elapsed());
        let dropped = queue.dropped();
        assert_eq!(dropped.events, 0);
        // One batch is being written, and another one waits.
        let limit = MAX_ACCESS_BYTES as u64 / 1024;
        assert!((pushed - 2 * limit..=pushed - limit).contains(&dropped.access));
        // A flush does not wait for ever either.
        queue.flush(Duration::from_millis(10));
        let mut lines = 0;
        while lines < pushed + 1 - dropped.access {
            lines += written.recv_timeout(LONG).unwrap().len() as u64 / 1024;
        }
        queue.flush(LONG);
        assert_eq!(queue.dropped(), dropped);
        // The thread reports after the write.
        while REPORTED.load(Ordering::Relaxed) < dropped.access {
            assert!(began.elapsed() < LONG);
            thread::yield_now();
        }
        assert_eq!(REPORTED.load(Ordering::Relaxed), dropped.access);
    }
}
