//! What a model costs: time, memory, energy, carbon dioxide and money, and the machine it was measured on.
#![forbid(unsafe_code)]

pub mod carbon;
pub mod disk;
pub mod energy;
pub mod machine;
pub mod memory;
pub mod payback;
pub mod time;
pub mod what_if;

pub use carbon::{Cost, Place};
pub use energy::Energy;
pub use machine::Machine;
pub use time::{Race, Rounds, Spread, Stopwatch, interleave};
