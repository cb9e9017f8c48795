//! The one error type of the crate.

use std::path::PathBuf;

/// What can go wrong. Messages say what happened, where, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model file cannot be read or written.
    #[error(transparent)]
    Format(#[from] format::Error),
    /// A graph breaks a rule, or its inputs do not fit.
    #[error(transparent)]
    Graph(#[from] graph::Error),
    /// Data cannot be read, or do not fit.
    #[error(transparent)]
    Data(#[from] learn::Error),
    /// A weight is damaged, or shrinking fails.
    #[error(transparent)]
    Shrink(#[from] shrink::Error),
    /// The system refuses.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or program.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// What the caller asks for does not fit the model or the data.
    #[error("{0}")]
    Input(String),
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// [`Error::Input`] from a message.
    pub fn input(message: impl Into<String>) -> Error {
        Error::Input(message.into())
    }

    /// [`Error::Io`] of this path; to be used with `map_err`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        |source| Error::Io { path, source }
    }
}
