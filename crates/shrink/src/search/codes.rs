//! Codes for the weights that get few bits: swept in the order of the model, each on the inputs that the changed
//! weights before it make.

use std::collections::HashMap;

use graph::op::WeightKind;
use graph::{Graph, ValueId};

use super::work::Work;
use crate::allocate::Offer;
use crate::gram::{DAMP, Gram};
use crate::job::{Key, kept};
use crate::matrix::{Layout, Matrix};
use crate::plan::Choice;
use crate::quantize::coded::{Coded, Form, Ranges, Rounding, gptq, nearest};
use crate::quantize::weight_only::Item;
use crate::quantize::{bias, embedding};
use crate::walk::{Stop, walk};
use crate::weights::Weight;
use crate::{Error, Result};

/// The numbers of bits that are offered.
const BITS: [u32; 6] = [2, 3, 4, 5, 6, 8];
/// Inputs of matrix products that share a scale.
const GROUP: usize = 128;

/// A weight that can be put in few bits.
#[derive(Clone)]
pub(super) struct Candidate<'a> {
    /// The first node that uses it.
    pub(super) weight: &'a Weight,
    pub(super) layout: Layout,
    /// Its forms, with the fewest bits first.
    pub(super) offers: Vec<(Form, Offer)>,
}

/// Codes of a weight, and the relative squared error that they make.
pub(super) struct Code {
    pub(super) layout: Layout,
    pub(super) coded: Coded,
    /// What the bias of the product shall have more of; empty when that is nothing.
    pub(super) shift: Vec<f32>,
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

/// Puts into the biases what the codes take from the means of the outputs.
pub(super) fn correct(work: &Work, graph: &mut Graph, codes: &Codes) -> Result<()> {
    for weight in &work.weights {
        if let Some(code) = codes.get(&weight.value) {
            bias::add(graph, weight, &code.shift)?;
        }
    }
    Ok(())
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
pub(super) fn candidates<'a>(work: &'a Work) -> Vec<Candidate<'a>> {
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

pub(super) fn nearest_of(
    work: &Work,
    c: &Candidate,
    matrix: &Matrix,
    importance: &[Vec<f64>],
    form: Form,
    ranges: Ranges,
) -> Option<Coded> {
    let parts = (0..c.layout.groups).map(|group| {
        let importance = importance.get(group).map_or(&[][..], Vec::as_slice);
        nearest(work.cpu, &c.layout.part(matrix, group), importance, form, ranges)
    });
    Coded::stack(parts.collect())
}

pub(super) fn matrix_of(work: &Work, c: &Candidate) -> Result<Matrix> {
    let graph = &work.base.graph;
    let tensor = graph.constant(c.weight.value);
    c.layout.read(tensor.ok_or_else(|| Error::Plan(format!("{:?} is no constant", c.weight.name)))?)
}

/// The codes of a matrix, from an earlier run when it is kept.
fn swept(work: &Work, old: &Matrix, gram: &Gram, form: Form, ranges: Ranges) -> Result<Coded> {
    let sparse = is_sparse(old);
    let what = || format!("sweep {form} {ranges:?} {DAMP} {sparse} {:?}", work.cpu.isa());
    kept(
        work.judge.store(),
        || Key::of(&[what().as_bytes()]).matrix(old, gram),
        |bytes| Coded::read(form, old.rows, old.cols, bytes),
        Coded::write,
        || gptq(work.cpu, old, gram, form, ranges, DAMP, sparse),
    )
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
        codes.insert(c.weight.value, Code { layout: c.layout.clone(), coded, shift: Vec::new(), error });
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
            let biased = bias::fits(&work.base.graph, stop.weight);
            for (group, gram) in stop.grams.iter().enumerate() {
                let old = stop.layout.part(&stop.matrix, group);
                // The bias takes the mean of what is apart.
                let felt = if biased { &gram.centred() } else { gram };
                let coded = swept(work, &old, felt, form, ranges)?;
                let decoded = coded.decode();
                harm += felt.harm(work.cpu, &old, &decoded).0;
                energy += gram.energy(work.cpu, &old);
                if biased {
                    stop.shift.extend(bias::shift(&old, &decoded, &gram.mean()));
                }
                parts.push(coded);
            }
            let Some(coded) = Coded::stack(parts) else { return Ok(None) };
            let decoded = coded.decode();
            let error = if energy > 0.0 { harm / energy } else { harm };
            let (layout, shift) = (stop.layout.clone(), stop.shift.clone());
            codes.insert(stop.weight.value, Code { layout, coded, shift, error });
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

/// Zeros that a pass has made stay zeros.
fn is_sparse(w: &Matrix) -> bool {
    8 * w.data.iter().filter(|x| **x == 0.0).count() >= w.data.len().max(1)
}
