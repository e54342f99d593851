//! Parsers of the cache folder for the fuzz targets. Compiled for fuzzing only.

use super::record::Record;
use crate::oci::Descriptor;

/// Parses an entry of the index as a [`Record`] and writes it again; `None` if it is none.
pub fn record(entry: &Descriptor) -> Option<Descriptor> {
    Record::from_entry(entry).map(|record| record.to_entry())
}
