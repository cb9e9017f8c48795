//! Tuning by distillation on small graphs.

use graph::op::{Reader, ramp};
use graph::run::Session;
use graph::{Attrs, DType, Datum, Dim, Fact, Graph, Model, Node, Tensor, ValueId};
use kernel::Cpu;
use learn::fit::{Loss, Recipe, Which};
use lessen_shrink::pass::Context;
use lessen_shrink::repair::tune::{Tune, apply};
use lessen_shrink::walk::Example;
use lessen_shrink::{Error, Goal, Judge, Part, Pass, Plan, Result, Score, shrink};

const WIDTH: usize = 16;

fn op(g: &mut Graph, name: &str, inputs: &[ValueId]) -> ValueId {
    let attrs = Attrs::new();
    let reader = Reader { attrs: &attrs, version: 17, inputs: inputs.len(), outputs: 1 };
    let op = graph::ops::read("", name, &reader).unwrap();
    let mut node = Node::new(op, inputs.iter().copied().map(Some).collect());
    node.name = format!("the_{name}");
    g.add_with_outputs(name, node, 1, None).unwrap().1[0]
}

/// Two products with something between them; the names of its constants are w, b, v.
fn layers(between: &str, end: Option<&str>) -> Graph {
    let mut g = Graph::new("layers");
    let x = g.add_input("x", Fact::tensor(DType::F32, vec![Dim::named("n"), Dim::Is(WIDTH as i64)])).unwrap();
    let elements = ramp(&[2 * WIDTH * WIDTH]);
    let elements = elements.as_slice::<f32>().unwrap();
    let w = g.add_constant("w", Tensor::new(&[WIDTH, WIDTH], &elements[..WIDTH * WIDTH]).unwrap());
    let b = g.add_constant("b", Tensor::vector(&[0.1f32; WIDTH]));
    let v = g.add_constant("v", Tensor::new(&[WIDTH, WIDTH], &elements[WIDTH * WIDTH..]).unwrap());
    let y = op(&mut g, "MatMul", &[x, w]);
    let y = op(&mut g, "Add", &[y, b]);
    let y = op(&mut g, between, &[y]);
    let mut y = op(&mut g, "MatMul", &[y, v]);
    if let Some(end) = end {
        y = op(&mut g, end, &[y]);
    }
    g.outputs.push(y);
    g.infer().unwrap();
    g
}

fn examples(picks: &[usize]) -> Tensor {
    let mut random = learn::random::Random::new(1);
    let all: Vec<f32> =
        (0..400 * WIDTH).map(|_| (random.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect();
    let rows: Vec<f32> = picks.iter().flat_map(|&i| all[i * WIDTH..(i + 1) * WIDTH].to_vec()).collect();
    Tensor::new(&[picks.len(), WIDTH], &rows).unwrap()
}

/// Has so many examples to train on.
struct Teaches {
    examples: usize,
    /// The time is over from the beginning.
    hurried: bool,
}

impl Teaches {
    fn of(examples: usize) -> Teaches {
        Teaches { examples, hurried: false }
    }
}

impl Judge for Teaches {
    fn calibration(&self, _: &mut dyn FnMut(Example) -> Result<()>) -> Result<()> {
        Ok(())
    }

    fn can_calibrate(&self) -> bool {
        false
    }

    fn score(&self, _: &Model, _: Part) -> Result<Option<Score>> {
        Ok(None)
    }

    fn bytes(&self, _: &Model) -> Result<usize> {
        Ok(0)
    }

    fn training(&self) -> usize {
        self.examples
    }

    fn out_of_time(&self) -> bool {
        self.hurried
    }

    fn lesson(&self, picks: &[usize], _: Option<u64>) -> Result<Vec<(Example, usize)>> {
        if picks.contains(&399) {
            return Err(Error::Calibration("example 399 cannot be read".into()));
        }
        Ok(vec![(vec![("x".into(), Datum::Tensor(examples(picks)))], picks.len())])
    }
}

fn tune(loss: Loss, weights: Which) -> Tune {
    let recipe = Recipe { epochs: 25, batch: 20, rate: 0.01, patience: 25, ..Recipe::default() };
    Tune { weights, loss, hints: 0.0, recipe, stop: None }
}

fn constant(g: &Graph, name: &str) -> Vec<f32> {
    g.constant(g.find(name).unwrap()).unwrap().as_slice::<f32>().unwrap().to_vec()
}

/// The same with half of a weight gone.
fn damaged(g: &Graph) -> Graph {
    let mut g = g.clone();
    let w: Vec<f32> =
        constant(&g, "w").iter().enumerate().map(|(i, &x)| if i % 3 == 0 { 0.0 } else { x }).collect();
    g.set_constant(g.find("w").unwrap(), Tensor::new(&[WIDTH, WIDTH], &w).unwrap());
    g
}

/// The same with every fourth value between the products cut out.
fn narrow(g: &Graph) -> Graph {
    let mut g = g.clone();
    let kept = |i: &usize| i % 4 != 1;
    let columns = |name: &str| -> Vec<f32> {
        constant(&g, name).iter().enumerate().filter(|(i, _)| kept(&(i % WIDTH))).map(|(_, x)| *x).collect()
    };
    let left = (0..WIDTH).filter(kept).count();
    let w = Tensor::new(&[WIDTH, left], &columns("w")).unwrap();
    let b = Tensor::vector(&columns("b"));
    let rows: Vec<f32> = constant(&g, "v")
        .chunks(WIDTH)
        .enumerate()
        .filter(|(i, _)| kept(i))
        .flat_map(|(_, r)| r.to_vec())
        .collect();
    let v = Tensor::new(&[left, WIDTH], &rows).unwrap();
    for (name, tensor) in [("w", w), ("b", b), ("v", v)] {
        g.set_constant(g.find(name).unwrap(), tensor);
    }
    g.infer().unwrap();
    g
}

fn distance(a: &Graph, b: &Graph) -> f64 {
    let cpu = Cpu::new(1).unwrap();
    let run = |g: &Graph| {
        let x = Datum::Tensor(examples(&[0, 1, 2, 3, 4, 5, 6, 7]));
        let out = Session::new(g.clone(), &cpu).unwrap().run(vec![("x", x)]).unwrap().remove(0);
        out.tensor().unwrap().as_slice::<f32>().unwrap().to_vec()
    };
    run(a).iter().zip(run(b)).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

#[test]
fn a_damaged_model_learns_from_the_original_and_zeros_stay() {
    let cpu = Cpu::new(2).unwrap();
    for (between, end, loss) in [
        ("Relu", None, Loss::Relative),
        ("Sigmoid", None, Loss::Relative),
        ("Tanh", Some("Softmax"), Loss::Distil { temperature: 2.0 }),
    ] {
        let original = layers(between, end);
        let mut graph = damaged(&original);
        let before = distance(&original, &graph);
        let zeros: Vec<bool> = constant(&graph, "w").iter().map(|x| *x == 0.0).collect();
        let cx = Context { judge: &Teaches::of(300), original: &original, cpu: &cpu };
        let fitted = apply(&mut graph, &tune(loss, Which::All), &cx).unwrap();
        assert!(fitted.after < 0.5 * fitted.before, "{between}: {} -> {}", fitted.before, fitted.after);
        assert!(distance(&original, &graph) < before);
        let after: Vec<bool> = constant(&graph, "w").iter().map(|x| *x == 0.0).collect();
        assert_eq!(after, zeros);
        assert_ne!(constant(&graph, "v"), constant(&original, "v"));
        graph.check().unwrap();
        // The same again, as a line of a plan.
        let pass = Pass::Tune(tune(loss, Which::All));
        let text = toml::to_string(&pass).unwrap();
        assert_eq!(toml::from_str::<Pass>(&text).unwrap(), pass, "{text}");
        let mut again = damaged(&original);
        assert_eq!(pass.apply(&mut again, &cx).unwrap(), fitted.after);
        assert_eq!(constant(&again, "v"), constant(&graph, "v"));
    }
}

#[test]
fn hints_bring_the_values_between_blocks_near_as_well() {
    let (cpu, original) = (Cpu::new(1).unwrap(), layers("Relu", None));
    // What the values after the activation of the first graph are away from those of the second.
    let between = |graph: &Graph, cut: bool| {
        let mut first = graph.clone();
        first.outputs = vec![first.find("Relu").unwrap()];
        let mut second = match cut {
            true => narrow(&original),
            false => original.clone(),
        };
        second.outputs = vec![second.find("Relu").unwrap()];
        distance(&first, &second)
    };
    let mut blurred = original.clone();
    let w: Vec<f32> =
        constant(&original, "w").iter().enumerate().map(|(i, x)| x * (0.5 + (i % 3) as f32 / 2.0)).collect();
    blurred.set_constant(blurred.find("w").unwrap(), Tensor::new(&[WIDTH, WIDTH], &w).unwrap());
    for cut in [false, true] {
        let changed = match cut {
            true => narrow(&blurred),
            false => blurred.clone(),
        };
        let tuned = |hints: f32| {
            let mut graph = changed.clone();
            let cx = Context { judge: &Teaches::of(300), original: &original, cpu: &cpu };
            let recipe = Tune { hints, ..tune(Loss::Relative, Which::All) };
            let fitted = apply(&mut graph, &recipe, &cx).unwrap();
            (between(&graph, cut), fitted)
        };
        let ((without, plain), (with, hinted)) = (tuned(0.0), tuned(10.0));
        assert!(with < 0.7 * without, "{cut}: {with}, {without} without, {} before", between(&changed, cut));
        // What is judged is the answers alone, whatever the hints.
        assert!((plain.before - hinted.before).abs() < 1e-6 * plain.before);
        assert!(hinted.after < 0.8 * hinted.before, "{cut}: {} -> {}", hinted.before, hinted.after);
    }
}

#[test]
fn only_the_small_weights_move_when_it_is_asked_for() {
    let (cpu, original) = (Cpu::new(1).unwrap(), layers("Relu", None));
    let mut graph = damaged(&original);
    let cx = Context { judge: &Teaches::of(200), original: &original, cpu: &cpu };
    let fitted = apply(&mut graph, &tune(Loss::Relative, Which::Small), &cx).unwrap();
    assert!(fitted.after < fitted.before);
    assert_eq!(constant(&graph, "v"), constant(&original, "v"));
    assert_eq!(constant(&graph, "w"), constant(&damaged(&original), "w"));
    assert_ne!(constant(&graph, "b"), constant(&original, "b"));
}

#[test]
fn what_cannot_be_tuned_is_said() {
    let (cpu, original) = (Cpu::new(1).unwrap(), layers("Relu", None));
    let said = |original: &Graph, judge: &Teaches| {
        let mut graph = original.clone();
        let cx = Context { judge, original, cpu: &cpu };
        apply(&mut graph, &tune(Loss::Relative, Which::All), &cx).unwrap_err().to_string()
    };
    assert!(said(&original, &Teaches::of(3)).contains("3 examples to tune on are too few"));
    let mut graph = original.clone();
    let cx = Context { judge: &Teaches::of(100), original: &original, cpu: &cpu };
    let wrong = apply(&mut graph, &tune(Loss::CrossEntropy, Which::All), &cx).unwrap_err();
    assert!(wrong.to_string().contains("say distil"));
    for hints in [-1.0, f32::NAN, f32::INFINITY] {
        let recipe = Tune { hints, ..tune(Loss::Relative, Which::All) };
        let wrong = apply(&mut graph, &recipe, &cx).unwrap_err().to_string();
        assert!(wrong.contains("hints must be 0 or greater"), "{wrong}");
    }
    // What the judge says comes out as it was.
    assert_eq!(said(&original, &Teaches::of(400)), "calibration: example 399 cannot be read");
    // A node without a gradient is named.
    let hard = layers("LpNormalization", None);
    assert!(said(&hard, &Teaches::of(100)).contains("the_LpNormalization"));
    let mut none = original.clone();
    none.outputs.clear();
    assert!(said(&none, &Teaches::of(100)).contains("no output"));
}

#[test]
fn a_plan_repeats_a_tuning_that_the_time_cut_short() {
    let cpu = Cpu::new(1).unwrap();
    let model =
        Model { graph: layers("Relu", None), opsets: [(String::new(), 17)].into(), ..Model::default() };
    // Zeros, so that there is something to win back.
    let zeros = lessen_shrink::Sparse {
        pattern: lessen_shrink::prune::pattern::Pattern::Anywhere,
        share: 0.5,
        rule: lessen_shrink::prune::zeros::Rule::Magnitude,
        refit: false,
        allocation: lessen_shrink::Allocation::Even,
    };
    let goal = Goal { zeros: Some(zeros), tune: Some(tune(Loss::Relative, Which::All)), ..Goal::default() };
    let cut = shrink(&model, &goal, &Teaches { examples: 100, hurried: true }, &cpu).unwrap();
    let stop = cut.plan.passes.iter().find_map(|pass| match pass {
        Pass::Tune(tune) => tune.stop,
        _ => None,
    });
    assert_eq!(stop, Some(1));
    let plan = Plan::read(&cut.plan.write().unwrap()).unwrap();
    let constants = |model: &Model| -> Vec<(String, Vec<u8>)> {
        let constant = |v: &graph::Value| Some((v.name.clone(), v.constant.as_ref()?.bytes().to_vec()));
        model.graph.values().filter_map(|(_, v)| constant(v)).collect()
    };
    // Without hurry, and without knowing of it, the plan stops where it stopped.
    let again = lessen_shrink::apply(&model, &plan, &Goal::default(), &Teaches::of(100), &cpu).unwrap();
    assert_eq!(constants(&again.model), constants(&cut.model));
    let whole = shrink(&model, &goal, &Teaches::of(100), &cpu).unwrap();
    assert_ne!(constants(&whole.model), constants(&cut.model));
}
