//! Preparations: changes that keep what a model computes and make it easier to put in few bits. Numbers move from one
//! weight to the next.

pub mod awq;
pub mod channels;
pub mod equalize;
pub mod heads;
pub mod rotate;
pub mod smooth;

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use graph::run::Session;
use graph::{DType, Graph, NodeId};
use kernel::Cpu;
use serde::{Deserialize, Serialize};

use crate::pass::Context;
use crate::quantize::coded::{Form, Ranges};
use crate::walk::Example;
use crate::{Error, Result};

/// The greatest squared change of the outputs, relative to what they are, that is taken for rounding.
const ROUNDING: f64 = 1e-6;

// What preparations look for, in words.
const EQUALIZE: &str = "convolutions or products with nothing but Relu, pooling and sums between them, whose \
                        channels differ in range";
const SMOOTH: &str = "norms or products whose channels only products read, past Relu, pooling and sums, and the values of \
                      attention";
const AWQ: &str = "products of matrices that alone read the channels of a norm, of another product or of the values of \
                   attention, and make less of an error in few bits when these are scaled";

/// A way to prepare a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Cross-layer equalization: [`equalize`].
    Equalize,
    /// SmoothQuant: [`smooth`].
    Smooth,
    /// AWQ: [`awq`].
    Awq,
    /// Rotations: [`rotate`].
    Rotate,
}

impl Method {
    /// All of them, in the order in which they are tried.
    pub const ALL: [Method; 4] = [Method::Equalize, Method::Smooth, Method::Awq, Method::Rotate];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Method::Equalize => "equalize",
            Method::Smooth => "smooth",
            Method::Awq => "awq",
            Method::Rotate => "rotate",
        }
    }
}

/// Preparations that are asked for: `smooth,rotate`, or `measured`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Preparations {
    /// These, in this order.
    These(Vec<Method>),
    /// Those that fit the model and bring its answers, in few bits, nearer to the original's.
    Measured,
}

impl Default for Preparations {
    fn default() -> Self {
        Preparations::These(Vec::new())
    }
}

impl FromStr for Preparations {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Preparations, String> {
        if text.trim() == "measured" {
            return Ok(Preparations::Measured);
        }
        let method = |name: &str| {
            let found = Method::ALL.into_iter().find(|m| m.name() == name);
            found.ok_or_else(|| match name {
                "measured" => "measured tries all preparations: say it alone".to_string(),
                _ => format!("{name:?} is no preparation; say equalize, smooth, awq, rotate or measured"),
            })
        };
        text.split(',')
            .map(|name| method(name.trim()))
            .collect::<std::result::Result<Vec<_>, _>>()
            .map(Self::These)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A preparation, as a plan holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "kebab-case")]
pub enum Prepare {
    /// Cross-layer equalization.
    Equalize(equalize::Equalize),
    /// SmoothQuant.
    Smooth(smooth::Smooth),
    /// AWQ.
    Awq(awq::Awq),
    /// Rotations.
    Rotate(rotate::Rotate),
}

impl Prepare {
    /// Which it is.
    pub fn method(&self) -> Method {
        match self {
            Prepare::Equalize(_) => Method::Equalize,
            Prepare::Smooth(_) => Method::Smooth,
            Prepare::Awq(_) => Method::Awq,
            Prepare::Rotate(_) => Method::Rotate,
        }
    }
}

/// The calibration examples, which a preparation cannot do without.
fn examples(method: Method, cx: &Context) -> Result<Vec<Example>> {
    match cx.examples()?.all()? {
        examples if examples.is_empty() => Err(Error::Calibration(format!(
            "--prepare {method} looks at activations and takes data; give some with --data"
        ))),
        examples => Ok(examples),
    }
}

fn nothing(method: Method, looked_for: &str) -> Error {
    Error::Plan(format!("{method} finds nothing to change in this model: it looks for {looked_for}"))
}

/// What a preparation will do to this graph, whose weights will have these forms. AWQ searches its scales for them.
///
/// # Errors
/// [`Error::Plan`] when it finds nothing to change, and says what it looked for; [`Error::Calibration`] when it takes data
/// and there are none.
pub fn decide(
    graph: &Graph,
    method: Method,
    forms: &HashMap<NodeId, Form>,
    ranges: Ranges,
    cx: &Context,
) -> Result<Prepare> {
    Ok(match method {
        Method::Equalize => {
            let ranges =
                if cx.judge.can_calibrate() { equalize::Of::Activations } else { equalize::Of::Weights };
            Prepare::Equalize(equalize::Equalize { ranges })
        }
        Method::Smooth => Prepare::Smooth(smooth::Smooth { alpha: smooth::ALPHA }),
        Method::Awq => {
            cx.progress("awq: searching scales");
            let awq = awq::search(graph, forms, ranges, &examples(method, cx)?, cx.cpu)?;
            if awq.places.is_empty() {
                return Err(nothing(method, AWQ));
            }
            Prepare::Awq(awq)
        }
        Method::Rotate => Prepare::Rotate(rotate::decide(graph)?),
    })
}

/// Prepares a graph. Gives the squared change of its outputs on the first examples, relative to what they are: rounding;
/// 0 when there are no examples.
///
/// # Errors
/// [`Error::Plan`] when nothing is found to change, or the outputs change by more than rounding;
/// [`Error::Calibration`] when there are no data where they are needed, or values are not finite.
pub fn apply(graph: &mut Graph, prepare: &Prepare, cx: &Context) -> Result<f64> {
    let method = prepare.method();
    cx.progress(&format!("preparing: {method}"));
    let mut new = graph.clone();
    let (found, looked_for) = match prepare {
        Prepare::Equalize(how) => match how.ranges {
            equalize::Of::Weights => (equalize::weights(&mut new)?, EQUALIZE),
            equalize::Of::Activations => {
                (equalize::activations(&mut new, &examples(method, cx)?, cx.cpu)?, EQUALIZE)
            }
        },
        Prepare::Smooth(how) => (smooth::apply(&mut new, how.alpha, &examples(method, cx)?, cx.cpu)?, SMOOTH),
        Prepare::Awq(awq) => (awq::apply(&mut new, awq, &examples(method, cx)?, cx.cpu)?, AWQ),
        Prepare::Rotate(rotate) => (rotate::apply(&mut new, rotate)?, rotate::LOOKED_FOR),
    };
    if found == 0 {
        return Err(nothing(method, looked_for));
    }
    let change = match cx.examples()?.first()? {
        Some(example) => change(graph, &new, &example, cx.cpu)?,
        None => 0.0,
    };
    if change.is_nan() || change > ROUNDING {
        return Err(Error::Plan(format!(
            "{method} would change the model's outputs by {change:.1e} of what they are, squared, more than rounding \
             does; do without it"
        )));
    }
    *graph = new;
    Ok(change)
}

/// Squared change of the outputs, relative to what they are.
fn change(before: &Graph, after: &Graph, example: &Example, cpu: &Cpu) -> Result<f64> {
    let run = |graph: &Graph| -> Result<Vec<f32>> {
        let inputs = example.iter().map(|(name, datum)| (name.as_str(), datum.clone())).collect();
        let mut all = Vec::new();
        for output in Session::new(graph.clone(), cpu)?.run(inputs)? {
            if let Ok(tensor) = output.tensor()
                && tensor.dtype() == DType::F32
            {
                all.extend_from_slice(&tensor.values::<f32>()?);
            }
        }
        Ok(all)
    };
    let (old, new) = (run(before)?, run(after)?);
    let square = |x: f32| f64::from(x) * f64::from(x);
    let apart: f64 = old.iter().zip(&new).map(|(a, b)| square(a - b)).sum();
    let energy: f64 = old.iter().map(|&x| square(x)).sum();
    if !energy.is_finite() {
        let what = "the model's outputs are not finite on the first examples; check the data and the model";
        return Err(Error::Calibration(what.into()));
    }
    Ok(if apart == 0.0 { 0.0 } else { apart / energy })
}

#[cfg(test)]
pub(crate) mod tests {
    use graph::op::{Reader, ramp};
    use graph::run::Session;
    use graph::{Attrs, DType, Datum, Dim, Fact, Graph, Node, Tensor, ValueId};

    use crate::gram::tests::cpu;
    use crate::walk::Example;

    /// Version of the operators: the first that has all of these.
    const VERSION: i64 = 23;

    pub(crate) fn add(g: &mut Graph, kind: &str, inputs: &[ValueId], attrs: Attrs) -> ValueId {
        let reader = Reader { attrs: &attrs, version: VERSION, inputs: inputs.len(), outputs: 1 };
        let op = graph::ops::read("", kind, &reader).unwrap();
        let node = Node::new(op, inputs.iter().copied().map(Some).collect());
        g.add_with_outputs(kind, node, 1, None).unwrap().1[0]
    }

    /// Numbers that differ in size from column to column.
    pub(crate) fn uneven(shape: &[usize], seed: usize) -> Tensor {
        let cols = *shape.last().unwrap();
        let one = |k: usize| {
            let x = ((k * 7919 + seed * 104_729 + k * k * 31) % 1013) as f32 / 506.0 - 1.0;
            x * (0.2 + ((k % cols * 5 + seed) % 7) as f32)
        };
        Tensor::new(shape, &(0..shape.iter().product()).map(one).collect::<Vec<f32>>()).unwrap()
    }

    /// Makes constants that differ.
    struct Constants(usize);

    impl Constants {
        fn add(&mut self, g: &mut Graph, name: &str, shape: &[usize]) -> ValueId {
            self.0 += 1;
            g.add_constant(name, uneven(shape, self.0))
        }

        fn norm(&mut self, g: &mut Graph, norm: &str, x: ValueId) -> ValueId {
            let gain = self.add(g, "gain", &[8]);
            let shift = self.add(g, "shift", &[8]);
            let inputs = if norm == "LayerNormalization" { vec![x, gain, shift] } else { vec![x, gain] };
            add(g, norm, &inputs, Attrs::new().int("axis", -1))
        }
    }

    /// A block of a transformer: 2 heads of 4 channels, a network of 16 channels behind.
    fn block_on(g: &mut Graph, constants: &mut Constants, norm: &str, x: ValueId) -> ValueId {
        let n = constants.norm(g, norm, x);
        let split = g.add_constant("split", Tensor::vector(&[0i64, 0, 2, 4]));
        let join = g.add_constant("join", Tensor::vector(&[0i64, 0, 8]));
        let [q, k, v] = ["wq", "wk", "wv"].map(|name| {
            let w = constants.add(g, name, &[8, 8]);
            let mut y = add(g, "MatMul", &[n, w], Attrs::new());
            if name == "wv" || norm == "LayerNormalization" {
                let b = constants.add(g, "b", &[8]);
                y = add(g, "Add", &[y, b], Attrs::new());
            }
            let y = add(g, "Reshape", &[y, split], Attrs::new());
            let perm = if name == "wk" { [0, 2, 3, 1] } else { [0, 2, 1, 3] };
            add(g, "Transpose", &[y], Attrs::new().ints("perm", &perm))
        });
        let scores = add(g, "MatMul", &[q, k], Attrs::new());
        let weights = add(g, "Softmax", &[scores], Attrs::new().int("axis", -1));
        let mixed = add(g, "MatMul", &[weights, v], Attrs::new());
        let mixed = add(g, "Transpose", &[mixed], Attrs::new().ints("perm", &[0, 2, 1, 3]));
        let mixed = add(g, "Reshape", &[mixed, join], Attrs::new());
        let w = constants.add(g, "wo", &[8, 8]);
        let out = add(g, "MatMul", &[mixed, w], Attrs::new());
        let b = constants.add(g, "bo", &[8]);
        let out = add(g, "Add", &[out, b], Attrs::new());
        let x = add(g, "Add", &[x, out], Attrs::new());
        let n = constants.norm(g, norm, x);
        let (up, down) = (constants.add(g, "up", &[8, 16]), constants.add(g, "down", &[16, 8]));
        let mut y = add(g, "MatMul", &[n, up], Attrs::new());
        if norm == "LayerNormalization" {
            let b = constants.add(g, "b", &[16]);
            y = add(g, "Add", &[y, b], Attrs::new());
        }
        let y = add(g, "Relu", &[y], Attrs::new());
        let y = add(g, "MatMul", &[y, down], Attrs::new());
        add(g, "Add", &[x, y], Attrs::new())
    }

    fn finished(mut g: Graph, y: ValueId) -> Graph {
        g.outputs.push(y);
        g.infer().unwrap();
        g.check().unwrap();
        g
    }

    /// A block alone.
    pub(crate) fn block(norm: &str) -> Graph {
        let mut g = Graph::new("block");
        let size = vec![Dim::named("n"), Dim::Is(5), Dim::Is(8)];
        let x = g.add_input("x", Fact::tensor(DType::F32, size)).unwrap();
        let y = block_on(&mut g, &mut Constants(0), norm, x);
        finished(g, y)
    }

    /// Two blocks between a table of 32 tokens and a head.
    pub(crate) fn language(norm: &str) -> Graph {
        let mut g = Graph::new("language");
        let size = vec![Dim::named("n"), Dim::Is(5)];
        let ids = g.add_input("x", Fact::tensor(DType::I64, size)).unwrap();
        let mut constants = Constants(0);
        let table = constants.add(&mut g, "table", &[32, 8]);
        let mut x = add(&mut g, "Gather", &[table, ids], Attrs::new().int("axis", 0));
        for _ in 0..2 {
            x = block_on(&mut g, &mut constants, norm, x);
        }
        let n = constants.norm(&mut g, norm, x);
        let head = constants.add(&mut g, "head", &[8, 32]);
        let mut y = add(&mut g, "MatMul", &[n, head], Attrs::new());
        if norm == "LayerNormalization" {
            let b = constants.add(&mut g, "b", &[32]);
            y = add(&mut g, "Add", &[y, b], Attrs::new());
        }
        finished(g, y)
    }

    /// A table, a norm, and a sum of what the norm makes with a product of it, as encoders have them whose norms come
    /// after the sums.
    pub(crate) fn after_norm() -> Graph {
        let mut g = Graph::new("after");
        let ids = g.add_input("x", Fact::tensor(DType::I64, vec![Dim::named("n"), Dim::Is(5)])).unwrap();
        let mut constants = Constants(7);
        let table = constants.add(&mut g, "table", &[32, 8]);
        let x = add(&mut g, "Gather", &[table, ids], Attrs::new().int("axis", 0));
        let n = constants.norm(&mut g, "LayerNormalization", x);
        let w = constants.add(&mut g, "w", &[8, 8]);
        let y = add(&mut g, "MatMul", &[n, w], Attrs::new());
        let y = add(&mut g, "Add", &[y, n], Attrs::new());
        finished(g, y)
    }

    /// Examples of the graph's input.
    pub(crate) fn examples_of(g: &Graph) -> Vec<Example> {
        let shape: Vec<usize> =
            g.value(g.inputs[0]).fact.shape().unwrap().iter().map(|d| d.size().unwrap_or(2)).collect();
        let tokens = g.value(g.inputs[0]).fact.dtype() == Some(DType::I64);
        let part = |i: usize| {
            let ids: Vec<i64> = (0..10).map(|k| ((k * 7 + i * 11) % 32) as i64).collect();
            let x = if tokens { Tensor::new(&shape, &ids).unwrap() } else { uneven(&shape, 100 + i) };
            vec![("x".to_string(), Datum::Tensor(x))]
        };
        (0..3).map(part).collect()
    }

    pub(crate) fn examples() -> Vec<Example> {
        examples_of(&block("LayerNormalization"))
    }

    pub(crate) fn run(g: &Graph) -> Vec<f32> {
        let session = Session::new(g.clone(), &cpu()).unwrap();
        let mut all = Vec::new();
        for example in examples_of(g) {
            let inputs = example.iter().map(|(n, d)| (n.as_str(), d.clone())).collect();
            all.extend_from_slice(
                session.run(inputs).unwrap()[0].tensor().unwrap().as_slice::<f32>().unwrap(),
            );
        }
        all
    }

    /// The greatest distance, relative to the greatest number.
    pub(crate) fn apart(a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        let most = a.iter().fold(0f32, |m, x| m.max(x.abs()));
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max) / most
    }

    /// A convolution, a depthwise one and a third after rectifiers of a kind, a sum around a fourth, a classifier.
    pub(crate) fn network(rectifier: &str) -> Graph {
        let mut g = Graph::new("net");
        let size = vec![Dim::named("n"), Dim::Is(3), Dim::Is(6), Dim::Is(6)];
        let x = g.add_input("x", Fact::tensor(DType::F32, size)).unwrap();
        let mut seed = 30;
        let mut conv = |g: &mut Graph, x: ValueId, shape: [usize; 4], group: i64| {
            seed += 2;
            // Rows of very different sizes.
            let w = uneven(&[shape[1..].iter().product(), shape[0]], seed);
            let (cols, data) = (shape[0], w.as_slice::<f32>().unwrap().to_vec());
            let rows = data.len() / cols;
            let turned: Vec<f32> = (0..data.len()).map(|k| data[k % rows * cols + k / rows] / 4.0).collect();
            let w = g.add_constant("w", Tensor::new(&shape, &turned).unwrap());
            let b = g.add_constant("b", uneven(&[shape[0]], seed + 1));
            let pad = (shape[2] / 2) as i64;
            add(g, "Conv", &[x, w, b], Attrs::new().int("group", group).ints("pads", &[pad; 4]))
        };
        let (low, high) =
            (g.add_constant("low", Tensor::scalar(0f32)), g.add_constant("high", Tensor::scalar(6f32)));
        let act = |g: &mut Graph, x: ValueId| match rectifier {
            "Clip" => add(g, "Clip", &[x, low, high], Attrs::new()),
            _ => add(g, "Relu", &[x], Attrs::new()),
        };
        let y = conv(&mut g, x, [8, 3, 3, 3], 1);
        let y = act(&mut g, y);
        let y = conv(&mut g, y, [8, 1, 3, 3], 8);
        let y = act(&mut g, y);
        let narrow = conv(&mut g, y, [6, 8, 1, 1], 1);
        let y = conv(&mut g, narrow, [8, 6, 1, 1], 1);
        let y = act(&mut g, y);
        let y = conv(&mut g, y, [6, 8, 1, 1], 1);
        let y = add(&mut g, "Add", &[y, narrow], Attrs::new());
        let y = conv(&mut g, y, [5, 6, 1, 1], 1);
        let y = add(&mut g, "GlobalAveragePool", &[y], Attrs::new());
        let y = add(&mut g, "Flatten", &[y], Attrs::new());
        let w = g.add_constant("last", ramp(&[5, 4]));
        let y = add(&mut g, "MatMul", &[y, w], Attrs::new());
        g.outputs.push(y);
        g.infer().unwrap();
        g.check().unwrap();
        g
    }

    #[test]
    fn names_are_read_and_others_are_refused() {
        use super::{Method, Preparations};
        let these = Preparations::These(vec![Method::Smooth, Method::Rotate]);
        assert_eq!("smooth, rotate".parse(), Ok(these));
        assert_eq!("measured".parse(), Ok(Preparations::Measured));
        for (bad, part) in [("sooth", "\"sooth\""), ("", "say equalize"), ("awq,measured", "alone")] {
            let error = bad.parse::<Preparations>().unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        for method in Method::ALL {
            assert_eq!(method.name().parse(), Ok(Preparations::These(vec![method])));
        }
    }
}
