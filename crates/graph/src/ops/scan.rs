//! `Scan`: a graph run on each slice of its inputs. <https://onnx.ai/onnx/operators/onnx__Scan.html>

use std::any::Any;
use std::sync::Arc;

use crate::infer;
use crate::op::{Facts, Inputs, OpDef, PackCx, Packed, Reader, RunCx, Sample, pack_bodies, ramp};
use crate::ops::concat::part;
use crate::ops::control::{nameless, stack, with_graphs};
use crate::run::Program;
use crate::{Attr, Attrs, DType, Datum, Dim, Error, Fact, Graph, Op, Result, Tensor, Type};

/// `Scan`. In version 8 all inputs carry a batch, and may have a length for each of it.
#[derive(Debug)]
pub struct Scan {
    attrs: Attrs,
    body: Arc<Graph>,
    /// Number of inputs that are cut into slices.
    cut: usize,
    batched: bool,
    input_axes: Vec<i64>,
    output_axes: Vec<i64>,
    input_back: Vec<i64>,
    output_back: Vec<i64>,
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef::onnx(
        "Scan",
        8,
        |r| read(r, true),
        || {
            let inputs = vec![None, Some(ramp(&[2, 3]).into()), Some(ramp(&[2, 4, 3]).into())];
            vec![Sample::of_data(&DEFS[0], body(), inputs).outputs(2)]
        },
    ),
    OpDef::onnx(
        "Scan",
        9,
        |r| read(r, false),
        || {
            let of = |attrs, x| Sample::read(&DEFS[1], attrs, vec![ramp(&[3]), x]).outputs(2);
            let turned = body()
                .ints("scan_input_axes", &[1])
                .ints("scan_input_directions", &[1])
                .ints("scan_output_axes", &[-1]);
            vec![of(body(), ramp(&[4, 3])), of(turned, ramp(&[3, 2]))]
        },
    ),
];

/// A body that gives back its state and its slice.
fn body() -> Attrs {
    let mut body = Graph::new("body");
    let state = body.add_free("state", Fact::tensor(DType::F32, vec![Dim::Is(3)]));
    let slice = body.add_free("slice", Fact::tensor(DType::F32, vec![Dim::Is(3)]));
    body.inputs = vec![state, slice];
    body.outputs = vec![state, slice];
    Attrs::new().with("body", Attr::Graph(Arc::new(body))).int("num_scan_inputs", 1)
}

fn read(r: &Reader, batched: bool) -> Result<Arc<dyn Op>> {
    Ok(Arc::new(make(r.attrs, batched)?))
}

fn make(attrs: &Attrs, batched: bool) -> Result<Scan> {
    let list = |name: &str| attrs.ints_or(name, &[]);
    let body = attrs.need_graph("body")?;
    let cut = attrs.need_int("num_scan_inputs")?;
    let cut = usize::try_from(cut).ok().filter(|&n| n <= body.inputs.len());
    let cut = cut.ok_or_else(|| Error::invalid("more scan inputs than the body has inputs"))?;
    if body.outputs.len() < body.inputs.len() - cut {
        return Err(Error::invalid("the body gives back fewer values than it carries"));
    }
    Ok(Scan {
        attrs: attrs.clone(),
        body,
        cut,
        batched,
        input_axes: list("scan_input_axes")?,
        output_axes: list("scan_output_axes")?,
        input_back: list(if batched { "directions" } else { "scan_input_directions" })?,
        output_back: list("scan_output_directions")?,
    })
}

fn backwards(list: &[i64], i: usize) -> bool {
    list.get(i).is_some_and(|&d| d != 0)
}

impl Scan {
    fn carried(&self) -> usize {
        self.body.inputs.len() - self.cut
    }

    /// Runs the body on each slice; the last `self.cut` of the inputs are cut.
    fn scan(
        &self,
        cx: &RunCx,
        program: &Program,
        mut state: Vec<Datum>,
        cut: Vec<Tensor>,
        length: Option<usize>,
    ) -> Result<Vec<Datum>> {
        let axis = |i: usize, rank| infer::axis(self.input_axes.get(i).copied().unwrap_or(0), rank);
        let axes = cut.iter().enumerate().map(|(i, x)| axis(i, x.rank())).collect::<Result<Vec<_>>>()?;
        let sizes: Vec<usize> = cut.iter().zip(&axes).map(|(x, &a)| x.shape()[a]).collect();
        let steps = sizes.first().copied().unwrap_or(0);
        if sizes.iter().any(|&n| n != steps) {
            return Err(Error::invalid(format!("scan inputs of different lengths {sizes:?}")));
        }
        let steps = length.unwrap_or(steps);
        let carried = state.len();
        let mut scans: Vec<Vec<Tensor>> = vec![Vec::new(); self.body.outputs.len() - carried];
        for step in 0..steps {
            let mut given: Vec<Option<Datum>> = state.drain(..).map(Some).collect();
            for (i, (x, &axis)) in cut.iter().zip(&axes).enumerate() {
                let at = if backwards(&self.input_back, i) { steps - 1 - step } else { step };
                let mut shape = x.shape().to_vec();
                shape.remove(axis);
                given.push(Some(part(x.clone(), axis, at, 1)?.reshaped(&shape)?.into()));
            }
            let mut made = program.run(given, cx.captures.clone(), &mut ())?.into_iter();
            state.extend(made.by_ref().take(carried));
            for (scan, slice) in scans.iter_mut().zip(made) {
                scan.push(slice.into_tensor()?);
            }
        }
        for (i, mut scan) in scans.into_iter().enumerate() {
            if backwards(&self.output_back, i) {
                scan.reverse();
            }
            let fact = &self.body.value(self.body.outputs[carried + i]).fact;
            let rank = scan.first().map(Tensor::rank).or(fact.rank()).unwrap_or(0) + 1;
            let axis = infer::axis(self.output_axes.get(i).copied().unwrap_or(0), rank)?;
            state.push(stack(scan, axis, fact)?.into());
        }
        Ok(state)
    }
}

impl Op for Scan {
    fn def(&self) -> &'static OpDef {
        &DEFS[usize::from(!self.batched)]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, _: &Facts) -> Result<Vec<Fact>> {
        let carried = self.carried();
        let each = self.body.outputs.iter().enumerate().map(|(i, &id)| {
            let ty = match nameless(&self.body.value(id).fact.ty) {
                Type::Tensor(d, Some(shape)) => {
                    let extra = usize::from(i >= carried) + usize::from(self.batched);
                    Type::Tensor(d, Some(vec![Dim::Unknown; shape.len() + extra]))
                }
                other => other,
            };
            Fact { ty, ints: None }
        });
        Ok(each.collect())
    }

    fn run_data(&self, cx: &RunCx, mut inputs: Inputs) -> Result<Vec<Datum>> {
        let programs = cx.programs(self)?;
        let program = programs.first().ok_or_else(|| Error::invalid("the body has no program"))?;
        let first = usize::from(self.batched);
        let carried = self.carried();
        if inputs.len() != first + self.body.inputs.len() {
            return Err(Error::invalid(format!("{} inputs for {}", inputs.len(), self.body.inputs.len())));
        }
        if !self.batched {
            let state = (0..carried).map(|i| Ok(inputs.take(i)?.into())).collect::<Result<_>>()?;
            let cut = (carried..inputs.len()).map(|i| inputs.take(i)).collect::<Result<_>>()?;
            return self.scan(cx, program, state, cut, None);
        }
        let lengths = inputs.ints(0)?;
        let given = (1..inputs.len()).map(|i| inputs.take(i)).collect::<Result<Vec<_>>>()?;
        let batch = given.first().and_then(|x| x.shape().first()).copied().unwrap_or(0);
        if given.iter().any(|x| x.shape().first() != Some(&batch)) {
            return Err(Error::invalid("inputs of a batched scan differ in their first size"));
        }
        let mut rows: Vec<Vec<Tensor>> = vec![Vec::new(); self.body.outputs.len()];
        for b in 0..batch {
            let row = |x: &Tensor| part(x.clone(), 0, b, 1)?.reshaped(&x.shape()[1..]);
            let mut own = given.iter().map(row).collect::<Result<Vec<_>>>()?;
            let cut = own.split_off(carried);
            let size = cut.first().and_then(|x| x.shape().first()).copied().unwrap_or(0);
            let length = match lengths.as_ref() {
                Some(list) => {
                    let n = list.get(b).and_then(|&n| usize::try_from(n).ok()).filter(|&n| n <= size);
                    Some(n.ok_or_else(|| {
                        Error::invalid(format!("sequence lengths {list:?} do not fit {size}"))
                    })?)
                }
                None => None,
            };
            let made = self.scan(cx, program, own.into_iter().map(Datum::Tensor).collect(), cut, length)?;
            for (i, (row, datum)) in rows.iter_mut().zip(made).enumerate() {
                let mut made = datum.into_tensor()?;
                // Shorter sequences are filled up with zeros.
                if i >= carried && made.rank() > 0 && made.shape()[0] < size {
                    let mut rest = made.shape().to_vec();
                    rest[0] = size - rest[0];
                    let zeros = Tensor::zeros(made.dtype(), &rest)?;
                    made = crate::ops::concat::concat(vec![made, zeros], 0)?;
                }
                row.push(made);
            }
        }
        let outputs = rows.into_iter().zip(&self.body.outputs);
        outputs.map(|(row, &id)| Ok(stack(row, 0, &self.body.value(id).fact)?.into())).collect()
    }

    fn prepack(&self, cx: &PackCx) -> Result<Option<Packed>> {
        pack_bodies(self, cx.cpu)
    }

    fn bodies(&self) -> Vec<&Arc<Graph>> {
        vec![&self.body]
    }

    fn with_bodies(&self, bodies: Vec<Arc<Graph>>) -> Result<Arc<dyn Op>> {
        let attrs = with_graphs(&self.attrs, bodies)?;
        Ok(Arc::new(make(&attrs, self.batched)?))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
