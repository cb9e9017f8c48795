//! Model files in and out. [`open`] guesses the kind from the bytes, [`save`] from the file's name.
#![forbid(unsafe_code)]

pub mod error;
pub mod file;
pub mod onnx;

pub use error::{Error, Result};

use std::path::Path;

use graph::Model;

/// Opens a model file of any kind.
///
/// # Errors
/// When the file cannot be read, is of no known kind, or is broken.
pub fn open(path: &Path) -> Result<Model> {
    onnx::read(path)
}

/// Writes a model. The file is complete or not there at all: it is written under another name, synced and renamed.
///
/// # Errors
/// When the file cannot be written.
pub fn save(model: &Model, path: &Path) -> Result<()> {
    onnx::write(model, path)
}
