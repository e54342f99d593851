//! Sparse files in tarballs as GNU tar writes them into PAX archives, which OPA (Go's
//! `archive/tar`) expands.

use std::io::{self, BufRead, Read};

/// Pieces of a file; more are no policy.
const MAX_PIECES: usize = 1 << 16;

/// What PAX records say about a sparse file.
#[derive(Debug, Default)]
pub(super) struct SparseRecords {
    major: String,
    minor: String,
    /// The file's name; the header has another.
    pub(super) name: Option<String>,
    size: Option<u64>,
    map: Option<String>,
}

/// A sparse file with its holes filled.
#[derive(Debug)]
pub(super) struct Expanded<R> {
    inner: R,
    /// Offset and length of each piece that is there, in reverse.
    pieces: Vec<(u64, u64)>,
    position: u64,
    size: u64,
}

impl SparseRecords {
    /// Takes note of a record.
    pub(super) fn add(&mut self, key: &str, value: &str) {
        match key {
            "GNU.sparse.major" => value.clone_into(&mut self.major),
            "GNU.sparse.minor" => value.clone_into(&mut self.minor),
            "GNU.sparse.name" => self.name = Some(value.to_owned()),
            "GNU.sparse.size" | "GNU.sparse.realsize" => self.size = value.parse().ok(),
            "GNU.sparse.map" => self.map = Some(value.to_owned()),
            _ => {}
        }
    }

    /// Whether the file is sparse, by the versions that Go knows.
    pub(super) fn is_sparse(&self) -> bool {
        match (self.major.as_str(), self.minor.as_str()) {
            ("1", "0") | ("0", "0" | "1") => true,
            ("", "") => self.map.is_some(),
            _ => false,
        }
    }

    /// The content with its holes filled.
    ///
    /// # Errors
    /// When the map of the pieces is broken.
    pub(super) fn expand<R: Read>(&self, content: R) -> io::Result<Expanded<io::BufReader<R>>> {
        let mut inner = io::BufReader::new(content);
        let numbers = if self.major == "1" {
            map_in_content(&mut inner)?
        } else {
            let numbers = self.map.as_deref().unwrap_or_default().split(',').filter(|text| !text.is_empty());
            numbers.map(number).collect::<io::Result<Vec<_>>>()?
        };
        let size = self.size.ok_or_else(|| broken("no size"))?;
        let mut pieces: Vec<_> = numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        if numbers.len() % 2 != 0 || pieces.len() > MAX_PIECES {
            return Err(broken("an odd map"));
        }
        let mut end = 0;
        for (offset, length) in &pieces {
            let next = offset.checked_add(*length).filter(|next| *offset >= end && *next <= size);
            end = next.ok_or_else(|| broken("pieces that overlap or lead out"))?;
        }
        pieces.reverse();
        Ok(Expanded { inner, pieces, position: 0, size })
    }
}

impl<R> Expanded<R> {
    /// Its length in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }
}

impl<R: Read> Read for Expanded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.pieces.last().is_some_and(|(offset, length)| offset + length <= self.position) {
            self.pieces.pop();
        }
        let (offset, length) = self.pieces.last().copied().unwrap_or((self.size, 0));
        if self.position < offset {
            let hole = buffer.len().min(usize::try_from(offset - self.position).unwrap_or(usize::MAX));
            buffer[..hole].fill(0);
            self.position += hole as u64;
            return Ok(hole);
        }
        let left = usize::try_from(offset + length - self.position).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let count = self.inner.read(&mut buffer[..wanted])?;
        if count == 0 && wanted > 0 {
            return Err(broken("less content than the map says"));
        }
        self.position += count as u64;
        Ok(count)
    }
}

/// The map of version 1.0: decimal numbers, a line each, in front of the content and filled up
/// to a block of 512 bytes.
fn map_in_content(content: &mut impl BufRead) -> io::Result<Vec<u64>> {
    let mut taken = 0;
    let mut line = || -> io::Result<u64> {
        let mut text = Vec::new();
        let count = content.by_ref().take(32).read_until(b'\n', &mut text)?;
        taken += count;
        number(std::str::from_utf8(&text).unwrap_or_default().trim_end_matches('\n'))
    };
    let pieces = usize::try_from(line()?).ok().filter(|count| *count <= MAX_PIECES);
    let count = pieces.ok_or_else(|| broken("too many pieces"))? * 2;
    let numbers = (0..count).map(|_| line()).collect::<io::Result<Vec<_>>>()?;
    let padding = (512 - taken % 512) % 512;
    io::copy(&mut content.take(padding as u64), &mut io::sink())?;
    Ok(numbers)
}

fn number(text: &str) -> io::Result<u64> {
    text.parse().map_err(|_| broken("a map that is no list of numbers"))
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("sparse file with {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(pairs: &[(&str, &str)]) -> SparseRecords {
        let mut records = SparseRecords::default();
        pairs.iter().for_each(|(key, value)| records.add(key, value));
        records
    }

    fn expanded(pairs: &[(&str, &str)], content: &[u8]) -> io::Result<Vec<u8>> {
        let mut whole = Vec::new();
        records(pairs).expand(content)?.read_to_end(&mut whole)?;
        Ok(whole)
    }

    #[test]
    fn holes_are_filled_in_every_version() {
        let map = [("GNU.sparse.size", "8"), ("GNU.sparse.map", "1,2,5,1")];
        assert!(records(&map).is_sparse());
        assert_eq!(expanded(&map, b"abc").unwrap(), b"\0ab\0\0c\0\0");
        let mut content = b"2\n1\n2\n5\n1\n".to_vec();
        content.resize(512, 0);
        content.extend(b"abc");
        let newer = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "8")];
        assert_eq!(expanded(&newer, &content).unwrap(), b"\0ab\0\0c\0\0");
    }

    #[test]
    fn broken_maps_are_refused() {
        for (size, map) in [
            ("4", "1,2,2,1"),
            ("4", "1,9"),
            ("4", "1"),
            ("x", "1,2"),
            ("4", "1,-2"),
            ("18446744073709551615", "1,18446744073709551615"),
        ] {
            assert!(expanded(&[("GNU.sparse.size", size), ("GNU.sparse.map", map)], b"abcdefghij").is_err(), "{map}");
        }
        assert!(expanded(&[("GNU.sparse.size", "4"), ("GNU.sparse.map", "0,4")], b"ab").is_err());
        let newer = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "8")];
        for content in [&b"99999999999\n"[..], b"", b"2\n1\n", b"x\n"] {
            assert!(expanded(&newer, content).is_err(), "{content:?}");
        }
    }
}
