//! Repair: what was lost is won back.

pub mod tune;
