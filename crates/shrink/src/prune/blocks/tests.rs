use graph::op::Reader;
use graph::run::Session;
use graph::{Attrs, DType, Dim, Fact, Node, Tensor};

use super::*;
use crate::gram::tests::cpu;

const WIDTH: usize = 12;

fn op(g: &mut Graph, kind: &str, name: &str, inputs: &[ValueId], attrs: Attrs) -> ValueId {
    let reader = Reader { attrs: &attrs, version: 17, inputs: inputs.len(), outputs: 1 };
    let op = graph::ops::read("", kind, &reader).unwrap();
    let node = Node::new(op, inputs.iter().copied().map(Some).collect());
    g.add_with_outputs(name, node, 1, None).unwrap().1[0]
}

fn noise(shape: &[usize], seed: usize, size: f32) -> Tensor {
    let mut state = seed as u64 * 977 + 5;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * size
    };
    let n = shape.iter().product();
    Tensor::new(shape, &(0..n).map(|_| next()).collect::<Vec<f32>>()).unwrap()
}

fn weight(g: &mut Graph, shape: &[usize], seed: usize, size: f32) -> ValueId {
    g.add_constant(&format!("w{seed}"), noise(shape, seed, size))
}

fn norm(g: &mut Graph, x: ValueId) -> ValueId {
    let (one, zero) = (vec![1f32; WIDTH], vec![0f32; WIDTH]);
    let (one, zero) =
        (g.add_constant("one", Tensor::vector(&one)), g.add_constant("zero", Tensor::vector(&zero)));
    op(g, "LayerNormalization", "norm", &[x, one, zero], Attrs::new())
}

/// An encoder with a mask that each block reads; `kept` says which blocks it has, of which each has its own size.
fn encoder(kept: &[usize], sizes: &[f32]) -> Graph {
    let mut g = Graph::new("encoder");
    let shape = || vec![Dim::named("n"), Dim::named("s")];
    let ids = g.add_input("ids", Fact::tensor(DType::I64, shape())).unwrap();
    let mask = g.add_input("mask", Fact::tensor(DType::F32, [shape(), vec![Dim::Is(1)]].concat())).unwrap();
    let table = weight(&mut g, &[20, WIDTH], 100, 1.0);
    let x = op(&mut g, "Gather", "tokens", &[table, ids], Attrs::new());
    let mut x = norm(&mut g, x);
    for &block in kept {
        let size = sizes[block];
        let w = weight(&mut g, &[WIDTH, WIDTH], 10 * block + 1, size);
        let y = op(&mut g, "MatMul", &format!("mix{block}"), &[x, w], Attrs::new());
        let y = op(&mut g, "Mul", "masked", &[y, mask], Attrs::new());
        let y = op(&mut g, "Add", "sum", &[y, x], Attrs::new());
        x = norm(&mut g, y);
        let w = weight(&mut g, &[WIDTH, 4 * WIDTH], 10 * block + 2, size);
        let y = op(&mut g, "MatMul", &format!("up{block}"), &[x, w], Attrs::new());
        let y = op(&mut g, "Relu", "relu", &[y], Attrs::new());
        let w = weight(&mut g, &[4 * WIDTH, WIDTH], 10 * block + 3, size);
        let y = op(&mut g, "MatMul", &format!("down{block}"), &[y, w], Attrs::new());
        let y = op(&mut g, "Add", "sum", &[y, x], Attrs::new());
        x = norm(&mut g, y);
    }
    let x = op(&mut g, "Mul", "kept", &[x, mask], Attrs::new());
    let axes = g.add_constant("axes", Tensor::vector(&[1i64]));
    let y = op(&mut g, "ReduceSum", "pooled", &[x, axes], Attrs::new().int("keepdims", 0));
    g.outputs.push(y);
    g.infer().unwrap();
    g
}

fn texts() -> Vec<Example> {
    let one = |k: i64| {
        let ids: Vec<i64> = (0..24).map(|i| (i * i + 3 * k + i * k) % 20).collect();
        let mask: Vec<f32> = (0..24).map(|i| f32::from(u8::from(i % 6 < 5))).collect();
        vec![
            ("ids".to_string(), Datum::Tensor(Tensor::new(&[4, 6], &ids).unwrap())),
            ("mask".to_string(), Datum::Tensor(Tensor::new(&[4, 6, 1], &mask).unwrap())),
        ]
    };
    (0..6).map(one).collect()
}

/// A residual network of two stages; the blocks are linear but for the rectifier at their end when `linear`.
fn residual(blocks: [usize; 2], linear: bool) -> Graph {
    let mut g = Graph::new("residual");
    let size = vec![Dim::named("n"), Dim::Is(3), Dim::Is(8), Dim::Is(8)];
    let x = g.add_input("x", Fact::tensor(DType::F32, size)).unwrap();
    let pads = || Attrs::new().ints("pads", &[1; 4]);
    let w = weight(&mut g, &[8, 3, 3, 3], 200, 0.5);
    let x = op(&mut g, "Conv", "stem", &[x, w], pads());
    let mut x = op(&mut g, "Relu", "relu", &[x], Attrs::new());
    let mut channels = 8;
    for (stage, count) in blocks.into_iter().enumerate() {
        if stage > 0 {
            let w = weight(&mut g, &[2 * channels, channels, 3, 3], 210, 0.4);
            x = op(&mut g, "Conv", "wider", &[x, w], pads().ints("strides", &[2, 2]));
            channels *= 2;
        }
        for block in 0..count {
            let seed = 300 + 10 * (stage * 10 + block);
            let window = if linear { 1 } else { 3 };
            let attrs = || if linear { Attrs::new() } else { pads() };
            let w = weight(&mut g, &[channels, channels, window, window], seed, 0.3);
            let b = weight(&mut g, &[channels], seed + 1, 0.5);
            let mut y = op(&mut g, "Conv", &format!("first{stage}.{block}"), &[x, w, b], attrs());
            if !linear {
                y = op(&mut g, "Relu", "relu", &[y], Attrs::new());
            }
            let w = weight(&mut g, &[channels, channels, window, window], seed + 2, 0.3);
            let y = op(&mut g, "Conv", "second", &[y, w], attrs());
            let y = op(&mut g, "Add", "sum", &[y, x], Attrs::new());
            x = op(&mut g, "Relu", "relu", &[y], Attrs::new());
        }
    }
    let y = op(&mut g, "GlobalAveragePool", "pool", &[x], Attrs::new());
    g.outputs.push(y);
    g.infer().unwrap();
    g
}

fn images() -> Vec<Example> {
    let one = |k: usize| vec![("x".to_string(), Datum::Tensor(noise(&[3, 3, 8, 8], 40 + k, 2.0)))];
    (0..4).map(one).collect()
}

fn run(g: &Graph, examples: &[Example]) -> Vec<f32> {
    let session = Session::new(g.clone(), &cpu()).unwrap();
    let mut all = Vec::new();
    for example in examples {
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

fn names(blocks: &[Block]) -> Vec<&str> {
    blocks.iter().map(|b| b.name.as_str()).collect()
}

#[test]
fn repeated_blocks_are_found_whole_and_in_parts() {
    let g = encoder(&[0, 1, 2], &[1.0; 3]);
    let whole = blocks(&g);
    assert_eq!(names(&whole), ["0:mix0", "1:mix1", "2:mix2"]);
    assert!(whole.iter().all(|b| b.nodes.len() == 9 && b.elements == WIDTH * WIDTH * 9));
    // One follows the other, and the mask after the last is none of it.
    assert!(whole.windows(2).all(|w| w[0].output == w[1].input));
    assert_eq!(g.producer(whole[2].output).unwrap().1.kind(), "LayerNormalization");
    let parts = parts(&g);
    assert_eq!(names(&parts), ["0:mix0", "1:up0", "2:mix1", "3:up1", "4:mix2", "5:up2"]);

    let g = residual([3, 2], false);
    let found = blocks(&g);
    assert_eq!(names(&found), ["0:first0.0", "1:first0.1", "2:first0.2", "3:first1.0", "4:first1.1"]);
    assert!(found.iter().all(|b| b.nodes.len() == 5));
    assert!(blocks(&residual([0, 0], false)).is_empty());
}

#[test]
fn what_is_left_is_the_model_without_the_block() {
    let sizes = [0.5, 0.6, 0.7, 0.8];
    let g = encoder(&[0, 1, 2, 3], &sizes);
    let found = blocks(&g);
    for (gone, kept) in [(vec![1], vec![0, 2, 3]), (vec![3, 0], vec![1, 2]), (vec![2, 1], vec![0, 3])] {
        let cuts: Vec<Cut> = gone.iter().map(|&i| Cut::of(&g, &found[i], Bridge::None)).collect();
        for examples in [texts(), Vec::new()] {
            let mut less = g.clone();
            let errors = remove(&mut less, &cuts, &examples, &cpu()).unwrap();
            assert!(examples.is_empty() || errors.iter().all(|e| *e > 0.01), "{errors:?}");
            let want = encoder(&kept, &sizes);
            assert_eq!(less.nodes().count(), want.nodes().count());
            assert_eq!(run(&less, &texts()), run(&want, &texts()));
        }
    }
}

#[test]
fn an_output_of_the_graph_keeps_its_name() {
    let mut g = encoder(&[0, 1], &[0.5; 2]);
    let last = blocks(&g)[1].output;
    g.outputs.insert(0, last);
    for bridge in [Bridge::None, Bridge::Linear] {
        let found = blocks(&g);
        let mut less = g.clone();
        remove(&mut less, &[Cut::of(&g, &found[1], bridge)], &texts(), &cpu()).unwrap();
        assert_eq!(less.outputs, g.outputs);
        assert_eq!(run(&less, &texts()).len(), run(&g, &texts()).len());
    }
}

#[test]
fn a_linear_block_is_met_by_its_bridge() {
    let g = residual([3, 2], true);
    let found = blocks(&g);
    assert_eq!(found.len(), 5);
    for gone in [vec![1], vec![0, 3]] {
        let cut = |bridge| -> Vec<Cut> { gone.iter().map(|&i| Cut::of(&g, &found[i], bridge)).collect() };
        let (mut with, mut without) = (g.clone(), g.clone());
        remove(&mut with, &cut(Bridge::Linear), &images(), &cpu()).unwrap();
        remove(&mut without, &cut(Bridge::None), &images(), &cpu()).unwrap();
        let want = run(&g, &images());
        let (a, b) = (apart(&want, &run(&with, &images())), apart(&want, &run(&without, &images())));
        // Where the rectifier at the end cuts nothing off the map is exact; elsewhere it is the best there is.
        assert!(a < 0.15 * b, "{a} {b}");
        let kinds = |g: &Graph, kind: &str| g.nodes().filter(|(_, n)| n.kind() == kind).count();
        assert_eq!(kinds(&g, "Conv") - kinds(&with, "Conv"), gone.len());
        assert_eq!(kinds(&g, "Relu"), kinds(&with, "Relu"));
    }
}

#[test]
fn a_bridge_makes_up_for_what_is_gone_and_rank_pays() {
    let g = encoder(&[0, 1, 2], &[0.3; 3]);
    let found = blocks(&g);
    let error = |bridge| {
        let mut less = g.clone();
        let cuts = [Cut::of(&g, &found[0], bridge), Cut::of(&g, &found[1], bridge)];
        let errors = remove(&mut less, &cuts, &texts(), &cpu()).unwrap();
        assert_eq!(errors.len(), 1);
        // What is said is what is measured at the end of the stretch.
        let (was, is) = (found[1].output, less.find(&g.value(found[1].output).name).unwrap());
        if bridge != Bridge::None {
            let (mut a, mut b) = (Vec::new(), Vec::new());
            let see = |to: &mut Vec<f32>, g: &Graph, v| {
                observe(g, &[v], &texts(), &cpu(), &mut |d| {
                    to.extend(d[0].tensor()?.as_slice::<f32>()?);
                    Ok(())
                })
            };
            see(&mut a, &g, was).unwrap();
            see(&mut b, &less, is).unwrap();
            assert!((apart(&a, &b) / errors[0] - 1.0).abs() < 1e-3, "{} {errors:?}", apart(&a, &b));
        }
        errors[0]
    };
    let (none, low, full) = (error(Bridge::None), error(Bridge::Rank(4)), error(Bridge::Linear));
    assert!(full < low && low < none && full < 0.6 * none, "{none} {low} {full}");
}

#[test]
fn the_block_that_does_least_goes_first() {
    let g = encoder(&[0, 1, 2], &[0.5, 0.02, 0.8]);
    let found = blocks(&g);
    let change = influence(&g, &found, &texts(), &cpu()).unwrap();
    assert!(change[1] < 0.1 * change[0] && change[0] < change[2], "{change:?}");
    let want = run(&g, &texts());
    let tried = std::cell::Cell::new(0);
    let mut harm = |less: &Graph| {
        tried.set(tried.get() + 1);
        Ok(apart(&want, &run(less, &texts())))
    };
    let none: &[Example] = &[];
    let chosen = greedy(&g, &found, Bridge::None, 2, 1e9, none, &cpu(), &mut harm).unwrap();
    assert_eq!(chosen[0].0, Cut::of(&g, &found[1], Bridge::None));
    assert_eq!((chosen.len(), tried.get()), (2, 5));
    assert!(chosen[0].1 < chosen[1].1);
    let few = greedy(&g, &found, Bridge::None, 2, chosen[0].1, none, &cpu(), &mut harm).unwrap();
    assert_eq!(few.len(), 1);
}

#[test]
fn what_is_no_block_is_refused() {
    let g = encoder(&[0, 1], &[0.5; 2]);
    let name = |v: ValueId| g.value(v).name.clone();
    let found = blocks(&g);
    let refused = |input: &str, output: &str, bridge, examples: &[Example]| {
        let cut = Cut { input: input.into(), output: output.into(), bridge };
        remove(&mut g.clone(), &[cut], examples, &cpu()).unwrap_err().to_string()
    };
    let (a, b) = (name(found[0].input), name(found[0].output));
    assert!(refused("nothing", &b, Bridge::None, &[]).contains("no value"));
    assert!(refused(&b, &a, Bridge::None, &[]).contains("nothing leads"));
    assert!(refused(&a, &b, Bridge::Linear, &[]).contains("--data"));
    // The product alone is not all that leads on.
    let up = g.nodes().find(|(_, n)| n.name == "up0").unwrap().1.output(0).unwrap();
    assert!(refused(&a, &name(up), Bridge::None, &[]).contains("outside"));
    let twice = [Cut::of(&g, &found[0], Bridge::None), Cut { input: a, output: b, bridge: Bridge::None }];
    assert!(remove(&mut g.clone(), &twice, &[], &cpu()).unwrap_err().to_string().contains("overlap"));
}

#[test]
fn cuts_are_written_as_they_are_read() {
    for bridge in [Bridge::None, Bridge::Linear, Bridge::Rank(48)] {
        let cut = Cut { input: "a".into(), output: "b".into(), bridge };
        assert_eq!(toml::from_str::<Cut>(&toml::to_string(&cut).unwrap()).unwrap(), cut);
    }
    assert!("linear-0".parse::<Bridge>().is_err() && "square".parse::<Bridge>().is_err());
}
