//! Fusions: several nodes become one that does their work in one pass over memory. Only for running.

pub(super) mod attention;
pub(super) mod compose;
pub(super) mod epilogue;
