//! Few bits for each weight, as many as the size allows and where they do most good: the harm of each weight is
//! measured at one number of bits and carried over to the others by the error of its outputs, and the bytes are shared
//! out by [`allocate`].

use std::collections::HashMap;

use graph::ValueId;

use super::Part;
use super::codes::{Candidate, Code, candidates, matrix_of, nearest_of};
use super::ranks::{self, Spectra};
use super::work::Work;
use crate::allocate::{Offer, allocate};
use crate::factor::project::Projection;
use crate::gram::Gram;
use crate::matrix::{Layout, Matrix};
use crate::pass::Pass;
use crate::plan::Choice;
use crate::quantize::bias;
use crate::quantize::coded::Ranges;
use crate::walk::{Stop, walk};
use crate::weights::Weight;
use crate::{Error, Result};

/// The number of bits at which the harm of a weight is measured.
const ANCHOR: u32 = 3;
/// Most rounds of correcting the budget by the size of the file.
const ROUNDS: usize = 8;
/// A file is as great as it may be when it lacks less than one part in so many.
const NEAR: usize = 500;

/// Mean square of the inputs of weights, one list for each group of a weight's rows; nothing for weights that no
/// example reached.
pub(super) type Importance = HashMap<ValueId, Vec<Vec<f64>>>;

/// What few bits cost each weight, in bytes and in harm.
pub(super) struct Harms<'a> {
    candidates: Vec<Candidate<'a>>,
    spectra: Spectra,
}

impl<'a> Harms<'a> {
    /// Measures them.
    pub(super) fn new(work: &'a Work) -> Result<Harms<'a>> {
        let mut candidates = candidates(work);
        let weights: Vec<&Weight> = candidates.iter().map(|c| c.weight).collect();
        let mut spectra = Spectra::new();
        let importance = look(work, &weights, &mut |stop| {
            if let ([gram], true) = (stop.grams, stop.matrix.rows <= ranks::WIDE) {
                spectra.insert(stop.weight.value, Projection::new(&stop.matrix, Some(gram))?.values);
            }
            Ok(())
        })?;
        measure(work, &mut candidates, &importance)?;
        surcharge(work, &mut candidates)?;
        Ok(Harms { candidates, spectra })
    }

    /// The pass that gives those weights a low rank for which that is better than what they would be in a file of at
    /// most so many bytes; `None` when there are none.
    pub(super) fn ranks(&self, work: &Work, target: usize) -> Result<Option<Pass>> {
        let offers = share_out(work, &self.candidates, target)?;
        ranks::worth(work, &self.candidates, &offers, &self.spectra)
    }

    /// What to do to each weight so that the file has at most so many bytes, or as few as can be.
    pub(super) fn choose(&self, work: &Work, target: usize) -> Result<Vec<Choice>> {
        let offers = share_out(work, &self.candidates, target)?;
        Ok(choices(work, &self.candidates, &offers))
    }

    /// What to do to each weight so that the file is as small as it can be.
    pub(super) fn smallest(&self, work: &Work) -> Vec<Choice> {
        choices(work, &self.candidates, &vec![0; self.candidates.len()])
    }
}

fn choices(work: &Work, candidates: &[Candidate], offers: &[usize]) -> Vec<Choice> {
    let of = |w: &Weight| {
        let at = candidates.iter().position(|c| c.weight.value == w.value)?;
        Some(candidates[at].offers[offers[at]].0)
    };
    work.weights.iter().map(|w| of(w).unwrap_or(Choice::Keep)).collect()
}

/// What these weights are multiplied with.
pub(super) fn importance(work: &Work, weights: &[&Weight]) -> Result<Importance> {
    look(work, weights, &mut |_| Ok(()))
}

/// The same, and what `more` does at each weight.
fn look(work: &Work, weights: &[&Weight], more: &mut dyn FnMut(&Stop) -> Result<()>) -> Result<Importance> {
    work.judge.progress("looking at what the weights read");
    let mut found = Importance::new();
    let examples = work.context().examples()?;
    if !examples.is_empty() {
        walk(&work.base.graph, weights, examples, work.cpu, &mut |stop: Stop| {
            found.insert(stop.weight.value, stop.grams.iter().map(Gram::importance).collect());
            more(&stop)?;
            Ok(None)
        })?;
    }
    Ok(found)
}

/// Squared error of what a weight makes when another matrix stands for it, as far as the inputs are independent.
pub(super) fn error(layout: &Layout, importance: &[Vec<f64>], old: &Matrix, new: &Matrix) -> f64 {
    let mut sum = 0f64;
    for (k, (&a, &b)) in old.data.iter().zip(&new.data).enumerate() {
        let inputs = importance.get(layout.group_of(k / old.cols));
        sum += inputs.map_or(1.0, |u| u[k % old.cols]) * f64::from(a - b).powi(2);
    }
    sum
}

/// What a loss of all of a weight's outputs does to the model's, on the mean of the weights that were measured: others
/// are guessed by it.
#[derive(Default)]
pub(super) struct Guess {
    sum: f64,
    count: usize,
}

/// What a unit of [`error`] in a weight does to the model's outputs: measured with `new` in the place of `old`, or,
/// without data or time, guessed by what it is of the weight's own outputs.
pub(super) fn harm_per_error(
    work: &Work,
    weight: &Weight,
    (layout, importance): (&Layout, &[Vec<f64>]),
    (old, new): (&Matrix, &Matrix),
    guess: &mut Guess,
) -> Result<f64> {
    let energy = error(layout, importance, old, &Matrix::zeros(old.rows, old.cols)).max(f64::MIN_POSITIVE);
    let apart = error(layout, importance, old, new);
    if apart > 0.0 && !work.judge.out_of_time() {
        let mut model = work.base.clone();
        model.graph.set_constant(weight.value, layout.write(new)?);
        if let Some(score) = work.judge.score(&model, Part::Probe)? {
            let harm = score.distance / apart;
            *guess = Guess { sum: guess.sum + harm * energy, count: guess.count + 1 };
            return Ok(harm);
        }
    }
    let mean = if guess.count > 0 { guess.sum / guess.count as f64 } else { 1.0 };
    Ok(mean / energy)
}

/// Finds the harm of all offers.
fn measure(work: &Work, candidates: &mut [Candidate], importance: &Importance) -> Result<()> {
    let count = candidates.len();
    let mut guess = Guess::default();
    for (at, c) in candidates.iter_mut().enumerate() {
        work.judge.progress(&format!("measuring the harm of few bits, weight {} of {count}", at + 1));
        let matrix = matrix_of(work, c)?;
        let weigh: &[Vec<f64>] = importance.get(&c.weight.value).map_or(&[], Vec::as_slice);
        let mut kept = Vec::new();
        let mut scale = 0.0;
        for &(form, offer) in &c.offers {
            let Some(coding) = nearest_of(work, c, &matrix, weigh, form, Ranges::Searched) else { continue };
            let decoded = coding.decode();
            let harm = error(&c.layout, weigh, &matrix, &decoded);
            if matches!(form, Choice::Bits(form) if form.bits == ANCHOR) {
                scale = harm_per_error(work, c.weight, (&c.layout, weigh), (&matrix, &decoded), &mut guess)?;
            }
            kept.push((form, Offer { harm, ..offer }));
        }
        kept.iter_mut().for_each(|(_, offer)| offer.harm *= scale);
        c.offers = kept;
        c.whole = scale * error(&c.layout, weigh, &matrix, &Matrix::zeros(matrix.rows, matrix.cols));
    }
    Ok(())
}

/// Bytes of the file with these offers.
fn bytes_of(work: &Work, candidates: &[Candidate], chosen: &[usize]) -> Result<usize> {
    // Weights that differ: equal ones would be kept once.
    let sample = |(at, (c, &i)): (usize, (&Candidate, &usize))| {
        let mut code = Code::sample(c.offers[i].0, &c.layout, at)?;
        // Products without a bias will get one.
        if work.judge.can_calibrate() && bias::fits(&work.base.graph, c.weight) {
            code.shift = vec![1.0 + at as f32; c.layout.rows];
        }
        Some((c.weight.value, code))
    };
    let codes = candidates.iter().zip(chosen).enumerate().filter_map(sample).collect();
    let (model, _) = work.build(&choices(work, candidates, chosen), &codes)?;
    work.judge.bytes(&work.finish(model)?)
}

fn sum(candidates: &[Candidate], chosen: &[usize]) -> usize {
    candidates.iter().zip(chosen).map(|(c, &i)| c.offers[i].1.bytes).sum()
}

/// Adds to the offers of tables what looking up takes beside the codes: nodes of their own for each weight.
fn surcharge(work: &Work, candidates: &mut [Candidate]) -> Result<()> {
    let place = |c: &Candidate, table: bool| {
        let same =
            |choice: &Choice| choice.bits() == Some(ANCHOR) && matches!(choice, Choice::Table(_)) == table;
        c.offers.iter().position(|(choice, _)| same(choice))
    };
    let grids: Option<Vec<usize>> = candidates.iter().map(|c| place(c, false)).collect();
    let Some(grids) = grids else { return Ok(()) };
    let tables: Vec<usize> =
        candidates.iter().zip(&grids).map(|(c, &grid)| place(c, true).unwrap_or(grid)).collect();
    let count = grids.iter().zip(&tables).filter(|(a, b)| a != b).count();
    if count == 0 {
        return Ok(());
    }
    let beside = |chosen: &[usize]| {
        Ok::<_, Error>(bytes_of(work, candidates, chosen)?.saturating_sub(sum(candidates, chosen)))
    };
    let more = beside(&tables)?.saturating_sub(beside(&grids)?).div_ceil(count);
    for c in candidates {
        let tables = c.offers.iter_mut().filter(|(choice, _)| matches!(choice, Choice::Table(_)));
        tables.for_each(|(_, offer)| offer.bytes += more);
        c.offers.sort_by_key(|(_, offer)| offer.bytes);
    }
    Ok(())
}

/// An offer for each candidate so that the file has at most so many bytes; the smallest offers when that cannot be.
fn share_out(work: &Work, candidates: &[Candidate], target: usize) -> Result<Vec<usize>> {
    let offers: Vec<Vec<Offer>> =
        candidates.iter().map(|c| c.offers.iter().map(|(_, offer)| *offer).collect()).collect();
    let harm = |chosen: &[usize]| offers.iter().zip(chosen).map(|(o, &i)| o[i].harm).sum::<f64>();
    let smallest = vec![0; candidates.len()];
    let bytes = bytes_of(work, candidates, &smallest)?;
    if bytes > target {
        return Ok(smallest);
    }
    let (mut low, mut high) = (sum(candidates, &smallest), target);
    // What stands beside the codes differs from choice to choice: it is taken from the last file, and where that leads
    // astray the middle of what is left to look at is taken.
    let mut budget = target.saturating_sub(bytes.saturating_sub(low));
    let mut best = (harm(&smallest), smallest);
    for _ in 0..ROUNDS {
        if budget <= low || budget > high {
            budget = low + (high - low).div_ceil(2);
        }
        let Some(chosen) = allocate(&offers, budget) else { break };
        let bytes = bytes_of(work, candidates, &chosen)?;
        if bytes <= target {
            low = budget;
            if harm(&chosen) < best.0 {
                best = (harm(&chosen), chosen.clone());
            }
        } else {
            high = budget - 1;
        }
        if low >= high || bytes <= target && target - bytes < target / NEAR {
            break;
        }
        budget = target.saturating_sub(bytes.saturating_sub(sum(candidates, &chosen)));
    }
    Ok(best.1)
}
