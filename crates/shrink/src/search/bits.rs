//! Few bits for each weight, as many as the size allows and where they do most good: the harm of each weight is
//! measured at one number of bits and carried over to the others by the error of its outputs, the bytes are shared out
//! by [`allocate`], and the weights are swept in the order of the model, each on the inputs that the changed weights
//! before it make.

use std::collections::HashMap;

use graph::ValueId;
use graph::op::WeightKind;

use super::{Part, Work};
use crate::allocate::{Offer, allocate};
use crate::gram::{DAMP, Gram};
use crate::matrix::{Layout, Matrix};
use crate::plan::Choice;
use crate::quantize::coded::{Coded, Form, Ranges, Rounding, gptq, nearest};
use crate::quantize::embedding;
use crate::quantize::weight_only::Item;
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

/// Codes of a weight, and the relative squared error that they make.
pub(super) struct Code {
    layout: Layout,
    coded: Coded,
    pub(super) error: f64,
}

/// Codes by weight.
pub(super) type Codes = HashMap<ValueId, Code>;

/// The weights that have codes, at their nodes.
pub(super) fn items<'a>(work: &'a Work, choices: &[Choice], codes: &'a Codes) -> Vec<Item<'a>> {
    let mut items = Vec::new();
    for (weight, choice) in work.weights.iter().zip(choices) {
        if let (Choice::Bits(_), Some(Code { layout, coded, .. })) = (choice, codes.get(&weight.value)) {
            items.push(Item { weight, layout, coded });
        }
    }
    items
}

/// What to do to each weight so that the file has at most so many bytes, or as few as can be.
pub(super) fn choose(work: &Work, target: usize) -> Result<Vec<Choice>> {
    let mut candidates = candidates(work);
    work.judge.progress("looking at what the weights read");
    let importance = importance(work, &candidates, work.context().examples()?)?;
    measure(work, &mut candidates, &importance)?;
    let offers = share_out(work, &candidates, target)?;
    Ok(choices(work, &candidates, &offers))
}

fn choices(work: &Work, candidates: &[Candidate], offers: &[usize]) -> Vec<Choice> {
    let of = |w: &Weight| {
        let at = candidates.iter().position(|c| c.weight.value == w.value)?;
        Some(Choice::Bits(candidates[at].offers[offers[at]].0))
    };
    work.weights.iter().map(|w| of(w).unwrap_or(Choice::Keep)).collect()
}

/// Codes for the weights that are to have few bits.
pub(super) fn code(work: &Work, choices: &[Choice], rounding: Rounding, ranges: Ranges) -> Result<Codes> {
    let mut forms: HashMap<ValueId, Form> = HashMap::new();
    for (weight, choice) in work.weights.iter().zip(choices) {
        if let Choice::Bits(form) = choice {
            let same = forms.insert(weight.value, *form).is_none_or(|other| other == *form);
            if !same {
                let name = &work.base.graph.value(weight.value).name;
                return Err(Error::Plan(format!("weight {name:?} is to have two forms at once")));
            }
        }
    }
    if forms.is_empty() {
        return Ok(Codes::new());
    }
    let candidates: Vec<Candidate> =
        candidates(work).into_iter().filter(|c| forms.contains_key(&c.weight.value)).collect();
    if candidates.len() < forms.len() {
        let left = forms.keys().find(|v| candidates.iter().all(|c| c.weight.value != **v));
        let name = left.map_or("", |&v| work.base.graph.value(v).name.as_str());
        return Err(Error::Plan(format!("weight {name:?} cannot be put in few bits: keep it, or take int8")));
    }
    work.judge.progress("rounding the weights");
    sweep(work, &candidates, &forms, rounding, ranges)
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
    ranges: Ranges,
) -> Option<Coded> {
    let parts = (0..c.layout.groups).map(|group| {
        let importance = importance.get(group).map_or(&[][..], Vec::as_slice);
        nearest(work.cpu, &part(matrix, &c.layout, group), importance, form, ranges)
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
            let Some(coded) = nearest_of(work, c, &matrix, weigh, *form, Ranges::Searched) else { continue };
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
            let coded = Coded::sample(c.offers[i].0, c.layout.rows, c.layout.cols, at);
            (c.weight.value, Code { layout: c.layout.clone(), coded, error: 0.0 })
        };
        let codes = candidates.iter().zip(&chosen).enumerate().map(sample).collect();
        let (model, _) = work.build(&choices(work, candidates, &chosen), &codes)?;
        let bytes = work.judge.bytes(&work.finish(model)?)?;
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

fn sweep(
    work: &Work,
    candidates: &[Candidate],
    forms: &HashMap<ValueId, Form>,
    rounding: Rounding,
    ranges: Ranges,
) -> Result<Codes> {
    let mut codes = Codes::new();
    let mut graph = work.base.graph.clone();
    let plain = |c: &Candidate, codes: &mut Codes| {
        let (form, matrix) = (forms[&c.weight.value], matrix_of(work, c)?);
        let Some(coded) = nearest_of(work, c, &matrix, &[], form, ranges) else { return Ok(None) };
        let decoded = coded.decode();
        let error = matrix.distance(&decoded);
        codes.insert(c.weight.value, Code { layout: c.layout.clone(), coded, error });
        Ok::<_, Error>(Some(decoded))
    };
    // What has no statistics, tables above all, comes first: the others see what it does.
    for c in candidates {
        if (c.weight.used.kind == WeightKind::Embedding || rounding == Rounding::Nearest)
            && let Some(decoded) = plain(c, &mut codes)?
        {
            graph.set_constant(c.weight.value, c.layout.write(&decoded)?);
        }
    }
    let weights: Vec<&Weight> = candidates.iter().map(|c| c.weight).collect();
    if rounding == Rounding::Sweep && work.judge.can_calibrate() {
        let mut seen = 0;
        walk(&graph, &weights, work.context().examples()?, work.cpu, &mut |stop: Stop| {
            seen += 1;
            work.judge.progress(&format!("sweeping weight {seen} of {}", weights.len()));
            let form = forms[&stop.weight.value];
            let (mut parts, mut harm, mut energy) = (Vec::new(), 0.0, 0.0);
            for (group, gram) in stop.grams.iter().enumerate() {
                let old = part(&stop.matrix, stop.layout, group);
                let coded = gptq(work.cpu, &old, gram, form, ranges, DAMP, false)?;
                let (h, e) = gram.harm(work.cpu, &old, &coded.decode());
                (harm, energy) = (harm + h, energy + e);
                parts.push(coded);
            }
            let Some(coded) = Coded::stack(parts) else { return Ok(None) };
            let decoded = coded.decode();
            let error = if energy > 0.0 { harm / energy } else { harm };
            codes.insert(stop.weight.value, Code { layout: stop.layout.clone(), coded, error });
            Ok(Some(decoded))
        })?;
    }
    for c in candidates {
        if !codes.contains_key(&c.weight.value) {
            plain(c, &mut codes)?;
        }
    }
    Ok(codes)
}
