//! Several named arrays in one file: NumPy's `.npz`, a ZIP archive of [`.npy`](super::npy) files.

use std::collections::HashSet;
use std::io::{self, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use graph::Tensor;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::{npy, source};
use crate::{Error, Result};

/// Reads all arrays, in the order of the archive, stored or deflated.
///
/// # Errors
/// When the archive is damaged, an array is (see [`npy::read`]), two have one name, or all together hold more
/// than `limit` bytes once unpacked.
pub fn read(path: &Path, limit: u64) -> Result<Vec<(String, Tensor)>> {
    let mut archive =
        ZipArchive::new(BufReader::new(source::open(path)?)).map_err(|e| Error::file(path, e.to_string()))?;
    let mut arrays = Vec::new();
    let mut names = HashSet::new();
    let mut left = limit;
    for i in 0..archive.len() {
        let mut entry = archive.by_index(i).map_err(|e| Error::file(path, e.to_string()))?;
        let Some(name) = entry.name().strip_suffix(".npy").map(str::to_string) else {
            continue;
        };
        if !names.insert(name.clone()) {
            return Err(Error::file(path, format!("holds two arrays with the name {name:?}")));
        }
        let tensor = npy::read_from(&mut entry, left)
            .map_err(|what| Error::file(path, format!("array {name:?} {what}")))?;
        left -= tensor.bytes().len() as u64;
        arrays.push((name, tensor));
    }
    match arrays.is_empty() {
        true => Err(Error::file(path, "is an archive without .npy arrays")),
        false => Ok(arrays),
    }
}

/// Writes arrays, not compressed: to a temporary name, synced to disk, then renamed. The same arrays make the
/// same bytes.
///
/// # Errors
/// When the file cannot be written, two arrays have one name, or the format has no such element type.
pub fn write(path: &Path, arrays: &[(String, Tensor)]) -> Result<()> {
    let mut names = HashSet::new();
    let mut headers = Vec::with_capacity(arrays.len());
    for (name, tensor) in arrays {
        if !names.insert(name) {
            return Err(Error::file(path, format!("two arrays have the name {name:?}")));
        }
        let header =
            npy::header_of(tensor).map_err(|what| Error::file(path, format!("array {name:?}: {what}")));
        headers.push(header?);
    }
    npy::write_file(path, |file| {
        let mut failed = None;
        let mut archive = ZipWriter::new(UntilFailed { inner: BufWriter::new(file), failed: &mut failed });
        for ((name, tensor), header) in arrays.iter().zip(&headers) {
            let options = SimpleFileOptions::default()
                .compression_method(CompressionMethod::Stored)
                .large_file(tensor.bytes().len() > u32::MAX as usize / 2);
            archive.start_file(format!("{name}.npy"), options)?;
            archive.write_all(header)?;
            archive.write_all(tensor.bytes())?;
        }
        archive.finish()?.flush()?;
        failed.map_or(Ok(()), Err)
    })
}

/// Keeps the first error of a writer and takes everything after it: an archive that fails half-way would write
/// its end all the same, and report on stderr that it cannot.
struct UntilFailed<'a, W> {
    inner: W,
    failed: &'a mut Option<io::Error>,
}

impl<W> UntilFailed<'_, W> {
    fn keep<T: Copy>(&mut self, or: T, act: impl FnOnce(&mut W) -> io::Result<T>) -> io::Result<T> {
        if self.failed.is_some() {
            return Ok(or);
        }
        act(&mut self.inner).or_else(|error| {
            *self.failed = Some(error);
            Ok(or)
        })
    }
}

impl<W: Write> Write for UntilFailed<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.keep(bytes.len(), |inner| inner.write_all(bytes).map(|()| bytes.len()))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.keep((), W::flush)
    }
}

impl<W: Seek> Seek for UntilFailed<'_, W> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.keep(0, |inner| inner.seek(to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_survive() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npz");
        let arrays = vec![
            ("image".to_string(), Tensor::new(&[2, 2], &[1f32, 2.0, 3.0, 4.0]).unwrap()),
            ("a/b:0".to_string(), Tensor::vector(&[1i64, -1])),
        ];
        write(&path, &arrays).unwrap();
        assert_eq!(read(&path, 1000).unwrap(), arrays);
        let first = std::fs::read(&path).unwrap();
        write(&path, &arrays).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), first);
        let twice = [arrays[0].clone(), arrays[0].clone()];
        assert!(write(&path, &twice).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), first, "a failed write leaves the old file");
    }

    fn archive(
        entries: &[(&str, &[u8])],
        method: CompressionMethod,
    ) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npz");
        let mut zip = ZipWriter::new(std::fs::File::create(&path).unwrap());
        for (name, bytes) in entries {
            zip.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap();
        (dir, path)
    }

    #[test]
    fn bombs_stop_at_the_limit() {
        let tensor = Tensor::zeros(graph::DType::U8, &[10 << 20]).unwrap();
        let mut bytes = npy::header_of(&tensor).unwrap();
        bytes.extend(tensor.bytes());
        let (_dir, path) = archive(&[("a.npy", &bytes)], CompressionMethod::Deflated);
        assert!(std::fs::metadata(&path).unwrap().len() < 20_000);
        assert_eq!(read(&path, 10 << 20).unwrap()[0].1, tensor);
        assert!(read(&path, (10 << 20) - 1).unwrap_err().to_string().contains("limit"));
        let (_dir, path) = archive(&[("a.npy", &bytes), ("b.npy", &bytes)], CompressionMethod::Deflated);
        assert!(read(&path, 15 << 20).unwrap_err().to_string().contains("array \"b\" holds more than"));
    }

    #[test]
    fn damaged_archives() {
        let tensor = Tensor::vector(&[1i64; 100]);
        let mut bytes = npy::header_of(&tensor).unwrap();
        bytes.extend(tensor.bytes());
        let (_dir, path) = archive(&[("a.npy", &bytes), ("readme.txt", b"x")], CompressionMethod::Stored);
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(read(&path, 1000).unwrap().len(), 1);
        for length in [0, 3, 100, 500, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(read(&path, 1000).is_err(), "cut to {length}");
        }
        let mut flipped = whole.clone();
        let at = whole.windows(8).rposition(|w| w == 1i64.to_le_bytes()).unwrap();
        flipped[at] = 2;
        std::fs::write(&path, &flipped).unwrap();
        assert!(read(&path, 1000).is_err(), "the checksum is checked");
        let (_dir, path) = archive(&[("readme.txt", b"x")], CompressionMethod::Stored);
        assert!(read(&path, 1000).unwrap_err().to_string().contains("without .npy"));
    }
}
