//! Parses a header block of a tar archive, field by field as Go's `archive/tar` does
//! (`readHeader` in `reader.go`, `getFormat` in `format.go`, `parseNumeric` in `strconv.go`).

use std::io;

use super::block::{Block, malformed};

/// The variant of the header, which determines the fields after the common ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// The fields of a header, before extended headers and long names are applied.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) format: Format,
    pub(super) name: Vec<u8>,
    pub(super) kind: u8,
    /// May be negative, which is an error except for members without content.
    pub(super) size: i64,
}

impl Header {
    /// Parses a header.
    ///
    /// # Errors
    /// When the checksum, or a field that Go parses, is malformed.
    pub(super) fn parse(block: &Block) -> io::Result<Self> {
        let format = format(block)?;
        let mut name = text(&block[..100]).to_vec();
        for (field, what) in [
            (100..108, "mode"),
            (108..116, "uid"),
            (116..124, "gid"),
            (136..148, "mtime"),
        ] {
            numeric(&block[field], what)?;
        }
        let size = numeric(&block[124..136], "size")?;
        if format != Format::V7 {
            numeric(&block[329..337], "devmajor")?;
            numeric(&block[337..345], "devminor")?;
        }
        let prefix = match format {
            Format::V7 => &[][..],
            Format::Ustar => text(&block[345..500]),
            Format::Star => {
                numeric(&block[476..488], "atime")?;
                numeric(&block[488..500], "ctime")?;
                text(&block[345..476])
            }
            Format::Gnu => prefix_of_gnu(block),
        };
        if !prefix.is_empty() {
            name = [prefix, b"/", &name].concat();
        }
        Ok(Self {
            format,
            name,
            kind: block[156],
            size,
        })
    }
}

/// The prefix in a GNU header. Go before 1.8 wrote one where GNU has times; Go still reads it as a
/// prefix if the times are malformed.
fn prefix_of_gnu(block: &Block) -> &[u8] {
    let times = [&block[345..357], &block[357..369]];
    let broken = times
        .iter()
        .any(|time| time[0] != 0 && numeric(time, "time").is_err());
    let prefix = text(&block[345..500]);
    if broken && prefix.is_ascii() {
        prefix
    } else {
        &[]
    }
}

fn format(block: &Block) -> io::Result<Format> {
    let stated =
        octal(&block[148..156]).ok_or_else(|| malformed("a checksum that is not octal"))?;
    let counted = || {
        block.iter().enumerate().map(|(at, byte)| {
            if (148..156).contains(&at) {
                b' '
            } else {
                *byte
            }
        })
    };
    let unsigned: i64 = counted().map(i64::from).sum();
    // Sun's tar summed signed bytes.
    let signed: i64 = counted().map(|byte| i64::from(byte.cast_signed())).sum();
    if stated != unsigned && stated != signed {
        return Err(malformed("a header whose checksum does not match"));
    }
    Ok(match &block[257..263] {
        b"ustar\0" if &block[508..512] == b"tar\0" => Format::Star,
        b"ustar\0" => Format::Ustar,
        b"ustar " if &block[263..265] == b" \0" => Format::Gnu,
        _ => Format::V7,
    })
}

/// The text of a field, up to the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Parses a number in octal, or in base 256 if the first bit is set.
pub(super) fn numeric(field: &[u8], what: &str) -> io::Result<i64> {
    let number = if field.first().is_some_and(|first| first & 0x80 != 0) {
        base_256(field)
    } else {
        octal(field)
    };
    number.ok_or_else(|| malformed(format_args!("a header whose {what} is not a number")))
}

/// Two's complement, except that the first bit only marks base 256.
fn base_256(field: &[u8]) -> Option<i64> {
    let inverted = if field[0] & 0x40 != 0 { 0xff } else { 0 };
    let mut number = 0_u64;
    for (at, byte) in field.iter().enumerate() {
        let byte = (byte ^ inverted) & if at == 0 { 0x7f } else { 0xff };
        if number >> 56 > 0 {
            return None;
        }
        number = number << 8 | u64::from(byte);
    }
    let number = i64::try_from(number).ok()?;
    Some(if inverted == 0 { number } else { !number })
}

/// An octal number, padded on both sides with spaces and NULs. Padding alone is zero.
fn octal(field: &[u8]) -> Option<i64> {
    let is_padding = |byte: &u8| matches!(byte, b' ' | 0);
    let Some(start) = field.iter().position(|byte| !is_padding(byte)) else {
        return Some(0);
    };
    let end = field.iter().rposition(|byte| !is_padding(byte))?;
    let digits = text(&field[start..=end]);
    if !digits.iter().all(|digit| (b'0'..=b'7').contains(digit)) {
        return None;
    }
    i64::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        let cases: [(&[u8], Option<i64>); 14] = [
            (b"0000644\0", Some(0o644)),
            (b" 644 \0\0\0", Some(0o644)),
            (b"\0\0 7", Some(7)),
            (b"        ", Some(0)),
            (b"", Some(0)),
            (b"12\x003\0", Some(0o12)),
            (b"8", None),
            (b"1 2", None),
            (b"-1", None),
            (b"+1", None),
            (b"\x80\0\0\0\0\0\0\0\0\0\x01\x02", Some(258)),
            (b"\xff\xff\xff\xff", Some(-1)),
            (b"\x80\x01\0\0\0\0\0\0\0\0\0\0", None),
            (b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ];
        for (field, expected) in cases {
            assert_eq!(numeric(field, "size").ok(), expected, "{field:?}");
        }
    }
}
