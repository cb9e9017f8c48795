//! One graph: its values, its operators, its executor and its gradients.
//!
//! A model is read into a [`Model`] whose [`Graph`] holds [`Node`]s (an operator and the values it reads and
//! makes) and [`Value`]s (constants, inputs and what nodes make). Passes change a graph through its mutators,
//! [`check`](Graph::check) verifies it, and a [`Session`](run::Session) runs it.
#![forbid(unsafe_code)]

pub mod attrs;
pub mod axes;
pub mod check;
pub mod dim;
pub mod dtype;
pub mod error;
pub mod fact;
pub mod grad;
pub mod infer;
pub mod ir;
pub mod op;
pub mod ops;
pub mod run;
pub mod tensor;
pub mod tidy;
pub mod turn;

pub use attrs::{Attr, Attrs};
pub use axes::Axes;
pub use dim::Dim;
pub use dtype::{DType, Element};
pub use error::{Error, Result};
pub use fact::{Fact, Type};
pub use ir::{Function, Graph, Model, Node, NodeId, Value, ValueId};
pub use op::{Op, OpDef};
pub use tensor::{Datum, Tensor};
pub use turn::{TurnCx, Turned};
