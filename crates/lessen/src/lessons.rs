//! Examples of a data set to train on: batches of a model's inputs, images changed at random.

use graph::Datum;
use learn::Input;
use learn::data::Dataset;
use learn::fit::Inputs;
use learn::image::augment::augment;
use learn::random::Random;

use crate::answer::{Options, Task};
use crate::feed::Feeder;
use crate::{Model, Result};

/// Batches that the examples of a step come in, which are run side by side.
const PARTS: usize = 8;
/// Fewer examples than this are not worth a batch of their own: each has gradients of all weights.
const LEAST: usize = 8;

/// Examples to train on.
pub(crate) struct Training<'a> {
    data: &'a dyn Dataset,
    rows: Vec<usize>,
    task: Task,
    feeder: Feeder,
    /// Fewest examples of a batch.
    together: usize,
}

impl<'a> Training<'a> {
    /// These rows of a data set.
    pub fn new(
        model: &Model,
        data: &'a dyn Dataset,
        rows: Vec<usize>,
        task: Task,
        options: &Options,
    ) -> Result<Training<'a>> {
        let feeder = Feeder::new(model, &options.feed)?;
        Ok(Training { data, rows, task, feeder, together: LEAST })
    }

    /// The same in batches of so many examples or more, where they are compared with each other.
    pub fn together(self, together: usize) -> Training<'a> {
        Training { together, ..self }
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// The data.
    pub fn data(&self) -> &'a dyn Dataset {
        self.data
    }

    /// The examples, by their index in the data.
    pub fn rows(&self) -> &[usize] {
        &self.rows
    }

    /// What the data are.
    pub fn describe(&self) -> String {
        self.data.describe()
    }

    /// See [`shrink::Judge::lesson`].
    pub fn lesson(&self, examples: &[usize], seed: Option<u64>) -> Result<Vec<(Inputs, usize)>> {
        let batches = self.batches(examples, seed)?;
        Ok(batches.into_iter().map(|(inputs, rows)| (inputs, rows.len())).collect())
    }

    /// The same, each batch with the places of its examples among those that are asked for.
    pub fn batches(&self, examples: &[usize], seed: Option<u64>) -> Result<Vec<(Inputs, Vec<usize>)>> {
        let (mut prepared, mut images) = (Vec::new(), true);
        for &i in examples {
            let input = self.data.get(self.rows[i])?.input;
            images &= matches!(input, Input::Image(_));
            for input in &singles(input, self.task) {
                prepared.push(self.feeder.prepare(input)?);
            }
        }
        let mut random = seed.filter(|_| images).map(Random::new);
        let mut batches = Vec::new();
        let each =
            prepared.len().div_ceil(PARTS).max(self.together).clamp(self.feeder.least(), self.feeder.most());
        for batch in self.feeder.batches_of(&prepared, each)? {
            let mut inputs = Inputs::new();
            for (name, mut tensor) in batch.arrays {
                if let Some(random) = &mut random {
                    augment(&mut tensor, random)?;
                }
                inputs.push((name, Datum::Tensor(tensor)));
            }
            batches.push((inputs, batch.rows));
        }
        Ok(batches)
    }
}

/// Texts of a pair are read one by one where the task compares their vectors.
pub(crate) fn singles(input: Input, task: Task) -> Vec<Input> {
    match input {
        Input::Pair(a, b) if task == Task::Similarity => vec![Input::Text(a), Input::Text(b)],
        other => vec![other],
    }
}
