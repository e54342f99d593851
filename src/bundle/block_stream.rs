//! A stream in blocks of one size, which several threads can read at the same time.

use std::{
    io::{self, Read, Write},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
};

use bytes::Bytes;

/// The size of every block but the last.
pub(super) const BLOCK_BYTES: usize = 512 << 10;
/// The number of blocks that a slow reader may have in front of it.
const QUEUED_BLOCKS: usize = 2;

/// Cuts a stream into blocks. Passes each to `sink` and to all readers; waits for the slowest of
/// them.
pub(super) struct BlockWriter<S> {
    /// The block that is being filled.
    block: Vec<u8>,
    readers: Vec<SyncSender<Bytes>>,
    sink: S,
}

/// Receives the blocks of a stream, all but the last one as soon as they are full.
pub(super) trait BlockSink {
    /// Takes a block of [`BLOCK_BYTES`], which others follow.
    fn add(&mut self, block: Bytes) -> io::Result<()>;
}

impl<S: BlockSink> BlockWriter<S> {
    pub(super) fn new(sink: S, readers: Vec<SyncSender<Bytes>>) -> Self {
        Self {
            block: Vec::new(),
            readers,
            sink,
        }
    }

    /// Ends the stream for the readers. Returns the sink and the last block, which may be empty.
    pub(super) fn finish(mut self) -> (S, Bytes) {
        let last = self.next_block();
        (self.sink, last)
    }

    fn next_block(&mut self) -> Bytes {
        let block = Bytes::from(std::mem::take(&mut self.block));
        // A reader that is gone has found what it looked for.
        self.readers
            .retain(|reader| reader.send(block.clone()).is_ok());
        block
    }
}

impl<S: BlockSink> Write for BlockWriter<S> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        // The last block is known only when nothing follows it, so a full one waits.
        if self.block.len() == BLOCK_BYTES && !piece.is_empty() {
            let block = self.next_block();
            self.sink.add(block)?;
        }
        if self.block.is_empty() {
            self.block.reserve_exact(BLOCK_BYTES);
        }
        let count = piece.len().min(BLOCK_BYTES - self.block.len());
        self.block.extend_from_slice(&piece[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads the stream from another thread. Dropped before the end, it no longer slows the writer.
#[derive(Debug)]
pub(super) struct BlockReader {
    blocks: Receiver<Bytes>,
    /// The unread rest of the current block.
    block: Bytes,
}

/// A reader, and the sender for its [`BlockWriter`].
pub(super) fn block_reader() -> (SyncSender<Bytes>, BlockReader) {
    let (sender, blocks) = sync_channel(QUEUED_BLOCKS);
    let block = Bytes::new();
    (sender, BlockReader { blocks, block })
}

impl Read for BlockReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.block.is_empty() {
            match self.blocks.recv() {
                Ok(block) => self.block = block,
                Err(_) => return Ok(0),
            }
        }
        let count = buffer.len().min(self.block.len());
        buffer[..count].copy_from_slice(&self.block.split_to(count));
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[derive(Default)]
    struct Collected(Vec<Bytes>);

    impl BlockSink for Collected {
        fn add(&mut self, block: Bytes) -> io::Result<()> {
            self.0.push(block);
            Ok(())
        }
    }

    #[test]
    fn all_readers_get_the_whole_stream_and_the_sink_gets_full_blocks() {
        for length in [0, 1, BLOCK_BYTES, BLOCK_BYTES + 1, 5 * BLOCK_BYTES] {
            let stream: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let (one, mut first) = block_reader();
            let (two, mut second) = block_reader();
            let (early, dropped) = block_reader();
            drop(dropped);
            let read = |reader: &mut BlockReader| {
                let mut whole = Vec::new();
                reader.read_to_end(&mut whole).map(|_| whole).unwrap()
            };
            thread::scope(|scope| {
                let first = scope.spawn(move || read(&mut first));
                let second = scope.spawn(move || read(&mut second));
                let mut writer = BlockWriter::new(Collected::default(), vec![one, early, two]);
                for piece in stream.chunks(1000) {
                    writer.write_all(piece).unwrap();
                }
                let (Collected(mut blocks), last) = writer.finish();
                assert!(blocks.iter().all(|block| block.len() == BLOCK_BYTES));
                assert!(last.len() <= BLOCK_BYTES && last.is_empty() == stream.is_empty());
                blocks.push(last);
                assert!(blocks.concat() == stream);
                assert!(first.join().unwrap() == stream && second.join().unwrap() == stream);
            });
        }
    }
}
