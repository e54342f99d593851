//! Reads a tar archive member by member.

use std::io::{self, Read};

use super::{
    block::{BLOCK_BYTES, Block, BlockSource, MAX_EXTENSION_BYTES, malformed},
    header::{Format, Header, text},
    pax::Records,
    sparse::{self, Expanded, Map, PaxVersion},
};

/// Reads an archive member by member.
#[derive(Debug)]
pub(in crate::bundle) struct TarReader<R> {
    inner: R,
    /// The unread bytes of the current member's content.
    left: u64,
    /// The padding after its content, in bytes.
    padding: usize,
}

/// A member: a file, a folder, a link, …
#[derive(Debug)]
pub(in crate::bundle) struct Member {
    pub(in crate::bundle) name: Vec<u8>,
    /// Its type flag.
    pub(in crate::bundle) kind: u8,
    /// The size of its content, with the holes of a sparse file.
    pub(in crate::bundle) size: u64,
    map: Option<Map>,
    /// Whether tar readers disagree about its size.
    pub(in crate::bundle) is_ambiguous: bool,
}

impl Member {
    pub(in crate::bundle) fn is_sparse(&self) -> bool {
        self.map.is_some()
    }
}

impl<R: Read> BlockSource for TarReader<R> {
    fn block(&mut self) -> io::Result<Option<Block>> {
        let mut block = [0; BLOCK_BYTES];
        match read_up_to(&mut self.inner, &mut block)? {
            0 => Ok(None),
            BLOCK_BYTES => Ok(Some(block)),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl<R: Read> TarReader<R> {
    pub(in crate::bundle) fn new(inner: R) -> Self {
        Self {
            inner,
            left: 0,
            padding: 0,
        }
    }

    /// Reads the next member; `None` at the end of the archive, which is two blocks of zeros or the
    /// end of the stream between two members. Data after the blocks is not read.
    ///
    /// # Errors
    /// When a header is malformed or longer than 1 MiB, or reading fails.
    pub(in crate::bundle) fn next(&mut self) -> io::Result<Option<Member>> {
        let mut records = Records::default();
        let mut long_name = Vec::new();
        loop {
            if !self.skip_rest()? {
                return Ok(None);
            }
            let Some(block) = self.header_block()? else {
                return Ok(None);
            };
            let header = Header::parse(&block)?;
            self.start(header.kind, header.size)?;
            match header.kind {
                b'x' => records = Records::parse(&self.extension()?)?,
                // Global records, which Go leaves to its callers; OPA ignores them.
                b'g' => {
                    Records::parse(&self.extension()?)?;
                    return Ok(Some(Member {
                        name: header.name,
                        kind: b'g',
                        size: 0,
                        map: None,
                        is_ambiguous: false,
                    }));
                }
                b'L' => long_name = text(&self.extension()?).to_vec(),
                b'K' => drop(self.extension()?),
                _ => return self.member(&block, header, &records, long_name).map(Some),
            }
        }
    }

    /// The content of the last member.
    pub(in crate::bundle) fn content(&mut self, member: &mut Member) -> impl Read {
        let plain = Plain { reader: self };
        match member.map.take() {
            Some(map) => Content::Sparse(Expanded::new(plain, map, member.size)),
            None => Content::Plain(plain),
        }
    }

    fn member(
        &mut self,
        block: &Block,
        header: Header,
        records: &Records,
        long_name: Vec<u8>,
    ) -> io::Result<Member> {
        let Header {
            format,
            mut name,
            mut kind,
            mut size,
        } = header;
        records.check_unused()?;
        if let Some(path) = records.get("path") {
            path.clone_into(&mut name);
        }
        if let Some(stated) = records.number("size")? {
            size = stated;
        }
        if !long_name.is_empty() {
            name = long_name;
        }
        if kind == 0 {
            kind = if name.ends_with(b"/") { b'5' } else { b'0' };
        }
        self.start(kind, size)?;
        let is_ambiguous = size != header.size || (self.left == 0 && size != 0);
        let mut member = Member {
            name,
            kind,
            size: 0,
            map: None,
            is_ambiguous,
        };
        let fragments = if kind == b'S' {
            if format != Format::Gnu {
                return Err(malformed("a sparse file in a header that is not GNU's"));
            }
            let (stated, fragments) = sparse::map_of_header(self, block)?;
            size = stated;
            Some(fragments)
        } else if let Some(version) = PaxVersion::of(records) {
            if let Some(name) = records.get("GNU.sparse.name") {
                name.clone_into(&mut member.name);
            }
            let key = if records.get("GNU.sparse.size").is_some() {
                "GNU.sparse.size"
            } else {
                "GNU.sparse.realsize"
            };
            size = records.number(key)?.unwrap_or(size);
            Some(match version {
                PaxVersion::Records => sparse::map_of_records(records)?,
                PaxVersion::Content => sparse::map_of_content(&mut Plain { reader: self })?,
            })
        } else {
            None
        };
        if let Some(fragments) = fragments {
            if is_without_content(kind) || size < 0 {
                return Err(malformed("a sparse file without a size"));
            }
            member.map = Some(sparse::checked(&fragments, size)?);
        }
        member.size = if is_without_content(kind) {
            0
        } else {
            size.cast_unsigned()
        };
        Ok(member)
    }

    /// Begins the content of a member.
    fn start(&mut self, kind: u8, size: i64) -> io::Result<()> {
        let size = if is_without_content(kind) { 0 } else { size };
        self.left = u64::try_from(size).map_err(|_| malformed("a negative size"))?;
        self.padding = (BLOCK_BYTES - (self.left % BLOCK_BYTES as u64) as usize) % BLOCK_BYTES;
        Ok(())
    }

    /// Skips the rest of the current member. Returns whether the stream continues after it.
    fn skip_rest(&mut self) -> io::Result<bool> {
        io::copy(&mut Plain { reader: self }, &mut io::sink())?;
        let mut padding = [0; BLOCK_BYTES];
        let padding = &mut padding[..self.padding];
        self.padding = 0;
        Ok(read_up_to(&mut self.inner, padding)? == padding.len())
    }

    /// The next header; `None` at the end of the archive. A block of zeros that is followed by
    /// another block than zeros does not end it.
    fn header_block(&mut self) -> io::Result<Option<Block>> {
        let is_zero = |block: &Block| block.iter().all(|byte| *byte == 0);
        let Some(block) = self.block()? else {
            return Ok(None);
        };
        if !is_zero(&block) {
            return Ok(Some(block));
        }
        match self.block()? {
            Some(second) if !is_zero(&second) => Err(malformed("content after a block of zeros")),
            _ => Ok(None),
        }
    }

    /// Reads the content of an extended header or a long name.
    fn extension(&mut self) -> io::Result<Vec<u8>> {
        if self.left > MAX_EXTENSION_BYTES as u64 {
            return Err(malformed("an extended header longer than 1 MiB"));
        }
        let mut bytes = Vec::new();
        Plain { reader: self }.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// The content of a member, with the holes of a sparse file filled.
enum Content<'a, R> {
    Plain(Plain<'a, R>),
    Sparse(Expanded<Plain<'a, R>>),
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(content) => content.read(buffer),
            Self::Sparse(content) => content.read(buffer),
        }
    }
}

/// The content of a member as it is in the archive.
struct Plain<'a, R> {
    reader: &'a mut TarReader<R>,
}

impl<R: Read> Read for Plain<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let TarReader { inner, left, .. } = &mut *self.reader;
        let wanted = buffer
            .len()
            .min(usize::try_from(*left).unwrap_or(usize::MAX));
        let count = inner.read(&mut buffer[..wanted])?;
        if count == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        *left -= count as u64;
        Ok(count)
    }
}

/// Whether a member has no content, regardless of its size: a link, a device or a folder.
fn is_without_content(kind: u8) -> bool {
    (b'1'..=b'6').contains(&kind)
}

/// Reads until the buffer is full or the stream ends. Returns the number of bytes.
fn read_up_to(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
