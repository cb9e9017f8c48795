//! What a model costs, measured: time, memory, and the machine it was measured on.
#![forbid(unsafe_code)]

pub mod disk;
pub mod machine;
pub mod memory;
pub mod time;

pub use machine::Machine;
pub use time::{Race, Spread, Stopwatch, interleave};
