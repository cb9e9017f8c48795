//! Running a graph: a [`Program`] is planned once, a [`Session`] runs a model's program on inputs by name.

mod program;
mod session;
mod watch;

pub use program::Program;
pub use session::Session;
pub use watch::Watch;
