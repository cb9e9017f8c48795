//! The error type of the crate.

use std::path::{Path, PathBuf};

/// What can go wrong when a model is shrunk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model cannot be changed or run.
    #[error(transparent)]
    Graph(#[from] graph::Error),
    /// A weight is not what a weight should be.
    #[error("weight {weight:?}: {what}")]
    Weight {
        /// The weight's name.
        weight: String,
        /// What is wrong with it.
        what: String,
    },
    /// The calibration data do not serve.
    #[error("calibration: {0}")]
    Calibration(String),
    /// A plan does not fit the model.
    #[error("plan: {0}")]
    Plan(String),
    /// A form of a weight cannot be written.
    #[error("form: {0}")]
    Form(String),
    /// Work that is kept in a folder cannot go on.
    #[error("{0}")]
    Job(String),
    /// The operating system refuses.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// What a walk carries cannot be kept in a folder.
    #[error(
        "what calibration carries from weight to weight cannot be kept in {}: {source}; make room there, or give another \
         folder with --spill",
        folder.display()
    )]
    Spill {
        /// The folder.
        folder: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A training fails.
    #[error("tuning: {0}")]
    Learn(#[from] learn::Error),
    /// What the caller's judge reports.
    #[error("{0}")]
    Judge(Box<dyn std::error::Error + Send + Sync>),
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// For `map_err`: an error of the system about a file.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
        move |source| Error::Io { path: path.into(), source }
    }
}
