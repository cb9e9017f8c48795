//! Codes for the weights that get few bits: swept in the order of the model, each on the inputs that the changed
//! weights before it make.

use std::collections::HashMap;

use graph::op::WeightKind;
use graph::{Graph, ValueId};
use learn::fit::Checkpoints;

use super::work::Work;
use crate::allocate::Offer;
use crate::gram::{DAMP, Gram};
use crate::job::{Epochs, Key, kept};
use crate::matrix::{Layout, Matrix};
use crate::plan::Choice;
use crate::quantize::codebook::{self, Codebook, Table};
use crate::quantize::coded::{Coded, Form, Ranges, Rounding, gptq, nearest};
use crate::quantize::weight_only::{self, Book, Item};
use crate::quantize::{bias, embedding, learned};
use crate::walk::{Stop, walk};
use crate::weights::Weight;
use crate::{Error, Result};

/// The numbers of bits that are offered.
const BITS: [u32; 6] = [2, 3, 4, 5, 6, 8];
/// The numbers of bits at which values of a table are offered: where engines have no type for codes on a grid either.
const TABLES: [u32; 2] = [2, 3];
/// Inputs of matrix products that share a scale.
const GROUP: usize = 128;

/// A weight that can be put in few bits.
#[derive(Clone)]
pub(super) struct Candidate<'a> {
    /// The first node that uses it.
    pub(super) weight: &'a Weight,
    pub(super) layout: Layout,
    /// What can be done to it, with the fewest bytes first.
    pub(super) offers: Vec<(Choice, Offer)>,
    /// The harm when all of it is lost; 0 before it is measured.
    pub(super) whole: f64,
}

/// A weight in codes of few bits.
#[derive(Clone)]
pub(super) enum Coding {
    /// On grids.
    Grid(Coded),
    /// With a table of values.
    Table(Codebook),
}

impl Coding {
    /// The weight in f32.
    pub(super) fn decode(&self) -> Matrix {
        match self {
            Coding::Grid(coded) => coded.decode(),
            Coding::Table(book) => book.decode(),
        }
    }

    /// Any weight of this choice, another one for each seed: to find out how many bytes it takes in a file.
    pub(super) fn sample(choice: Choice, layout: &Layout, seed: usize) -> Option<Coding> {
        match choice {
            Choice::Bits(form) => Some(Coding::Grid(Coded::sample(form, layout.rows, layout.cols, seed))),
            Choice::Table(form) => {
                Some(Coding::Table(Codebook::sample(form, layout.rows, layout.cols, seed)))
            }
            _ => None,
        }
    }

    /// Parts of a weight's rows, one below the other; parts that have tables of their own are no whole.
    fn stack(parts: Vec<Coding>) -> Option<Coding> {
        let mut grids = Vec::new();
        let count = parts.len();
        for part in parts {
            match part {
                Coding::Grid(coded) => grids.push(coded),
                Coding::Table(book) if count == 1 => return Some(Coding::Table(book)),
                Coding::Table(_) => return None,
            }
        }
        Coded::stack(grids).map(Coding::Grid)
    }
}

/// Codes of a weight, and the relative squared error that they make.
pub(super) struct Code {
    pub(super) layout: Layout,
    pub(super) coding: Coding,
    /// What the bias of the product shall have more of; empty when that is nothing.
    pub(super) shift: Vec<f32>,
    pub(super) error: f64,
}

impl Code {
    /// As [`Coding::sample`].
    pub(super) fn sample(choice: Choice, layout: &Layout, seed: usize) -> Option<Code> {
        let coding = Coding::sample(choice, layout, seed)?;
        Some(Code { layout: layout.clone(), coding, shift: Vec::new(), error: 0.0 })
    }
}

/// Codes by weight.
pub(super) type Codes = HashMap<ValueId, Code>;

/// Puts codes in the place of the weights that have some.
pub(super) fn rewrite(work: &Work, graph: &mut Graph, choices: &[Choice], codes: &Codes) -> Result<()> {
    let (mut items, mut books) = (Vec::new(), Vec::new());
    for (weight, choice) in work.weights.iter().zip(choices) {
        if let (Some(_), Some(Code { layout, coding, .. })) = (choice.bits(), codes.get(&weight.value)) {
            match coding {
                Coding::Grid(coded) => items.push(Item { weight, layout, coded }),
                Coding::Table(book) => books.push(Book { weight, layout, book }),
            }
        }
    }
    weight_only::rewrite(graph, &items, work.version)?;
    if !books.is_empty() {
        weight_only::rewrite_books(graph, &books, work.version)?;
    }
    Ok(())
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
    let mut forms: HashMap<ValueId, Choice> = HashMap::new();
    for (weight, choice) in work.weights.iter().zip(choices) {
        if choice.bits().is_some() {
            let same = forms.insert(weight.value, *choice).is_none_or(|other| other == *choice);
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
        let offer = |choice, bytes| (choice, Offer { bytes, harm: 0.0 });
        let grid = |bits| {
            let form = Form { bits, group };
            offer(Choice::Bits(form), form.bytes(layout.rows, layout.cols))
        };
        let shared = |bits| {
            let form = codebook::Form { codes: Form { bits, group }, table: Table::Shared };
            offer(Choice::Table(form), form.bytes(layout.rows, layout.cols))
        };
        let mut offers: Vec<(Choice, Offer)> = BITS.into_iter().map(grid).collect();
        // Groups of convolutions would have tables of their own, and tables do not hold zeros that a pass has made.
        if layout.groups == 1 && layout.cols.is_multiple_of(group.max(1)) && !sparse(graph, weight, &layout) {
            offers.extend(TABLES.map(shared));
        }
        offers.sort_by_key(|(_, offer)| offer.bytes);
        found.push(Candidate { weight, layout, offers, whole: 0.0 });
    }
    found
}

pub(super) fn nearest_of(
    work: &Work,
    c: &Candidate,
    matrix: &Matrix,
    importance: &[Vec<f64>],
    choice: Choice,
    ranges: Ranges,
) -> Option<Coding> {
    let one = |group| {
        let importance = importance.get(group).map_or(&[][..], Vec::as_slice);
        let part = c.layout.part(matrix, group);
        match choice {
            Choice::Bits(form) => Some(Coding::Grid(nearest(work.cpu, &part, importance, form, ranges))),
            Choice::Table(form) => Some(Coding::Table(codebook::nearest(work.cpu, &part, importance, form))),
            _ => None,
        }
    };
    Coding::stack((0..c.layout.groups).map(one).collect::<Option<_>>()?)
}

pub(super) fn matrix_of(work: &Work, c: &Candidate) -> Result<Matrix> {
    let graph = &work.base.graph;
    let tensor = graph.constant(c.weight.value);
    c.layout.read(tensor.ok_or_else(|| Error::Plan(format!("{:?} is no constant", c.weight.name)))?)
}

/// The codes of a matrix, from an earlier run when it is kept.
fn swept(
    work: &Work,
    old: &Matrix,
    gram: &Gram,
    choice: Choice,
    (rounding, ranges): (Rounding, Ranges),
) -> Result<Option<Coding>> {
    let (store, cpu) = (work.judge.store(), work.cpu);
    let published = rounding == Rounding::Gptq;
    let sparse = is_sparse(old);
    let key = || {
        let what =
            format!("sweep and descent {choice} {ranges:?} {DAMP} {published} {sparse} {:?}", cpu.isa());
        Key::of(&[what.as_bytes()]).matrix(old, gram)
    };
    Ok(match choice {
        Choice::Bits(form) => {
            let read = |bytes: &[u8]| Coded::read(form, old.rows, old.cols, bytes);
            let sweep = || gptq(cpu, old, gram, form, ranges, published, sparse);
            Some(Coding::Grid(kept(store, key, read, Coded::write, sweep)?))
        }
        Choice::Table(form) => {
            let read = |bytes: &[u8]| Codebook::read(form, old.rows, old.cols, bytes);
            let sweep = || codebook::gptq(cpu, old, gram, form);
            Some(Coding::Table(kept(store, key, read, Codebook::write, sweep)?))
        }
        _ => None,
    })
}

fn sweep(
    work: &Work,
    candidates: &[Candidate],
    forms: &HashMap<ValueId, Choice>,
    rounding: Rounding,
    ranges: Ranges,
) -> Result<Codes> {
    let mut codes = Codes::new();
    let mut graph = work.base.graph.clone();
    let plain = |c: &Candidate, codes: &mut Codes| {
        let (form, matrix) = (forms[&c.weight.value], matrix_of(work, c)?);
        let Some(coding) = nearest_of(work, c, &matrix, &[], form, ranges) else {
            return Err(unfit(work, c, form));
        };
        let decoded = coding.decode();
        let error = matrix.distance(&decoded);
        codes.insert(c.weight.value, Code { layout: c.layout.clone(), coding, shift: Vec::new(), error });
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
    if rounding != Rounding::Nearest && work.judge.can_calibrate() {
        let mut seen = 0;
        walk(&graph, &weights, work.context().examples()?, work.cpu, &mut |stop: Stop| {
            seen += 1;
            work.judge.progress(&format!("sweeping weight {seen} of {}", weights.len()));
            let form = forms[&stop.weight.value];
            let (mut parts, mut harm, mut energy) = (Vec::new(), 0.0, 0.0);
            let biased = rounding != Rounding::Gptq && bias::fits(&work.base.graph, stop.weight);
            for (group, gram) in stop.grams.iter().enumerate() {
                let old = stop.layout.part(&stop.matrix, group);
                // The bias takes the mean of what is apart.
                let felt = if biased { &gram.centred() } else { gram };
                let Some(coding) = swept(work, &old, felt, form, (rounding, ranges))? else {
                    return Ok(None);
                };
                let decoded = coding.decode();
                harm += felt.harm(work.cpu, &old, &decoded).0;
                energy += gram.energy(work.cpu, &old);
                if biased {
                    stop.shift.extend(bias::shift(&old, &decoded, &gram.mean()));
                }
                parts.push(coding);
            }
            let Some(coding) = Coding::stack(parts) else { return Ok(None) };
            let decoded = coding.decode();
            let error = if energy > 0.0 { harm / energy } else { harm };
            let (layout, shift) = (stop.layout.clone(), stop.shift.clone());
            codes.insert(stop.weight.value, Code { layout, coding, shift, error });
            Ok(Some(decoded))
        })?;
    }
    for c in candidates {
        if !codes.contains_key(&c.weight.value) {
            plain(c, &mut codes)?;
        }
    }
    if rounding == Rounding::Learned {
        learn(work, candidates, &mut codes)?;
    }
    Ok(codes)
}

/// Trains the codes of all products together.
fn learn(work: &Work, candidates: &[Candidate], codes: &mut Codes) -> Result<()> {
    let mut graph = work.base.graph.clone();
    correct(work, &mut graph, codes)?;
    for (value, code) in codes.iter() {
        graph.set_constant(*value, code.layout.write(&code.coding.decode())?);
    }
    let mut left: HashMap<ValueId, (Layout, &mut Coded)> = HashMap::new();
    for (value, code) in codes.iter_mut() {
        if let Coding::Grid(coded) = &mut code.coding {
            left.insert(*value, (code.layout.clone(), coded));
        }
    }
    let products = candidates.iter().filter(|c| c.weight.used.kind != WeightKind::Embedding);
    let found: Vec<_> =
        products.filter_map(|c| Some((c.weight.value, left.remove(&c.weight.value)?))).collect();
    let (values, mut found): (Vec<ValueId>, Vec<(Layout, &mut Coded)>) = found.into_iter().unzip();
    let items = values.iter().zip(&mut found);
    let mut items: Vec<learned::Item> =
        items.map(|(&value, (layout, coded))| learned::Item { value, layout, coded }).collect();
    if items.is_empty() {
        return Ok(());
    }
    let say = |p: &learn::fit::Progress| {
        work.judge.progress(&format!("learning to round: epoch {}, held out {:.2e}", p.epoch, p.held_out));
    };
    let examples = work.context().examples()?.all()?;
    let mut epochs = work.judge.store().map(|store| {
        let key = Key::of(&[b"learnt codes", format!("{:?}", work.cpu.isa()).as_bytes()]);
        Epochs { store, key: key.graph(&work.base.graph).graph(&graph) }
    });
    let epochs = epochs.as_mut().map(|epochs| epochs as &mut dyn Checkpoints);
    learned::learn(&work.base.graph, &graph, &mut items, &examples, work.cpu, epochs, &say)?;
    Ok(())
}

/// A weight cannot be put in codes of this form.
fn unfit(work: &Work, c: &Candidate, form: Choice) -> Error {
    let name = &work.base.graph.value(c.weight.value).name;
    Error::Plan(format!(
        "weight {name:?} at node {:?} cannot be {form}: its groups would have tables of their own",
        c.weight.name
    ))
}

fn sparse(graph: &Graph, weight: &Weight, layout: &Layout) -> bool {
    graph.constant(weight.value).and_then(|tensor| layout.read(tensor).ok()).is_some_and(|w| is_sparse(&w))
}

/// Zeros that a pass has made stay zeros.
fn is_sparse(w: &Matrix) -> bool {
    8 * w.data.iter().filter(|x| **x == 0.0).count() >= w.data.len().max(1)
}
