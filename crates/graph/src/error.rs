//! The one error type of the crate.

/// What can go wrong with a graph. Messages say what happened, where, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error of one node.
    #[error("at node {node:?} ({op}): {source}")]
    Node {
        /// The node's name.
        node: String,
        /// Its operator.
        op: String,
        /// What went wrong there.
        source: Box<Error>,
    },
    /// The model breaks the rules of its format or of an operator.
    #[error("{0}")]
    Invalid(String),
    /// The model is legal, but asks for something that is not implemented.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// What the caller handed in does not fit the model.
    #[error("{0}")]
    Input(String),
    /// More memory is asked for than the machine has.
    #[error("{0} bytes are more than this machine can give")]
    Memory(usize),
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// [`Error::Invalid`] from a message.
    pub fn invalid(message: impl Into<String>) -> Error {
        Error::Invalid(message.into())
    }

    /// [`Error::Unsupported`] from a message.
    pub fn unsupported(message: impl Into<String>) -> Error {
        Error::Unsupported(message.into())
    }

    /// The same error, said to have happened at a node. An error that already names a node keeps it.
    pub fn at(self, node: &str, op: &str) -> Error {
        match self {
            Error::Node { .. } => self,
            source => Error::Node { node: node.into(), op: op.into(), source: Box::new(source) },
        }
    }
}
