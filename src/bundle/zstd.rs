//! Decompresses zstd (RFC 8878) by `ruzstd`, which is maintained, needs no C compiler, and decodes
//! blocks on demand.

use std::io::{self, BufRead, Read};

use ruzstd::decoding::{
    BlockDecodingStrategy, FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};

/// The largest window of a frame. RFC 8878 asks for 8 MiB; the encoders of buildkit and buildah use
/// at most 32 MiB.
const MAX_WINDOW_BYTES: u64 = 32 << 20;

/// Reads the content of all frames. Skippable frames, in which buildah keeps an index of the
/// content, are skipped.
pub(super) struct ZstdReader<R> {
    source: R,
    decoder: FrameDecoder,
    is_in_frame: bool,
}

impl<R: BufRead> ZstdReader<R> {
    pub(super) fn new(source: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_WINDOW_BYTES);
        Self {
            source,
            decoder,
            is_in_frame: false,
        }
    }

    /// Begins the next frame. Returns `false` at the end of the stream.
    fn next_frame(&mut self) -> io::Result<bool> {
        loop {
            if self.source.fill_buf()?.is_empty() {
                return Ok(false);
            }
            match self.decoder.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => self.skip(u64::from(length))?,
                Err(error) => return Err(malformed(&error)),
            }
        }
    }

    fn skip(&mut self, length: u64) -> io::Result<()> {
        let skipped = io::copy(&mut (&mut self.source).take(length), &mut io::sink())?;
        if skipped == length {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    /// Checks the checksum of a complete frame, if it has one.
    fn end_frame(&mut self) -> io::Result<()> {
        let stated = self.decoder.get_checksum_from_data();
        if stated.is_some() && stated != self.decoder.get_calculated_checksum() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "zstd: the checksum of a frame does not match",
            ));
        }
        Ok(())
    }
}

impl<R: BufRead> Read for ZstdReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.is_in_frame {
                self.is_in_frame = self.next_frame()?;
                if !self.is_in_frame {
                    return Ok(0);
                }
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder
                    .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(|error| malformed(&error))?;
            }
            let count = self.decoder.read(buffer)?;
            if count > 0 {
                return Ok(count);
            }
            self.end_frame()?;
            self.is_in_frame = false;
        }
    }
}

fn malformed(error: &FrameDecoderError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("zstd: {error}"))
}

#[cfg(test)]
mod tests {
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn frame(content: &[u8]) -> Vec<u8> {
        compress_to_vec(content, CompressionLevel::Fastest)
    }

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        ZstdReader::new(bytes).read_to_end(&mut content)?;
        Ok(content)
    }

    /// A frame of raw or RLE blocks: `length` bytes `x`, with a window of 2^`window_log` bytes.
    fn repeated(window_log: u8, length: u32) -> Vec<u8> {
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, (window_log - 10) << 3];
        let mut left = length;
        while left > 0 {
            let size = left.min(128 << 10);
            left -= size;
            // Bit 0: the last block; bits 1 and 2: RLE.
            let header = size << 3 | 1 << 1 | u32::from(left == 0);
            frame.extend(&header.to_le_bytes()[..3]);
            frame.push(b'x');
        }
        frame
    }

    #[test]
    fn frames_are_read_one_after_the_other_and_skippable_ones_skipped() {
        let content: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        let skippable = [
            &0x184D_2A50_u32.to_le_bytes()[..],
            &3_u32.to_le_bytes(),
            b"abc",
        ]
        .concat();
        let stream = [
            &skippable[..],
            &frame(&content),
            &skippable,
            &frame(b""),
            &frame(b"end"),
            &skippable,
        ]
        .concat();
        assert_eq!(read(&stream).unwrap(), [&content[..], b"end"].concat());
        assert_eq!(read(b"").unwrap(), b"");
        assert_eq!(read(&repeated(20, 1 << 20)).unwrap(), [b'x'; 1 << 20]);
    }

    #[test]
    fn malformed_truncated_and_too_wide_frames_are_errors() {
        let good = frame(&[7; 5000]);
        for (what, bytes) in [
            ("truncated", good[..good.len() - 5].to_vec()),
            ("followed by something else", [&good[..], b"hello"].concat()),
            (
                "a skippable frame that is truncated",
                [
                    &0x184D_2A50_u32.to_le_bytes()[..],
                    &9_u32.to_le_bytes(),
                    b"abc",
                ]
                .concat(),
            ),
            ("a window of 64 MiB", repeated(26, 10)),
        ] {
            assert!(read(&bytes).is_err(), "{what}");
        }
        let mut damaged = good;
        let last = damaged.len() - 1;
        damaged[last] ^= 1;
        assert!(read(&damaged).is_err(), "the checksum");
    }
}
