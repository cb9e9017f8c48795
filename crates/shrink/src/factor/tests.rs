use graph::run::Session;
use graph::{DType, Datum, Dim, Fact};

use super::*;
use crate::gram::tests::cpu;

fn node(g: &mut Graph, kind: &str, name: &str, inputs: &[ValueId], attrs: Attrs) -> ValueId {
    let op = onnx(kind, attrs, inputs.len()).unwrap();
    let node = Node::new(op, inputs.iter().copied().map(Some).collect());
    g.add_with_outputs(name, node, 1, None).unwrap().1[0]
}

fn noise(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let n = shape.iter().product();
    Tensor::new(shape, &(0..n).map(|_| next()).collect::<Vec<f32>>()).unwrap()
}

/// A table, two products with one weight, a Gemm with a bias and a factor, and a strided convolution with a bias.
fn network() -> Graph {
    let mut g = Graph::new("net");
    let ids = g.add_input("ids", Fact::tensor(DType::I64, vec![Dim::named("n"), Dim::Is(9)])).unwrap();
    let table = g.add_constant("table", noise(&[40, 24], 1));
    let x = node(&mut g, "Gather", "rows", &[table, ids], Attrs::new());
    let w = g.add_constant("w", noise(&[24, 24], 2));
    let x = node(&mut g, "MatMul", "first", &[x, w], Attrs::new());
    let x = node(&mut g, "Relu", "relu", &[x], Attrs::new());
    let x = node(&mut g, "MatMul", "second", &[x, w], Attrs::new());
    let shape = g.add_constant("shape", Tensor::vector(&[-1i64, 24]));
    let x = node(&mut g, "Reshape", "flat", &[x, shape], Attrs::new());
    let (v, b) = (g.add_constant("v", noise(&[36, 24], 3)), g.add_constant("b", noise(&[36], 4)));
    let x = node(&mut g, "Gemm", "gemm", &[x, v, b], Attrs::new().int("transB", 1).float("alpha", 0.5));
    let shape = g.add_constant("shape", Tensor::vector(&[-1i64, 4, 3, 3]));
    let x = node(&mut g, "Reshape", "images", &[x, shape], Attrs::new());
    let (c, b) = (g.add_constant("c", noise(&[10, 4, 3, 3], 5)), g.add_constant("d", noise(&[10], 6)));
    let attrs = Attrs::new().ints("pads", &[1; 4]).ints("strides", &[2, 2]).ints("kernel_shape", &[3, 3]);
    let y = node(&mut g, "Conv", "conv", &[x, c, b], attrs);
    g.outputs.push(y);
    g.infer().unwrap();
    g
}

fn examples() -> Vec<Example> {
    let ids = |k: i64| (0..90).map(|i| (i * i + 7 * k) % 31).collect::<Vec<i64>>();
    let one = |k| vec![("ids".to_string(), Datum::Tensor(Tensor::new(&[10, 9], &ids(k)).unwrap()))];
    (0..6).map(one).collect()
}

fn run(g: &Graph) -> Vec<f32> {
    let session = Session::new(g.clone(), &cpu()).unwrap();
    let mut all = Vec::new();
    for example in examples() {
        let inputs = example.iter().map(|(n, d)| (n.as_str(), d.clone())).collect();
        all.extend(session.run(inputs).unwrap()[0].tensor().unwrap().as_slice::<f32>().unwrap());
    }
    all
}

fn apart(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let sum = |f: &dyn Fn(usize) -> f32| (0..a.len()).map(|i| f64::from(f(i)).powi(2)).sum::<f64>();
    sum(&|i| a[i] - b[i]) / sum(&|i| a[i])
}

fn cut(node: &str, weight: &str, form: &str) -> Cut {
    Cut { node: node.into(), weight: weight.into(), form: form.parse().unwrap() }
}

#[test]
fn the_last_weights_error_is_that_of_the_model() {
    // The bias is no part of what the weight makes.
    let mut g = network();
    let conv = g.nodes().find(|(_, n)| n.kind() == "Conv").unwrap().0;
    g.set_input(conv, 2, None);
    for form in ["rank-4", "energy-0.8", "tucker-3-4"] {
        for known in [true, false] {
            let mut small = g.clone();
            let seen = if known { examples() } else { Vec::new() };
            let error = factor(&mut small, &[cut("conv", "c", form)], seen, &cpu()).unwrap()[0];
            let measured = apart(&run(&g), &run(&small));
            assert!(error > 0.01, "{form}: {error}");
            if known {
                assert!((error / measured - 1.0).abs() < 1e-3, "{form}: {error} {measured}");
            }
        }
    }
}

#[test]
fn full_rank_changes_nothing_and_shared_weights_share_their_factors() {
    let g = network();
    let full = [
        cut("rows", "table", "rank-24"),
        cut("first", "w", "energy-1"),
        cut("gemm", "v", "rank-99"),
        cut("conv", "c", "tucker-4-10"),
    ];
    for examples in [examples(), Vec::new()] {
        let mut same = g.clone();
        let errors = factor(&mut same, &full, examples, &cpu()).unwrap();
        assert!(errors.iter().all(|e| *e < 1e-6), "{errors:?}");
        assert!(apart(&run(&g), &run(&same)) < 1e-8, "{}", apart(&run(&g), &run(&same)));
        let products = same.nodes().filter(|(_, n)| n.kind() == "MatMul").count();
        assert_eq!((products, same.nodes().filter(|(_, n)| n.kind() == "Conv").count()), (6, 3));
        assert_eq!(
            same.values().filter(|(_, v)| v.name.starts_with("w.") && v.constant.is_some()).count(),
            2
        );
    }
}

#[test]
fn less_rank_is_less_and_repeats_itself() {
    let g = network();
    let cuts =
        |r: usize| [cut("rows", "table", &format!("rank-{r}")), cut("gemm", "v", &format!("rank-{r}"))];
    let of = |r| {
        let mut small = g.clone();
        factor(&mut small, &cuts(r), examples(), &cpu()).unwrap();
        run(&small)
    };
    assert_eq!(of(6), of(6));
    let (a, b) = (apart(&run(&g), &of(20)), apart(&run(&g), &of(6)));
    assert!(a < 0.5 * b && b < 1.0, "{a} {b}");
}

#[test]
fn what_cannot_be_split_is_refused() {
    let mut g = network();
    let refused =
        |g: &Graph, cuts: &[Cut]| factor(&mut g.clone(), cuts, Vec::new(), &cpu()).unwrap_err().to_string();
    assert!(refused(&g, &[cut("nobody", "w", "rank-3")]).contains("no weight"));
    assert!(refused(&g, &[cut("gemm", "v", "tucker-3-3")]).contains("inner inputs"));
    assert!(refused(&g, &[cut("first", "w", "rank-3"), cut("second", "w", "rank-3")]).contains("twice"));
    let w = g.find("w").unwrap();
    let turned = node(&mut g, "Transpose", "turn", &[w], Attrs::new());
    g.outputs.push(turned);
    assert!(refused(&g, &[cut("first", "w", "rank-3")]).contains("read it"));
}

#[test]
fn forms_are_written_as_they_are_read() {
    for form in [Form::Rank(8), Form::Energy(0.95), Form::Tucker([3, 4])] {
        assert_eq!(form.to_string().parse(), Ok(form));
    }
    for bad in ["", "rank", "rank-0", "energy-2", "energy-nan", "tucker-3", "low-3"] {
        assert!(bad.parse::<Form>().is_err(), "{bad}");
    }
}
