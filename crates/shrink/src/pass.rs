//! Passes: changes of the whole graph that come before weights are put in few bits, and what surrounds them.

use std::collections::HashSet;

use graph::Graph;
use kernel::Cpu;
use serde::{Deserialize, Serialize};

use crate::carry::Examples;
use crate::factor;
use crate::prepare::{self, Prepare};
use crate::prune::{blocks, channels, vocabulary, zeros};
use crate::repair::tune;
use crate::weights::weights;
use crate::{Judge, Result};

/// What a pass may use.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Who has the data and judges models.
    pub judge: &'a dyn Judge,
    /// The model as it was before the first pass.
    pub original: &'a Graph,
    /// Instruction set and threads.
    pub cpu: &'a Cpu,
}

impl Context<'_> {
    /// The calibration examples as named inputs, batch by batch; none when there are no data.
    ///
    /// # Errors
    /// When an example cannot be read, or not be kept where the judge says.
    pub fn examples(&self) -> Result<Examples> {
        let mut examples = Examples::new(self.judge.spill())?;
        if self.judge.can_calibrate() {
            self.judge.calibration(&mut |example| examples.push(example))?;
        }
        Ok(examples)
    }

    /// Tells what is being done, in a few words.
    pub fn progress(&self, what: &str) {
        self.judge.progress(what);
    }
}

/// A change of the whole graph that comes before the weights are put in few bits, as a plan holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "pass", rename_all = "kebab-case")]
pub enum Pass {
    /// Zeros in weights.
    Zeros(zeros::Zeros),
    /// Channels, neurons and heads that go, with all that goes with them.
    Channels {
        /// Those of each group that stay.
        groups: Vec<channels::Channels>,
    },
    /// Whole blocks that are left out.
    Blocks {
        /// Which, and what stands in their place.
        blocks: Vec<blocks::Cut>,
    },
    /// Weights that become products of smaller ones.
    Rank {
        /// Which, and of which rank.
        weights: Vec<factor::Cut>,
    },
    /// Tokens that a table does without.
    Vocabulary(vocabulary::Cut),
    /// Weights that are trained to answer as the original does.
    Tune(tune::Tune),
    /// Numbers that move from one weight to the next, so that few bits do less harm; the model computes the same.
    Prepare(Prepare),
}

impl Pass {
    /// Its name, as plans have it.
    pub fn name(&self) -> &'static str {
        match self {
            Pass::Zeros(_) => "zeros",
            Pass::Channels { .. } => "channels",
            Pass::Blocks { .. } => "blocks",
            Pass::Rank { .. } => "rank",
            Pass::Vocabulary(_) => "vocabulary",
            Pass::Tune(_) => "tune",
            Pass::Prepare(prepare) => prepare.method().name(),
        }
    }

    /// What the number is that [`Pass::apply`] gives, in words.
    fn measure(&self) -> &'static str {
        match self {
            Pass::Tune(_) => "loss left",
            Pass::Prepare(_) => "rounding",
            _ => "squared error",
        }
    }

    /// Changes the graph, which stays plain f32. Gives the relative squared error that was made, of what the pass
    /// touched; of a training, the loss that is left; of a preparation, what rounding does to the outputs. The same pass
    /// on the same graph and data gives the same graph.
    ///
    /// # Errors
    /// [`crate::Error::Plan`] when the graph does not have what the pass names; when the graph cannot be run or
    /// changed.
    pub fn apply(&self, graph: &mut Graph, cx: &Context) -> Result<f64> {
        match self {
            Pass::Zeros(zeros) => zeros::apply(graph, zeros, cx),
            Pass::Channels { groups } => {
                cx.progress("cutting channels and refitting what reads them");
                channels::apply(graph, groups, cx.examples()?, cx.cpu)
            }
            Pass::Blocks { blocks } => {
                cx.progress("leaving out blocks");
                Ok(mean(&blocks::apply(graph, blocks, cx)?))
            }
            Pass::Rank { weights } => {
                cx.progress("factoring weights");
                Ok(mean(&factor::apply(graph, weights, cx)?))
            }
            Pass::Vocabulary(cut) => vocabulary::apply(graph, cut, cx),
            Pass::Tune(tune) => Ok(tune::apply(graph, tune, cx)?.after),
            Pass::Prepare(prepare) => prepare::apply(graph, prepare, cx),
        }
    }
}

fn mean(errors: &[f64]) -> f64 {
    errors.iter().sum::<f64>() / errors.len().max(1) as f64
}

/// What a pass did to a graph.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// The pass's name.
    pub pass: String,
    /// The relative squared error that it made, of what it touched; of a training, the loss that is left on examples
    /// that were held out of it; of a preparation, what rounding does to the outputs.
    pub error: f64,
    /// Which of them that is, in words.
    pub measure: &'static str,
    /// Elements of weights that are not 0: before and after.
    pub elements: (usize, usize),
}

impl Change {
    /// What this pass did, with the elements that there were before and are after.
    pub(crate) fn of(pass: &Pass, error: f64, elements: (usize, usize)) -> Change {
        Change { pass: pass.name().into(), error, measure: pass.measure(), elements }
    }
}

/// Elements of the weights of a graph that are not 0.
///
/// # Errors
/// When a weight is damaged.
pub fn elements(graph: &Graph) -> Result<usize> {
    let mut seen = HashSet::new();
    let mut count = 0;
    for weight in weights(graph)?.iter().filter(|w| seen.insert(w.value)) {
        if let Some(tensor) = graph.constant(weight.value) {
            count += tensor.values::<f32>()?.iter().filter(|x| **x != 0.0).count();
        }
    }
    Ok(count)
}
