//! The search, with a judge who knows which weights hurt.

use std::collections::HashSet;

use graph::op::{Reader, ramp};
use graph::run::Session;
use graph::{Attrs, DType, Datum, Dim, Fact, Graph, Model, Node, Tensor, ValueId};
use kernel::{Cpu, Isa};
use lessen_shrink::{
    Choice, Error, Goal, Judge, Part, Pass, Plan, Result, Score, Speed, Step, apply, shrink,
};

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

fn op(g: &mut Graph, kind: &str, name: &str, inputs: &[ValueId]) -> ValueId {
    let attrs = Attrs::new();
    let reader = Reader { attrs: &attrs, version: 17, inputs: inputs.len(), outputs: 1 };
    let op = graph::ops::read("", kind, &reader).unwrap();
    let node = Node::new(op, inputs.iter().copied().map(Some).collect());
    g.add_with_outputs(name, node, 1, None).unwrap().1[0]
}

/// The weight of this name: no two are alike.
fn weight(name: &str) -> Tensor {
    let at = NAMES.iter().position(|n| *n == name).unwrap();
    let all = ramp(&[NAMES.len() * 256]);
    Tensor::new(&[16, 16], &all.as_slice::<f32>().unwrap()[at * 256..][..256]).unwrap()
}

/// Five products of 16 x 16 weights in a row, rectified.
fn model() -> Model {
    let mut g = Graph::new("chain");
    let mut x = g.add_input("x", Fact::tensor(DType::F32, vec![Dim::named("n"), Dim::Is(16)])).unwrap();
    for name in NAMES {
        let w = g.add_constant(name, weight(name));
        x = op(&mut g, "MatMul", &format!("product_{name}"), &[x, w]);
        x = op(&mut g, "Relu", &format!("relu_{name}"), &[x]);
    }
    g.outputs.push(x);
    Model { graph: g, opsets: [(String::new(), 17)].into(), ir_version: 8, ..Model::default() }
}

/// Each quantized weight of `harm` costs so much.
struct Knows {
    harm: Vec<(&'static str, f64)>,
}

/// The weights that are still read as f32, under whatever name.
fn kept(model: &Model) -> HashSet<&'static str> {
    let g = &model.graph;
    let read: HashSet<ValueId> = g.nodes().flat_map(|(_, n)| n.reads().collect::<Vec<_>>()).collect();
    let is_read = |name: &&str| read.iter().any(|&v| g.constant(v) == Some(&weight(name)));
    NAMES.into_iter().filter(is_read).collect()
}

impl Judge for Knows {
    fn calibration(&self, run: &mut dyn FnMut(Vec<(String, Datum)>) -> Result<()>) -> Result<()> {
        run(vec![("x".into(), Datum::Tensor(ramp(&[8, 16])))])
    }

    fn can_calibrate(&self) -> bool {
        true
    }

    fn score(&self, model: &Model, _: Part) -> Result<Option<Score>> {
        let kept = kept(model);
        let lost: f64 = self.harm.iter().filter(|(name, _)| !kept.contains(*name)).map(|(_, h)| h).sum();
        Ok(Some(Score {
            metric: "accuracy".into(),
            original: 0.9,
            value: 0.9 - lost,
            lost: (lost, lost),
            examples: 10,
            distance: lost,
        }))
    }

    fn bytes(&self, model: &Model) -> Result<usize> {
        let g = &model.graph;
        let used: HashSet<ValueId> = g.nodes().flat_map(|(_, n)| n.reads().collect::<Vec<_>>()).collect();
        Ok(used.into_iter().filter_map(|v| g.constant(v)).map(|t| t.bytes().len()).sum())
    }
}

fn goal(smaller: Option<f64>, lose: Option<f64>) -> Goal {
    Goal { smaller, lose, ..Goal::default() }
}

fn cpu() -> Cpu {
    Cpu::with_isa(Isa::best(), 1).unwrap()
}

#[test]
fn everything_is_quantized_when_nothing_hurts() {
    let judge = Knows { harm: vec![] };
    let outcome = shrink(&model(), &goal(Some(3.0), Some(0.0)), &judge, &cpu()).unwrap();
    assert!(outcome.missed.is_empty(), "{:?}", outcome.missed);
    assert_eq!(outcome.plan.changed().count(), 5);
    assert!(outcome.plan.steps.iter().all(|s| s.choice == Choice::Int8Dynamic && s.error < 1e-4));
    // The result still runs, near the original.
    let run = |m: Model| {
        let session = Session::new(m.graph, &cpu()).unwrap();
        let x = Datum::Tensor(ramp(&[3, 16]));
        session.run(vec![("x", x)]).unwrap()[0].tensor().unwrap().as_slice::<f32>().unwrap().to_vec()
    };
    let (want, got) = (run(model()), run(outcome.model));
    let scale = want.iter().fold(0f32, |m, v| m.max(v.abs()));
    assert!(want.iter().zip(&got).all(|(a, b)| (a - b).abs() < 0.1 * scale), "{want:?}\n{got:?}");
}

#[test]
fn the_weights_that_hurt_are_given_back_and_no_others() {
    let judge = Knows { harm: vec![("d", 0.03), ("b", 0.2), ("e", 0.001)] };
    let outcome = shrink(&model(), &goal(None, Some(0.005)), &judge, &cpu()).unwrap();
    assert_eq!(outcome.given_back, ["product_b", "product_d"]);
    assert!(outcome.missed.is_empty());
    let kept: Vec<&str> =
        outcome.plan.steps.iter().filter(|s| s.choice == Choice::Keep).map(|s| s.weight.as_str()).collect();
    assert_eq!(kept, ["b", "d"]);
}

#[test]
fn goals_that_cannot_be_met_are_said_to_be_missed() {
    let judge = Knows { harm: vec![("a", 0.1)] };
    let goal = goal(Some(3.5), Some(0.05));
    let outcome = shrink(&model(), &goal, &judge, &cpu()).unwrap();
    assert_eq!(outcome.given_back, ["product_a"]);
    assert!(outcome.missed.len() == 1 && outcome.missed[0].contains("times smaller"), "{:?}", outcome.missed);
}

#[test]
fn few_bits_go_to_the_weights_that_hurt_least() {
    let mut newer = model();
    newer.opsets.insert(String::new(), 21);
    let judge = Knows { harm: vec![("b", 0.2), ("d", 0.02)] };
    let outcome = shrink(&newer, &goal(Some(5.0), None), &judge, &cpu()).unwrap();
    assert!(outcome.missed.is_empty(), "{:?}", outcome.missed);
    let bits = |name: &str| {
        let step = outcome.plan.steps.iter().find(|s| s.weight == name).unwrap();
        step.choice.bits().unwrap()
    };
    assert!(bits("b") > bits("d") && bits("d") > bits("a"), "{:?}", outcome.plan);
    // What the plan says can be done again, and comes out the same.
    let again = apply(&newer, &outcome.plan, &Goal::default(), &judge, &cpu()).unwrap();
    assert_eq!(again.plan, outcome.plan);
    assert_eq!(again.bytes, outcome.bytes);
    // Too small is too small: the smallest is offered, and the goal is missed.
    let outcome = shrink(&newer, &goal(Some(1000.0), None), &judge, &cpu()).unwrap();
    assert!(outcome.plan.steps.iter().all(|s| s.choice.bits() == Some(2)));
    assert!(outcome.missed[0].contains("times smaller"));
}

/// Judges by the outputs.
struct Runs(Model);

impl Judge for Runs {
    fn calibration(&self, run: &mut dyn FnMut(Vec<(String, Datum)>) -> Result<()>) -> Result<()> {
        run(vec![("x".into(), Datum::Tensor(ramp(&[200, 64])))])
    }

    fn can_calibrate(&self) -> bool {
        true
    }

    fn score(&self, model: &Model, _: Part) -> Result<Option<Score>> {
        let run = |m: &Model| {
            let session = Session::new(m.graph.clone(), &cpu()).unwrap();
            let x = Datum::Tensor(ramp(&[100, 64]));
            session.run(vec![("x", x)]).unwrap()[0].tensor().unwrap().as_slice::<f32>().unwrap().to_vec()
        };
        let (want, got) = (run(&self.0), run(model));
        let square = |x: f32| f64::from(x).powi(2);
        let apart: f64 = want.iter().zip(&got).map(|(a, b)| square(a - b)).sum();
        let distance = apart / want.iter().map(|&a| square(a)).sum::<f64>();
        let (metric, value) = ("likeness".into(), 1.0 - distance);
        Ok(Some(Score { metric, original: 1.0, value, lost: (distance, distance), examples: 100, distance }))
    }

    fn bytes(&self, model: &Model) -> Result<usize> {
        Knows { harm: Vec::new() }.bytes(model)
    }
}

/// Judges by the outputs, and takes a run to be as long as the products have elements.
struct Hurries(Runs);

impl Hurries {
    fn elements(model: &Model) -> usize {
        let g = &model.graph;
        let read: HashSet<ValueId> = g.nodes().flat_map(|(_, n)| n.reads().collect::<Vec<_>>()).collect();
        read.into_iter().filter_map(|v| g.constant(v)).filter(|t| t.shape().len() == 2).map(Tensor::len).sum()
    }
}

impl Judge for Hurries {
    fn calibration(&self, run: &mut dyn FnMut(Vec<(String, Datum)>) -> Result<()>) -> Result<()> {
        self.0.calibration(run)
    }

    fn can_calibrate(&self) -> bool {
        true
    }

    fn score(&self, model: &Model, part: Part) -> Result<Option<Score>> {
        self.0.score(model, part)
    }

    fn speed(&self, model: &Model) -> Result<Option<Speed>> {
        let seconds = (Hurries::elements(&self.0.0) as f64, Hurries::elements(model) as f64);
        let faster = seconds.0 / seconds.1;
        Ok(Some(Speed { seconds, faster, interval: (faster, faster) }))
    }

    fn bytes(&self, model: &Model) -> Result<usize> {
        self.0.bytes(model)
    }
}

/// Has no data, and counts the bytes of nodes, too: much, beside weights as small as these.
struct Counts;

impl Judge for Counts {
    fn calibration(&self, _: &mut dyn FnMut(Vec<(String, Datum)>) -> Result<()>) -> Result<()> {
        Ok(())
    }

    fn can_calibrate(&self) -> bool {
        false
    }

    fn score(&self, _: &Model, _: Part) -> Result<Option<Score>> {
        Ok(None)
    }

    fn bytes(&self, model: &Model) -> Result<usize> {
        let constants = Knows { harm: Vec::new() }.bytes(model)?;
        Ok(constants + 50 * model.graph.nodes().count())
    }
}

#[test]
fn a_file_is_as_great_as_it_may_be_though_choices_differ_in_what_stands_beside_them() {
    let mut g = Graph::new("many");
    let mut x = g.add_input("x", Fact::tensor(DType::F32, vec![Dim::named("n"), Dim::Is(32)])).unwrap();
    let mut random = learn::random::Random::new(3);
    for at in 0..20 {
        let scale = 1.0 + (at % 7) as f64;
        let data: Vec<f32> = (0..32 * 32).map(|_| (scale * random.normal()) as f32).collect();
        let w = g.add_constant(&format!("w{at}"), Tensor::new(&[32, 32], &data).unwrap());
        x = op(&mut g, "MatMul", &format!("product_{at}"), &[x, w]);
    }
    g.outputs.push(x);
    let model = Model { graph: g, opsets: [(String::new(), 21)].into(), ir_version: 10, ..Model::default() };
    for tenths in (40..=58).step_by(3) {
        let asked = f64::from(tenths) / 10.0;
        let outcome = shrink(&model, &goal(Some(asked), None), &Counts, &cpu()).unwrap();
        let (before, after) = outcome.bytes;
        let found = before as f64 / after as f64;
        let choices: Vec<String> = outcome.plan.steps.iter().map(|s| s.choice.to_string()).collect();
        assert!(found >= asked && found < 1.08 * asked, "{found} for {asked}: {choices:?}");
    }
}

#[test]
fn a_weight_of_few_directions_becomes_a_product_where_that_is_better() {
    let mut g = Graph::new("two");
    let mut x = g.add_input("x", Fact::tensor(DType::F32, vec![Dim::named("n"), Dim::Is(64)])).unwrap();
    let mut random = learn::random::Random::new(7);
    let mut next = || 2.0 * random.unit() as f32 - 1.0;
    let full: Vec<f32> = (0..64 * 64).map(|_| next()).collect();
    let (u, v): (Vec<f32>, Vec<f32>) =
        ((0..64 * 4).map(|_| next()).collect(), (0..64 * 4).map(|_| next()).collect());
    let low = (0..64 * 64)
        .map(|k| (0..4).map(|r| u[k / 64 * 4 + r] * v[k % 64 * 4 + r]).sum::<f32>())
        .collect::<Vec<_>>();
    for (name, data) in [("full", &full), ("low", &low)] {
        let w = g.add_constant(name, Tensor::new(&[64, 64], data).unwrap());
        x = op(&mut g, "MatMul", &format!("product_{name}"), &[x, w]);
    }
    g.outputs.push(x);
    let model = Model { graph: g, opsets: [(String::new(), 21)].into(), ir_version: 10, ..Model::default() };
    let judge = Runs(model.clone());
    let outcome = shrink(&model, &goal(Some(9.0), None), &judge, &cpu()).unwrap();
    let [Pass::Rank { weights }] = &outcome.plan.passes[..] else { panic!("{:?}", outcome.plan.passes) };
    assert!(weights.len() == 1 && weights[0].weight == "low", "{weights:?}");
    assert!(outcome.missed.is_empty() && outcome.changes.len() == 1, "{:?}", outcome.missed);
    // Better than bits alone, at the same bytes.
    let steps = outcome.plan.steps.iter().map(|s| (s.weight.as_str(), s.choice)).collect::<Vec<_>>();
    let bare = Plan { passes: Vec::new(), ..outcome.plan.clone() };
    let whole = bare.steps.iter().filter(|s| s.weight == "full").cloned();
    let low = whole.clone().map(|s| Step { node: "product_low".into(), weight: "low".into(), ..s });
    let same = Plan { steps: whole.clone().chain(low).collect(), ..bare };
    let plain = apply(&model, &same, &Goal::default(), &judge, &cpu()).unwrap();
    let distance = |o: &lessen_shrink::Outcome| o.score.as_ref().unwrap().distance;
    assert!(distance(&outcome) < distance(&plain), "{} {} {steps:?}", distance(&outcome), distance(&plain));
    let again = apply(&model, &outcome.plan, &Goal::default(), &judge, &cpu()).unwrap();
    assert_eq!(again.score, outcome.score);
}

#[test]
fn channels_go_until_it_is_fast_enough_and_no_further_than_may_be_lost() {
    let mut g = Graph::new("wide");
    let mut x = g.add_input("x", Fact::tensor(DType::F32, vec![Dim::named("n"), Dim::Is(64)])).unwrap();
    let mut random = learn::random::Random::new(5);
    for at in 0..4 {
        let data: Vec<f32> = (0..64 * 64).map(|_| (0.2 * random.normal()) as f32).collect();
        let w = g.add_constant(&format!("w{at}"), Tensor::new(&[64, 64], &data).unwrap());
        x = op(&mut g, "MatMul", &format!("product_{at}"), &[x, w]);
        x = op(&mut g, "Relu", &format!("relu_{at}"), &[x]);
    }
    g.outputs.push(x);
    let model = Model { graph: g, opsets: [(String::new(), 21)].into(), ir_version: 10, ..Model::default() };
    let judge = Hurries(Runs(model.clone()));
    let hurry = |lose| {
        let goal = Goal { faster: Some(1.9), lose, ..Goal::default() };
        let outcome = shrink(&model, &goal, &judge, &cpu()).unwrap();
        (outcome.speed.unwrap().faster, outcome.score.as_ref().unwrap().loss(), outcome)
    };
    let (fast, lost, outcome) = hurry(None);
    assert!(fast >= 1.9 && outcome.missed.is_empty(), "{fast} {:?}", outcome.missed);
    assert!(fast < 2.7, "more went than was asked for: {fast}");
    // Half of what that lost is not enough to be as fast: what is within the loss is given, and said to be short of it.
    let (slower, less, outcome) = hurry(Some(0.5 * lost));
    assert!(slower < 1.9 && less <= 0.5 * lost, "{slower}: {less} of {lost}");
    let [short, why] = &outcome.missed[..] else { panic!("{:?}", outcome.missed) };
    assert!(
        short.contains("times faster on this machine, not 1.9") && why.contains("would fall by"),
        "{why}"
    );
}

#[test]
fn plans_with_forms_that_cannot_be_are_refused() {
    let mut outcome = shrink(&model(), &Goal::default(), &Knows { harm: vec![] }, &cpu()).unwrap();
    outcome.plan.steps[2].choice = "w4".parse().unwrap();
    let apply = |plan: &_| apply(&model(), plan, &Goal::default(), &Knows { harm: vec![] }, &cpu());
    // The model names version 17, which has no codes of 4 bits.
    assert!(apply(&outcome.plan).unwrap_err().to_string().contains("\"c\""));
    outcome.plan.steps[2].choice = Choice::Int8Rows;
    assert!(apply(&outcome.plan).unwrap_err().to_string().contains("int8-rows"));
    outcome.plan.steps[2].choice = Choice::Keep;
    assert_eq!(apply(&outcome.plan).unwrap().plan.changed().count(), 4);
    outcome.plan.steps[2].weight = "z".into();
    assert!(apply(&outcome.plan).unwrap_err().to_string().contains("\"z\""));
}

#[test]
fn damaged_weights_are_named() {
    let mut broken = model();
    let id = broken.graph.find("c").unwrap();
    let mut values = vec![0.5f32; 256];
    values[7] = f32::NAN;
    broken.graph.set_constant(id, Tensor::new(&[16, 16], &values).unwrap());
    let error = shrink(&broken, &Goal::default(), &Knows { harm: vec![] }, &cpu()).unwrap_err();
    assert!(matches!(&error, Error::Weight { weight, .. } if weight == "c"), "{error}");
    assert!(error.to_string().contains("1 of 256"));
}

#[test]
fn old_operators_are_refused_with_their_version() {
    let mut old = model();
    old.opsets.insert(String::new(), 11);
    let error = shrink(&old, &Goal::default(), &Knows { harm: vec![] }, &cpu()).unwrap_err();
    assert!(error.to_string().contains("version 11"), "{error}");
}
