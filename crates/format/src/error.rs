//! The error type of the crate.

use std::path::{Path, PathBuf};

/// What can go wrong with a model file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refuses.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is broken, or not what it claims to be.
    #[error("{}: {what}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        what: String,
    },
    /// The model in the file breaks a rule.
    #[error("{}: {source}", path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// Which rule, and at which node.
        source: graph::Error,
    },
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// For `map_err`: an error of the system about a file.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
        move |source| Error::Io { path: path.into(), source }
    }

    /// A broken file.
    pub fn broken(path: &Path, what: impl Into<String>) -> Error {
        Error::Broken { path: path.into(), what: what.into() }
    }

    /// For `map_err`: an error of the model in a file.
    pub fn model(path: &Path) -> impl FnOnce(graph::Error) -> Error + '_ {
        move |source| Error::Model { path: path.into(), source }
    }
}
