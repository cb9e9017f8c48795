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
        let mut archive = ZipWriter::new(UntilFailed::new(BufWriter::new(file), &mut failed));
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

/// Keeps the first error of a writer and takes everything after it, as if it had been written: an archive that fails
/// half-way writes its end all the same, and reports on stderr when it cannot.
struct UntilFailed<'a, W> {
    inner: W,
    failed: &'a mut Option<io::Error>,
    at: u64,
    end: u64,
}

impl<'a, W> UntilFailed<'a, W> {
    fn new(inner: W, failed: &'a mut Option<io::Error>) -> UntilFailed<'a, W> {
        UntilFailed { inner, failed, at: 0, end: 0 }
    }

    fn keep(&mut self, act: impl FnOnce(&mut W) -> io::Result<()>) {
        if self.failed.is_none() {
            *self.failed = act(&mut self.inner).err();
        }
    }
}

impl<W: Write> Write for UntilFailed<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.keep(|inner| inner.write_all(bytes));
        self.at += bytes.len() as u64;
        self.end = self.end.max(self.at);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.keep(W::flush);
        Ok(())
    }
}

impl<W: Seek> Seek for UntilFailed<'_, W> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.end.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        let at = self.at;
        self.keep(|inner| inner.seek(SeekFrom::Start(at)).map(drop));
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that takes no more than so many bytes.
    struct Small(io::Cursor<Vec<u8>>, usize);

    impl Write for Small {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.0.position() as usize + bytes.len() > self.1 {
                true => Err(io::ErrorKind::StorageFull.into()),
                false => self.0.write(bytes),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Seek for Small {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.0.seek(to)
        }
    }

    #[test]
    fn wherever_the_disk_is_full_it_is_one_error() {
        let fill = |size: usize| {
            let mut failed = None;
            let disk = Small(io::Cursor::new(Vec::new()), size);
            let mut archive = ZipWriter::new(UntilFailed::new(disk, &mut failed));
            for name in ["a", "b"] {
                archive.start_file(name, SimpleFileOptions::default()).unwrap();
                archive.write_all(&[7; 300]).unwrap();
            }
            let end = archive.finish().unwrap().end as usize;
            (failed.map(|e| e.kind()), end)
        };
        let whole = fill(1 << 20).1;
        for size in 0..whole + 20 {
            assert_eq!(fill(size).0, (size < whole).then_some(io::ErrorKind::StorageFull), "{size}");
        }
    }

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
