//! One layer of an artifact: how its bytes are compressed, whatever its media type says.

use std::io::{self, Read};

use flate2::bufread::MultiGzDecoder;

use super::{BundleError, LayerError, zstd::ZstdReader};
use crate::oci::Blob;

/// The format of a layer that is a tar stream, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LayerFormat {
    /// The only format that OPA reads.
    Gzip,
    Zstd,
    Tar,
}

impl LayerFormat {
    /// Recognises the format.
    ///
    /// # Errors
    /// When it is none of these, or the layer can't be read.
    pub(super) fn of(layer: &Blob) -> Result<Self, LayerError> {
        let start = layer.read_at(0, 512).map_err(LayerError::Temporary)?;
        if start.starts_with(&[0x1f, 0x8b]) {
            Ok(Self::Gzip)
        } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || is_skippable_frame(&start) {
            Ok(Self::Zstd)
        } else if start.get(257..262) == Some(b"ustar") {
            Ok(Self::Tar)
        } else {
            let start = start.slice(..start.len().min(4)).to_vec();
            Err(BundleError::NotGzip { start }.into())
        }
    }

    /// The tar stream in a layer, without a limit.
    pub(super) fn unpack(self, layer: &Blob) -> Box<dyn Read + '_> {
        match self {
            Self::Gzip => Box::new(MultiGzDecoder::new(layer.reader())),
            Self::Zstd => Box::new(ZstdReader::new(layer.reader())),
            Self::Tar => Box::new(layer.reader()),
        }
    }
}

/// Whether a zstd stream begins with a frame of metadata.
fn is_skippable_frame(start: &[u8]) -> bool {
    matches!(start, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// The whole content of a layer that is a single file.
pub(super) fn content(layer: &Blob) -> io::Result<Vec<u8>> {
    layer
        .read_at(0, usize::try_from(layer.size()).unwrap_or(usize::MAX))
        .map(|bytes| bytes.to_vec())
}
