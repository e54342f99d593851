//! Reads sparse files of GNU tar, as Go's `archive/tar` does (`readGNUSparse…`,
//! `validateSparseEntries` and `sparseFileReader` in `reader.go`): the map of the stored fragments,
//! in four formats, and the content with its holes filled.

use std::io::{self, Read};

use super::{
    block::{BLOCK_BYTES, Block, BlockSource, MAX_EXTENSION_BYTES, malformed},
    header::numeric,
    pax::{Records, decimal},
};

/// The offset and length of each fragment of a file, in order and without overlap.
pub(super) type Map = Vec<(u64, u64)>;

/// The location of the map according to the extended header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PaxVersion {
    /// The map is in the records.
    Records,
    /// The map is at the start of the content.
    Content,
}

impl PaxVersion {
    /// `None` for a file that is not sparse, or in a version that Go does not support.
    pub(super) fn of(records: &Records) -> Option<Self> {
        match (
            records.get("GNU.sparse.major"),
            records.get("GNU.sparse.minor"),
        ) {
            (Some(b"0"), Some(b"0" | b"1")) => Some(Self::Records),
            (Some(b"1"), Some(b"0")) => Some(Self::Content),
            (None, None) => records.get("GNU.sparse.map").map(|_| Self::Records),
            _ => None,
        }
    }
}

/// Checks a map.
///
/// # Errors
/// When fragments overlap, are out of order or exceed a file of this size.
pub(super) fn checked(fragments: &[(i64, i64)], size: i64) -> io::Result<Map> {
    let mut end = 0;
    let fragment = |(offset, length): &(i64, i64)| {
        let next = offset
            .checked_add(*length)
            .filter(|next| *offset >= end && *length >= 0 && *next <= size);
        end = next
            .ok_or_else(|| malformed("a sparse file whose fragments overlap or exceed its size"))?;
        Ok((offset.cast_unsigned(), length.cast_unsigned()))
    };
    fragments.iter().map(fragment).collect()
}

/// Parses the map in the records (versions 0.0 and 0.1).
pub(super) fn map_of_records(records: &Records) -> io::Result<Vec<(i64, i64)>> {
    let broken = || malformed("a sparse file with a broken map");
    let count = records
        .number("GNU.sparse.numblocks")?
        .and_then(|count| usize::try_from(count).ok());
    let map = records.get("GNU.sparse.map").unwrap_or_default();
    let numbers = map
        .split(|byte| *byte == b',')
        .filter(|_| !map.is_empty())
        .map(decimal);
    let numbers: Vec<_> = numbers.collect::<Option<_>>().ok_or_else(broken)?;
    let fragments = pairs(&numbers);
    if count != Some(fragments.len()) || !numbers.len().is_multiple_of(2) {
        return Err(broken());
    }
    Ok(fragments)
}

/// Parses the map at the start of the content (version 1.0), in whole blocks: decimal numbers, one
/// per line, the first of which is the number of fragments.
pub(super) fn map_of_content(content: &mut impl Read) -> io::Result<Vec<(i64, i64)>> {
    let broken = || malformed("a sparse file with a broken map");
    let mut text = Vec::new();
    read_lines(content, &mut text, 1)?;
    let first = text.split(|byte| *byte == b'\n').next().and_then(decimal);
    let count = first
        .and_then(|count| usize::try_from(count).ok())
        .ok_or_else(broken)?;
    let lines = count.checked_mul(2).ok_or_else(broken)?;
    read_lines(content, &mut text, lines.saturating_add(1))?;
    let numbers = text
        .split(|byte| *byte == b'\n')
        .skip(1)
        .take(lines)
        .map(decimal);
    let numbers: Vec<_> = numbers.collect::<Option<_>>().ok_or_else(broken)?;
    Ok(pairs(&numbers))
}

/// Reads blocks until `text` has `wanted` lines.
fn read_lines(content: &mut impl Read, text: &mut Vec<u8>, wanted: usize) -> io::Result<()> {
    let mut lines = text.iter().filter(|byte| **byte == b'\n').count();
    while lines < wanted {
        if text.len() + BLOCK_BYTES > MAX_EXTENSION_BYTES {
            return Err(malformed("a sparse file whose map is longer than 1 MiB"));
        }
        let mut block = [0; BLOCK_BYTES];
        content.read_exact(&mut block)?;
        lines += block.iter().filter(|byte| **byte == b'\n').count();
        text.extend(block);
    }
    Ok(())
}

fn pairs(numbers: &[i64]) -> Vec<(i64, i64)> {
    numbers
        .chunks_exact(2)
        .map(|pair| (pair[0], pair[1]))
        .collect()
}

/// Parses the map in a header of GNU's old format and in the blocks after it. Returns the size of
/// the file as well.
pub(super) fn map_of_header(
    source: &mut impl BlockSource,
    header: &Block,
) -> io::Result<(i64, Vec<(i64, i64)>)> {
    let size = numeric(&header[483..495], "size of a sparse file")?;
    let mut fragments = Vec::new();
    add_fragments(&header[386..482], &mut fragments)?;
    let mut more = header[482] > 0;
    let mut total = 97;
    while more {
        total += BLOCK_BYTES;
        if total >= MAX_EXTENSION_BYTES {
            return Err(malformed("a sparse file whose map is longer than 1 MiB"));
        }
        let block = source.block()?.ok_or(io::ErrorKind::UnexpectedEof)?;
        add_fragments(&block[..504], &mut fragments)?;
        more = block[504] > 0;
    }
    Ok((size, fragments))
}

fn add_fragments(fields: &[u8], fragments: &mut Vec<(i64, i64)>) -> io::Result<()> {
    for field in fields.chunks_exact(24).take_while(|field| field[0] != 0) {
        let number = |field| numeric(field, "map of a sparse file");
        fragments.push((number(&field[..12])?, number(&field[12..])?));
    }
    Ok(())
}

/// A sparse file with its holes filled.
pub(super) struct Expanded<R> {
    fragments: R,
    /// The fragments that are not read yet, the next one last.
    map: Map,
    position: u64,
    size: u64,
}

impl<R> Expanded<R> {
    pub(super) fn new(fragments: R, mut map: Map, size: u64) -> Self {
        map.reverse();
        Self {
            fragments,
            map,
            position: 0,
            size,
        }
    }
}

impl<R: Read> Read for Expanded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self
            .map
            .last()
            .is_some_and(|(offset, length)| offset + length <= self.position)
        {
            self.map.pop();
        }
        let (offset, length) = self.map.last().copied().unwrap_or((self.size, 0));
        let (start, end) = if self.position < offset {
            (false, offset)
        } else {
            (true, offset + length)
        };
        let left = usize::try_from(end - self.position).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let buffer = &mut buffer[..wanted];
        let count = if !start {
            buffer.fill(0);
            wanted
        } else if left > 0 {
            self.fragments.read(buffer)?
        } else if self.fragments.read(&mut [0])? > 0 {
            return Err(malformed(
                "a sparse file with more content than its map states",
            ));
        } else {
            return Ok(0);
        };
        if count == 0 && wanted > 0 {
            return Err(malformed(
                "a sparse file with less content than its map states",
            ));
        }
        self.position += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(map: &[(i64, i64)], size: i64, fragments: &[u8]) -> io::Result<Vec<u8>> {
        let mut whole = Vec::new();
        Expanded::new(fragments, checked(map, size)?, size.cast_unsigned())
            .read_to_end(&mut whole)?;
        Ok(whole)
    }

    #[test]
    fn holes_are_filled() {
        assert_eq!(
            expanded(&[(1, 2), (5, 1)], 8, b"abc").unwrap(),
            b"\0ab\0\0c\0\0"
        );
        assert_eq!(
            expanded(&[(0, 1), (1, 0), (1, 2)], 3, b"abc").unwrap(),
            b"abc"
        );
        assert_eq!(expanded(&[], 2, b"").unwrap(), b"\0\0");
        assert_eq!(expanded(&[(2, 0)], 2, b"").unwrap(), b"\0\0");
        assert_eq!(expanded(&[], 0, b"").unwrap(), b"");
    }

    #[test]
    fn broken_maps_are_refused() {
        for map in [
            &[(1, 2), (2, 1)][..],
            &[(1, 9)],
            &[(1, -1)],
            &[(-1, 1)],
            &[(1, i64::MAX)],
            &[(2, 1), (0, 1)],
        ] {
            assert!(checked(map, 4).is_err(), "{map:?}");
        }
        assert!(expanded(&[(0, 4)], 4, b"ab").is_err());
        assert!(expanded(&[(0, 1)], 4, b"ab").is_err());
        let records = |text: &[u8]| map_of_records(&Records::parse(text).unwrap());
        let numblocks =
            |count: u8| [b"26 GNU.sparse.numblocks=", &[b'0' + count][..], b"\n"].concat();
        assert_eq!(
            records(&[&numblocks(1)[..], b"22 GNU.sparse.map=1,2\n"].concat()).unwrap(),
            [(1, 2)]
        );
        assert_eq!(records(&numblocks(0)).unwrap(), []);
        assert!(
            records(b"22 GNU.sparse.map=1,2\n").is_err(),
            "the number of fragments is missing"
        );
        assert!(records(&[&numblocks(2)[..], b"22 GNU.sparse.map=1,2\n"].concat()).is_err());
    }

    #[test]
    fn a_map_at_the_start_of_the_content_is_whole_blocks() {
        let blocks = |text: &[u8], length| {
            let mut content = text.to_vec();
            content.resize(length, 0);
            map_of_content(&mut content.as_slice())
        };
        assert_eq!(
            blocks(b"2\n1\n2\n5\n1\nrest", 512).unwrap(),
            [(1, 2), (5, 1)]
        );
        let long = format!("{}2\n1\n2\n+5\n1\n", "0".repeat(600));
        assert_eq!(blocks(long.as_bytes(), 1024).unwrap(), [(1, 2), (5, 1)]);
        for (text, length) in [
            (&b"99999999999\n"[..], 512),
            (b"", 0),
            (b"1\n1\n2\n", 511),
            (b"x\n", 512),
            (b"-1\n", 512),
        ] {
            assert!(blocks(text, length).is_err(), "{text:?}");
        }
        assert!(
            map_of_content(&mut io::repeat(b'1'))
                .unwrap_err()
                .to_string()
                .contains("longer than 1 MiB")
        );
    }
}
