//! Losses, as nodes of the graph whose outputs they judge.

use graph::{Attrs, Dim, Error, Graph, Tensor, ValueId};
use serde::{Deserialize, Serialize};

/// How far an output is from its target; one number, the mean over the examples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// Kullback-Leibler divergence of the softmax of the output from that of the target, both divided by the
    /// temperature, times its square (Hinton, Vinyals and Dean, *Distilling the knowledge in a neural network*, 2015).
    Distil {
        /// What the logits are divided by.
        temperature: f32,
    },
    /// Mean squared difference.
    Squared,
    /// Squared difference relative to the squares of the target (SquareHead; Kurtic et al., *Sparse fine-tuning for
    /// inference acceleration of large language models*, 2023).
    Relative,
    /// Cross-entropy of the softmax of the output; the target holds probabilities.
    CrossEntropy,
    /// Cross-entropy of the sigmoid of each number of the output, added up; the target holds probabilities.
    Binary,
}

impl Loss {
    /// Adds the nodes; gives the value that holds the loss, a scalar.
    ///
    /// # Errors
    /// When the output's last size is not known, where it must be.
    pub fn add(self, graph: &mut Graph, output: ValueId, target: ValueId) -> graph::Result<ValueId> {
        match self {
            Loss::Distil { temperature } => {
                if !(temperature > 0.0 && temperature.is_finite()) {
                    return Err(Error::Input(format!("a temperature must be positive, not {temperature}")));
                }
                let heat = constant(graph, temperature);
                let cool = node(graph, "Div", Attrs::new(), &[output, heat])?;
                let wanted = node(graph, "Div", Attrs::new(), &[target, heat])?;
                let have = node(graph, "LogSoftmax", Attrs::new().int("axis", -1), &[cool])?;
                let shares = node(graph, "Softmax", Attrs::new().int("axis", -1), &[wanted])?;
                let want = node(graph, "LogSoftmax", Attrs::new().int("axis", -1), &[wanted])?;
                let apart = node(graph, "Sub", Attrs::new(), &[want, have])?;
                let each = node(graph, "Mul", Attrs::new(), &[shares, apart])?;
                let sum = rows_mean(graph, each, output)?;
                let square = constant(graph, temperature * temperature);
                node(graph, "Mul", Attrs::new(), &[sum, square])
            }
            Loss::Squared => {
                let apart = node(graph, "Sub", Attrs::new(), &[output, target])?;
                let square = node(graph, "Mul", Attrs::new(), &[apart, apart])?;
                whole(graph, "ReduceMean", square)
            }
            Loss::Relative => {
                let apart = node(graph, "Sub", Attrs::new(), &[output, target])?;
                let square = node(graph, "Mul", Attrs::new(), &[apart, apart])?;
                let size = node(graph, "Mul", Attrs::new(), &[target, target])?;
                let (above, below) = (whole(graph, "ReduceMean", square)?, whole(graph, "ReduceMean", size)?);
                let least = constant(graph, f32::MIN_POSITIVE);
                let below = node(graph, "Add", Attrs::new(), &[below, least])?;
                node(graph, "Div", Attrs::new(), &[above, below])
            }
            Loss::CrossEntropy => {
                let have = node(graph, "LogSoftmax", Attrs::new().int("axis", -1), &[output])?;
                let each = node(graph, "Mul", Attrs::new(), &[target, have])?;
                let sum = rows_mean(graph, each, output)?;
                let minus = constant(graph, -1.0);
                node(graph, "Mul", Attrs::new(), &[sum, minus])
            }
            Loss::Binary => {
                let both = node(graph, "Softplus", Attrs::new(), &[output])?;
                let held = node(graph, "Mul", Attrs::new(), &[target, output])?;
                let each = node(graph, "Sub", Attrs::new(), &[both, held])?;
                rows_mean(graph, each, output)
            }
        }
    }
}

/// Adds up losses, each times its weight.
///
/// # Errors
/// When there are none.
pub fn weighted(graph: &mut Graph, losses: &[(ValueId, f32)]) -> graph::Result<ValueId> {
    let mut total = None;
    for &(loss, weight) in losses {
        let weight = constant(graph, weight);
        let part = node(graph, "Mul", Attrs::new(), &[loss, weight])?;
        total = Some(match total {
            Some(sum) => node(graph, "Add", Attrs::new(), &[sum, part])?,
            None => part,
        });
    }
    total.ok_or_else(|| Error::Input("there is no loss to train on".into()))
}

/// Adds a loss of all pairs of rows of an output `[examples, features]`: the squares of how far their cosines are from those
/// that are wanted, each times what it counts, added up; both `[examples, examples]`.
///
/// # Errors
/// When a node cannot be added.
pub fn alike(graph: &mut Graph, output: ValueId, wanted: ValueId, counts: ValueId) -> graph::Result<ValueId> {
    let cosines = cosines(graph, output)?;
    let apart = node(graph, "Sub", Attrs::new(), &[cosines, wanted])?;
    let squares = node(graph, "Mul", Attrs::new(), &[apart, apart])?;
    let each = node(graph, "Mul", Attrs::new(), &[squares, counts])?;
    whole(graph, "ReduceSum", each)
}

/// Adds a loss of pairs of rows of an output `[examples, features]`: what the correlation (Pearson's) of their cosines with
/// what is wanted of these lacks to 1. `pairs`, `[examples, examples]`, is 1 where the row is the first and the column the
/// second of a pair, else 0; `wanted`, `[examples, 1]`, has for the first of each pair a number, all of which have the mean 0
/// and together the length 1, and else 0.
///
/// # Errors
/// When a node cannot be added.
pub fn correlated(
    graph: &mut Graph,
    output: ValueId,
    pairs: ValueId,
    wanted: ValueId,
) -> graph::Result<ValueId> {
    let cosines = cosines(graph, output)?;
    let last = graph.add_constant("loss", Tensor::vector(&[-1i64]));
    let these = node(graph, "Mul", Attrs::new(), &[cosines, pairs])?;
    let these = node(graph, "ReduceSum", Attrs::new(), &[these, last])?;
    let along = node(graph, "Mul", Attrs::new(), &[these, wanted])?;
    let squares = node(graph, "Mul", Attrs::new(), &[these, these])?;
    let [along, squares, sum, count] =
        [along, squares, these, pairs].map(|value| whole(graph, "ReduceSum", value));
    let (along, squares, sum, count) = (along?, squares?, sum?, count?);
    // The squares of how far cosines are from their mean.
    let square = node(graph, "Mul", Attrs::new(), &[sum, sum])?;
    let mean = node(graph, "Div", Attrs::new(), &[square, count])?;
    let spread = node(graph, "Sub", Attrs::new(), &[squares, mean])?;
    let least = constant(graph, 1e-6);
    let spread = node(graph, "Max", Attrs::new(), &[spread, least])?;
    let length = node(graph, "Sqrt", Attrs::new(), &[spread])?;
    let correlation = node(graph, "Div", Attrs::new(), &[along, length])?;
    let one = constant(graph, 1.0);
    node(graph, "Sub", Attrs::new(), &[one, correlation])
}

/// The cosines of all rows with each other.
fn cosines(graph: &mut Graph, output: ValueId) -> graph::Result<ValueId> {
    let last = graph.add_constant("loss", Tensor::vector(&[-1i64]));
    let squares = node(graph, "Mul", Attrs::new(), &[output, output])?;
    let sums = node(graph, "ReduceSum", Attrs::new(), &[squares, last])?;
    let least = constant(graph, 1e-12);
    let sums = node(graph, "Add", Attrs::new(), &[sums, least])?;
    let lengths = node(graph, "Sqrt", Attrs::new(), &[sums])?;
    let units = node(graph, "Div", Attrs::new(), &[output, lengths])?;
    let turned = node(graph, "Transpose", Attrs::new().ints("perm", &[1, 0]), &[units])?;
    node(graph, "MatMul", Attrs::new(), &[units, turned])
}

fn constant(graph: &mut Graph, value: f32) -> ValueId {
    graph.add_constant("loss", Tensor::scalar(value))
}

fn node(graph: &mut Graph, name: &str, attrs: Attrs, inputs: &[ValueId]) -> graph::Result<ValueId> {
    graph.append("loss", name, 13, &attrs, inputs)
}

fn whole(graph: &mut Graph, name: &str, value: ValueId) -> graph::Result<ValueId> {
    node(graph, name, Attrs::new().int("keepdims", 0), &[value])
}

/// The sum along the last axis, and the mean of that along all others.
fn rows_mean(graph: &mut Graph, each: ValueId, output: ValueId) -> graph::Result<ValueId> {
    let classes = graph.value(output).fact.shape().and_then(|s| s.last()).and_then(Dim::size);
    let Some(classes) = classes else {
        let name = graph.value(output).name.clone();
        return Err(Error::Input(format!("the number of classes of output {name:?} is not known")));
    };
    let mean = whole(graph, "ReduceMean", each)?;
    let factor = constant(graph, classes as f32);
    node(graph, "Mul", Attrs::new(), &[mean, factor])
}
