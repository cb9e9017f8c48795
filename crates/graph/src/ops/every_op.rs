//! What must hold of every operator, checked on its own samples.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use kernel::{Cpu, Isa};

use crate::axes::{End, Part, Place, Port};
use crate::grad::gradients;
use crate::op::{Facts, Inputs, OpDef, PackCx, Reader, RunCx, Sample};
use crate::run::Program;
use crate::turn::{Read, TurnCx};
use crate::{Axes, Datum, Dim, Fact, Graph, Op, Tensor, Type};

fn each(mut check: impl FnMut(&'static OpDef, &Sample, &str)) {
    for def in super::all() {
        for (i, sample) in (def.samples)().into_iter().enumerate() {
            check(def, &sample, &format!("{def:?}-{} sample {i}", def.since));
        }
    }
}

fn run(op: &dyn Op, sample: &Sample, cpu: &Cpu) -> Vec<Datum> {
    let constants = vec![None; sample.inputs.len()];
    run_with(op, sample, cpu, constants)
}

fn run_with(op: &dyn Op, sample: &Sample, cpu: &Cpu, constants: Vec<Option<Tensor>>) -> Vec<Datum> {
    let facts: Vec<Option<Fact>> = sample.inputs.iter().map(|d| d.as_ref().map(Fact::of_datum)).collect();
    let facts: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
    let pack = PackCx { cpu, constants, facts: Facts::new(&facts, sample.outputs) };
    let packed = op.prepack(&pack).expect("prepack");
    let mut inputs = sample.inputs.clone();
    for &i in packed.iter().flat_map(|p| &p.replaces) {
        inputs[i] = None;
    }
    let cx = RunCx { cpu, outputs: sample.outputs, packed: packed.as_ref(), captures: Vec::new() };
    op.run_data(&cx, Inputs::new(inputs)).expect("run")
}

fn cpu() -> Cpu {
    Cpu::with_isa(Isa::best(), 1).unwrap()
}

fn close(a: &Datum, b: &Datum, tolerance: f32, what: &str) {
    let (Datum::Tensor(a), Datum::Tensor(b)) = (a, b) else { return assert_eq!(a, b, "{what}") };
    assert_eq!((a.dtype(), a.shape()), (b.dtype(), b.shape()), "{what}");
    if !a.dtype().is_float() {
        return assert_eq!(a, b, "{what}");
    }
    let (x, y) = (a.to_f32().unwrap(), b.to_f32().unwrap());
    let scale = y.iter().filter(|v| v.is_finite()).fold(1e-3f32, |m, v| m.max(v.abs()));
    for (i, (x, y)) in x.iter().zip(y.iter()).enumerate() {
        let same = x == y || x.is_nan() && y.is_nan() || (x - y).abs() <= tolerance * scale;
        assert!(same, "{what}: element {i} is {x}, not {y}");
    }
}

#[test]
fn every_operator_has_samples_and_a_unique_entry() {
    let mut seen = std::collections::HashSet::new();
    for def in super::all() {
        assert!(!(def.samples)().is_empty(), "{def:?} has no samples");
        assert!(seen.insert((def.domain, def.name, def.since)), "{def:?} is listed twice");
    }
}

#[test]
fn inferred_facts_hold() {
    each(|_, sample, what| {
        let facts: Vec<Option<Fact>> = sample.inputs.iter().map(|d| d.as_ref().map(Fact::of_datum)).collect();
        let outputs = run(&*sample.op, sample, &cpu());
        // With all shapes known, and again with none of the sizes.
        let vague = |f: &Fact| match &f.ty {
            Type::Tensor(d, Some(s)) => Fact::maybe(*d, Some(vec![Dim::Unknown; s.len()])),
            other => Fact { ty: other.clone(), ints: None },
        };
        let blind: Vec<Option<Fact>> = facts.iter().map(|f| f.as_ref().map(vague)).collect();
        for facts in [&facts, &blind] {
            let refs: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
            let inferred =
                sample.op.infer(&Facts::new(&refs, sample.outputs)).unwrap_or_else(|e| panic!("{what}: {e}"));
            for (i, (fact, datum)) in inferred.iter().zip(&outputs).enumerate() {
                fact.admits(datum).unwrap_or_else(|e| panic!("{what}, output {i}: inferred {e}"));
                if let (Some(ints), Datum::Tensor(t)) = (&fact.ints, datum) {
                    for (k, (n, v)) in ints.iter().zip(t.to_ints().unwrap()).enumerate() {
                        assert!(
                            n.int().is_none_or(|n| n == v),
                            "{what}, output {i}[{k}]: inferred {n}, is {v}"
                        );
                    }
                }
            }
        }
    });
}

#[test]
fn attributes_survive() {
    each(|def, sample, what| {
        let version = if def.domain.is_empty() {
            super::all()
                .filter(|d| d.name == def.name && d.domain == def.domain && d.since > def.since)
                .map(|d| d.since - 1)
                .min()
                .unwrap_or(28)
        } else {
            1
        };
        let reader = Reader {
            attrs: &sample.op.attrs(),
            version,
            inputs: sample.inputs.len(),
            outputs: sample.outputs,
        };
        let again = (def.read)(&reader).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(format!("{:?}", sample.op), format!("{again:?}"), "{what}");
        assert_eq!(again.def().since, def.since, "{what}");
    });
}

#[test]
fn packed_weights_change_nothing() {
    each(|_, sample, what| {
        let plain = run(&*sample.op, sample, &cpu());
        for fixed in 0..sample.inputs.len() {
            let constant = |i: usize, d: &Option<Datum>| match d {
                Some(Datum::Tensor(t)) if i >= fixed => Some(t.clone()),
                _ => None,
            };
            let constants = sample.inputs.iter().enumerate().map(|(i, d)| constant(i, d)).collect();
            let packed = run_with(&*sample.op, sample, &cpu(), constants);
            for (a, b) in packed.iter().zip(&plain) {
                close(a, b, sample.tolerance, what);
            }
        }
    });
}

#[test]
fn instruction_sets_and_threads_agree() {
    each(|_, sample, what| {
        if !sample.op.is_pure() {
            return;
        }
        let spec = run(&*sample.op, sample, &Cpu::with_isa(Isa::Scalar, 1).unwrap());
        for isa in Isa::available() {
            let one = run(&*sample.op, sample, &Cpu::with_isa(isa, 1).unwrap());
            let two = run(&*sample.op, sample, &Cpu::with_isa(isa, 2).unwrap());
            assert_eq!(one, two, "{what}: one and two threads on {isa}");
            for (a, b) in one.iter().zip(&spec) {
                close(a, b, sample.tolerance, &format!("{what} on {isa}"));
            }
        }
    });
}

/// All orders of some axes.
fn orders(rank: usize) -> Vec<Vec<usize>> {
    let Some(last) = rank.checked_sub(1) else { return vec![Vec::new()] };
    let longer = |order: Vec<usize>| {
        (0..rank).map(move |at| [&order[..at], &[last], &order[at..]].concat()).collect::<Vec<_>>()
    };
    orders(last).into_iter().flat_map(longer).collect()
}

#[test]
fn turned_operators_do_the_same() {
    let mut turning = std::collections::HashSet::new();
    each(|def, sample, what| {
        let plain = run(&*sample.op, sample, &cpu());
        let ranks: Vec<usize> = plain.iter().filter_map(|d| Some(d.tensor().ok()?.rank())).collect();
        // That of the images, which the outputs need not be.
        let of_inputs = sample.inputs.iter().flatten().filter_map(|d| Some(d.tensor().ok()?.rank())).max();
        let alike = ranks.iter().all(|r| *r == ranks[0]);
        let rank = ranks.first().copied().filter(|_| alike).or(of_inputs).unwrap_or(0);
        if !(2..=4).contains(&rank) {
            return;
        }
        let facts: Vec<Option<Fact>> = sample.inputs.iter().map(|d| d.as_ref().map(Fact::of_datum)).collect();
        let facts: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
        let tensor = |d: &Option<Datum>| d.as_ref().and_then(|d| d.tensor().ok().cloned());
        for (order, fixed) in orders(rank).iter().flat_map(|o| [(o, true), (o, false)]) {
            let constants: Vec<Option<Tensor>> =
                sample.inputs.iter().map(|d| tensor(d).filter(|_| fixed)).collect();
            let facts = Facts::new(&facts, sample.outputs);
            let Some(turned) = sample.op.turn(&TurnCx { order, facts, constants }) else { continue };
            if !turned.same_outputs && !alike {
                continue;
            }
            turning.insert(format!("{def:?}"));
            let turn = |t: Tensor| super::transpose::transpose(&cpu(), t, order).unwrap();
            let lifted = |t: Tensor| {
                let shape = [&vec![1; rank - t.rank()], t.shape()].concat();
                turn(t.reshaped(&shape).unwrap())
            };
            let inputs = turned.reads.into_iter().enumerate().map(|(at, read)| match read {
                Read::Same => sample.inputs[at].clone(),
                Read::Turned => tensor(&sample.inputs[at]).map(|t| lifted(t).into()),
                Read::New(t) => Some(t.into()),
                Read::Absent => None,
            });
            let op = turned.op.unwrap_or(sample.op.clone());
            let same = turned.same_outputs;
            let inputs = inputs.collect();
            let again = Sample { op, inputs, outputs: sample.outputs, grads: vec![], tolerance: 0.0 };
            for (got, want) in run(&*again.op, &again, &cpu()).iter().zip(&plain) {
                let want = want.tensor().unwrap().clone();
                let want = if same { want } else { turn(want) }.into();
                close(got, &want, sample.tolerance, &format!("{what} in the order {order:?}"));
            }
        }
    });
    for name in [
        "Conv",
        "com.microsoft.FusedConv",
        "lessen.QConv",
        "lessen.ConvWeightGrad",
        "MaxPool",
        "GlobalAveragePool",
        "Pad",
        "Resize",
    ] {
        assert!(turning.contains(name), "{name} cannot be turned");
    }
}

#[test]
fn gradients_are_finite_differences() {
    each(|_, sample, what| {
        for &input in &sample.grads {
            gradient(sample, input, what);
        }
    });
}

/// Compares the gradient of sum(weights * output 0) with central differences.
fn gradient(sample: &Sample, input: usize, what: &str) {
    let cpu = cpu();
    let mut g = Graph::new("sample");
    let mut inputs = Vec::new();
    for (i, datum) in sample.inputs.iter().enumerate() {
        inputs.push(datum.as_ref().map(|d| g.add_input(&format!("x{i}"), Fact::of_datum(d)).unwrap()));
    }
    let node = crate::Node::new(sample.op.clone(), inputs.clone());
    let (_, outputs) = g.add_with_outputs("y", node, sample.outputs, None).unwrap();
    g.outputs.push(outputs[0]);
    let forward = Program::new(Arc::new(g.clone()), &cpu).unwrap();
    let y = forward.run(sample.inputs.clone(), vec![], &mut ()).unwrap();
    let shape = y[0].tensor().unwrap().shape().to_vec();
    let weights = crate::op::ramp(&shape);
    let seed = g.add_constant("seed", weights.clone());
    let x = inputs[input].unwrap();
    let found = gradients(&mut g, outputs[0], seed, &[x]).unwrap_or_else(|e| panic!("{what}: {e}"));
    g.outputs = vec![found[0].unwrap_or_else(|| panic!("{what}: input {input} has no gradient"))];
    let grad = Program::new(Arc::new(g), &cpu).unwrap().run(sample.inputs.clone(), vec![], &mut ()).unwrap();
    let grad = grad[0].tensor().unwrap().as_slice::<f32>().unwrap().to_vec();
    let Some(Datum::Tensor(x)) = &sample.inputs[input] else { panic!("{what}: input {input} is no tensor") };
    assert_eq!(grad.len(), x.len(), "{what}: the gradient has another shape");
    let loss = |at: usize, delta: f32| -> f64 {
        let mut data = sample.inputs.clone();
        let mut moved = x.clone();
        moved.as_mut_slice::<f32>().unwrap()[at] += delta;
        data[input] = Some(moved.into());
        let y = forward.run(data, vec![], &mut ()).unwrap();
        let y = y[0].tensor().unwrap().as_slice::<f32>().unwrap().to_vec();
        y.iter().zip(weights.as_slice::<f32>().unwrap()).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    for (at, &got) in grad.iter().enumerate() {
        let step = 1e-2f32;
        let want = (loss(at, step) - loss(at, -step)) / f64::from(2.0 * step);
        let near = (f64::from(got) - want).abs() <= 2e-2 * (1.0 + want.abs());
        assert!(near, "{what}: gradient of input {input}[{at}] is {got}, differences say {want}");
    }
}

/// Which indices go with one, on all axes of a node whose axes are these; by the node's own ties alone.
fn closure(axes: &Axes, size: impl Fn(End) -> usize, first: (End, usize)) -> HashMap<End, BTreeSet<usize>> {
    let mut gone: HashMap<End, BTreeSet<usize>> = HashMap::from([(first.0, BTreeSet::from([first.1]))]);
    loop {
        let before: usize = gone.values().map(BTreeSet::len).sum();
        for tie in &axes.ties {
            let [a, b] = tie.ends;
            if tie.part.is_none() && size(a) != size(b) {
                continue;
            }
            let part = tie.part.clone().unwrap_or(Part { start: [0; 2], step: [1; 2], len: size(a) });
            for i in 0..part.len {
                let [x, y] = [0, 1].map(|k| part.start[k] + i * part.step[k]);
                let has = |end, at| gone.get(&end).is_some_and(|s| s.contains(&at));
                if has(a, x) || has(b, y) {
                    gone.entry(a).or_default().insert(x);
                    gone.entry(b).or_default().insert(y);
                }
            }
        }
        for fold in &axes.folds {
            // The first axis is the one that loses indices.
            let (end, outer) = fold.parts[0];
            let inner: usize = fold.parts[1..].iter().map(|p| p.1).product();
            for i in 0..outer {
                let block = i * inner..(i + 1) * inner;
                let whole = gone.get(&fold.whole).is_some_and(|s| s.range(block.clone()).next().is_some());
                if whole || gone.get(&end).is_some_and(|s| s.contains(&i)) {
                    gone.entry(end).or_default().insert(i);
                    gone.entry(fold.whole).or_default().extend(block);
                }
            }
        }
        if gone.values().map(BTreeSet::len).sum::<usize>() == before {
            return gone;
        }
    }
}

/// A tensor without some indices of its axes.
fn without(x: &Tensor, gone: &[BTreeSet<usize>]) -> Tensor {
    let mut x = x.clone();
    for (axis, gone) in gone.iter().enumerate().filter(|(_, g)| !g.is_empty()) {
        let kept: Vec<i64> = (0..x.shape()[axis]).filter(|i| !gone.contains(i)).map(|i| i as i64).collect();
        x = super::gather::gather(x, &Tensor::vector(&kept), axis).unwrap();
    }
    x
}

#[test]
fn indices_that_go_together_leave_the_rest_as_it_was() {
    let mut checked = HashMap::<&str, usize>::new();
    each(|def, sample, what| {
        let cpu = cpu();
        let inputs = sample.inputs.iter().map(|d| d.as_ref().map(Datum::tensor).transpose());
        let Ok(inputs) = inputs.collect::<crate::Result<Vec<Option<&Tensor>>>>() else { return };
        let facts: Vec<Option<Fact>> = inputs.iter().map(|t| t.map(Fact::of)).collect();
        let facts: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
        let outputs = run(&*sample.op, sample, &cpu);
        let Ok(outputs) = outputs.iter().map(Datum::tensor).collect::<crate::Result<Vec<_>>>() else {
            return;
        };
        let made: Vec<Fact> = outputs.iter().map(|t| Fact::of(t)).collect();
        let Some(axes) = sample.op.axes(&Facts::new(&facts, sample.outputs), &made) else { return };
        let shape = |port: Port| match port {
            Port::Input(i) => inputs.get(i).copied().flatten().map(Tensor::shape),
            Port::Output(i) => outputs.get(i).map(|t| t.shape()),
        };
        let size = |end: End| {
            let shape = shape(end.0).unwrap_or_else(|| panic!("{what}: {end:?} is not there"));
            *shape.get(end.1).unwrap_or_else(|| panic!("{what}: {end:?} is no axis of {shape:?}"))
        };
        let mut ends: Vec<End> = axes.ties.iter().flat_map(|t| t.ends).collect();
        ends.extend(axes.folds.iter().map(|f| f.whole));
        ends.sort();
        ends.dedup();
        for end in ends {
            for at in 0..if size(end) == 1 { 0 } else { size(end) } {
                let gone = closure(&axes, size, (end, at));
                if gone.iter().any(|(end, gone)| gone.len() >= size(*end)) {
                    continue;
                }
                let of = |port: Port, rank: usize| -> Vec<BTreeSet<usize>> {
                    (0..rank).map(|a| gone.get(&(port, a)).cloned().unwrap_or_default()).collect()
                };
                let left = |end: End, range: Option<&std::ops::Range<usize>>| {
                    let gone = gone.get(&end)?;
                    let range = range.cloned().unwrap_or(0..size(end));
                    Some(range.filter(|i| !gone.contains(i)).count())
                };
                let op = axes.recount(&sample.op, [inputs.len(), sample.outputs], &left).unwrap();
                let mut cut: Vec<Option<Tensor>> = inputs
                    .iter()
                    .enumerate()
                    .map(|(i, t)| t.map(|t| without(t, &of(Port::Input(i), t.rank()))))
                    .collect();
                for count in &axes.counts {
                    if let (Place::Input(i, k), Some(n)) = (count.place, left(count.of, count.range.as_ref()))
                    {
                        let mut list = cut[i].as_ref().unwrap().to_ints().unwrap();
                        list[k] = n as i64;
                        let shape = inputs[i].unwrap().shape().to_vec();
                        cut[i] = Some(Tensor::new(&shape, &list).unwrap());
                    }
                }
                let data = cut.into_iter().map(|t| t.map(Datum::Tensor)).collect();
                let small = Sample {
                    op: op.unwrap_or(sample.op.clone()),
                    inputs: data,
                    ..Sample::read(def, sample.op.attrs(), vec![])
                };
                let small = Sample { outputs: sample.outputs, ..small };
                let again = run(&*small.op, &small, &cpu);
                for (i, (new, old)) in again.iter().zip(&outputs).enumerate() {
                    let want = without(old, &of(Port::Output(i), old.rank()));
                    let what = format!("{what}, output {i}, without {at} of {end:?}");
                    // What is summed over is another sum; all else stays.
                    if gone.keys().any(|e| matches!(e.0, Port::Output(_))) {
                        close(new, &Datum::Tensor(want), 1e-3, &what);
                    } else {
                        assert_eq!(new.tensor().unwrap().shape(), want.shape(), "{what}");
                    }
                }
                *checked.entry(def.name).or_default() += 1;
            }
        }
    });
    let wanted = [
        "Conv",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "Add",
        "Relu",
        "BatchNormalization",
        "LayerNormalization",
        "MaxPool",
        "GlobalAveragePool",
        "ReduceMean",
        "Concat",
        "Split",
        "Slice",
        "Pad",
        "Reshape",
        "Flatten",
        "Transpose",
        "Softmax",
        "Clip",
        "Gather",
        "Identity",
        "Squeeze",
        "Unsqueeze",
        "Einsum",
        "Where",
        "Expand",
    ];
    for name in wanted {
        assert!(checked.contains_key(name), "no index of {name} was taken away: {checked:?}");
    }
}
