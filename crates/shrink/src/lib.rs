//! Makes a model smaller and says what that costs: passes that change weights, the calibration they need, and the
//! search that chooses among them for a goal.
#![forbid(unsafe_code)]

pub mod allocate;
pub mod calibrate;
pub mod carry;
pub mod error;
pub mod factor;
pub mod gram;
pub mod job;
pub mod lean;
pub mod matrix;
pub mod obs;
pub mod observe;
pub mod pass;
pub mod plan;
pub mod prepare;
pub mod prune;
pub mod quantize;
pub mod repair;
pub mod search;
pub mod stats;
pub mod walk;
pub mod weights;

pub use carry::Examples;
pub use error::{Error, Result};
pub use pass::{Change, Context, Pass};
pub use plan::{CalibrationData, Choice, Plan, Step};
pub use search::{
    Allocation, Forecast, Goal, Judge, Outcome, Part, Point, Score, Sparse, Speed, apply, forecast, shrink,
};
