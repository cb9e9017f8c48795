//! Training: the loop that makes a loss small by gradients, with a held-out part that says when to stop, and
//! checkpoints to go on from.

mod checkpoint;
pub mod lora;
mod loss;
mod network;
mod optimizer;
#[cfg(test)]
mod tests;
mod which;

use serde::{Deserialize, Serialize};

pub use checkpoint::Checkpoints;
pub use loss::{Loss, alike, correlated, weighted};
pub use network::{Held, Hold, Inputs, Network, Weight};
pub use optimizer::{Optimizer, cosine};
pub use which::{Which, trainable};

use crate::random::Random;
use crate::{Error, Result};
use checkpoint::State;
use optimizer::sizes;

/// How a network is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Recipe {
    /// Times that each example is seen, at most.
    pub epochs: usize,
    /// Examples a step.
    pub batch: usize,
    /// The greatest step.
    pub rate: f32,
    /// Rates are parts of what a weight's slices along its first axis measure, so that one fits small and great weights, as
    /// those that norms went into are.
    pub relative: bool,
    /// Part of all steps over which the rate rises.
    pub warmup: f32,
    /// How the weights are moved.
    #[serde(flatten)]
    pub optimizer: Optimizer,
    /// Gradients whose norm over all weights is greater are scaled down to it; 0 for never.
    pub clip: f32,
    /// The training stops after so many epochs in which the loss on the held-out examples has not become smaller.
    pub patience: usize,
    /// What the order of the examples is drawn from.
    pub seed: u64,
}

impl Default for Recipe {
    fn default() -> Recipe {
        Recipe {
            epochs: 10,
            batch: 64,
            rate: 1e-3,
            relative: false,
            warmup: 0.05,
            optimizer: Optimizer::default(),
            clip: 1.0,
            patience: 10,
            seed: 0,
        }
    }
}

/// Who has the examples.
pub trait Lessons {
    /// Number of examples to train on.
    fn len(&self) -> usize;

    /// True when there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// These examples as named inputs of the network, in one or several batches, each with the number of its examples;
    /// `seed` is what random changes of them are drawn from.
    ///
    /// # Errors
    /// When an example cannot be read.
    fn lesson(&self, examples: &[usize], seed: u64) -> Result<Vec<(Inputs, usize)>>;

    /// Examples that are not trained on, to say how well it goes; none when all are.
    ///
    /// # Errors
    /// When an example cannot be read.
    fn exam(&self) -> Result<Vec<(Inputs, usize)>>;
}

/// How far a training is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Progress {
    /// The epoch that is over, from 1.
    pub epoch: usize,
    /// The mean loss of its steps.
    pub loss: f64,
    /// The loss on the held-out examples after it; that of the steps when there are none.
    pub held_out: f64,
}

/// What came of a training.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fitted {
    /// The loss on the held-out examples before.
    pub before: f64,
    /// The same with the best weights, which are those that the network has now.
    pub after: f64,
    /// Each epoch.
    pub epochs: Vec<Progress>,
}

/// Trains a network. Its weights are then those with the least loss on the held-out examples, the ones from before
/// included. The same recipe and lessons on the same kind of processor give the same weights, also when the training was
/// interrupted and went on from a checkpoint. `watch` is called after each epoch and says whether to go on.
///
/// # Errors
/// When there are no examples, a loss is not finite from the start, or an example does not fit.
pub fn fit(
    network: &mut Network,
    recipe: &Recipe,
    lessons: &dyn Lessons,
    mut checkpoints: Option<&mut dyn Checkpoints>,
    watch: &mut dyn FnMut(&Progress) -> bool,
) -> Result<Fitted> {
    if lessons.is_empty() || recipe.batch == 0 {
        return Err(Error::input("there are no examples to train on"));
    }
    let steps_each = lessons.len().div_ceil(recipe.batch) as u64;
    let steps = steps_each * recipe.epochs as u64;
    let exam = lessons.exam()?;
    let saved =
        checkpoints.as_ref().and_then(|c| c.load()).and_then(|bytes| State::read(&bytes, network, recipe));
    let mut state = match saved {
        Some(state) => state,
        None => {
            let before = network.mean_loss(&exam)?;
            if !before.is_finite() {
                return Err(Error::input(format!("the loss of the untrained network is {before}")));
            }
            tracing::info!(held_out = before, "before training");
            State::new(network, recipe, if exam.is_empty() { f64::INFINITY } else { before })?
        }
    };
    while state.epochs.len() < recipe.epochs && state.since_best < recipe.patience.max(1) {
        let epoch = state.epochs.len();
        let mut random = Random::new(recipe.seed ^ (epoch as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut order: Vec<usize> = (0..lessons.len()).collect();
        random.shuffle(&mut order);
        let mut total = (0f64, 0usize);
        for (at, examples) in order.chunks(recipe.batch).enumerate() {
            let batches = lessons.lesson(examples, random.bits())?;
            let step = epoch as u64 * steps_each + at as u64;
            let (loss, count) = advance(network, recipe, &mut state, &batches, step, steps)?;
            total = (total.0 + loss, total.1 + count);
        }
        let loss = total.0 / total.1.max(1) as f64;
        let after = if exam.is_empty() { loss } else { network.mean_loss(&exam)? };
        let progress = Progress { epoch: epoch + 1, loss, held_out: after };
        tracing::info!(epoch = progress.epoch, loss, held_out = after, "training");
        state.epoch_over(network, progress)?;
        if let Some(checkpoints) = checkpoints.as_mut() {
            checkpoints.save(&state.write(network, recipe)?)?;
        }
        if !watch(&progress) {
            break;
        }
    }
    state.finish(network)
}

/// Makes a step on the mean gradient of these batches; gives the sum of their losses over all examples, and how many
/// these are. Steps whose gradient is not finite are left out.
fn advance(
    network: &mut Network,
    recipe: &Recipe,
    state: &mut State,
    batches: &[(Inputs, usize)],
    step: u64,
    steps: u64,
) -> Result<(f64, usize)> {
    let all: usize = batches.iter().map(|b| b.1).sum();
    let (loss, mut sums) = network.mean_gradients(batches)?;
    let total = loss * all as f64;
    let norm = sums.iter().flatten().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
    if !norm.is_finite() {
        let finite = |values: &[f32]| values.iter().all(|x| x.is_finite());
        let of = network.weights.iter().zip(&sums).find(|(_, grad)| !finite(grad));
        let weight = of.map_or("", |(weight, _)| weight.name.as_str());
        tracing::warn!(step, loss, weight, "a gradient is not finite: the step is left out");
        return Ok((total, all));
    }
    if recipe.clip > 0.0 && norm > f64::from(recipe.clip) {
        let factor = (f64::from(recipe.clip) / norm) as f32;
        sums.iter_mut().flatten().for_each(|g| *g *= factor);
    }
    let rate = cosine(recipe.rate, step, steps, recipe.warmup);
    let pool = network.cpu.pool().clone();
    let weights = network.weights.iter_mut().zip(&sums).zip(&mut state.moments);
    let mut weights: Vec<_> =
        weights.map(|((weight, grad), moments)| (weight, grad, moments, Ok(()))).collect();
    pool.for_chunks_mut(&mut weights, 1, |_, one| {
        let (weight, grad, moments, done) = &mut one[0];
        *done = moved(weight, grad, moments, recipe, rate, step);
    });
    weights.into_iter().try_for_each(|(_, _, _, done)| done)?;
    Ok((total, all))
}

/// Moves a weight by a step, counted from 0.
fn moved(
    weight: &mut Weight,
    grad: &[f32],
    moments: &mut [Vec<f32>],
    recipe: &Recipe,
    rate: f32,
    step: u64,
) -> Result<()> {
    let decays = weight.tensor.rank() > 1;
    let sizes = match recipe.relative {
        true => sizes(weight.tensor.as_slice()?, weight.tensor.shape()),
        false => vec![1.0],
    };
    let rates: Vec<f32> = sizes.iter().map(|size| rate * size).collect();
    recipe.optimizer.step(&rates, step + 1, decays, weight.tensor.as_mut_slice()?, grad, moments);
    weight.clear()
}
