//! Makes big trained models small, and proves that they still do their job: open, compare, save, run, measure.
//!
//! A [`Model`] is opened from a file, a [`Runner`] runs it, [`answer::Answerer`] shows it the examples of a data
//! set. [`eval`](eval::eval) says how good it is, [`compare`](compare::compare) how far two models are apart,
//! [`bench`] what a run costs and [`inspect`](inspect::inspect) what the model is made of.
#![forbid(unsafe_code)]

pub mod adapter;
pub mod answer;
pub mod bench;
pub mod big;
mod caveats;
pub mod compare;
pub mod error;
pub mod eval;
pub mod features;
pub mod feed;
pub mod forecast;
pub mod inspect;
mod judge;
pub mod kept;
pub mod leaks;
mod lessons;
mod made;
pub mod measure;
pub mod model;
pub mod payback;
pub mod pick;
pub mod provenance;
pub mod receipt;
pub mod runner;
pub mod shapes;
pub mod shrink;
pub mod storage;
mod tasks;
pub mod teach;
mod thumbnail;
pub mod verify;

pub use error::{Error, Result};
pub use format::{check_name, pack};
pub use graph::{DType, Datum, Dim, Fact, Tensor};
pub use kernel::Cpu;
pub use learn::{data, head, image, text};
pub use meter;
pub use model::Model;
pub use runner::Runner;

/// The operators that can be run, in all versions that are read differently.
pub fn operators() -> impl Iterator<Item = &'static graph::OpDef> {
    graph::ops::all()
}

/// Writes a file. It is complete or not there at all: written under another name, synced and renamed.
///
/// # Errors
/// When the file cannot be written.
pub fn write_file(path: &std::path::Path, bytes: &[u8]) -> Result<()> {
    write_file_with(path, |out| out.write_all(bytes))
}

/// The same, of a file that is made piece by piece.
///
/// # Errors
/// As [`write_file`].
pub fn write_file_with(
    path: &std::path::Path,
    fill: impl FnOnce(&mut (dyn std::io::Write + Send)) -> std::io::Result<()>,
) -> Result<()> {
    Ok(format::file::write(path, fill)?)
}
