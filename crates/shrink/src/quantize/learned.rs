//! Rounding that is learnt: all codes of a model are trained together, by gradients through the rounding
//! (straight-through), until the sums of its residual streams and its outputs are nearest to those of the unrounded
//! model. Scales and zero points stay. (Nagel et al., *Up or down? Adaptive rounding for post-training quantization*,
//! 2020; Cheng et al., *Optimize weight rounding via signed gradient descent*, 2024.)

use std::sync::Arc;

use graph::run::Session;
use graph::{DType, Datum, Graph, ValueId, tidy};
use kernel::Cpu;
use learn::fit::{
    Checkpoints, Fitted, Hold, Inputs, Lessons, Loss, Network, Optimizer, Progress, Recipe, fit, weighted,
};

use super::coded::Coded;
use crate::matrix::{Layout, Matrix};
use crate::walk::Example;
use crate::{Error, Result};

/// Steps in all, about.
const STEPS: usize = 300;
/// Times that each example is seen: least and most.
const EPOCHS: (usize, usize) = (4, 40);
/// The greatest step, in codes.
const RATE: f32 = 0.01;
/// How far from its code an element begins, at most, in codes: what is farther would go to another.
const INSIDE: f32 = 0.45;
/// One batch of examples in so many is held out, to say when it is best.
const EXAM: usize = 8;

/// A weight whose codes are learnt.
pub struct Item<'a> {
    /// Its constant.
    pub value: ValueId,
    /// How it is seen as a matrix.
    pub layout: &'a Layout,
    /// The codes to begin with; those that are found.
    pub coded: &'a mut Coded,
}

/// Learns the codes of weights of `graph`, in which all else is as it will be; `original` is the graph before anything was
/// rounded. Gives the mean relative squared error of what is compared, before and after; `after` is never more. With
/// checkpoints it goes on after the last epoch that was kept.
///
/// # Errors
/// When there are no examples, the models cannot be run on them, or an operator between a weight and the outputs has no
/// gradient; names the node.
pub fn learn(
    original: &Graph,
    graph: &Graph,
    items: &mut [Item],
    examples: &[Example],
    cpu: &Cpu,
    checkpoints: Option<&mut dyn Checkpoints>,
    progress: &dyn Fn(&Progress),
) -> Result<Fitted> {
    if examples.is_empty() {
        return Err(Error::Calibration(
            "rounding cannot be learnt without examples; give data with --data".into(),
        ));
    }
    let mut student = graph.clone();
    let pairs = compared(graph, original);
    let mut losses = Vec::new();
    let mut targets = Vec::new();
    for (at, (own, _)) in pairs.iter().enumerate() {
        let name = student.fresh_name(&format!("target.{at}"));
        let target = student.add_input(&name, graph.value(*own).fact.clone())?;
        losses.push((Loss::Relative.add(&mut student, *own, target)?, 1.0 / pairs.len() as f32));
        targets.push(name);
    }
    let loss = weighted(&mut student, &losses)?;
    let mut weights = Vec::new();
    for item in items.iter() {
        let old = old(original, item)?;
        let spread = Spread::new(item, &old)?;
        student.set_constant(item.value, item.layout.write(&start(&old, item.coded))?);
        weights.push((item.value, Hold::To(Arc::new(move |elements: &mut [f32]| spread.round(elements)))));
    }
    let mut network = Network::new(&student, loss, loss, &weights, cpu)?;
    let lessons = Batches::new(original, pairs.iter().map(|p| p.1).collect(), targets, examples, cpu)?;
    let epochs = (STEPS / lessons.len().max(1)).clamp(EPOCHS.0, EPOCHS.1);
    let optimizer = Optimizer::AdamW { beta1: 0.9, beta2: 0.99, epsilon: 1e-12, decay: 0.0 };
    let recipe =
        Recipe { epochs, batch: 1, rate: RATE, optimizer, clip: 0.0, patience: epochs, ..Recipe::default() };
    let fitted = fit(&mut network, &recipe, &lessons, checkpoints, &mut |p| {
        progress(p);
        true
    })?;
    for weight in network.weights() {
        let Some(item) = items.iter_mut().find(|item| item.value == weight.value) else { continue };
        let found = item.layout.read(&weight.tensor)?;
        let (most, fixed) = (most(item.coded), fixed(&old(original, item)?, item.coded));
        let codes = item.coded.codes.iter_mut().zip(found.data).zip(fixed);
        for ((code, x), _) in codes.filter(|(_, fixed)| !fixed) {
            *code = x.round().clamp(0.0, most) as u8;
        }
    }
    Ok(fitted)
}

/// A weight as it was before it was rounded.
fn old(original: &Graph, item: &Item) -> Result<Matrix> {
    let tensor = original.constant(item.value);
    item.layout.read(tensor.ok_or_else(|| Error::Plan("a weight is no constant".into()))?)
}

/// The elements that are 0 and have the code of 0, row by row: they stay so, as zeros may be there on purpose.
fn fixed(old: &Matrix, coded: &Coded) -> Vec<bool> {
    let (group, groups) = (coded.form.group_of(coded.cols), coded.form.groups(coded.cols));
    let zero = |k: usize| coded.zeros[k / coded.cols * groups + k % coded.cols / group];
    (0..old.data.len()).map(|k| old.data[k] == 0.0 && coded.codes[k] == zero(k)).collect()
}

/// What both graphs make and is compared: outputs and sums of residual streams.
fn compared(graph: &Graph, original: &Graph) -> Vec<(ValueId, ValueId)> {
    let outputs = graph.outputs.iter().copied().zip(original.outputs.iter().copied());
    let number =
        |id: ValueId| graph.value(id).fact.dtype() == Some(DType::F32) && graph.constant(id).is_none();
    let mut pairs: Vec<(ValueId, ValueId)> = outputs.filter(|(own, _)| number(*own)).collect();
    for pair in streams(graph, original) {
        if pairs.iter().all(|(own, _)| *own != pair.0) {
            pairs.push(pair);
        }
    }
    pairs
}

/// The sums of residual streams that both graphs have under the same name and in the same shape.
fn streams(graph: &Graph, original: &Graph) -> Vec<(ValueId, ValueId)> {
    let sums = |graph: &Graph| -> Vec<ValueId> {
        let added = |node: &graph::Node| {
            node.kind() == "Add" && node.inputs.iter().flatten().all(|&input| graph.constant(input).is_none())
        };
        graph.nodes().filter(|(_, node)| added(node)).filter_map(|(_, node)| node.outputs[0]).collect()
    };
    let theirs = sums(original);
    let mut pairs = Vec::new();
    for own in sums(graph) {
        let value = graph.value(own);
        let same = |&&other: &&ValueId| {
            let other = original.value(other);
            other.name == value.name && other.fact == value.fact && value.fact.dtype() == Some(DType::F32)
        };
        pairs.extend(theirs.iter().find(same).map(|&other| (own, other)));
    }
    pairs
}

fn most(coded: &Coded) -> f32 {
    ((1u32 << coded.form.bits) - 1) as f32
}

/// The elements in codes, within reach of those that they have.
fn start(old: &Matrix, coded: &Coded) -> Matrix {
    let (group, groups) = (coded.form.group_of(old.cols), coded.form.groups(old.cols));
    let one = |(k, (&x, &code)): (usize, (&f32, &u8))| {
        let at = k / old.cols * groups + k % old.cols / group;
        let (scale, code) = (coded.scales[at], f32::from(code));
        let exact = if scale == 0.0 { code } else { x / scale + f32::from(coded.zeros[at]) };
        if exact.is_finite() { exact.clamp(code - INSIDE, code + INSIDE) } else { code }
    };
    Matrix::new(old.rows, old.cols, old.data.iter().zip(&coded.codes).enumerate().map(one).collect())
}

/// Scales and zero points of each element, in the order of the tensor.
struct Spread {
    scales: Vec<f32>,
    zeros: Vec<f32>,
    most: f32,
}

impl Spread {
    fn new(item: &Item, old: &Matrix) -> Result<Spread> {
        let coded = &item.coded;
        let (group, groups) = (coded.form.group_of(coded.cols), coded.form.groups(coded.cols));
        let spread = |of: &dyn Fn(usize, usize) -> f32| -> Result<Vec<f32>> {
            let at = |k: usize| k / coded.cols * groups + k % coded.cols / group;
            let all = (0..coded.rows * coded.cols).map(|k| of(k, at(k))).collect();
            let tensor = item.layout.write(&Matrix::new(coded.rows, coded.cols, all))?;
            Ok(tensor.values::<f32>()?.into_owned())
        };
        let fixed = fixed(old, coded);
        let scales = spread(&|k, at| if fixed[k] { 0.0 } else { coded.scales[at] })?;
        Ok(Spread { scales, zeros: spread(&|_, at| f32::from(coded.zeros[at]))?, most: most(coded) })
    }

    /// From codes that may lie between whole numbers to what the graph sees.
    fn round(&self, elements: &mut [f32]) {
        for ((x, scale), zero) in elements.iter_mut().zip(&self.scales).zip(&self.zeros) {
            *x = (x.round().clamp(0.0, self.most) - zero) * scale;
        }
    }
}

/// The examples batch by batch, with what the original makes of them.
struct Batches<'a> {
    teacher: Session,
    targets: Vec<String>,
    examples: &'a [Example],
    train: Vec<usize>,
    exam: Vec<usize>,
}

impl<'a> Batches<'a> {
    fn new(
        original: &Graph,
        wanted: Vec<ValueId>,
        targets: Vec<String>,
        examples: &'a [Example],
        cpu: &Cpu,
    ) -> Result<Batches<'a>> {
        let mut teacher = original.clone();
        teacher.outputs = wanted;
        tidy::run(&mut teacher, tidy::RUN, cpu)?;
        let is_exam = |at: &usize| examples.len() > 1 && at % EXAM == EXAM.min(examples.len()) - 1;
        let (exam, train): (Vec<usize>, Vec<usize>) = (0..examples.len()).partition(is_exam);
        let exam = if exam.is_empty() { train.clone() } else { exam };
        Ok(Batches { teacher: Session::new(teacher, cpu)?, targets, examples, train, exam })
    }

    fn batch(&self, at: usize) -> learn::Result<(Inputs, usize)> {
        let example = &self.examples[at];
        let named = example.iter().map(|(name, datum)| (name.as_str(), datum.clone())).collect();
        let made = self.teacher.run(named)?;
        let count = match example.first() {
            Some((_, Datum::Tensor(tensor))) => tensor.shape().first().copied().unwrap_or(1),
            _ => 1,
        };
        Ok((example.iter().cloned().chain(self.targets.iter().cloned().zip(made)).collect(), count))
    }
}

impl Lessons for Batches<'_> {
    fn len(&self) -> usize {
        self.train.len()
    }

    fn lesson(&self, examples: &[usize], _: u64) -> learn::Result<Vec<(Inputs, usize)>> {
        examples.iter().map(|&at| self.batch(self.train[at])).collect()
    }

    fn exam(&self) -> learn::Result<Vec<(Inputs, usize)>> {
        self.exam.iter().map(|&at| self.batch(at)).collect()
    }
}

#[cfg(test)]
mod tests {
    use graph::op::{Reader, ramp};
    use graph::{Attrs, Dim, Fact, Node, Tensor};

    use super::*;
    use crate::gram::tests::cpu;
    use crate::quantize::coded::{Form, Ranges, nearest};
    use crate::weights::weights;

    fn network() -> Graph {
        let mut g = Graph::new("net");
        let mut x = g.add_input("x", Fact::tensor(DType::F32, vec![Dim::named("n"), Dim::Is(24)])).unwrap();
        for (at, kind) in ["MatMul", "Add", "Relu", "MatMul"].into_iter().enumerate() {
            let attrs = Attrs::new();
            let mut inputs = vec![Some(x)];
            let all = ramp(&[24 * 24 * 3]);
            let part = &all.as_slice::<f32>().unwrap()[at * 200..];
            match kind {
                "MatMul" => {
                    inputs.push(Some(g.add_constant("w", Tensor::new(&[24, 24], &part[..576]).unwrap())));
                }
                "Add" => inputs.push(Some(g.add_constant("b", Tensor::vector(&part[..24])))),
                _ => {}
            }
            let reader = Reader { attrs: &attrs, version: 17, inputs: inputs.len(), outputs: 1 };
            let node = Node::new(graph::ops::read("", kind, &reader).unwrap(), inputs);
            x = g.add_with_outputs(kind, node, 1, None).unwrap().1[0];
        }
        g.outputs.push(x);
        g.infer().unwrap();
        g
    }

    /// Inputs that hang together, as those of real models do.
    fn examples() -> Vec<Example> {
        let all = ramp(&[9, 16, 24]);
        let one = |i: usize| {
            let data = &all.as_slice::<f32>().unwrap()[i * 384..][..384];
            let mixed: Vec<f32> =
                (0..384).map(|k| data[k] + data[k / 24 * 24] + 0.5 * data[k / 24 * 24 + 1]).collect();
            vec![("x".to_string(), Datum::Tensor(Tensor::new(&[16, 24], &mixed).unwrap()))]
        };
        (0..9).map(one).collect()
    }

    #[test]
    fn codes_that_are_learnt_bring_the_outputs_nearer_and_keep_their_grids_and_zeros() {
        let g = network();
        let found = weights(&g).unwrap();
        let form = Form { bits: 3, group: 0 };
        let layouts: Vec<Layout> = found.iter().map(|w| Layout::of(&g, w).unwrap()).collect();
        let mut original = g.clone();
        let mut first = layouts[0].read(g.constant(found[0].value).unwrap()).unwrap();
        first.data.iter_mut().step_by(3).for_each(|x| *x = 0.0);
        original.set_constant(found[0].value, layouts[0].write(&first).unwrap());
        let mut student = original.clone();
        let mut codes = Vec::new();
        for (w, layout) in found.iter().zip(&layouts) {
            let old = layout.read(original.constant(w.value).unwrap()).unwrap();
            let coded = nearest(&cpu(), &old, &[], form, Ranges::Searched);
            student.set_constant(w.value, layout.write(&coded.decode()).unwrap());
            codes.push(coded);
        }
        let before = codes.clone();
        let learnt = |codes: &mut [Coded]| {
            let items = found.iter().zip(&layouts).zip(codes);
            let mut items: Vec<Item> =
                items.map(|((w, layout), coded)| Item { value: w.value, layout, coded }).collect();
            learn(&original, &student, &mut items, &examples(), &cpu(), None, &|_| ()).unwrap()
        };
        let fitted = learnt(&mut codes);
        assert!(fitted.after < 0.6 * fitted.before, "{fitted:?}");
        let mut again = before.clone();
        learnt(&mut again);
        assert_eq!(codes, again);
        assert_ne!(codes, before);
        for (new, old) in codes.iter().zip(&before) {
            assert!(new.scales == old.scales && new.zeros == old.zeros);
            assert!(new.codes.iter().all(|&code| code < 8));
        }
        let decoded = codes[0].decode();
        assert!(decoded.data.iter().step_by(3).all(|&x| x == 0.0), "zeros stay");
        assert!(learn(&original, &student, &mut [], &[], &cpu(), None, &|_| ()).is_err());
    }
}
