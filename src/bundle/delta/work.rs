//! The limits of computing one delta.

use std::cell::Cell;

use tokio::time::Instant;

use super::NoDelta;

/// How many bytes are processed between two looks at the clock.
const STEP_BYTES: u64 = 1 << 20;

/// The memory and the time that computing one delta may still take.
#[derive(Debug)]
pub(super) struct Work {
    /// In bytes, of texts that are in memory at the same time.
    memory: u64,
    used: Cell<u64>,
    deadline: Instant,
    unchecked: Cell<u64>,
}

impl Work {
    pub(super) fn new(memory: u64, deadline: Instant) -> Self {
        Self {
            memory,
            used: Cell::new(0),
            deadline,
            unchecked: Cell::new(0),
        }
    }

    /// Counts bytes that are kept until the delta is complete.
    ///
    /// # Errors
    /// When the memory is used up.
    pub(super) fn keep(&self, bytes: usize) -> Result<(), NoDelta> {
        let used = self.used.get().saturating_add(bytes as u64);
        self.used.set(used);
        if used > self.memory {
            return Err(NoDelta::Memory);
        }
        self.process(bytes)
    }

    /// Counts bytes that are not kept any more.
    pub(super) fn release(&self, bytes: usize) {
        self.used.set(self.used.get().saturating_sub(bytes as u64));
    }

    /// Counts bytes that are read or copied.
    ///
    /// # Errors
    /// When the time is over.
    pub(super) fn process(&self, bytes: usize) -> Result<(), NoDelta> {
        let unchecked = self.unchecked.get().saturating_add(bytes as u64);
        if unchecked < STEP_BYTES {
            self.unchecked.set(unchecked);
            return Ok(());
        }
        self.unchecked.set(0);
        if Instant::now() > self.deadline {
            return Err(NoDelta::Time);
        }
        Ok(())
    }
}
