//! Model files in and out. [`open`] guesses the kind from the bytes, [`save`] from the file's name.
#![forbid(unsafe_code)]

pub mod arch;
pub mod error;
pub mod file;
pub mod onnx;
pub mod safetensors;

pub use error::{Error, Result};

use std::io::Read;
use std::path::Path;

use graph::Model;

/// Opens a model: an ONNX file, or a folder with `config.json` and safetensors (or a safetensors file in it).
///
/// # Errors
/// When the file cannot be read, is of no known kind, or is broken.
pub fn open(path: &Path) -> Result<Model> {
    if path.is_dir() {
        return arch::open(path);
    }
    let mut start = Vec::new();
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    file.take(16).read_to_end(&mut start).map_err(Error::io(path))?;
    match start.as_slice() {
        [] => Err(Error::broken(path, "the file is empty")),
        [b'G', b'G', b'U', b'F', ..] => Err(Error::broken(path, "GGUF files are not supported yet")),
        [_, _, _, _, _, _, 0, 0, b'{', ..] => arch::open(path.parent().unwrap_or(Path::new("."))),
        _ => onnx::read(path),
    }
}

/// Writes a model. The file is complete or not there at all: it is written under another name, synced and renamed.
///
/// # Errors
/// When the file cannot be written.
pub fn save(model: &Model, path: &Path) -> Result<()> {
    onnx::write(model, path)
}
