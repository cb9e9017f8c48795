//! Examples for models: readers of data, what turns images and texts into a model's inputs, and the metrics
//! that say how well a model does on them.
//!
//! [`data::open`] makes a [`Dataset`] of a file or folder; [`image::Preprocess`] and, with the feature `text`,
//! [`text::Tokenizer`] make tensors of an [`Example`]; [`score`] judges the answers, always with an interval.
#![forbid(unsafe_code)]

pub mod data;
pub mod error;
pub mod image;
pub mod random;
pub mod score;
#[cfg(feature = "text")]
pub mod text;

pub use data::{Dataset, Example, Input, Options, Target, open};
pub use error::{Error, Result};
