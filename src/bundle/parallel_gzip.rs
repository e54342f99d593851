//! Compresses a stream with gzip on several threads.
//!
//! The stream is cut into blocks. Each is compressed by itself, with the end of the block before it
//! as its dictionary, and ends at a byte boundary (an empty stored block, as pigz writes it). All of
//! them together are one ordinary gzip member. Neither the size of the blocks nor anything else
//! depends on the number of threads, so the same content always gives the same bytes.
//!
//! Measured on Rego and JSON, blocks make the output 0.03 % longer, and without dictionaries 1 %.

use std::{
    collections::VecDeque,
    io::{self, Write},
    num::NonZero,
    thread,
};

use bytes::Bytes;
use flate2::{Compress, Compression, Crc, FlushCompress, Status};

use super::block_stream::{BLOCK_BYTES, BlockSink};

/// The maximum distance of a match in deflate.
const DICTIONARY_BYTES: usize = 32 << 10;
/// The maximum number of threads. The thread that reads, hashes and writes feeds about this many;
/// each takes 1.5 MiB.
const MAX_THREADS: usize = 4;
/// The header without name and time: of an unknown system, and without a hint about the level.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// A gzip encoder. Blocks are added by [`BlockSink::add`], the last one by [`Self::finish`].
pub(super) struct ParallelGzip<W> {
    output: W,
    level: Compression,
    threads: usize,
    /// The blocks that are being compressed, in order.
    running: VecDeque<thread::JoinHandle<io::Result<Compressed>>>,
    /// The last block that was added.
    previous: Option<Bytes>,
    crc: Crc,
}

/// A block, compressed.
struct Compressed {
    bytes: Vec<u8>,
    crc: Crc,
}

impl<W: Write> ParallelGzip<W> {
    /// # Errors
    /// When `output` fails.
    pub(super) fn new(output: W, level: Compression) -> io::Result<Self> {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        Self::with_threads(output, level, cores.min(MAX_THREADS))
    }

    fn with_threads(mut output: W, level: Compression, threads: usize) -> io::Result<Self> {
        output.write_all(&HEADER)?;
        Ok(Self {
            output,
            level,
            threads,
            running: VecDeque::new(),
            previous: None,
            crc: Crc::new(),
        })
    }

    /// Compresses the last block, and returns the output.
    ///
    /// # Errors
    /// When the output fails.
    pub(super) fn finish(mut self, last: &Bytes) -> io::Result<W> {
        let previous = self.previous.take();
        // On this thread: most bundles have one block.
        let last = compress(self.level, previous.as_deref(), last, FlushCompress::Finish)?;
        while let Some(block) = self.running.pop_front() {
            self.write(joined(block)?)?;
        }
        self.write(last)?;
        self.output.write_all(&self.crc.sum().to_le_bytes())?;
        self.output.write_all(&self.crc.amount().to_le_bytes())?;
        Ok(self.output)
    }

    fn write(&mut self, Compressed { bytes, crc }: Compressed) -> io::Result<()> {
        self.crc.combine(&crc);
        self.output.write_all(&bytes)
    }
}

impl<W: Write> BlockSink for ParallelGzip<W> {
    fn add(&mut self, block: Bytes) -> io::Result<()> {
        if self.running.len() >= self.threads
            && let Some(oldest) = self.running.pop_front()
        {
            self.write(joined(oldest)?)?;
        }
        let level = self.level;
        let previous = self.previous.replace(block.clone());
        let compressing = thread::Builder::new()
            .name("gzip".to_owned())
            .spawn(move || compress(level, previous.as_deref(), &block, FlushCompress::Sync))?;
        self.running.push_back(compressing);
        Ok(())
    }
}

fn joined(block: thread::JoinHandle<io::Result<Compressed>>) -> io::Result<Compressed> {
    block
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Compresses a block of the stream, which ends with `flush`.
fn compress(
    level: Compression,
    previous: Option<&[u8]>,
    block: &[u8],
    flush: FlushCompress,
) -> io::Result<Compressed> {
    let mut deflate = Compress::new(level, false);
    if let Some(previous) = previous {
        let start = previous.len().saturating_sub(DICTIONARY_BYTES);
        deflate.set_dictionary(&previous[start..])?;
    }
    let mut bytes = Vec::with_capacity(block.len() + (BLOCK_BYTES >> 6));
    loop {
        // At most the size of a block.
        let done = usize::try_from(deflate.total_in()).map_err(io::Error::other)?;
        let status = deflate.compress_vec(&block[done..], &mut bytes, flush)?;
        // Output that fills the buffer may not be all of it.
        let is_whole = match flush {
            FlushCompress::Finish => status == Status::StreamEnd,
            _ => deflate.total_in() == block.len() as u64 && bytes.len() < bytes.capacity(),
        };
        if is_whole {
            break;
        }
        bytes.reserve(BLOCK_BYTES >> 4);
    }
    let mut crc = Crc::new();
    crc.update(block);
    Ok(Compressed { bytes, crc })
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use proptest::prelude::*;

    use super::{super::block_stream::BlockWriter, *};

    fn gzip(content: &[u8], threads: usize) -> Vec<u8> {
        let encoder = ParallelGzip::with_threads(Vec::new(), Compression::new(6), threads).unwrap();
        let mut writer = BlockWriter::new(encoder, Vec::new());
        writer.write_all(content).unwrap();
        let (encoder, last) = writer.finish();
        encoder.finish(&last).unwrap()
    }

    fn gunzip(bytes: &[u8]) -> Vec<u8> {
        let mut content = Vec::new();
        // One member: a decoder of several would not notice a second one.
        let mut decoder = flate2::bufread::GzDecoder::new(bytes);
        decoder.read_to_end(&mut content).unwrap();
        assert!(decoder.into_inner().is_empty(), "bytes after the member");
        content
    }

    /// Text, noise and repetitions, as files of a bundle have them.
    fn content(seed: u64, length: usize) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut content = Vec::with_capacity(length);
        while content.len() < length {
            let run = random.usize(1..40_000).min(length - content.len());
            match random.u8(..3) {
                0 => content.extend((0..run).map(|_| random.u8(..))),
                1 => content.extend((0..run).map(|_| random.alphanumeric() as u8)),
                _ => content.resize(content.len() + run, random.u8(..)),
            }
        }
        content
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn any_number_of_threads_gives_the_same_bytes_that_inflate_to_the_content(
            seed: u64,
            length in 0..5 * BLOCK_BYTES,
        ) {
            let content = content(seed, length);
            let bytes = gzip(&content, 1);
            prop_assert!(gunzip(&bytes) == content);
            for threads in [2, 3, 7] {
                prop_assert!(gzip(&content, threads) == bytes, "{} threads", threads);
            }
        }
    }

    #[test]
    fn content_of_whole_blocks_ends_with_its_last_block() {
        for blocks in 0..4 {
            let content = content(7, blocks * BLOCK_BYTES);
            assert!(gunzip(&gzip(&content, 2)) == content, "{blocks} blocks");
        }
    }

    #[test]
    fn a_failing_output_fails_the_compression() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        assert!(ParallelGzip::new(Full, Compression::new(6)).is_err());
    }
}
