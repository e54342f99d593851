//! Parses the records of an extended header (POSIX `pax`), as Go's `archive/tar` does
//! (`parsePAX` and `mergePAX` in `reader.go`, `parsePAXRecord` in `strconv.go`).

use std::{collections::HashMap, io};

use super::block::malformed;

/// Records by key. A later record replaces an earlier one with its key, and an empty value counts
/// as absent.
#[derive(Debug, Default)]
pub(super) struct Records {
    by_key: HashMap<Vec<u8>, Vec<u8>>,
}

impl Records {
    /// Parses an extended header.
    ///
    /// # Errors
    /// When it is not a list of records, or the fragments of a sparse file are out of order.
    pub(super) fn parse(mut bytes: &[u8]) -> io::Result<Self> {
        let mut records = Self::default();
        // Version 0.0 of GNU's sparse files has two records for each fragment.
        let mut fragments: Vec<&[u8]> = Vec::new();
        while !bytes.is_empty() {
            let (key, value);
            (key, value, bytes) = record(bytes)
                .ok_or_else(|| malformed("an extended header with a broken record"))?;
            let fragment: Option<&[u8]> = match key {
                b"GNU.sparse.offset" => Some(b"offset"),
                b"GNU.sparse.numbytes" => Some(b"numbytes"),
                _ => None,
            };
            let Some(fragment) = fragment else {
                records.by_key.insert(key.to_vec(), value.to_vec());
                continue;
            };
            if (fragment == b"offset") != fragments.len().is_multiple_of(2) || value.contains(&b',')
            {
                return Err(malformed("a sparse file whose fragments are out of order"));
            }
            fragments.push(value);
        }
        if !fragments.is_empty() {
            records
                .by_key
                .insert(b"GNU.sparse.map".to_vec(), fragments.join(&b','));
        }
        Ok(records)
    }

    /// The value of a key, unless it is empty.
    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        self.by_key
            .get(key.as_bytes())
            .map(Vec::as_slice)
            .filter(|value| !value.is_empty())
    }

    /// The value of a key as a decimal number.
    ///
    /// # Errors
    /// When it is not a number.
    pub(super) fn number(&self, key: &str) -> io::Result<Option<i64>> {
        let parse = |value| {
            decimal(value)
                .ok_or_else(|| malformed(format_args!("a record {key} that is not a number")))
        };
        self.get(key).map(parse).transpose()
    }

    /// Checks the records that are not used here.
    ///
    /// # Errors
    /// When Go would refuse one of them.
    pub(super) fn check_unused(&self) -> io::Result<()> {
        self.number("uid")?;
        self.number("gid")?;
        for key in ["atime", "mtime", "ctime"] {
            if !self.get(key).is_none_or(is_time) {
                return Err(malformed(format_args!("a record {key} that is not a time")));
            }
        }
        Ok(())
    }
}

/// Splits off one record, `LENGTH KEY=VALUE\n`, where LENGTH counts the whole record. Returns its
/// key, its value and the rest.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&bytes[..space])?).ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    let without_nul = match key {
        b"path" | b"linkpath" | b"uname" | b"gname" => value,
        _ => key,
    };
    (!key.is_empty() && !without_nul.contains(&0)).then_some((key, value, rest))
}

/// Parses a decimal number with an optional sign, as Go's `strconv.ParseInt` does.
pub(super) fn decimal(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Whether a text is a number of seconds with optional digits after a point.
fn is_time(text: &[u8]) -> bool {
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let seconds = parts.next().unwrap_or_default();
    decimal(seconds).is_some()
        && parts
            .next()
            .unwrap_or_default()
            .iter()
            .all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_split_by_their_length() {
        let records =
            Records::parse(b"10 path=a\n13 comment=\n\n10 path=b\n8 mtime=\n").unwrap_err();
        assert!(records.to_string().contains("broken record"), "{records}");
        let records =
            Records::parse(b"10 path=a\n14 comment=\n\n\n10 path=b\n8 uid=+1\n9 mtime=\n")
                .unwrap_err();
        assert!(records.to_string().contains("broken record"), "{records}");
        let records =
            Records::parse(b"10 path=a\n14 comment=\n\n\n10 path=b\n10 uid=+1\n9 mtime=\n")
                .unwrap();
        assert_eq!(records.get("path").unwrap(), b"b");
        assert_eq!(records.get("comment").unwrap(), b"\n\n");
        assert_eq!(records.number("uid").unwrap(), Some(1));
        assert_eq!(records.get("mtime"), None);
        records.check_unused().unwrap();
    }

    #[test]
    fn broken_records_are_refused() {
        for bytes in [
            &b"x"[..],
            b"10 path=a",
            b"11 path=a\n",
            b"8 path=a\n",
            b"-1 path=a\n",
            b"4 =\n",
            b"5 =b\n",
            b"6 path\n",
            b"11 path=a\0\n",
            b"8 a\0b=c\n",
            b"23 GNU.sparse.numbytes=1\n",
            b"99999999999999999999 path=a\n",
        ] {
            assert!(
                Records::parse(bytes).is_err(),
                "{:?}",
                bytes.escape_ascii().to_string()
            );
        }
        for bytes in [
            &b"9 uid=x1\n"[..],
            b"13 mtime=1.x\n",
            b"11 atime=.\n",
            b"12 ctime= 1\n",
        ] {
            assert!(
                Records::parse(bytes).unwrap().check_unused().is_err(),
                "{:?}",
                bytes.escape_ascii().to_string()
            );
        }
    }
}
