//! The one error type of the crate.

use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong with data. Messages say what happened, where, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refused to read or write a file, or its compressed bytes are damaged.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file or folder is not what it should be.
    #[error("{}: {what}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A row of a table is not what it should be.
    #[error("{}, line {line}: {what}", path.display())]
    Row {
        /// The table.
        path: PathBuf,
        /// The line the row starts at, from 1.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
    /// What the caller asked for does not fit the data.
    #[error("{0}")]
    Input(String),
    /// A tensor could not be made.
    #[error(transparent)]
    Tensor(#[from] graph::Error),
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// [`Error::Input`] from a message.
    pub fn input(message: impl Into<String>) -> Error {
        Error::Input(message.into())
    }

    /// [`Error::File`] from a message.
    pub fn file(path: &Path, what: impl Into<String>) -> Error {
        Error::File { path: path.into(), what: what.into() }
    }

    /// [`Error::Io`] of this path; to be used with `map_err`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_path_buf();
        |source| Error::Io { path, source }
    }
}
