//! Preparations from a goal to a model, on small models that need them.

use graph::op::Reader;
use graph::run::Session;
use graph::{Attrs, DType, Datum, Dim, Fact, Graph, Model, Node, Tensor, ValueId};
use kernel::Cpu;
use lessen_shrink::prepare::Preparations;
use lessen_shrink::quantize::coded::{Ranges, Rounding};
use lessen_shrink::{Error, Goal, Judge, Outcome, Part, Pass, Plan, Result, Score, Step, apply, shrink};

const WIDTH: usize = 32;
const TOKENS: usize = 64;

/// Numbers between -1 and 1 times what their column is worth.
fn random(shape: &[usize], seed: u64, column: impl Fn(usize) -> f32) -> Tensor {
    let mut random = learn::random::Random::new(seed);
    let cols = shape[shape.len() - 1];
    let one = |k| ((random.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * column(k % cols);
    Tensor::new(shape, &(0..shape.iter().product()).map(one).collect::<Vec<f32>>()).unwrap()
}

fn op(g: &mut Graph, kind: &str, inputs: &[ValueId], attrs: Attrs) -> ValueId {
    let reader = Reader { attrs: &attrs, version: 17, inputs: inputs.len(), outputs: 1 };
    let op = graph::ops::read("", kind, &reader).unwrap();
    let name = format!("{kind}{}", g.nodes().count());
    let mut node = Node::new(op, inputs.iter().copied().map(Some).collect());
    node.name = name.clone();
    g.add_with_outputs(&name, node, 1, None).unwrap().1[0]
}

/// A product whose weights of the great channels are so many times those of the others.
fn linear(g: &mut Graph, x: ValueId, shape: [usize; 2], seed: u64, great: f32) -> ValueId {
    let w = random(&shape, seed, |_| 0.3);
    let w = w.as_slice::<f32>().unwrap().iter().enumerate().map(|(k, w)| w * worth(great)(k / shape[1]));
    let w = g.add_constant("w", Tensor::new(&shape, &w.collect::<Vec<f32>>()).unwrap());
    let b = g.add_constant("b", random(&[shape[1]], seed + 1, |_| 0.1));
    let y = op(g, "MatMul", &[x, w], Attrs::new());
    op(g, "Add", &[y, b], Attrs::new())
}

fn finished(mut g: Graph, y: ValueId) -> Model {
    g.outputs.push(y);
    g.infer().unwrap();
    Model { graph: g, opsets: [(String::new(), 21)].into(), ir_version: 10, ..Model::default() }
}

fn worth(great: f32) -> impl Fn(usize) -> f32 {
    move |channel| if channel % 11 == 3 { great } else { 1.0 }
}

/// A table, a block and a head, all behind norms. `table` says how much the great channels of the residual stream are
/// above the others, `gain` how much those of the norms are.
fn language(table: f32, gain: f32) -> Model {
    let mut g = Graph::new("language");
    let ids = g.add_input("x", Fact::tensor(DType::I64, vec![Dim::named("n"), Dim::Is(8)])).unwrap();
    let rows = g.add_constant("table", random(&[TOKENS, WIDTH], 1, worth(table)));
    let x = op(&mut g, "Gather", &[rows, ids], Attrs::new().int("axis", 0));
    block(g, x, gain, 1.0)
}

/// The same without a table, and with small weights where the inputs are great.
fn encoder(gain: f32) -> Model {
    let mut g = Graph::new("encoder");
    let size = vec![Dim::named("n"), Dim::Is(8), Dim::Is(WIDTH as i64)];
    let x = g.add_input("x", Fact::tensor(DType::F32, size)).unwrap();
    block(g, x, gain, 1.0 / gain)
}

fn block(mut g: Graph, x: ValueId, gain: f32, weight: f32) -> Model {
    let norm = |g: &mut Graph, x| {
        let gain: Vec<f32> = (0..WIDTH).map(worth(gain)).collect();
        let gain = g.add_constant("gain", Tensor::vector(&gain));
        let shift = g.add_constant("shift", Tensor::vector(&[0.1f32; WIDTH]));
        op(g, "LayerNormalization", &[x, gain, shift], Attrs::new().int("axis", -1))
    };
    let y = norm(&mut g, x);
    let y = linear(&mut g, y, [WIDTH, 64], 3, weight);
    let y = op(&mut g, "Relu", &[y], Attrs::new());
    let y = linear(&mut g, y, [64, WIDTH], 5, 1.0);
    let x = op(&mut g, "Add", &[x, y], Attrs::new());
    let y = norm(&mut g, x);
    let y = linear(&mut g, y, [WIDTH, 48], 7, weight);
    finished(g, y)
}

/// Two convolutions and a classifier; the first makes channels of very different sizes, and the second evens that out.
fn images() -> Model {
    let mut g = Graph::new("images");
    let size = vec![Dim::named("n"), Dim::Is(4), Dim::Is(8), Dim::Is(8)];
    let x = g.add_input("x", Fact::tensor(DType::F32, size)).unwrap();
    let worth = |c: usize| 0.02 * 2f32.powi(c as i32);
    let first = random(&[8, 4, 3, 3], 1, |_| 0.3);
    let first: Vec<f32> =
        first.as_slice::<f32>().unwrap().iter().enumerate().map(|(k, w)| w * worth(k / 36)).collect();
    let second = random(&[16, 8, 1, 1], 2, |_| 1.0);
    let second: Vec<f32> =
        second.as_slice::<f32>().unwrap().iter().enumerate().map(|(k, w)| w / worth(k % 8)).collect();
    let first = g.add_constant("first", Tensor::new(&[8, 4, 3, 3], &first).unwrap());
    let second = g.add_constant("second", Tensor::new(&[16, 8, 1, 1], &second).unwrap());
    let y = op(&mut g, "Conv", &[x, first], Attrs::new().ints("pads", &[1; 4]));
    let y = op(&mut g, "Relu", &[y], Attrs::new());
    let y = op(&mut g, "Conv", &[y, second], Attrs::new());
    let y = op(&mut g, "Relu", &[y], Attrs::new());
    let y = op(&mut g, "GlobalAveragePool", &[y], Attrs::new());
    let y = op(&mut g, "Flatten", &[y], Attrs::new());
    let y = linear(&mut g, y, [16, 10], 4, 1.0);
    finished(g, y)
}

/// Judges by how far answers are from those of the original.
struct Distance {
    original: Graph,
    data: bool,
    bad: bool,
}

fn judge(model: &Model) -> Distance {
    Distance { original: model.graph.clone(), data: true, bad: false }
}

fn example(g: &Graph, seed: u64) -> Datum {
    let value = g.value(g.inputs[0]);
    let shape: Vec<usize> = value.fact.shape().unwrap().iter().map(|d| d.size().unwrap_or(16)).collect();
    let x = random(&shape, seed, |_| 1.0);
    if value.fact.dtype() == Some(DType::F32) {
        return Datum::Tensor(x);
    }
    let ids = x.as_slice::<f32>().unwrap().iter();
    let ids: Vec<i64> = ids.map(|x| ((x + 1.0) * TOKENS as f32 / 2.0) as i64 % TOKENS as i64).collect();
    Datum::Tensor(Tensor::new(&shape, &ids).unwrap())
}

fn run(g: &Graph, x: Datum) -> Vec<f32> {
    let session = Session::new(g.clone(), &Cpu::new(1).unwrap()).unwrap();
    session.run(vec![("x", x)]).unwrap()[0].tensor().unwrap().as_slice::<f32>().unwrap().to_vec()
}

impl Judge for Distance {
    fn calibration(&self, run: &mut dyn FnMut(Vec<(String, Datum)>) -> Result<()>) -> Result<()> {
        for seed in 0..4 {
            let mut x = example(&self.original, 100 + seed);
            if let (true, Datum::Tensor(x)) = (self.bad, &mut x) {
                x.as_mut_slice::<f32>().unwrap()[5] = f32::NAN;
            }
            run(vec![("x".into(), x)])?;
        }
        Ok(())
    }

    fn can_calibrate(&self) -> bool {
        self.data
    }

    fn score(&self, model: &Model, _: Part) -> Result<Option<Score>> {
        if !self.data {
            return Ok(None);
        }
        let old = run(&self.original, example(&self.original, 7));
        let new = run(&model.graph, example(&self.original, 7));
        let apart: f32 = old.iter().zip(&new).map(|(a, b)| (a - b) * (a - b)).sum();
        let distance = f64::from(apart / old.iter().map(|a| a * a).sum::<f32>());
        let metric = "agreement".into();
        Ok(Some(Score { metric, original: 1.0, value: 1.0, lost: (0.0, 0.0), examples: 16, distance }))
    }

    fn bytes(&self, model: &Model) -> Result<usize> {
        let g = &model.graph;
        let used: std::collections::HashSet<ValueId> =
            g.nodes().flat_map(|(_, n)| n.reads().collect::<Vec<_>>()).collect();
        Ok(used.into_iter().filter_map(|v| g.constant(v)).map(|t| t.bytes().len()).sum())
    }
}

fn eight(prepare: &str) -> Goal {
    Goal { prepare: prepare.parse().unwrap(), ..Goal::default() }
}

fn few(prepare: &str) -> Goal {
    let (rounding, ranges) = (Rounding::Nearest, Ranges::MinMax);
    Goal { smaller: Some(5.5), rounding, ranges, ..eight(prepare) }
}

fn distance(outcome: &Outcome) -> f64 {
    outcome.score.as_ref().unwrap().distance
}

fn prepared(plan: &Plan) -> Vec<&str> {
    plan.passes.iter().map(Pass::name).collect()
}

/// All numbers of a model, by name.
fn numbers(model: &Model) -> Vec<(String, Tensor)> {
    let constant = |(_, v): (ValueId, &graph::ir::Value)| Some((v.name.clone(), v.constant.clone()?));
    model.graph.values().filter_map(constant).collect()
}

#[test]
fn what_few_bits_do_becomes_less_and_plans_repeat_it() {
    let cpu = |threads| Cpu::new(threads).unwrap();
    for (model, name, goal, share) in [
        (language(1.0, 30.0), "smooth", eight as fn(&str) -> Goal, 0.5),
        (images(), "equalize", eight, 0.5),
        (encoder(30.0), "awq", few, 0.8),
        (language(30.0, 1.0 / 30.0), "rotate", few, 0.8),
    ] {
        let blind = Distance { data: false, ..judge(&model) };
        let error = shrink(&model, &goal("measured"), &blind, &cpu(1)).unwrap_err();
        assert!(error.to_string().contains("--data"), "{error}");
        let judge = judge(&model);
        let plain = shrink(&model, &Goal { prepare: Preparations::default(), ..goal(name) }, &judge, &cpu(1))
            .unwrap();
        let better = shrink(&model, &goal(name), &judge, &cpu(2)).unwrap();
        assert!(prepared(&plain.plan).is_empty() && prepared(&better.plan) == [name]);
        // At the same bits for each weight: the search may share them out in another way.
        let even = |outcome: &Outcome| {
            let mut plan = outcome.plan.clone();
            let coded = |step: &&mut Step| step.choice.bits().is_some();
            plan.steps.iter_mut().filter(coded).for_each(|step| step.choice = "w4".parse().unwrap());
            distance(&apply(&model, &plan, &Goal::default(), &judge, &cpu(1)).unwrap())
        };
        let (before, after) = (even(&plain), even(&better));
        assert!(after < share * before, "{name}: {before} {after}");
        assert!(better.changes[0].error < 1e-8, "{name}: {:?}", better.changes);
        let plan = Plan::read(&better.plan.write().unwrap()).unwrap();
        assert_eq!(plan, better.plan, "{name}");
        for threads in [1, 2] {
            let again = apply(&model, &plan, &Goal::default(), &judge, &cpu(threads)).unwrap();
            assert!(numbers(&again.model) == numbers(&better.model), "{name}, {threads} threads");
        }
        let found = shrink(&model, &goal("measured"), &judge, &cpu(1)).unwrap();
        // The whole file is held against one without, whose bits are shared out in another way.
        assert!(distance(&found) <= distance(&plain), "{name}: {:?}", found.plan.passes);
        assert!(!found.plan.passes.is_empty() || distance(&plain) < distance(&better), "{name}");
    }
}

#[test]
fn what_does_not_help_is_not_kept_when_it_is_measured() {
    struct Worse(Distance);
    impl Judge for Worse {
        fn calibration(&self, run: &mut dyn FnMut(Vec<(String, Datum)>) -> Result<()>) -> Result<()> {
            self.0.calibration(run)
        }
        fn can_calibrate(&self) -> bool {
            true
        }
        fn score(&self, model: &Model, part: Part) -> Result<Option<Score>> {
            // Whatever is nearer is said to be further away.
            let score = self.0.score(model, part)?;
            Ok(score.map(|s| Score { distance: 1.0 - s.distance, ..s }))
        }
        fn bytes(&self, model: &Model) -> Result<usize> {
            self.0.bytes(model)
        }
    }
    let model = images();
    let goal = eight("measured");
    let cpu = Cpu::new(1).unwrap();
    let outcome = shrink(&model, &goal, &Worse(judge(&model)), &cpu).unwrap();
    assert!(!prepared(&outcome.plan).contains(&"equalize"), "{:?}", outcome.plan.passes);
    assert!(prepared(&shrink(&model, &goal, &judge(&model), &cpu).unwrap().plan).contains(&"equalize"));
}

#[test]
fn what_cannot_be_is_said() {
    let cpu = Cpu::new(1).unwrap();
    let fails = |model: &Model, goal: &Goal, judge: &Distance, words: &[&str]| {
        let error = shrink(model, goal, judge, &cpu).unwrap_err().to_string();
        assert!(words.iter().all(|w| error.contains(w)), "{error}");
    };
    let (text, pictures) = (language(1.0, 1.0), images());
    let (of_text, of_pictures) = (judge(&text), judge(&pictures));
    fails(
        &text,
        &eight("equalize,rotate,smooth"),
        &Distance { data: false, ..judge(&text) },
        &["smooth", "--data"],
    );
    fails(&text, &eight("awq"), &Distance { data: false, ..judge(&text) }, &["awq", "--data"]);
    fails(&pictures, &eight("rotate"), &of_pictures, &["residual stream", "no norm"]);
    fails(&pictures, &eight("smooth"), &Distance { bad: true, ..judge(&pictures) }, &["not finite"]);
    // A model of one product.
    let mut g = Graph::new("one");
    let x = g.add_input("x", Fact::tensor(DType::F32, vec![Dim::named("n"), Dim::Is(16)])).unwrap();
    let y = linear(&mut g, x, [16, 8], 1, 1.0);
    let one = finished(g, y);
    for name in ["equalize", "smooth", "awq"] {
        fails(&one, &eight(name), &judge(&one), &[name, "nothing to change", "looks for"]);
    }
    let zeros = lessen_shrink::Sparse {
        pattern: "rows".parse().unwrap(),
        share: 0.5,
        rule: Default::default(),
        refit: true,
        allocation: lessen_shrink::Allocation::Even,
    };
    fails(&text, &Goal { zeros: Some(zeros), ..eight("rotate") }, &of_text, &["zeros"]);
    // Plans that were edited.
    let plan = |how: &str| Plan::read(&format!("[[passes]]\npass = 'prepare'\n{how}")).unwrap();
    for (how, words) in [
        ("method = 'awq'\nplaces = [{ node = 'nowhere', alpha = 0.5 }]", "\"nowhere\""),
        ("method = 'awq'\nplaces = [{ node = 'MatMul2', alpha = 2.0 }]", "within 0 and 1"),
        ("method = 'smooth'\nalpha = -1.0", "within 0 and 1"),
        ("method = 'rotate'\nstream = false\nheads = true\nseed = 1", "nothing to change"),
    ] {
        let error = apply(&text, &plan(how), &Goal::default(), &of_text, &cpu).unwrap_err();
        assert!(matches!(&error, Error::Plan(what) if what.contains(words)), "{error}");
    }
    assert!(Plan::read("[[passes]]\npass = 'prepare'\nmethod = 'sooth'").is_err());
}
