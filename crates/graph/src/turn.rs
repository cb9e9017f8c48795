//! Operators with the axes of their tensors in another order: what a pass needs to keep images with their channels
//! last from one convolution to the next.

use std::sync::Arc;

use crate::op::Facts;
use crate::{Op, Tensor, infer};

/// What surrounds [`Op::turn`].
pub struct TurnCx<'a> {
    /// The new order: axis `order[i]` becomes axis `i`.
    pub order: &'a [usize],
    /// What is known of the inputs, with their axes as they are now.
    pub facts: Facts<'a>,
    /// The constant inputs; `None` for those that are absent or not constant.
    pub constants: Vec<Option<Tensor>>,
}

/// What the turned operator reads in the place of an input.
#[derive(Clone, Debug)]
pub enum Read {
    /// The input as it is.
    Same,
    /// The input with its axes in the new order. A constant of lower rank first gets axes of size one in front.
    Turned,
    /// Another constant.
    New(Tensor),
    /// Nothing.
    Absent,
}

/// An operator that reads its inputs, and makes all its outputs or none, with their axes in the new order.
#[derive(Debug)]
pub struct Turned {
    /// The operator; `None` when it is the same one.
    pub op: Option<Arc<dyn Op>>,
    /// What it reads.
    pub reads: Vec<Read>,
    /// Are its outputs as they were, with none of their axes turned?
    pub same_outputs: bool,
}

impl TurnCx<'_> {
    /// The place of an axis in the new order.
    pub fn axis(&self, axis: i64) -> Option<i64> {
        let axis = infer::axis(axis, self.order.len()).ok()?;
        self.order.iter().position(|&a| a == axis).map(|at| at as i64)
    }

    /// The places of axes in the new order.
    pub fn axes(&self, axes: &[i64]) -> Option<Vec<i64>> {
        axes.iter().map(|&a| self.axis(a)).collect()
    }

    /// Is this the order in which the channels of an image stand behind its axes?
    pub fn is_channels_last(&self) -> bool {
        self.order == CHANNELS_LAST
    }

    /// The places of the axes that an input names, or of the first `count` when the node has no such input. The input
    /// must be constant.
    pub fn axes_input(&self, at: usize, count: usize) -> Option<Vec<i64>> {
        match (self.facts.get(at), &self.constants.get(at)) {
            (Some(_), Some(Some(axes))) => self.axes(&axes.to_ints().ok()?),
            (Some(_), _) => None,
            (None, _) => self.axes(&(0..count as i64).collect::<Vec<_>>()),
        }
    }

    /// The same operator, which treats all elements of its inputs at these places alike and broadcasts them against
    /// each other; it reads the other inputs as they are.
    pub fn elements(&self, mut is_image: impl FnMut(usize) -> bool) -> Option<Turned> {
        let read = |at: usize| {
            let Some(fact) = self.facts.get(at).filter(|_| is_image(at)) else { return Some(Read::Same) };
            let rank = fact.rank()?;
            let constant = self.constants.get(at).is_some_and(Option::is_some);
            match rank.cmp(&self.order.len()) {
                _ if fact.count() == Some(1) => Some(Read::Same),
                std::cmp::Ordering::Equal => Some(Read::Turned),
                std::cmp::Ordering::Less if constant => Some(Read::Turned),
                _ => None,
            }
        };
        let reads: Vec<Read> = (0..self.facts.len()).map(read).collect::<Option<_>>()?;
        Some(Turned { op: None, reads, same_outputs: false })
    }

    /// As [`TurnCx::elements`], of the first input only.
    pub fn first(&self) -> Option<Turned> {
        self.elements(|at| at == 0)
    }

    /// As [`TurnCx::elements`], of all inputs.
    pub fn all(&self) -> Option<Turned> {
        self.elements(|_| true)
    }
}

/// The order of the axes of `[N, C, H, W]` with the channels last.
pub const CHANNELS_LAST: [usize; 4] = [0, 2, 3, 1];

impl Turned {
    /// Another operator, which reads the same.
    pub fn by(self, op: impl Op + 'static) -> Turned {
        Turned { op: Some(Arc::new(op)), ..self }
    }

    /// The same, whose outputs are as they were: they are no images.
    pub fn with_outputs_as_they_were(self) -> Turned {
        Turned { same_outputs: true, ..self }
    }

    /// The same, which reads a list of numbers at one input.
    pub fn with_ints(mut self, at: usize, numbers: &[i64]) -> Turned {
        let length = self.reads.len().max(at + 1);
        self.reads.resize(length, Read::Absent);
        self.reads[at] = Read::New(Tensor::vector(numbers));
        self
    }
}
