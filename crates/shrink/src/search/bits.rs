//! Few bits for each weight, as many as the size allows and where they do most good: the harm of each weight is
//! measured at one number of bits and carried over to the others by the error of its outputs, the bytes are shared out
//! by [`allocate`], and the weights are swept in the order of the model, each on the inputs that the changed weights
//! before it make.

use std::collections::HashMap;

use graph::op::WeightKind;
use graph::{Model, ValueId};

use super::{Part, Work};
use crate::allocate::{Offer, allocate};
use crate::gram::{DAMP, Gram};
use crate::matrix::{Layout, Matrix};
use crate::plan::{Choice, Plan, Step};
use crate::quantize::coded::{Coded, Form, Ranges, gptq, nearest};
use crate::quantize::embedding;
use crate::quantize::weight_only::{Item, rewrite};
use crate::walk::{Example, Stop, walk};
use crate::weights::Weight;
use crate::{Error, Result};

/// The numbers of bits that are offered.
const BITS: [u32; 6] = [2, 3, 4, 5, 6, 8];
/// The number of bits at which the harm of a weight is measured.
const ANCHOR: u32 = 3;
/// Inputs of matrix products that share a scale.
const GROUP: usize = 128;
/// Most rounds of correcting the budget by the size of the file.
const ROUNDS: usize = 4;

/// A weight that can be put in few bits.
struct Candidate<'a> {
    /// The first node that uses it.
    weight: &'a Weight,
    layout: Layout,
    offers: Vec<(Form, Offer)>,
}

/// The model within so many bytes of file, or the smallest that there is.
pub(super) fn shrink(work: &Work, target: usize) -> Result<(Model, Plan)> {
    let mut candidates = candidates(work);
    let examples = examples(work)?;
    work.judge.progress("looking at what the weights read");
    let importance = importance(work, &candidates, examples.clone())?;
    measure(work, &mut candidates, &importance)?;
    let chosen = share_out(work, &candidates, target)?;
    work.judge.progress("sweeping the weights");
    let forms: HashMap<ValueId, Form> =
        candidates.iter().zip(&chosen).map(|(c, &i)| (c.weight.value, c.offers[i].0)).collect();
    let (coded, errors) = sweep(work, &candidates, &forms, examples)?;
    let model = write(work, &candidates, &coded)?;
    let step = |w: &Weight| Step {
        node: w.name.clone(),
        weight: work.base.graph.value(w.value).name.clone(),
        elements: w.len,
        choice: forms.get(&w.value).map_or(Choice::Keep, |&form| Choice::Bits(form)),
        error: errors.get(&w.value).copied().unwrap_or(0.0),
    };
    Ok((model, Plan { steps: work.weights.iter().map(step).collect() }))
}

/// The weights that can be put in few bits, each once: all nodes that read them do so in ways that can be written.
fn candidates<'a>(work: &'a Work) -> Vec<Candidate<'a>> {
    let graph = &work.base.graph;
    let readers = graph.readers();
    let fits = |w: &Weight| match w.used.kind {
        WeightKind::Embedding => embedding::fits(graph, w),
        WeightKind::MatMul | WeightKind::Conv => w.used.input == 1,
        _ => false,
    };
    let mut found: Vec<Candidate> = Vec::new();
    for weight in &work.weights {
        let uses: Vec<&Weight> = work.weights.iter().filter(|w| w.value == weight.value).collect();
        let alike = uses.iter().all(|w| fits(w) && w.used == weight.used);
        let known = found.iter().any(|c| c.weight.value == weight.value);
        let public = graph.outputs.contains(&weight.value);
        if known || public || !alike || readers[weight.value.index()].len() != uses.len() {
            continue;
        }
        let Some(layout) = Layout::of(graph, weight) else { continue };
        let table = weight.used.kind == WeightKind::Embedding;
        let group = match weight.used.kind {
            WeightKind::Conv => 0,
            _ if layout.cols <= GROUP || table && !layout.cols.is_multiple_of(GROUP) => 0,
            _ => GROUP,
        };
        if table && !layout.cols.is_multiple_of(8) {
            continue;
        }
        let offer = |bits| {
            let form = Form { bits, group };
            (form, Offer { bytes: form.bytes(layout.rows, layout.cols), harm: 0.0 })
        };
        let offers = BITS.into_iter().map(offer).collect();
        found.push(Candidate { weight, layout, offers });
    }
    found
}

fn examples(work: &Work) -> Result<Vec<Example>> {
    let mut examples = Vec::new();
    if work.judge.can_calibrate() {
        work.judge.calibration(&mut |example| {
            examples.push(example);
            Ok(())
        })?;
    }
    Ok(examples)
}

/// Mean square of each input, one list for each group of a weight's rows; nothing for weights that no example reached.
fn importance(
    work: &Work,
    candidates: &[Candidate],
    examples: Vec<Example>,
) -> Result<HashMap<ValueId, Vec<Vec<f64>>>> {
    let mut found = HashMap::new();
    let weights: Vec<&Weight> = candidates.iter().map(|c| c.weight).collect();
    if !examples.is_empty() {
        walk(&work.base.graph, &weights, examples, work.cpu, &mut |stop: Stop| {
            found.insert(stop.weight.value, stop.grams.iter().map(Gram::importance).collect());
            Ok(None)
        })?;
    }
    Ok(found)
}

/// The rows that read the inputs of a group.
fn part(matrix: &Matrix, layout: &Layout, group: usize) -> Matrix {
    let rows = matrix.rows / layout.groups;
    let data = matrix.data[group * rows * matrix.cols..][..rows * matrix.cols].to_vec();
    Matrix { rows, cols: matrix.cols, data }
}

fn nearest_of(
    work: &Work,
    c: &Candidate,
    matrix: &Matrix,
    importance: &[Vec<f64>],
    form: Form,
) -> Option<Coded> {
    let parts = (0..c.layout.groups).map(|group| {
        let importance = importance.get(group).map_or(&[][..], Vec::as_slice);
        nearest(work.cpu, &part(matrix, &c.layout, group), importance, form, Ranges::Searched)
    });
    Coded::stack(parts.collect())
}

fn matrix_of(work: &Work, c: &Candidate) -> Result<Matrix> {
    let graph = &work.base.graph;
    let tensor = graph.constant(c.weight.value);
    c.layout.read(tensor.ok_or_else(|| Error::Plan(format!("{:?} is no constant", c.weight.name)))?)
}

/// Finds the harm of all offers.
fn measure(
    work: &Work,
    candidates: &mut [Candidate],
    importance: &HashMap<ValueId, Vec<Vec<f64>>>,
) -> Result<()> {
    let count = candidates.len();
    for (at, c) in candidates.iter_mut().enumerate() {
        work.judge.progress(&format!("measuring the harm of few bits, weight {} of {count}", at + 1));
        let matrix = matrix_of(work, c)?;
        let weigh: &[Vec<f64>] = importance.get(&c.weight.value).map_or(&[], Vec::as_slice);
        let error = |decoded: &Matrix| -> f64 {
            let mut sum = 0f64;
            for (k, (&a, &b)) in matrix.data.iter().zip(&decoded.data).enumerate() {
                let inputs = weigh.get(c.layout.group_of(k / matrix.cols));
                sum += inputs.map_or(1.0, |u| u[k % matrix.cols]) * f64::from(a - b).powi(2);
            }
            sum
        };
        let mut errors = Vec::new();
        let mut harm = None;
        for (form, _) in &c.offers {
            let Some(coded) = nearest_of(work, c, &matrix, weigh, *form) else { continue };
            let decoded = coded.decode();
            errors.push(error(&decoded));
            if form.bits == ANCHOR {
                let mut model = work.base.clone();
                model.graph.set_constant(c.weight.value, c.layout.write(&decoded)?);
                harm = work.judge.score(&model, Part::Probe)?.map(|score| score.distance);
            }
        }
        let at_anchor =
            c.offers.iter().zip(&errors).find(|((form, _), _)| form.bits == ANCHOR).map(|(_, e)| *e);
        // Without data to judge on, the error of the outputs relative to what they are has to do.
        let energy = error(&Matrix::zeros(matrix.rows, matrix.cols)).max(f64::MIN_POSITIVE);
        let scale = match (harm, at_anchor) {
            (Some(harm), Some(error)) if error > 0.0 => harm / error,
            _ => 1.0 / energy,
        };
        for ((_, offer), error) in c.offers.iter_mut().zip(errors) {
            offer.harm = scale * error;
        }
    }
    Ok(())
}

/// An offer for each candidate so that the file has at most so many bytes; the smallest offers when that cannot be.
fn share_out(work: &Work, candidates: &[Candidate], target: usize) -> Result<Vec<usize>> {
    let offers: Vec<Vec<Offer>> =
        candidates.iter().map(|c| c.offers.iter().map(|(_, offer)| *offer).collect()).collect();
    let smallest = vec![0; candidates.len()];
    let sum = |chosen: &[usize]| offers.iter().zip(chosen).map(|(o, &i)| o[i].bytes).sum::<usize>();
    let mut chosen = smallest.clone();
    let mut best: Option<(f64, Vec<usize>)> = None;
    for _ in 0..ROUNDS {
        // Weights that differ: equal ones would be kept once.
        let sample = |(at, (c, &i)): (usize, (&Candidate, &usize))| {
            (c.weight.value, Coded::sample(c.offers[i].0, c.layout.rows, c.layout.cols, at))
        };
        let coded = candidates.iter().zip(&chosen).enumerate().map(sample).collect();
        let bytes = work.judge.bytes(&write(work, candidates, &coded)?)?;
        if bytes <= target {
            let harm: f64 = offers.iter().zip(&chosen).map(|(o, &i)| o[i].harm).sum();
            if best.as_ref().is_none_or(|b| harm < b.0) {
                best = Some((harm, chosen.clone()));
            }
        }
        let rest = bytes.saturating_sub(sum(&chosen));
        let next = allocate(&offers, target.saturating_sub(rest)).unwrap_or_else(|| smallest.clone());
        if next == chosen {
            break;
        }
        chosen = next;
    }
    Ok(best.map_or(smallest, |b| b.1))
}

/// Codes for all candidates, and the errors that they make.
type Swept = (HashMap<ValueId, Coded>, HashMap<ValueId, f64>);

fn sweep(
    work: &Work,
    candidates: &[Candidate],
    forms: &HashMap<ValueId, Form>,
    examples: Vec<Example>,
) -> Result<Swept> {
    let (mut codes, mut errors) = (HashMap::new(), HashMap::new());
    let mut graph = work.base.graph.clone();
    let form_of = |w: &Weight| forms.get(&w.value).copied();
    // What no example reaches, tables above all, comes first: the others see what it does.
    let plain = |c: &Candidate, codes: &mut HashMap<ValueId, Coded>, errors: &mut HashMap<ValueId, f64>| {
        let (Some(form), matrix) = (form_of(c.weight), matrix_of(work, c)?) else { return Ok(None) };
        let Some(coded) = nearest_of(work, c, &matrix, &[], form) else { return Ok(None) };
        let decoded = coded.decode();
        errors.insert(c.weight.value, matrix.distance(&decoded));
        codes.insert(c.weight.value, coded);
        Ok::<_, Error>(Some(decoded))
    };
    for c in candidates.iter().filter(|c| c.weight.used.kind == WeightKind::Embedding) {
        if let Some(decoded) = plain(c, &mut codes, &mut errors)? {
            graph.set_constant(c.weight.value, c.layout.write(&decoded)?);
        }
    }
    let weights: Vec<&Weight> = candidates.iter().map(|c| c.weight).collect();
    if !examples.is_empty() {
        walk(&graph, &weights, examples, work.cpu, &mut |stop: Stop| {
            let Some(form) = form_of(stop.weight) else { return Ok(None) };
            let (mut parts, mut harm, mut energy) = (Vec::new(), 0.0, 0.0);
            for (group, gram) in stop.grams.iter().enumerate() {
                let old = part(&stop.matrix, stop.layout, group);
                let coded = gptq(work.cpu, &old, gram, form, Ranges::Searched, DAMP, false)?;
                let (h, e) = gram.harm(work.cpu, &old, &coded.decode());
                (harm, energy) = (harm + h, energy + e);
                parts.push(coded);
            }
            let Some(coded) = Coded::stack(parts) else { return Ok(None) };
            let decoded = coded.decode();
            errors.insert(stop.weight.value, if energy > 0.0 { harm / energy } else { harm });
            codes.insert(stop.weight.value, coded);
            Ok(Some(decoded))
        })?;
    }
    for c in candidates {
        if !codes.contains_key(&c.weight.value) {
            plain(c, &mut codes, &mut errors)?;
        }
    }
    Ok((codes, errors))
}

/// The model as it is written, with these codes.
fn write(work: &Work, candidates: &[Candidate], coded: &HashMap<ValueId, Coded>) -> Result<Model> {
    let mut model = work.base.clone();
    let mut items = Vec::new();
    for weight in &work.weights {
        let candidate = candidates.iter().find(|c| c.weight.value == weight.value);
        if let Some((c, coded)) = candidate.and_then(|c| Some((c, coded.get(&c.weight.value)?))) {
            items.push(Item { weight, layout: &c.layout, coded });
        }
    }
    rewrite(&mut model.graph, &items, work.version)?;
    model.graph.infer()?;
    work.finish(model)
}
