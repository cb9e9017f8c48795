//! What must hold of every operator, checked on its own samples.

use std::sync::Arc;

use kernel::{Cpu, Isa};

use crate::grad::gradients;
use crate::op::{Facts, Inputs, OpDef, PackCx, Reader, RunCx, Sample};
use crate::run::Program;
use crate::turn::{Read, TurnCx};
use crate::{Datum, Dim, Fact, Graph, Op, Tensor, Type};

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
        let rank = ranks.first().copied().unwrap_or(0);
        if !(2..=4).contains(&rank) || ranks.iter().any(|&r| r != rank) {
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
            let inputs = inputs.collect();
            let again = Sample { op, inputs, outputs: sample.outputs, grads: vec![], tolerance: 0.0 };
            for (got, want) in run(&*again.op, &again, &cpu()).iter().zip(&plain) {
                let want = turn(want.tensor().unwrap().clone()).into();
                close(got, &want, sample.tolerance, &format!("{what} in the order {order:?}"));
            }
        }
    });
    for name in
        ["Conv", "com.microsoft.FusedConv", "lessen.QConv", "MaxPool", "GlobalAveragePool", "Pad", "Resize"]
    {
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
