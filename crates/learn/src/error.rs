//! The one error type of the crate.

use std::fmt;
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
    #[error("{}, {place}: {what}", path.display())]
    Row {
        /// The table.
        path: PathBuf,
        /// Where the row stands.
        place: Place,
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

/// Where a row stands in its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The line it starts at, from 1.
    Line(u64),
    /// Its number, from 0, where there are no lines.
    Row(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line(line) => write!(f, "line {line}"),
            Place::Row(row) => write!(f, "row {row}"),
        }
    }
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
