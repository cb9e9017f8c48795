//! Sequences of tensors. <https://onnx.ai/onnx/operators/onnx__SequenceConstruct.html>

use std::any::Any;
use std::sync::Arc;

use crate::infer;
use crate::op::{Facts, Inputs, OpDef, PackCx, Packed, Reader, RunCx, Sample, pack_bodies, ramp};
use crate::ops::concat::{concat, part};
use crate::ops::control::{nameless, stack, with_graphs};
use crate::ops::gather::place;
use crate::{Attr, Attrs, DType, Datum, Error, Fact, Graph, Op, Result, Tensor, Type};

/// Most items that an empty tensor is split into.
const MAX_EMPTY: usize = 1 << 20;

/// An operator on sequences.
#[derive(Debug)]
pub struct Sequence {
    kind: Kind,
    attrs: Attrs,
}

/// `SequenceMap`: a graph run on each item.
#[derive(Debug)]
pub struct SequenceMap {
    attrs: Attrs,
    body: Arc<Graph>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Construct,
    Empty,
    At,
    Insert,
    Erase,
    Length,
    Concat,
    Split,
}

fn samples(kind: Kind) -> Vec<Sample> {
    let def = &DEFS[kind as usize];
    let list = || Some(Datum::Sequence(vec![ramp(&[2, 3]).into(), ramp(&[1, 3]).into()]));
    let at = |i: i64| Some(Tensor::scalar(i).into());
    let of = |attrs, inputs| Sample::of_data(def, attrs, inputs);
    let plain = |inputs| vec![of(Attrs::new(), inputs)];
    match kind {
        Kind::Construct => plain(vec![Some(ramp(&[2]).into()), Some(ramp(&[3]).into())]),
        Kind::Empty => vec![of(Attrs::new(), vec![]), of(Attrs::new().int("dtype", 7), vec![])],
        Kind::At => plain(vec![list(), at(-1)]),
        Kind::Insert => {
            let new = || Some(ramp(&[4, 3]).into());
            vec![of(Attrs::new(), vec![list(), new()]), of(Attrs::new(), vec![list(), new(), at(-2)])]
        }
        Kind::Erase => vec![of(Attrs::new(), vec![list()]), of(Attrs::new(), vec![list(), at(0)])],
        Kind::Length => plain(vec![list()]),
        Kind::Concat => {
            let same = Some(Datum::Sequence(vec![ramp(&[2]).into(), ramp(&[2]).into()]));
            vec![
                of(Attrs::new().int("axis", 0), vec![list()]),
                of(Attrs::new().int("axis", -1).int("new_axis", 1), vec![same]),
            ]
        }
        Kind::Split => {
            let x = || Some(Datum::Tensor(ramp(&[5, 2])));
            vec![
                of(Attrs::new(), vec![x()]),
                of(Attrs::new().int("axis", -1).int("keepdims", 0), vec![x()]),
                of(Attrs::new(), vec![x(), at(2)]),
                of(Attrs::new(), vec![x(), Some(Tensor::vector(&[2i64, 3]).into())]),
            ]
        }
    }
}

fn read(kind: Kind, r: &Reader) -> Result<Arc<dyn Op>> {
    Ok(Arc::new(Sequence { kind, attrs: r.attrs.clone() }))
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef::onnx("SequenceConstruct", 11, |r| read(Kind::Construct, r), || samples(Kind::Construct)),
    OpDef::onnx("SequenceEmpty", 11, |r| read(Kind::Empty, r), || samples(Kind::Empty)),
    OpDef::onnx("SequenceAt", 11, |r| read(Kind::At, r), || samples(Kind::At)),
    OpDef::onnx("SequenceInsert", 11, |r| read(Kind::Insert, r), || samples(Kind::Insert)),
    OpDef::onnx("SequenceErase", 11, |r| read(Kind::Erase, r), || samples(Kind::Erase)),
    OpDef::onnx("SequenceLength", 11, |r| read(Kind::Length, r), || samples(Kind::Length)),
    OpDef::onnx("ConcatFromSequence", 11, |r| read(Kind::Concat, r), || samples(Kind::Concat)),
    OpDef::onnx("SplitToSequence", 11, |r| read(Kind::Split, r), || samples(Kind::Split)),
    OpDef::onnx(
        "SequenceMap",
        17,
        |r| Ok(Arc::new(SequenceMap { attrs: r.attrs.clone(), body: r.attrs.need_graph("body")? })),
        || {
            let mut body = Graph::new("body");
            let x = body.add_free("x", Fact::maybe(Some(DType::F32), None));
            let y = body.add_free("y", Fact::maybe(Some(DType::F32), None));
            body.inputs = vec![x, y];
            body.outputs = vec![y, x];
            let attrs = Attrs::new().with("body", Attr::Graph(Arc::new(body)));
            let list = Some(Datum::Sequence(vec![ramp(&[2]).into(), ramp(&[3]).into()]));
            vec![Sample::of_data(&DEFS[8], attrs, vec![list, Some(ramp(&[1]).into())]).outputs(2)]
        },
    ),
];

/// The items of a sequence, taken from the inputs.
fn take_items(inputs: &mut Inputs, i: usize) -> Result<Vec<Datum>> {
    match inputs.take_data(i) {
        Some(Datum::Sequence(items)) => Ok(items),
        Some(other) => Err(Error::invalid(format!("expected a sequence, got a {}", other.kind()))),
        None => Err(Error::invalid(format!("input {i} is missing"))),
    }
}

fn position(inputs: &Inputs, i: usize) -> Result<Option<i64>> {
    match inputs.ints(i)?.as_deref() {
        None => Ok(None),
        Some(&[at]) => Ok(Some(at)),
        Some(other) => Err(Error::invalid(format!("a position is one number, not {}", other.len()))),
    }
}

/// A type without shapes: items of a sequence may have any.
fn shapeless(ty: &Type) -> Type {
    match ty {
        Type::Tensor(d, _) => Type::Tensor(*d, None),
        other => other.clone(),
    }
}

impl Sequence {
    fn empty_type(&self) -> Result<DType> {
        let number = self.attrs.int_or("dtype", 1)?;
        let dtype = i32::try_from(number).ok().and_then(DType::from_onnx);
        dtype.ok_or_else(|| Error::invalid(format!("there is no element type {number}")))
    }

    fn split(&self, mut inputs: Inputs) -> Result<Vec<Datum>> {
        let cut = inputs.get(1)?.map(|t| Ok((t.rank(), t.to_ints()?))).transpose()?;
        let x = inputs.take(0)?;
        let axis = infer::axis(self.attrs.int_or("axis", 0)?, x.rank())?;
        let size = x.shape()[axis];
        let drop_axis = cut.is_none() && !self.attrs.flag_or("keepdims", true)?;
        // Without elements an axis may be of any length.
        if x.is_empty() && size > MAX_EMPTY {
            return Err(Error::unsupported(format!("splitting an empty tensor of shape {:?}", x.shape())));
        }
        let parts = match cut {
            None => vec![1; size],
            Some((0, list)) => {
                let n = list.first().and_then(|&n| usize::try_from(n).ok()).filter(|&n| n > 0);
                let n = n.ok_or_else(|| Error::invalid(format!("parts of size {list:?}")))?;
                (0..size.div_ceil(n)).map(|i| n.min(size - i * n)).collect()
            }
            Some((_, list)) => super::shape::sizes(&list)?,
        };
        if parts.iter().try_fold(0usize, |sum, &n| sum.checked_add(n)) != Some(size) {
            return Err(Error::invalid(format!("parts {parts:?} do not add up to size {size}")));
        }
        let mut start = 0;
        let items = parts.into_iter().map(|n| {
            let mut item = part(x.clone(), axis, start, n)?;
            start += n;
            if drop_axis {
                let mut shape = item.shape().to_vec();
                shape.remove(axis);
                item = item.reshaped(&shape)?;
            }
            Ok(Datum::Tensor(item))
        });
        Ok(vec![Datum::Sequence(items.collect::<Result<_>>()?)])
    }
}

impl Op for Sequence {
    fn def(&self) -> &'static OpDef {
        &DEFS[self.kind as usize]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let first = inputs.get(0).map(|f| &f.ty);
        let item = match first {
            Some(Type::Sequence(item)) => shapeless(item),
            _ => Type::Unknown,
        };
        let ty = match self.kind {
            Kind::Construct | Kind::Split => Type::Sequence(Box::new(first.map_or(Type::Unknown, shapeless))),
            Kind::Empty => Type::Sequence(Box::new(Type::Tensor(Some(self.empty_type()?), None))),
            Kind::At => item,
            Kind::Insert | Kind::Erase => Type::Sequence(Box::new(item)),
            Kind::Length => Type::Tensor(Some(DType::I64), Some(vec![])),
            Kind::Concat => match item {
                Type::Tensor(d, _) => Type::Tensor(d, None),
                _ => Type::Tensor(None, None),
            },
        };
        Ok(vec![Fact { ty, ints: None }])
    }

    fn run_data(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Datum>> {
        let made = match self.kind {
            Kind::Construct => {
                let items = (0..inputs.len()).map(|i| Ok(inputs.take(i)?.into())).collect::<Result<_>>()?;
                Datum::Sequence(items)
            }
            Kind::Empty => Datum::Sequence(Vec::new()),
            Kind::At => {
                let at = position(&inputs, 1)?.ok_or_else(|| Error::invalid("input 1 is missing"))?;
                let mut items = take_items(&mut inputs, 0)?;
                let at = place(at, items.len())?;
                items.swap_remove(at)
            }
            Kind::Insert => {
                let at = position(&inputs, 2)?;
                let new = inputs.take(1)?;
                let mut items = take_items(&mut inputs, 0)?;
                let at = match at {
                    Some(at) if at == items.len() as i64 => items.len(),
                    Some(at) => place(at, items.len())?,
                    None => items.len(),
                };
                items.insert(at, new.into());
                Datum::Sequence(items)
            }
            Kind::Erase => {
                let at = position(&inputs, 1)?.unwrap_or(-1);
                let mut items = take_items(&mut inputs, 0)?;
                items.remove(place(at, items.len())?);
                Datum::Sequence(items)
            }
            Kind::Length => Tensor::scalar(take_items(&mut inputs, 0)?.len() as i64).into(),
            Kind::Concat => {
                let items = take_items(&mut inputs, 0)?.into_iter().map(Datum::into_tensor);
                let items = items.collect::<Result<Vec<_>>>()?;
                let new = self.attrs.flag_or("new_axis", false)?;
                let rank = items.first().map_or(0, Tensor::rank) + usize::from(new);
                let axis = infer::axis(self.attrs.need_int("axis")?, rank)?;
                if new { stack(items, axis, &Fact::default())?.into() } else { concat(items, axis)?.into() }
            }
            Kind::Split => return self.split(inputs),
        };
        Ok(vec![made])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Op for SequenceMap {
    fn def(&self) -> &'static OpDef {
        &DEFS[8]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, _: &Facts) -> Result<Vec<Fact>> {
        let item = |&id| shapeless(&nameless(&self.body.value(id).fact.ty));
        let each = self.body.outputs.iter().map(item);
        Ok(each.map(|ty| Fact { ty: Type::Sequence(Box::new(ty)), ints: None }).collect())
    }

    fn run_data(&self, cx: &RunCx, mut inputs: Inputs) -> Result<Vec<Datum>> {
        let programs = cx.programs(self)?;
        let program = programs.first().ok_or_else(|| Error::invalid("the body has no program"))?;
        let first = take_items(&mut inputs, 0)?;
        let rest: Vec<Datum> = (1..inputs.len()).filter_map(|i| inputs.take_data(i)).collect();
        let mut made: Vec<Vec<Datum>> = vec![Vec::new(); self.body.outputs.len()];
        for (i, item) in first.into_iter().enumerate() {
            let own = |d: &Datum| match d {
                Datum::Sequence(items) => {
                    items.get(i).cloned().ok_or_else(|| Error::invalid("sequences differ in length"))
                }
                other => Ok(other.clone()),
            };
            let given = [Ok(item)].into_iter().chain(rest.iter().map(own));
            let given = given.map(|d| d.map(Some)).collect::<Result<_>>()?;
            for (list, datum) in made.iter_mut().zip(program.run(given, cx.captures.clone(), &mut ())?) {
                list.push(datum);
            }
        }
        Ok(made.into_iter().map(Datum::Sequence).collect())
    }

    fn prepack(&self, cx: &PackCx) -> Result<Option<Packed>> {
        pack_bodies(self, cx.cpu)
    }

    fn bodies(&self) -> Vec<&Arc<Graph>> {
        vec![&self.body]
    }

    fn with_bodies(&self, bodies: Vec<Arc<Graph>>) -> Result<Arc<dyn Op>> {
        let attrs = with_graphs(&self.attrs, bodies)?;
        Ok(Arc::new(SequenceMap { body: attrs.need_graph("body")?, attrs }))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
