//! What a receipt is about, so that it can be told from others: hashes of files, versions, seeds.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use learn::data::Dataset;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// A file, or a folder of them, and what it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Content {
    /// Its name, without the folders above.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
    /// SHA-256 of it, in hexadecimal digits. Of a folder: of a line for each file in it, sorted: the file's own hash,
    /// two spaces, its path within the folder. `sha256sum` over sorted relative paths writes the same lines.
    pub sha256: String,
}

/// What the numbers were made from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Provenance {
    /// The files of the original.
    pub original: Vec<Content>,
    /// The files of the result, once they are written.
    pub result: Vec<Content>,
    /// The data, when it is known where they are.
    pub data: Option<Content>,
    /// The data that calibration looked at, when they are others.
    pub calibration: Option<Content>,
    /// The data that weights were trained on, when they are others.
    pub training: Option<Content>,
    /// SHA-256 of the right answers and of which example is in which share: a line for each example of each share, with
    /// its share, its index and its answer.
    pub answers_sha256: Option<String>,
    /// Version of ONNX's own operators in the result.
    pub opset: i64,
    /// The instruction set that ran the models.
    pub isa: String,
    /// The seed of the sharing of the examples and of every bootstrap.
    pub seed: u64,
}

/// The files of a model.
///
/// # Errors
/// When a file cannot be read.
pub fn model(path: &Path) -> Result<Vec<Content>> {
    format::files(path)?.iter().map(|file| of_file(file)).collect()
}

/// A file or a folder.
///
/// # Errors
/// When a file cannot be read.
pub fn content(path: &Path) -> Result<Content> {
    if !path.is_dir() {
        return of_file(path);
    }
    let mut files = Vec::new();
    walk(path, &mut files)?;
    let mut lines: Vec<(String, Content)> = Vec::new();
    for file in files {
        let within = file.strip_prefix(path).unwrap_or(&file);
        let parts: Vec<_> = within.components().map(|c| c.as_os_str().to_string_lossy()).collect();
        lines.push((parts.join("/"), of_file(&file)?));
    }
    lines.sort_by(|a, b| a.0.cmp(&b.0));
    let mut hash = Sha256::new();
    for (path, file) in &lines {
        hash.update(format!("{}  {path}\n", file.sha256));
    }
    let bytes = lines.iter().map(|(_, file)| file.bytes).sum();
    Ok(Content { name: name(path), bytes, sha256: hex(&hash.finalize()) })
}

/// What [`Provenance::answers_sha256`] says.
pub(crate) fn answers<'a>(
    shares: impl IntoIterator<Item = (&'a str, &'a dyn Dataset, &'a [usize])>,
) -> String {
    let mut hash = Sha256::new();
    for (share, data, rows) in shares {
        for &i in rows {
            hash.update(format!("{share} {i} {:?}\n", data.target(i)));
        }
    }
    hex(&hash.finalize())
}

fn name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned())
}

fn of_file(path: &Path) -> Result<Content> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let mut hash = Sha256::new();
    let mut block = vec![0u8; 1 << 20];
    let mut bytes = 0;
    loop {
        let n = file.read(&mut block).map_err(Error::io(path))?;
        if n == 0 {
            break;
        }
        hash.update(&block[..n]);
        bytes += n as u64;
    }
    Ok(Content { name: name(path), bytes, sha256: hex(&hash.finalize()) })
}

/// All files below a folder. Links to folders are not followed, so that there is an end.
fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(Error::io(&path))?;
        if kind.is_dir() {
            walk(&path, files)?;
        } else if path.is_file() {
            files.push(path);
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of FIPS 180-2 and what `sha256sum` says.
    #[test]
    fn known_hashes() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("b.txt");
        std::fs::write(&file, "abc").unwrap();
        let of_abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let found = content(&file).unwrap();
        assert_eq!((found.name.as_str(), found.bytes, found.sha256.as_str()), ("b.txt", 3, of_abc));
        std::fs::create_dir(place.path().join("a")).unwrap();
        std::fs::write(place.path().join("a/c.txt"), "").unwrap();
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let lines = format!("{empty}  a/c.txt\n{of_abc}  b.txt\n");
        let folder = content(place.path()).unwrap();
        assert_eq!((folder.bytes, folder.sha256), (3, hex(&Sha256::digest(lines.as_bytes()))));
        let missing = content(&place.path().join("no")).unwrap_err().to_string();
        assert!(missing.contains("no"), "{missing}");
    }
}
