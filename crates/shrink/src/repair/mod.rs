//! Repair: what was lost is won back.

mod hints;
pub mod tune;
