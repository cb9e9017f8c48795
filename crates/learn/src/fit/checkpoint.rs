//! The state of a training between two epochs, and how it is kept.

use std::collections::HashMap;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use super::{Fitted, Network, Progress, Recipe};
use crate::{Error, Result};

/// Where the state of a training is kept.
pub trait Checkpoints {
    /// The state that was kept last.
    fn load(&self) -> Option<Vec<u8>>;

    /// Keeps a state in the place of the last.
    ///
    /// # Errors
    /// When it cannot be written.
    fn save(&mut self, state: &[u8]) -> Result<()>;
}

/// What a training needs to go on.
#[derive(Debug)]
pub(super) struct State {
    /// Of each weight, as many as the optimizer has.
    pub moments: Vec<Vec<Vec<f32>>>,
    /// The weights with the least loss.
    best: Vec<Vec<f32>>,
    before: f64,
    least: f64,
    pub since_best: usize,
    pub epochs: Vec<Progress>,
}

/// What is said beside the tensors.
#[derive(Serialize, Deserialize)]
struct Note {
    recipe: Recipe,
    names: Vec<String>,
    /// Numbers are kept as their bits.
    before: u64,
    least: u64,
    since_best: usize,
    epochs: Vec<(usize, u64, u64)>,
}

const NOTE: &str = "lessen.training";

impl State {
    pub fn new(network: &Network, recipe: &Recipe, before: f64) -> Result<State> {
        let best = elements(network)?;
        let moments = best.iter().map(|w| vec![vec![0.0; w.len()]; recipe.optimizer.moments()]).collect();
        Ok(State { moments, best, before, least: before, since_best: 0, epochs: Vec::new() })
    }

    /// Notes an epoch, and the weights when they are better.
    pub fn epoch_over(&mut self, network: &Network, progress: Progress) -> Result<()> {
        self.epochs.push(progress);
        self.since_best += 1;
        if progress.held_out < self.least {
            self.least = progress.held_out;
            self.since_best = 0;
            self.best = elements(network)?;
        }
        Ok(())
    }

    /// Gives the network the best weights.
    pub fn finish(self, network: &mut Network) -> Result<Fitted> {
        for (weight, best) in network.weights.iter_mut().zip(&self.best) {
            weight.tensor.as_mut_slice::<f32>()?.copy_from_slice(best);
        }
        let before = if self.before.is_finite() { self.before } else { f64::NAN };
        Ok(Fitted { before, after: self.least, epochs: self.epochs })
    }

    /// The state as a safetensors file.
    pub fn write(&self, network: &Network, recipe: &Recipe) -> Result<Vec<u8>> {
        let now = elements(network)?;
        let mut tensors: Vec<(String, &[f32])> = Vec::new();
        for (i, weight) in now.iter().enumerate() {
            tensors.push((format!("{i}.weight"), weight));
            tensors.push((format!("{i}.best"), &self.best[i]));
            let moments = self.moments[i].iter().enumerate();
            tensors.extend(moments.map(|(m, moment)| (format!("{i}.moment.{m}"), moment.as_slice())));
        }
        let bytes: Vec<(String, Vec<u8>)> = tensors
            .into_iter()
            .map(|(name, t)| (name, t.iter().flat_map(|x| x.to_le_bytes()).collect()))
            .collect();
        let failed = |e: &dyn std::fmt::Display| Error::input(format!("a checkpoint cannot be written: {e}"));
        let mut views = Vec::new();
        for (name, bytes) in &bytes {
            let view = TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes).map_err(|e| failed(&e))?;
            views.push((name.as_str(), view));
        }
        let note = Note {
            recipe: recipe.clone(),
            names: names(network),
            before: self.before.to_bits(),
            least: self.least.to_bits(),
            since_best: self.since_best,
            epochs: self.epochs.iter().map(|p| (p.epoch, p.loss.to_bits(), p.held_out.to_bits())).collect(),
        };
        let note = serde_json::to_string(&note).map_err(|e| failed(&e))?;
        safetensors::serialize(views, Some(HashMap::from([(NOTE.into(), note)]))).map_err(|e| failed(&e))
    }

    /// Reads a state, and gives the network its weights; `None` when it is damaged or that of another training.
    pub fn read(bytes: &[u8], network: &mut Network, recipe: &Recipe) -> Option<State> {
        let (_, header) = SafeTensors::read_metadata(bytes).ok()?;
        let note: Note = serde_json::from_str(header.metadata().as_ref()?.get(NOTE)?).ok()?;
        if note.recipe != *recipe || note.names != names(network) {
            return None;
        }
        let file = SafeTensors::deserialize(bytes).ok()?;
        let tensor = |name: String, length: usize| -> Option<Vec<f32>> {
            let view = file.tensor(&name).ok().filter(|v| v.dtype() == Dtype::F32)?;
            let (numbers, rest) = view.data().as_chunks::<4>();
            let numbers: Vec<f32> = numbers.iter().map(|b| f32::from_le_bytes(*b)).collect();
            (rest.is_empty() && numbers.len() == length).then_some(numbers)
        };
        let (mut now, mut best, mut moments) = (Vec::new(), Vec::new(), Vec::new());
        for (i, weight) in network.weights.iter().enumerate() {
            let length = weight.tensor.len();
            now.push(tensor(format!("{i}.weight"), length)?);
            best.push(tensor(format!("{i}.best"), length)?);
            let each = (0..recipe.optimizer.moments()).map(|m| tensor(format!("{i}.moment.{m}"), length));
            moments.push(each.collect::<Option<Vec<_>>>()?);
        }
        for (weight, now) in network.weights.iter_mut().zip(&now) {
            weight.tensor.as_mut_slice::<f32>().ok()?.copy_from_slice(now);
        }
        let progress = |(epoch, loss, held_out): (usize, u64, u64)| Progress {
            epoch,
            loss: f64::from_bits(loss),
            held_out: f64::from_bits(held_out),
        };
        Some(State {
            moments,
            best,
            before: f64::from_bits(note.before),
            least: f64::from_bits(note.least),
            since_best: note.since_best,
            epochs: note.epochs.into_iter().map(progress).collect(),
        })
    }
}

fn elements(network: &Network) -> Result<Vec<Vec<f32>>> {
    network.weights.iter().map(|w| Ok(w.tensor.as_slice::<f32>()?.to_vec())).collect()
}

fn names(network: &Network) -> Vec<String> {
    network.weights.iter().map(|w| w.name.clone()).collect()
}
