//! `Einsum`: sums of products after Einstein's notation. <https://onnx.ai/onnx/operators/onnx__Einsum.html>

use std::any::Any;
use std::sync::Arc;

use crate::axes::Port::{self, Input, Output};
use crate::op::{Facts, GradCx, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::matmul::MatMul;
use crate::ops::number::{Number, by_type};
use crate::ops::transpose::transpose;
use crate::tensor::count;
use crate::{Attrs, Axes, DType, Datum, Dim, Error, Fact, Op, Result, Tensor, ValueId};

/// The sum over all letters that the output does not name of the products of the inputs' elements.
#[derive(Debug)]
pub struct Einsum {
    equation: String,
}

pub(crate) static DEFS: &[OpDef] = &[OpDef {
    name: "Einsum",
    domain: "",
    since: 12,
    read: |r| {
        let Some(equation) = r.attrs.opt_text("equation")? else {
            return Err(Error::invalid("attribute \"equation\" (a text) is missing"));
        };
        Ok(Arc::new(Einsum { equation: equation.to_owned() }))
    },
    samples: || {
        let sample = |equation: &str, shapes: &[&[usize]], grads: &[usize]| {
            let inputs = shapes.iter().map(|s| ramp(s)).collect();
            Sample::new(Einsum { equation: equation.to_owned() }, inputs).grads(grads)
        };
        vec![
            sample("bij, bjk -> bik", &[&[2, 2, 3], &[2, 3, 2]], &[0, 1]),
            sample("ij->ji", &[&[2, 3]], &[0]),
            sample("...ii ->...i", &[&[2, 3, 3]], &[]),
            sample("...ij,...jk", &[&[1, 2, 3], &[2, 3, 2]], &[0, 1]),
            sample("i,i", &[&[3], &[3]], &[0, 1]),
            sample("ij,jk,kl->il", &[&[2, 3], &[3, 2], &[2, 2]], &[0, 1, 2]),
            sample("ij->", &[&[2, 3]], &[]),
            sample("bqhd,bkhd->bhqk", &[&[2, 3, 2, 4], &[2, 5, 2, 4]], &[0, 1]),
        ]
    },
}];

/// One axis of a term: a letter, or an axis of the ellipsis, counted from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Letter {
    Rest(usize),
    Named(char),
}

/// The letters of each input's axes and of the output's.
struct Terms {
    inputs: Vec<Vec<Letter>>,
    output: Vec<Letter>,
}

/// The letters of one term, for a tensor of this rank (`None`: the ellipsis has `rest` axes).
fn term(text: &str, rank: Option<usize>, rest: usize) -> Result<Vec<Letter>> {
    let wrong = || Error::invalid(format!("{text:?} is no term of an einsum for this input"));
    let named = |part: &str| -> Result<Vec<Letter>> {
        let letter = |c: char| if c.is_ascii_alphabetic() { Ok(Letter::Named(c)) } else { Err(wrong()) };
        part.chars().filter(|c| !c.is_whitespace()).map(letter).collect()
    };
    let letters = match text.split_once("...") {
        None => named(text)?,
        Some((left, right)) => {
            let (mut left, right) = (named(left)?, named(right)?);
            let rest = match rank {
                Some(rank) => rank.checked_sub(left.len() + right.len()).ok_or_else(wrong)?,
                None => rest,
            };
            left.extend((0..rest).rev().map(Letter::Rest));
            left.extend(right);
            left
        }
    };
    if rank.is_some_and(|rank| rank != letters.len()) {
        return Err(wrong());
    }
    Ok(letters)
}

/// How one operand is walked along the letters.
struct Lane<'a, T> {
    data: &'a [T],
    steps: Vec<usize>,
    at: usize,
}

impl Einsum {
    fn terms(&self, ranks: &[usize]) -> Result<Terms> {
        let (left, right) = match self.equation.split_once("->") {
            Some((left, right)) => (left, Some(right)),
            None => (self.equation.as_str(), None),
        };
        let texts: Vec<&str> = left.split(',').collect();
        if texts.len() != ranks.len() {
            return Err(Error::invalid(format!("{:?} does not fit {} inputs", self.equation, ranks.len())));
        }
        let inputs = texts
            .iter()
            .zip(ranks)
            .map(|(text, &rank)| term(text, Some(rank), 0))
            .collect::<Result<Vec<_>>>()?;
        let mut all: Vec<Letter> = inputs.iter().flatten().copied().collect();
        let rest = all.iter().filter_map(|l| if let Letter::Rest(i) = l { Some(i + 1) } else { None }).max();
        let rest = rest.unwrap_or(0);
        let output = match right {
            Some(text) => term(text, None, rest)?,
            None => {
                let mut output: Vec<Letter> = (0..rest).rev().map(Letter::Rest).collect();
                all.sort_unstable();
                let once =
                    |l: &Letter| matches!(l, Letter::Named(_)) && all.iter().filter(|m| *m == l).count() == 1;
                output.extend(all.iter().copied().filter(once));
                output
            }
        };
        for (i, letter) in output.iter().enumerate() {
            let known = inputs.iter().any(|term| term.contains(letter));
            if !known || output[..i].contains(letter) {
                return Err(Error::invalid(format!(
                    "the output of {:?} names a letter wrongly",
                    self.equation
                )));
            }
        }
        Ok(Terms { inputs, output })
    }
}

/// The size that a letter has in all tensors; those of the ellipsis may be repeated.
fn size(letter: Letter, inputs: &[Vec<Letter>], shapes: &[&[usize]]) -> Result<usize> {
    let mut found = None;
    let axes = inputs.iter().zip(shapes).flat_map(|(term, shape)| term.iter().zip(*shape));
    for (_, &size) in axes.filter(|(l, _)| **l == letter) {
        found = match found {
            None => Some(size),
            Some(old) if old == size || size == 1 => Some(old),
            Some(1) => Some(size),
            Some(old) => {
                return Err(Error::invalid(format!("an axis of an einsum has sizes {old} and {size}")));
            }
        };
    }
    found.ok_or_else(|| Error::invalid("an axis of an einsum has no size"))
}

/// Sums the products of operands whose axes are named, to the letters of `output`.
fn contract<T: Number>(operands: &[(&Tensor, &[Letter])], output: &[Letter]) -> Result<Tensor> {
    let terms: Vec<Vec<Letter>> = operands.iter().map(|o| o.1.to_vec()).collect();
    let shapes: Vec<&[usize]> = operands.iter().map(|o| o.0.shape()).collect();
    let mut letters = output.to_vec();
    for letter in terms.iter().flatten() {
        if !letters.contains(letter) {
            letters.push(*letter);
        }
    }
    let sizes = letters.iter().map(|&l| size(l, &terms, &shapes)).collect::<Result<Vec<_>>>()?;
    let mut lanes: Vec<Lane<T>> = Vec::with_capacity(operands.len());
    for (tensor, term) in operands {
        let mut steps = vec![0; letters.len()];
        let mut step = 1;
        for (letter, &size) in term.iter().zip(tensor.shape()).rev() {
            if let Some(i) = letters.iter().position(|l| l == letter).filter(|_| size != 1) {
                steps[i] += step;
            }
            step *= size;
        }
        lanes.push(Lane { data: tensor.as_slice()?, steps, at: 0 });
    }
    let inner = count(&sizes[output.len()..])?;
    let mut index = vec![0usize; letters.len()];
    Tensor::build(&sizes[..output.len()], |out: &mut [T]| {
        for o in out {
            let (mut sum, mut exact) = (0.0, T::default());
            for _ in 0..inner {
                match T::IS_FLOAT {
                    true => sum += lanes.iter().map(|l| l.data[l.at].to_f64()).product::<f64>(),
                    false => {
                        exact = exact.plus(lanes.iter().map(|l| l.data[l.at]).fold(T::from_i128(1), T::times))
                    }
                }
                advance(&mut index, &sizes, &mut lanes, output.len());
            }
            *o = if T::IS_FLOAT { T::from_f64(sum) } else { exact };
            if output.is_empty() || inner == 0 {
                continue;
            }
            advance(&mut index[..output.len()], &sizes[..output.len()], &mut lanes, 0);
        }
        Ok(())
    })
}

/// Moves to the next index of the letters from `first` on; after the last comes the first again.
fn advance<T>(index: &mut [usize], sizes: &[usize], lanes: &mut [Lane<T>], first: usize) {
    for i in (first..sizes.len()).rev() {
        index[i] += 1;
        lanes.iter_mut().for_each(|l| l.at += l.steps[i]);
        if index[i] < sizes[i] {
            return;
        }
        lanes.iter_mut().for_each(|l| l.at -= l.steps[i] * sizes[i]);
        index[i] = 0;
    }
}

/// The same for two operands of f32 as a product of matrices, when it is one: axes of equal sizes, each of which both
/// operands or the output name, and one at least that only one operand names.
fn product(cx: &RunCx, operands: [(&Tensor, &[Letter]); 2], output: &[Letter]) -> Result<Option<Tensor>> {
    let [(a, left), (b, right)] = operands;
    let size_in = |tensor: &Tensor, term: &[Letter], letter: &Letter| {
        term.iter().position(|l| l == letter).map_or(1, |at| tensor.shape()[at])
    };
    let once = |term: &[Letter]| term.iter().enumerate().all(|(i, l)| !term[..i].contains(l));
    let alike = |l: &&Letter| !right.contains(l) || size_in(a, left, l) == size_in(b, right, l);
    let floats = a.dtype() == DType::F32 && b.dtype() == DType::F32 && !a.is_empty() && !b.is_empty();
    if !floats || !once(left) || !once(right) || !left.iter().all(|l| alike(&l)) {
        return Ok(None);
    }
    let letters = |term: &[Letter], keep: &dyn Fn(&Letter) -> bool| -> Vec<Letter> {
        term.iter().copied().filter(keep).collect()
    };
    let batch = letters(output, &|l| left.contains(l) && right.contains(l));
    let summed = letters(left, &|l| right.contains(l) && !output.contains(l));
    let rows = letters(left, &|l| !right.contains(l));
    let columns = letters(right, &|l| !left.contains(l));
    let one_sided = [&rows[..], &columns].concat();
    if one_sided.is_empty() || !one_sided.iter().all(|l| output.contains(l)) {
        return Ok(None);
    }
    let matrices = |tensor: &Tensor, term: &[Letter], parts: [&[Letter]; 3]| -> Result<Datum> {
        let order: Vec<usize> =
            parts.concat().iter().filter_map(|l| term.iter().position(|m| m == l)).collect();
        let shape = parts.map(|part| part.iter().map(|l| size_in(tensor, term, l)).product());
        Ok(Datum::Tensor(transpose(cx.cpu, tensor.clone(), &order)?.reshaped(&shape)?))
    };
    let inputs = vec![
        Some(matrices(a, left, [&batch, &rows, &summed])?),
        Some(matrices(b, right, [&batch, &summed, &columns])?),
    ];
    let made = [batch, rows, columns].concat();
    let sizes: Vec<usize> = made.iter().map(|l| size_in(a, left, l).max(size_in(b, right, l))).collect();
    let order: Vec<usize> = output.iter().filter_map(|l| made.iter().position(|m| m == l)).collect();
    let all = MatMul::new().run(&RunCx::new(cx.cpu, 1), Inputs::new(inputs))?.swap_remove(0);
    transpose(cx.cpu, all.reshaped(&sizes)?, &order).map(Some)
}

fn chain<T: Number>(cx: &RunCx, inputs: &[&Tensor], terms: &Terms) -> Result<Tensor> {
    // From the left, two at a time; between the steps only those letters stay that are still needed.
    let (mut left, mut names): (Option<Tensor>, Vec<Letter>) = (None, Vec::new());
    for (i, (&input, term)) in inputs.iter().zip(&terms.inputs).enumerate() {
        let later =
            |l: &Letter| terms.output.contains(l) || terms.inputs[i + 1..].iter().any(|t| t.contains(l));
        let mut kept: Vec<Letter> = Vec::new();
        for letter in names.iter().chain(term) {
            if !kept.contains(letter) && later(letter) {
                kept.push(*letter);
            }
        }
        let target = if i + 1 == inputs.len() { terms.output.clone() } else { kept };
        let next = match &left {
            Some(sum) => {
                let pair = [(sum, &names[..]), (input, &term[..])];
                product(cx, pair, &target)?.map_or_else(|| contract::<T>(&pair, &target), Ok)?
            }
            None => contract::<T>(&[(input, term)], &target)?,
        };
        (left, names) = (Some(next), target);
    }
    left.ok_or_else(|| Error::invalid("an einsum has no inputs"))
}

impl Op for Einsum {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().text("equation", &self.equation)
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let dtype = inputs.need(0)?.dtype();
        let shapes: Option<Vec<&[Dim]>> = (0..inputs.len()).map(|i| inputs.shape(i)).collect();
        let Some(shapes) = shapes else { return Ok(vec![Fact::maybe(dtype, None)]) };
        let terms = self.terms(&shapes.iter().map(|s| s.len()).collect::<Vec<_>>())?;
        let dim = |letter: &Letter| {
            let axes = terms.inputs.iter().zip(&shapes).flat_map(|(term, shape)| term.iter().zip(*shape));
            let mut sizes = axes.filter(|(l, _)| *l == letter).map(|(_, d)| d);
            sizes.try_fold(Dim::Is(1), |all, d| all.broadcast(d))
        };
        let shape = terms.output.iter().map(dim).collect::<Option<Vec<_>>>();
        let shape = shape.ok_or_else(|| Error::invalid(format!("sizes do not fit {:?}", self.equation)))?;
        Ok(vec![Fact::maybe(dtype, Some(shape))])
    }

    fn run(&self, cx: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let tensors = (0..inputs.len()).map(|i| inputs.need(i)).collect::<Result<Vec<_>>>()?;
        let terms = self.terms(&tensors.iter().map(|t| t.rank()).collect::<Vec<_>>())?;
        Ok(vec![by_type!(inputs.need(0)?.dtype(), chain(cx, &tensors, &terms))?])
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        // Each input's gradient is an einsum of the output's gradient and the other inputs.
        let (left, right) = match self.equation.split_once("->") {
            Some((left, right)) => (left.to_owned(), right.to_owned()),
            None => {
                let mut once: Vec<char> = self.equation.chars().filter(char::is_ascii_alphabetic).collect();
                once.sort_unstable();
                let all = once.clone();
                once.retain(|c| all.iter().filter(|d| *d == c).count() == 1);
                let rest = if self.equation.contains("...") { "..." } else { "" };
                (self.equation.clone(), rest.chars().chain(once).collect())
            }
        };
        let terms: Vec<&str> = left.split(',').collect();
        let dy = cx.grad()?;
        let mut grads = Vec::new();
        for (i, own) in terms.iter().enumerate() {
            let others: Vec<usize> = (0..terms.len()).filter(|&j| j != i).collect();
            let from: Vec<&str> =
                [right.as_str()].into_iter().chain(others.iter().map(|&j| terms[j])).collect();
            let letters: Vec<char> = own.chars().filter(char::is_ascii_alphabetic).collect();
            let found = |c: &char| from.iter().any(|term| term.contains(*c));
            let twice = letters.iter().enumerate().any(|(k, c)| letters[..k].contains(c));
            let rest = own.contains("...") && !from.iter().any(|term| term.contains("..."));
            if twice || rest || !letters.iter().all(found) {
                return Err(Error::unsupported(format!("the gradient of einsum {:?}", self.equation)));
            }
            let x = cx.input(i)?;
            let mut inputs = vec![dy];
            for &j in &others {
                inputs.push(cx.input(j)?);
            }
            let dx = cx.graph.add_op(
                "grad",
                Einsum { equation: format!("{}->{own}", from.join(",")) },
                &inputs,
            )?;
            grads.push(Some(cx.summed(dx, x)?));
        }
        Ok(grads)
    }

    fn axes(&self, inputs: &Facts, _: &[Fact]) -> Option<Axes> {
        let ranks = (0..inputs.len()).map(|i| inputs.rank(i)).collect::<Option<Vec<_>>>()?;
        let terms = self.terms(&ranks).ok()?;
        let named = terms.inputs.iter().enumerate().map(|(i, term)| (Input(i), term));
        let all = named.chain([(Output(0), &terms.output)]);
        let ends: Vec<(Letter, (Port, usize))> =
            all.flat_map(|(port, term)| term.iter().enumerate().map(move |(a, l)| (*l, (port, a)))).collect();
        let mut axes = Axes::new();
        for (i, (letter, end)) in ends.iter().enumerate() {
            let others = ends[..i].iter().filter(|(l, _)| l == letter);
            others.for_each(|(_, other)| _ = axes.tie(*end, *other));
        }
        Some(axes)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_the_sums() -> Result<()> {
        let cpu = kernel::Cpu::new(1).map_err(Error::invalid)?;
        let cases: [(&str, &[usize], &[usize], bool); 6] = [
            ("bqhd,bkhd->bhqk", &[2, 3, 2, 4], &[2, 5, 2, 4], true),
            ("ij,jk->ki", &[3, 4], &[4, 2], true),
            ("i,j->ji", &[3], &[4], true),
            ("bij,bj->bi", &[2, 3, 4], &[2, 4], true),
            ("...i,i->...", &[2, 3, 4], &[1], false),
            ("ij,jk->k", &[3, 4], &[4, 2], false),
        ];
        for (equation, left, right, is_product) in cases {
            let (a, b) = (ramp(left), ramp(right));
            let terms = Einsum { equation: equation.into() }.terms(&[left.len(), right.len()])?;
            let pair = [(&a, &terms.inputs[0][..]), (&b, &terms.inputs[1][..])];
            let found = product(&RunCx::new(&cpu, 1), pair, &terms.output)?;
            assert_eq!(found.is_some(), is_product, "{equation}");
            let Some(found) = found else { continue };
            let expected = contract::<f32>(&pair, &terms.output)?;
            assert_eq!(found.shape(), expected.shape(), "{equation}");
            for (x, y) in found.to_f32()?.iter().zip(expected.to_f32()?.iter()) {
                assert!((x - y).abs() < 1e-5, "{equation}: {x}, not {y}");
            }
        }
        Ok(())
    }
}
