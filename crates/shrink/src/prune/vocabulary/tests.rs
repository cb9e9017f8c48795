use graph::run::Session;
use graph::{Datum, Dim, Fact};

use super::*;
use crate::gram::tests::cpu;

const TOKENS: usize = 50;

fn noise(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let n = shape.iter().product();
    Tensor::new(shape, &(0..n).map(|_| next()).collect::<Vec<f32>>()).unwrap()
}

/// A language model: a table, a product, and a head of one of several kinds, with a bias.
fn model(head: &str) -> Graph {
    let mut g = Graph::new("lm");
    let ids = g.add_input("ids", Fact::tensor(DType::I64, vec![Dim::named("n"), Dim::Is(6)])).unwrap();
    let table = g.add_constant("table", noise(&[TOKENS, 8], 1));
    let x = add(&mut g, "Gather", "rows", &[table, ids], Attrs::new(), None).unwrap();
    let w = g.add_constant("w", noise(&[8, 8], 2));
    let mut x = add(&mut g, "MatMul", "mix", &[x, w], Attrs::new(), None).unwrap();
    let bias = g.add_constant("bias", noise(&[TOKENS], 3));
    let y = match head {
        "none" => x,
        "gemm" => {
            let shape = g.add_constant("shape", Tensor::vector(&[-1i64, 8]));
            x = add(&mut g, "Reshape", "flat", &[x, shape], Attrs::new(), None).unwrap();
            add(&mut g, "Gemm", "head", &[x, table, bias], Attrs::new().int("transB", 1), None).unwrap()
        }
        kind => {
            let weight = match kind {
                "turned" => {
                    let perm = Attrs::new().ints("perm", &[1, 0]);
                    add(&mut g, "Transpose", "turn", &[table], perm, None).unwrap()
                }
                _ => g.add_constant("head", noise(&[8, TOKENS], 4)),
            };
            let y = add(&mut g, "MatMul", "head", &[x, weight], Attrs::new(), None).unwrap();
            add(&mut g, "Add", "biased", &[y, bias], Attrs::new(), None).unwrap()
        }
    };
    g.outputs.push(y);
    g.infer().unwrap();
    g
}

fn example(ids: &[i64]) -> Example {
    vec![("ids".to_string(), Datum::Tensor(Tensor::new(&[ids.len() / 6, 6], ids).unwrap()))]
}

fn run(g: &Graph, ids: &[i64]) -> Vec<f32> {
    let session = Session::new(g.clone(), &cpu()).unwrap();
    let inputs = example(ids);
    let out = session.run(inputs.iter().map(|(n, d)| (n.as_str(), d.clone())).collect()).unwrap();
    out[0].tensor().unwrap().as_slice::<f32>().unwrap().to_vec()
}

fn cut(keep: &str, lost: Lost) -> Cut {
    Cut { table: "table".into(), keep: keep.parse().unwrap(), lost }
}

#[test]
fn kept_tokens_are_as_before_and_others_are_unknown() {
    let g = model("none");
    let mut small = g.clone();
    let error = trim(&mut small, &cut("0 5-20 33", Lost::Unknown(3)), &cpu()).unwrap();
    assert!(error > 0.1);
    assert_eq!(run(&g, &[0, 5, 20, 33, 3, 7]), run(&small, &[0, 5, 20, 33, 3, 7]));
    assert_eq!(run(&g, &[3, 3, 3, 3, 0, 33]), run(&small, &[1, 21, 49, -2, 0, 33]));
    let mut rows = small.values().filter(|(_, v)| v.constant.is_some()).map(|(_, v)| v.fact.sizes().unwrap());
    assert!(rows.any(|s| s == [19, 8]) && small.nodes().count() == 4);
    // Nothing is lost: nothing changes.
    let mut same = g.clone();
    assert_eq!(trim(&mut same, &cut("0-49", Lost::Nearest), &cpu()).unwrap(), 0.0);
    assert_eq!(same.nodes().count(), g.nodes().count());
}

#[test]
fn the_nearest_row_is_nearer_than_that_of_the_unknown() {
    let g = model("none");
    let (mut near, mut unknown) = (g.clone(), g.clone());
    let a = trim(&mut near, &cut("0-24", Lost::Nearest), &cpu()).unwrap();
    let b = trim(&mut unknown, &cut("0-24", Lost::Unknown(0)), &cpu()).unwrap();
    assert!(a < 0.6 * b, "{a} {b}");
    let table = noise(&[TOKENS, 8], 1);
    let rows: Vec<&[f32]> = table.as_slice::<f32>().unwrap().chunks(8).collect();
    let far = |a: usize, b: usize| -> f32 { rows[a].iter().zip(rows[b]).map(|(a, b)| (a - b).powi(2)).sum() };
    for id in 25..TOKENS {
        let best = (0..25).min_by(|&a, &b| far(id, a).total_cmp(&far(id, b))).unwrap() as i64;
        assert_eq!(run(&near, &[id as i64; 6]), run(&g, &[best; 6]));
    }
}

#[test]
fn output_heads_lose_the_same_tokens_and_keep_their_shape() {
    for head in ["gemm", "turned", "own"] {
        let g = model(head);
        let mut small = g.clone();
        trim(&mut small, &cut("2 10-29", Lost::Unknown(2)), &cpu()).unwrap();
        let (want, got) = (run(&g, &[2, 10, 11, 12, 29, 28]), run(&small, &[2, 10, 11, 12, 29, 28]));
        assert_eq!(want.len(), got.len(), "{head}");
        for (k, (want, got)) in want.iter().zip(&got).enumerate() {
            match k % TOKENS {
                2 | 10..30 => assert!((want - got).abs() < 1e-5, "{head} {k}: {want} {got}"),
                _ => assert_eq!(*got, f32::MIN, "{head} {k}"),
            }
        }
        // No constant is as long as the vocabulary but the two tables of places.
        let read: Vec<ValueId> = small.nodes().flat_map(|(_, n)| n.reads().collect::<Vec<_>>()).collect();
        let long = |v: &&ValueId| {
            small.constant(**v).is_some_and(|t| t.dtype() == DType::F32 && t.len() >= TOKENS * 8)
        };
        assert_eq!(read.iter().filter(long).count(), 0, "{head}");
    }
}

#[test]
fn tokens_are_counted_where_they_are_looked_up() {
    let g = model("none");
    let table = &tables(&g, TOKENS).unwrap()[0];
    let examples = [example(&[1, 2, 2, 3, -1, 2]), example(&[2; 12])];
    let found = counts(&g, table, &examples, &cpu()).unwrap();
    assert_eq!((found[1], found[2], found[TOKENS - 1], found[0]), (1, 15, 1, 0));
    assert_eq!(seen(&found, 1, [0, 9, 999]).to_string(), "0-3 9 49");
    assert_eq!(seen(&found, 2, [0]).as_slice(), [0, 2]);
    assert!(tables(&g, TOKENS + 1).unwrap().is_empty());
}

#[test]
fn ids_are_written_as_they_are_read_and_odd_cuts_are_refused() {
    let ids = Ids::new([7, 3, 4, 5, 7, 100]);
    assert_eq!(ids.to_string(), "3-5 7 100");
    assert_eq!(ids.to_string().parse(), Ok(ids));
    for bad in ["5-3", "x", "1-", "0-4294967295"] {
        assert!(bad.parse::<Ids>().is_err(), "{bad}");
    }
    let cut = cut("3-5", Lost::Unknown(0));
    assert_eq!(toml::from_str::<Cut>(&toml::to_string(&cut).unwrap()).unwrap(), cut);
    let g = model("none");
    let refused = |table: &str, keep: &str, lost| {
        let cut = Cut { table: table.into(), keep: keep.parse().unwrap(), lost };
        trim(&mut g.clone(), &cut, &cpu()).unwrap_err().to_string()
    };
    assert!(refused("nothing", "1", Lost::Nearest).contains("none of this name"));
    assert!(refused("table", "1-50", Lost::Nearest).contains("no token 50"));
    assert!(refused("table", "", Lost::Nearest).contains("no token is kept"));
    assert!(refused("w", "1", Lost::Nearest).contains("no node looks up"));
}
