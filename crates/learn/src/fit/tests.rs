use std::cell::RefCell;
use std::sync::Arc;

use graph::ops::binary::Binary;
use graph::ops::matmul::MatMul;
use graph::ops::unary::Unary;
use graph::{DType, Datum, Fact, Graph, Tensor, ValueId};
use kernel::Cpu;

use super::*;

const ROWS: usize = 16;
const WIDTH: usize = 4;
const CLASSES: usize = 3;

fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..n).map(|_| (random.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
}

fn matrix(rows: usize, columns: usize, seed: u64) -> Tensor {
    Tensor::new(&[rows, columns], &numbers(rows * columns, seed)).unwrap()
}

/// Two layers; the values of its weights, its output and its target.
fn layers(seed: u64) -> (Graph, Vec<ValueId>, ValueId, ValueId) {
    let mut g = Graph::new("layers");
    let fact = |n: usize| Fact::maybe(Some(DType::F32), Some(vec![ROWS.into(), n.into()]));
    let x = g.add_input("x", fact(WIDTH)).unwrap();
    let target = g.add_input("target", fact(CLASSES)).unwrap();
    let w = g.add_constant("w", matrix(WIDTH, 8, seed));
    let b = g.add_constant("b", Tensor::vector(&numbers(8, seed + 1)));
    let v = g.add_constant("v", matrix(8, CLASSES, seed + 2));
    let y = g.add_op("y", MatMul::new(), &[x, w]).unwrap();
    let y = g.add_op("y", Binary::named("Add").unwrap(), &[y, b]).unwrap();
    let y = g.add_op("y", Unary::named("Tanh").unwrap(), &[y]).unwrap();
    let y = g.add_op("y", MatMul::new(), &[y, v]).unwrap();
    g.outputs = vec![y];
    (g, vec![w, b, v], y, target)
}

fn cpu() -> Cpu {
    Cpu::new(2).unwrap()
}

fn network(seed: u64, loss: Loss, hold: &Hold) -> Network {
    let (mut g, weights, y, target) = layers(seed);
    let loss = loss.add(&mut g, y, target).unwrap();
    let weights: Vec<_> = weights.into_iter().map(|w| (w, hold.clone())).collect();
    Network::new(&g, loss, loss, &weights, &cpu()).unwrap()
}

fn inputs(seed: u64) -> Inputs {
    let (g, _, _, _) = layers(100);
    let session = graph::run::Session::new(g, &cpu()).unwrap();
    let x = matrix(ROWS, WIDTH, seed);
    let no = Tensor::zeros(DType::F32, &[ROWS, CLASSES]).unwrap();
    let target = session.run(vec![("x", x.clone().into()), ("target", no.into())]).unwrap().remove(0);
    vec![("x".into(), Datum::Tensor(x)), ("target".into(), target)]
}

/// Batches that another network of the same kind has labelled.
struct Batches(usize);

impl Lessons for Batches {
    fn len(&self) -> usize {
        self.0
    }

    fn lesson(&self, examples: &[usize], _: u64) -> Result<Vec<(Inputs, usize)>> {
        Ok(examples.iter().map(|&i| (inputs(i as u64), ROWS)).collect())
    }

    fn exam(&self) -> Result<Vec<(Inputs, usize)>> {
        Ok((1000..1004).map(|i| (inputs(i), ROWS)).collect())
    }
}

fn recipe() -> Recipe {
    Recipe { epochs: 30, batch: 2, rate: 0.03, patience: 30, ..Recipe::default() }
}

#[test]
fn losses_after_their_formulas() {
    let example = inputs(5);
    let (g, _, _, _) = layers(7);
    let session = graph::run::Session::new(g, &cpu()).unwrap();
    let named: Vec<(&str, Datum)> = example.iter().map(|(n, d)| (n.as_str(), d.clone())).collect();
    let y = session.run(named).unwrap().remove(0);
    let wide = |d: &Datum| -> Vec<f64> {
        d.tensor().unwrap().as_slice::<f32>().unwrap().iter().map(|&x| x.into()).collect()
    };
    let (y, t) = (wide(&y), wide(&example[1].1));
    let softmax = |row: &[f64], heat: f64| -> Vec<f64> {
        let sum: f64 = row.iter().map(|x| (x / heat).exp()).sum();
        row.iter().map(|x| (x / heat).exp() / sum).collect()
    };
    let rows = |f: &dyn Fn(&[f64], &[f64]) -> f64| {
        y.chunks(CLASSES).zip(t.chunks(CLASSES)).map(|(y, t)| f(y, t)).sum::<f64>() / ROWS as f64
    };
    let heat = 3.0;
    let kl = rows(&|y, t| {
        let (q, p) = (softmax(y, heat), softmax(t, heat));
        heat * heat * p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum::<f64>()
    });
    let entropy = rows(&|y, t| -softmax(y, 1.0).iter().zip(t).map(|(q, t)| t * q.ln()).sum::<f64>());
    let apart: f64 = y.iter().zip(&t).map(|(y, t)| (y - t).powi(2)).sum();
    let size: f64 = t.iter().map(|t| t * t).sum();
    for (loss, want) in [
        (Loss::Distil { temperature: 3.0 }, kl),
        (Loss::CrossEntropy, entropy),
        (Loss::Squared, apart / t.len() as f64),
        (Loss::Relative, apart / size),
    ] {
        let network = network(7, loss, &Hold::Free);
        let got = network.loss(&example).unwrap();
        assert!((got - want).abs() < 1e-5 * (1.0 + want.abs()), "{loss:?}: {got}, not {want}");
        // Gradients are differences of the loss.
        let (again, grads) = network.gradients(&example).unwrap();
        assert!((again - got).abs() < 1e-6);
        for (at, grad) in grads.iter().enumerate() {
            for i in 0..grad.len() {
                let moved = |step: f32| {
                    let mut network = self::network(7, loss, &Hold::Free);
                    network.weights[at].tensor.as_mut_slice::<f32>().unwrap()[i] += step;
                    network.loss(&example).unwrap()
                };
                let want = (moved(1e-2) - moved(-1e-2)) / 2e-2;
                let got = f64::from(grad.as_slice::<f32>().unwrap()[i]);
                assert!(
                    (got - want).abs() < 2e-3 * (1.0 + want.abs()),
                    "{loss:?} {at} [{i}]: {got}, not {want}"
                );
            }
        }
    }
}

#[test]
fn a_network_learns_what_another_does() {
    for loss in [Loss::Distil { temperature: 2.0 }, Loss::Relative] {
        let mut network = network(7, loss, &Hold::Free);
        let mut seen = 0;
        let fitted = fit(&mut network, &recipe(), &Batches(24), None, &mut |p| {
            seen = p.epoch;
            true
        });
        let fitted = fitted.unwrap();
        assert_eq!((seen, fitted.epochs.len()), (30, 30));
        assert!(fitted.after < 0.05 * fitted.before, "{loss:?}: {} -> {}", fitted.before, fitted.after);
        let exam = Batches(1).exam().unwrap();
        let again = exam.iter().map(|(inputs, _)| network.loss(inputs).unwrap()).sum::<f64>() / 4.0;
        assert!((again - fitted.after).abs() < 1e-9, "the best weights stay");
    }
}

#[test]
fn relative_steps_are_parts_of_what_rows_measure() {
    let mut network = network(7, Loss::Relative, &Hold::Free);
    let elements =
        |network: &Network, at: usize| network.weights()[at].tensor.as_slice::<f32>().unwrap().to_vec();
    let before: Vec<Vec<f32>> = (0..3).map(|at| elements(&network, at)).collect();
    let rate = 0.01;
    let one = Recipe { relative: true, rate, epochs: 1, batch: 24, ..recipe() };
    let fitted = fit(&mut network, &one, &Batches(24), None, &mut |_| true).unwrap();
    assert!(fitted.after < fitted.before, "{fitted:?}");
    for (at, before) in before.iter().enumerate() {
        // The first step of Adam is the rate; decay adds a hundredth of it.
        let sizes = sizes(before, network.weights()[at].tensor.shape());
        let after = elements(&network, at);
        let rows = before.chunks(before.len() / sizes.len()).zip(after.chunks(before.len() / sizes.len()));
        for ((before, after), size) in rows.zip(sizes) {
            for (before, after) in before.iter().zip(after) {
                let step = (after - before).abs() / (rate * size);
                assert!((0.9..1.1).contains(&step), "weight {at}: {step}");
            }
        }
    }
    let long = Recipe { relative: true, rate: 0.05, ..recipe() };
    let fitted = fit(&mut network, &long, &Batches(24), None, &mut |_| true).unwrap();
    assert!(fitted.after < 0.05, "{fitted:?}");
}

#[test]
fn batches_side_by_side_give_the_same_on_any_number_of_threads() {
    let batches: Vec<(Inputs, usize)> = (0..7).map(|i| (inputs(i), ROWS)).collect();
    let (g, weights, y, target) = layers(7);
    let made = |threads: usize| {
        let mut g = g.clone();
        let loss = Loss::Squared.add(&mut g, y, target).unwrap();
        let weights: Vec<_> = weights.iter().map(|&w| (w, Hold::Free)).collect();
        let network = Network::new(&g, loss, loss, &weights, &Cpu::new(threads).unwrap()).unwrap();
        (network.mean_loss(&batches).unwrap(), network.mean_gradients(&batches).unwrap())
    };
    let one = made(1);
    assert!((one.0 - one.1.0).abs() < 1e-6, "both are the mean loss");
    for threads in [2, 3, 5] {
        assert_eq!(made(threads), one, "{threads} threads");
    }
    let network = network(7, Loss::Squared, &Hold::Free);
    let mut mean = vec![0f32; network.weights()[0].tensor.len()];
    for (inputs, _) in &batches {
        let (_, grads) = network.gradients(inputs).unwrap();
        mean.iter_mut().zip(grads[0].as_slice::<f32>().unwrap()).for_each(|(m, g)| *m += g / 7.0);
    }
    for (mean, sum) in mean.iter().zip(&one.1.1[0]) {
        assert!((mean - sum).abs() < 1e-6, "{mean} {sum}");
    }
}

#[test]
fn zeros_stay_and_grids_are_kept() {
    let mut sparse = network(7, Loss::Squared, &Hold::Zeros);
    let before = sparse.weights[0].tensor.as_slice::<f32>().unwrap().to_vec();
    // As if pruned before: the network is made of weights that have zeros.
    let (mut g, weights, y, target) = layers(7);
    let half: Vec<f32> = before.iter().enumerate().map(|(i, &x)| if i % 2 == 0 { 0.0 } else { x }).collect();
    g.set_constant(weights[0], Tensor::new(&[WIDTH, 8], &half).unwrap());
    let loss = Loss::Squared.add(&mut g, y, target).unwrap();
    sparse = Network::new(&g, loss, loss, &[(weights[0], Hold::Zeros)], &cpu()).unwrap();
    let fitted = fit(&mut sparse, &recipe(), &Batches(8), None, &mut |_| true).unwrap();
    assert!(fitted.after < fitted.before);
    let after = sparse.weights[0].tensor.as_slice::<f32>().unwrap();
    for (i, (after, before)) in after.iter().zip(&half).enumerate() {
        assert_eq!(*after == 0.0, i % 2 == 0);
        assert!(i % 2 == 0 || after != before);
    }
    // Rounded to quarters, the weights still get better, and what the graph sees are quarters.
    let quarters = |w: &mut [f32]| w.iter_mut().for_each(|x| *x = (*x * 4.0).round() / 4.0);
    let mut coarse = network(7, Loss::Squared, &Hold::To(Arc::new(quarters)));
    let fitted = fit(&mut coarse, &recipe(), &Batches(24), None, &mut |_| true).unwrap();
    assert!(fitted.after < 0.5 * fitted.before, "{} -> {}", fitted.before, fitted.after);
    for weight in coarse.weights() {
        let held = weight.held().unwrap();
        assert!(held.as_slice::<f32>().unwrap().iter().all(|x| (x * 4.0).fract() == 0.0));
    }
}

struct Kept(RefCell<Vec<Vec<u8>>>);

impl Checkpoints for Kept {
    fn load(&self) -> Option<Vec<u8>> {
        self.0.borrow().last().cloned()
    }

    fn save(&mut self, state: &[u8]) -> Result<()> {
        self.0.borrow_mut().push(state.to_vec());
        Ok(())
    }
}

#[test]
fn an_interrupted_training_goes_on_to_the_same_weights() {
    let train = |kept: &mut Kept, stop: usize| {
        let mut network = network(7, Loss::Squared, &Hold::Free);
        let fitted = fit(&mut network, &recipe(), &Batches(6), Some(kept), &mut |p| p.epoch < stop).unwrap();
        let weights: Vec<Vec<f32>> =
            network.weights().iter().map(|w| w.tensor.as_slice::<f32>().unwrap().to_vec()).collect();
        (fitted, weights)
    };
    let whole = train(&mut Kept(RefCell::default()), 100);
    let mut kept = Kept(RefCell::default());
    let part = train(&mut kept, 11);
    assert_eq!(part.0.epochs.len(), 11);
    assert_ne!(part.1, whole.1);
    assert_eq!(train(&mut kept, 100), whole);
    // A checkpoint that is cut off, or that of another recipe, is no checkpoint.
    let last = kept.load().unwrap();
    for damaged in [last[..last.len() / 2].to_vec(), b"nonsense".to_vec(), Vec::new()] {
        assert_eq!(train(&mut Kept(RefCell::new(vec![damaged])), 100), whole);
    }
    let mut network = network(7, Loss::Squared, &Hold::Free);
    let other = Recipe { rate: 0.01, epochs: 1, ..recipe() };
    let fitted = fit(&mut network, &other, &Batches(6), Some(&mut kept), &mut |_| true).unwrap();
    assert_eq!(fitted.epochs.len(), 1);
}

#[test]
fn a_training_that_does_harm_is_undone() {
    let mut network = network(7, Loss::Squared, &Hold::Free);
    let before: Vec<Vec<f32>> =
        network.weights().iter().map(|w| w.tensor.as_slice::<f32>().unwrap().to_vec()).collect();
    let wild = Recipe { rate: 1e3, patience: 2, epochs: 20, ..recipe() };
    let fitted = fit(&mut network, &wild, &Batches(6), None, &mut |_| true).unwrap();
    assert_eq!(fitted.epochs.len(), 2, "patience");
    assert_eq!(fitted.before, fitted.after);
    for (weight, before) in network.weights().iter().zip(before) {
        assert_eq!(weight.tensor.as_slice::<f32>().unwrap(), before);
    }
}

#[test]
fn what_cannot_be_trained_is_said() {
    let (mut g, weights, y, target) = layers(7);
    let loss = Loss::Squared.add(&mut g, y, target).unwrap();
    let input = g.find("x").unwrap();
    let of = |g: &Graph, w: ValueId| Network::new(g, loss, loss, &[(w, Hold::Free)], &cpu()).map(|_| ());
    assert!(of(&g, input).unwrap_err().to_string().contains("\"x\" is no weight"));
    let apart = g.add_constant("apart", Tensor::vector(&[1f32, 2.0]));
    assert!(of(&g, apart).unwrap_err().to_string().contains("depends on none"));
    // Weights that do not matter are left out and stay as they were.
    let both = [(apart, Hold::Free), (weights[0], Hold::Free)];
    let network = Network::new(&g, loss, loss, &both, &cpu()).unwrap();
    assert_eq!(network.weights().len(), 1);
    let mut hot = layers(7).0;
    let (y, target) = (hot.outputs[0], hot.find("target").unwrap());
    assert!(Loss::Distil { temperature: 0.0 }.add(&mut hot, y, target).is_err());
    let empty =
        fit(&mut self::network(7, Loss::Squared, &Hold::Free), &recipe(), &Batches(0), None, &mut |_| true);
    assert!(empty.unwrap_err().to_string().contains("no examples"));
}

#[test]
fn cosines_are_held_to_values_or_to_those_of_scores() {
    const N: usize = 6;
    let entries = |columns: usize, entries: &[(usize, usize, f32)]| {
        let mut values = vec![0f32; N * columns];
        entries.iter().for_each(|&(row, column, value)| values[row * columns + column] = value);
        Tensor::new(&[N, columns], &values).unwrap()
    };
    let square = |of: &[(usize, usize, f32)]| entries(N, of);
    type Add = fn(&mut Graph, ValueId, ValueId, ValueId) -> graph::Result<ValueId>;
    let loss = |add: Add, one: Tensor, other: Tensor| -> f64 {
        let mut g = Graph::new("rows");
        let fact =
            |shape: &[usize]| Fact::maybe(Some(DType::F32), Some(shape.iter().map(|&n| n.into()).collect()));
        let [x, a, b] = [("x", &[N, 2][..]), ("one", one.shape()), ("other", other.shape())]
            .map(|(name, shape)| g.add_input(name, fact(shape)).unwrap());
        let loss = add(&mut g, x, a, b).unwrap();
        g.outputs = vec![loss];
        let rows = [1f32, 0., 3., 4., 0., 2., -5., 12., 1., 1., 1., 0.];
        let rows = Tensor::new(&[N, 2], &rows).unwrap();
        let session = graph::run::Session::new(g, &cpu()).unwrap();
        let found =
            session.run(vec![("x", rows.into()), ("one", one.into()), ("other", other.into())]).unwrap();
        f64::from(found[0].tensor().unwrap().to_f32().unwrap()[0])
    };
    // Rows 0 and 1, 2 and 3, 4 and 5 are pairs.
    let cosines = [3. / 5., 12. / 13., 0.5f64.sqrt()];
    let near = |found: f64, want: f64| assert!((found - want).abs() < 1e-5, "{found} {want}");
    near(loss(alike, square(&[(0, 1, 1.0)]), square(&[(0, 1, 0.5)])), 0.5 * (1.0 - cosines[0]).powi(2));
    let pairs = || square(&[(0, 1, 1.0), (2, 3, 1.0), (4, 5, 1.0)]);
    // Scores 1, 2 and 0, less their mean, by their length.
    let half = 0.5f64.sqrt();
    let wanted = entries(1, &[(2, 0, half as f32), (4, 0, -half as f32)]);
    let mean = cosines.iter().sum::<f64>() / 3.0;
    let length = cosines.iter().map(|c| (c - mean).powi(2)).sum::<f64>().sqrt();
    near(loss(correlated, pairs(), wanted), 1.0 - half * (cosines[1] - cosines[2]) / length);
    near(loss(correlated, pairs(), entries(1, &[])), 1.0);
    // One pair has no correlation, and no division by 0.
    near(loss(correlated, square(&[(0, 1, 1.0)]), entries(1, &[])), 1.0);
}
