//! Model files in and out. [`open`] guesses the kind from the bytes, [`save`] writes ONNX.
#![forbid(unsafe_code)]

pub mod arch;
pub mod error;
pub mod file;
pub mod onnx;
pub mod pack;
pub mod safetensors;

pub use error::{Error, Result};

use std::io::Read;
use std::path::{Path, PathBuf};

use graph::Model;

/// What a file or folder is, by its first bytes.
enum Kind {
    Onnx,
    /// The folder of the checkpoint.
    Checkpoint(PathBuf),
}

fn kind(path: &Path) -> Result<Kind> {
    if path.is_dir() {
        return Ok(Kind::Checkpoint(path.into()));
    }
    let mut start = Vec::new();
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    file.take(16).read_to_end(&mut start).map_err(Error::io(path))?;
    match start.as_slice() {
        [] => Err(Error::broken(path, "the file is empty")),
        [b'G', b'G', b'U', b'F', ..] => Err(Error::broken(path, "GGUF files are not supported yet")),
        [_, _, _, _, _, _, 0, 0, b'{', ..] => {
            Ok(Kind::Checkpoint(path.parent().unwrap_or(Path::new(".")).into()))
        }
        _ => Ok(Kind::Onnx),
    }
}

/// Opens a model: an ONNX file, or a folder with `config.json` and safetensors (or a safetensors file in it).
///
/// # Errors
/// When the file cannot be read, is of no known kind, or is broken.
pub fn open(path: &Path) -> Result<Model> {
    match kind(path)? {
        Kind::Onnx => onnx::read(path),
        Kind::Checkpoint(folder) => arch::open(&folder),
    }
}

/// All files that a model lies in: an ONNX file with those of its weights, or all that are right in a folder.
///
/// # Errors
/// As [`open`].
pub fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let folder = match kind(path)? {
        Kind::Onnx => return onnx::files(path),
        Kind::Checkpoint(_) if !path.is_dir() => return Ok(vec![path.into()]),
        Kind::Checkpoint(folder) => folder,
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(Error::io(&folder))? {
        let path = entry.map_err(Error::io(&folder))?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Writes a model. The file is complete or not there at all: it is written under another name, synced and renamed.
///
/// # Errors
/// When the file cannot be written.
pub fn save(model: &Model, path: &Path) -> Result<()> {
    check_name(path)?;
    onnx::write(model, path)
}

/// Fails when a file of this name would be taken for another format than ONNX, which is what is written.
///
/// # Errors
/// Says which format can hold what.
pub fn check_name(path: &Path) -> Result<()> {
    const OTHERS: [&str; 9] = ["gguf", "safetensors", "bin", "pt", "pth", "pb", "h5", "tflite", "mlmodel"];
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    match OTHERS.contains(&ending.as_str()) {
        true => Err(Error::broken(
            path,
            format!(
                "models are written as ONNX, which holds all that is done to them, not as {ending}; name a file that \
                 ends with .onnx (lessen quantize writes checkpoints in safetensors)"
            ),
        )),
        false => Ok(()),
    }
}
