//! Examples for models: readers of data, what turns images and texts into a model's inputs, the metrics that say how
//! well a model does on them, and the training that makes it do better.
//!
//! [`data::open`] makes a [`Dataset`] of a file or folder; [`image::Preprocess`] and, with the feature `text`,
//! [`text::Tokenizer`] make tensors of an [`Example`]; [`score`] judges the answers, always with an interval; [`fit`]
//! trains a graph's weights.
#![forbid(unsafe_code)]

pub mod data;
pub mod error;
pub mod fit;
pub mod head;
pub mod image;
pub mod linear;
pub mod made;
pub mod pick;
pub mod random;
pub mod score;
#[cfg(feature = "text")]
pub mod text;

pub use data::{Dataset, Example, Input, Options, Target, open};
pub use error::{Error, Place, Result};
