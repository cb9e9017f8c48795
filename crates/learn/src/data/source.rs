//! Reading files whose unpacked size nobody vouches for.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use crate::{Error, Result};

/// The most bytes that a file may hold once unpacked, unless the options say otherwise: 4 GiB.
pub const LIMIT: u64 = 4 << 30;

const CHUNK: usize = 1 << 20;

/// Opens a regular file.
pub(crate) fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(Error::io(path))
}

/// The first bytes of a file, up to 64.
pub(crate) fn head(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(64).read_to_end(&mut bytes).map_err(Error::io(path))?;
    Ok(bytes)
}

/// Up to `limit` bytes of a reader; memory grows with what really arrives.
pub(crate) fn read_up_to(reader: &mut impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < limit {
        let want = (CHUNK as u64).min(limit - bytes.len() as u64);
        bytes.try_reserve(want as usize).map_err(|_| io::ErrorKind::OutOfMemory)?;
        if reader.take(want).read_to_end(&mut bytes)? == 0 {
            break;
        }
    }
    Ok(bytes)
}

/// All bytes of a file, unpacked when they are gzip.
pub(crate) fn load(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = open(path)?;
    let bytes = if head(path)?.starts_with(&[0x1f, 0x8b]) {
        read_up_to(&mut MultiGzDecoder::new(io::BufReader::new(file)), limit.saturating_add(1))
    } else {
        read_up_to(&mut io::BufReader::new(file), limit.saturating_add(1))
    }
    .map_err(Error::io(path))?;
    match bytes.len() as u64 > limit {
        true => Err(Error::file(path, too_big(limit))),
        false => Ok(bytes),
    }
}

/// The message for data beyond the limit.
pub(crate) fn too_big(limit: u64) -> String {
    format!(
        "holds more than the limit of {limit} bytes once unpacked; raise the limit if the file is trusted"
    )
}
