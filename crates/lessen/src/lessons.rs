//! Examples of a data set to train on: batches of a model's inputs, images changed at random.

use graph::Datum;
use learn::Input;
use learn::data::Dataset;
use learn::fit::Inputs;
use learn::image::augment::augment;
use learn::random::Random;

use crate::answer::{Options, Task};
use crate::feed::{Batch, Feeder, Prepared};
use crate::{Error, Model, Result};

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
    /// Are both texts of a pair in one batch?
    whole: bool,
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
        Ok(Training { data, rows, task, feeder, together: LEAST, whole: false })
    }

    /// The same in batches of so many examples or more, where they are compared with each other.
    pub fn together(self, together: usize) -> Training<'a> {
        Training { together, ..self }
    }

    /// The same with both texts of a pair in one batch, where they are compared with each other.
    pub fn whole(self) -> Training<'a> {
        Training { whole: true, ..self }
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

    /// The same, each batch with the places of its examples among those that are asked for; those of a pair's two texts are
    /// twice its own place, and the one behind.
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
        let made = match self.whole {
            true => self.in_pairs(prepared)?,
            false => {
                let each = prepared.len().div_ceil(PARTS).max(self.together);
                let each = each.clamp(self.feeder.least(), self.feeder.most());
                self.feeder.batches_of(&prepared, each)?
            }
        };
        for batch in made {
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

    /// Batches of texts that are ready two by two, none of which is apart from its other.
    fn in_pairs(&self, prepared: Vec<Prepared>) -> Result<Vec<Batch>> {
        let apart = || {
            Error::input(
                "the model takes texts one by one, or so many at once; to compare those of a pair in training it must have a \
                 mask and take any number of them",
            )
        };
        if self.feeder.is_fixed() {
            return Err(apart());
        }
        let mut texts = prepared.into_iter().enumerate();
        let mut pairs = Vec::new();
        while let (Some(one), Some(other)) = (texts.next(), texts.next()) {
            pairs.push([one, other]);
        }
        pairs.sort_by_key(|[one, other]| one.1.length().max(other.1.length()));
        let each = pairs.len().div_ceil(PARTS).max(self.together);
        let mut batches = Vec::new();
        while !pairs.is_empty() {
            let part = pairs.drain(..each.min(pairs.len())).flatten();
            let (places, texts): (Vec<usize>, Vec<Prepared>) = part.unzip();
            let mut made = self.feeder.batches_of(&texts, texts.len())?;
            let mut batch = made.pop().filter(|_| made.is_empty()).ok_or_else(apart)?;
            batch.rows.iter_mut().for_each(|row| *row = places[*row]);
            batches.push(batch);
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
