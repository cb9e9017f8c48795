//! A graph whose weights are trained: forward, loss and gradients as one program that reads the weights as inputs.

use std::fmt;
use std::sync::Arc;

use graph::grad::gradients;
use graph::run::Session;
use graph::{DType, Datum, Fact, Graph, Tensor, ValueId, tidy};
use kernel::Cpu;

use crate::{Error, Result};

/// Named inputs of a run.
pub type Inputs = Vec<(String, Datum)>;

/// Makes of elements what the graph sees of them.
pub type Held = Arc<dyn Fn(&mut [f32]) + Send + Sync>;

/// What a weight is held to. Gradients are those at what is held, and move the weight behind it (the straight-through
/// estimator; Bengio, Léonard and Courville, 2013).
#[derive(Clone, Default)]
pub enum Hold {
    /// Nothing.
    #[default]
    Free,
    /// Elements that are 0 stay 0.
    Zeros,
    /// What a function makes of the elements, such as rounding to a grid.
    To(Held),
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Hold::Free => "Free",
            Hold::Zeros => "Zeros",
            Hold::To(_) => "To(..)",
        })
    }
}

/// A weight that is trained.
#[derive(Clone, Debug)]
pub struct Weight {
    /// The constant of the graph that it was.
    pub value: ValueId,
    /// Its name.
    pub name: String,
    /// Its elements, f32, before they are held to anything.
    pub tensor: Tensor,
    /// Which elements are 0 and stay so.
    zeros: Option<Arc<Vec<bool>>>,
    hold: Hold,
}

impl Weight {
    /// The elements as the graph sees them.
    ///
    /// # Errors
    /// When memory is short.
    pub fn held(&self) -> Result<Tensor> {
        match &self.hold {
            Hold::To(hold) => {
                let mut tensor = self.tensor.clone();
                hold(tensor.as_mut_slice()?);
                Ok(tensor)
            }
            _ => Ok(self.tensor.clone()),
        }
    }

    /// Puts back to 0 what must be 0.
    pub(super) fn clear(&mut self) -> Result<()> {
        if let Some(zeros) = &self.zeros {
            let elements = self.tensor.as_mut_slice::<f32>()?.iter_mut();
            elements.zip(zeros.iter()).filter(|(_, zero)| **zero).for_each(|(x, _)| *x = 0.0);
        }
        Ok(())
    }
}

/// A graph, its loss, and the weights that are trained.
#[derive(Debug)]
pub struct Network {
    /// Gives the loss, then a gradient for each weight.
    train: Session,
    /// Gives what is judged.
    judge: Session,
    pub(super) cpu: Cpu,
    pub(super) weights: Vec<Weight>,
}

impl Network {
    /// Makes the constants `weights` of a graph trainable. `loss` is the scalar of it that gradients are of, `judged` the one
    /// that [`Network::loss`] gives. Weights on which the loss does not depend are left out.
    ///
    /// # Errors
    /// When a weight is no constant of type f32, an operator between a weight and the loss has no gradient (the node is
    /// named), or the loss depends on no weight.
    pub fn new(
        graph: &Graph,
        loss: ValueId,
        judged: ValueId,
        weights: &[(ValueId, Hold)],
        cpu: &Cpu,
    ) -> Result<Network> {
        let mut train = graph.clone();
        train.infer()?;
        let mut found = Vec::new();
        for (id, hold) in weights {
            let value = train.value_mut(*id);
            let Some(tensor) = value.constant.take().filter(|t| t.dtype() == DType::F32) else {
                return Err(Error::input(format!("{:?} is no weight of type f32", value.name)));
            };
            value.fact = Fact::of(&tensor);
            let tensor = tensor.aligned();
            let name = value.name.clone();
            if !train.inputs.contains(id) {
                train.inputs.push(*id);
            }
            let zeros = matches!(hold, Hold::Zeros);
            let zeros =
                zeros.then(|| tensor.as_slice::<f32>().map(|t| t.iter().map(|&x| x == 0.0).collect()));
            let zeros = zeros.transpose()?.map(Arc::new);
            found.push(Weight { value: *id, name, tensor, zeros, hold: hold.clone() });
        }
        train.outputs = vec![loss];
        let mut judge = train.clone();
        judge.outputs = vec![judged];
        let seed = train.add_constant("seed", Tensor::scalar(1f32));
        let ids: Vec<ValueId> = found.iter().map(|w| w.value).collect();
        let grads = gradients(&mut train, loss, seed, &ids)?;
        let mut kept = Vec::new();
        for (weight, grad) in found.into_iter().zip(grads) {
            match grad {
                Some(grad) => {
                    train.outputs.push(grad);
                    kept.push(weight);
                }
                // Back to what it was.
                None => {
                    for graph in [&mut train, &mut judge] {
                        graph.set_constant(weight.value, weight.tensor.clone());
                        graph.inputs.retain(|id| *id != weight.value);
                    }
                }
            }
        }
        if kept.is_empty() {
            return Err(Error::input("the loss depends on none of the weights that are to be trained"));
        }
        for graph in [&mut train, &mut judge] {
            graph.sort()?;
            tidy::remove_dead(graph);
            tidy::run(graph, tidy::RUN, cpu)?;
        }
        // Nobody has to give what only the loss reads.
        let readers = judge.readers();
        let needed = |v: &ValueId| !readers[v.index()].is_empty() || kept.iter().any(|w| w.value == *v);
        judge.inputs.retain(needed);
        let (train, judge) = (Session::new(train, cpu)?, Session::new(judge, cpu)?);
        Ok(Network { train, judge, cpu: cpu.clone(), weights: kept })
    }

    /// The weights that are trained.
    pub fn weights(&self) -> &[Weight] {
        &self.weights
    }

    /// What is judged, on these examples.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn loss(&self, inputs: &Inputs) -> Result<f64> {
        let outputs = self.judge.run(self.with_weights(&self.judge, inputs)?)?;
        scalar(&outputs[0])
    }

    /// The loss on these examples, and the gradient of each weight.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn gradients(&self, inputs: &Inputs) -> Result<(f64, Vec<Tensor>)> {
        let mut outputs = self.train.run(self.with_weights(&self.train, inputs)?)?.into_iter();
        let loss = outputs.next().map(|loss| scalar(&loss)).transpose()?.unwrap_or(f64::NAN);
        let grads = outputs.map(|grad| Ok(grad.into_tensor()?.aligned())).collect::<Result<Vec<_>>>()?;
        if !grads.iter().map(Tensor::len).eq(self.weights.iter().map(|w| w.tensor.len())) {
            return Err(Error::input("a gradient has not the size of its weight"));
        }
        Ok((loss, grads))
    }

    /// The mean of what is judged, on all of these batches, side by side.
    ///
    /// # Errors
    /// When one does not fit.
    pub fn mean_loss(&self, batches: &[(Inputs, usize)]) -> Result<f64> {
        let losses = self.cpu.pool().map(batches.len(), |i| self.loss(&batches[i].0));
        let (mut total, mut all) = (0.0, 0);
        for (loss, (_, count)) in losses.into_iter().zip(batches) {
            total += loss? * *count as f64;
            all += count;
        }
        Ok(total / all.max(1) as f64)
    }

    /// The mean loss on all of these batches, and the gradient of each weight. Batches are run side by side, each on one
    /// thread; sums do not depend on the number of threads.
    ///
    /// # Errors
    /// When one does not fit.
    pub fn mean_gradients(&self, batches: &[(Inputs, usize)]) -> Result<(f64, Vec<Vec<f32>>)> {
        let pool = self.cpu.pool();
        let all = batches.iter().map(|b| b.1).sum::<usize>().max(1);
        let mut total = 0.0;
        let mut sums: Vec<Vec<f32>> = self.weights.iter().map(|w| vec![0.0; w.tensor.len()]).collect();
        // As many at a time as there are threads, so that no more gradients are held.
        for wave in batches.chunks(pool.threads()) {
            let found = pool.map(wave.len(), |i| self.gradients(&wave[i].0));
            let found = found.into_iter().collect::<Result<Vec<_>>>()?;
            let mut grads = Vec::new();
            for ((loss, found), (_, count)) in found.iter().zip(wave) {
                total += loss * *count as f64;
                let slices = found.iter().map(|grad| Ok(grad.as_slice::<f32>()?));
                grads.push((*count as f32 / all as f32, slices.collect::<Result<Vec<_>>>()?));
            }
            pool.for_chunks_mut(&mut sums, 1, |at, sums| {
                for (part, grads) in &grads {
                    sums[0].iter_mut().zip(grads[at]).for_each(|(s, g)| *s += part * g);
                }
            });
        }
        Ok((total / all as f64, sums))
    }

    fn with_weights<'a>(&'a self, session: &Session, inputs: &'a Inputs) -> Result<Vec<(&'a str, Datum)>> {
        let asked: Vec<&str> = session.inputs().into_iter().map(|(name, _)| name).collect();
        let given = inputs.iter().filter(|(name, _)| asked.contains(&name.as_str()));
        let mut all: Vec<(&str, Datum)> = given.map(|(name, datum)| (name.as_str(), datum.clone())).collect();
        for weight in &self.weights {
            all.push((&weight.name, Datum::Tensor(weight.held()?)));
        }
        Ok(all)
    }
}

fn scalar(datum: &Datum) -> Result<f64> {
    Ok(datum.tensor()?.item::<f32>()?.into())
}
