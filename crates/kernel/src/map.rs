//! Memory-mapped files as byte slices.

use std::fs::File;
use std::io;
use std::path::Path;

/// A file mapped read-only into memory. Pages are read from disk when they are first touched.
#[derive(Debug)]
pub struct Map(memmap2::Mmap);

impl Map {
    /// Maps the whole file.
    ///
    /// The file must not be truncated while it is mapped: reading a page that is gone ends the process with
    /// `SIGBUS`, as in every program that maps files. Model files are replaced by renaming, never in place.
    pub fn open(path: &Path) -> io::Result<Map> {
        let file = File::open(path)?;
        let kind = file.metadata()?;
        if !kind.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        // SAFETY: the map is read-only and private; see the note on truncation above.
        Ok(Map(unsafe { memmap2::Mmap::map(&file)? }))
    }
}

impl AsRef<[u8]> for Map {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
