//! Speed of the row-wise kernels on one thread: elements per second, and attention in GFLOP/s.

use std::hint::black_box;
use std::time::Instant;

use lessen_kernel::attention::{Attention, Strides, attention};
use lessen_kernel::norm::{Extra, Kind, Norm, norm};
use lessen_kernel::reduce::{Reduce, reduce};
use lessen_kernel::softmax::softmax;
use lessen_kernel::vec::{Binary, Right, binary};
use lessen_kernel::{Act, Cpu, Isa, act};

/// Calls `work` for a while; the best seconds of one call.
fn time(mut work: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    let begin = Instant::now();
    while begin.elapsed().as_millis() < 60 {
        let start = Instant::now();
        work();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

fn main() {
    for isa in
        Isa::available().into_iter().filter(|i| std::env::args().nth(1).is_none_or(|a| a == i.to_string()))
    {
        let Some(cpu) = Cpu::with_isa(isa, 1) else { continue };
        println!("{isa}");
        elementwise(&cpu);
        rows(&cpu);
        attend(&cpu);
    }
}

fn line(name: &str, count: usize, seconds: f64) {
    println!("  {name:<22} {:8.2} G elements/s", count as f64 / seconds / 1e9);
}

fn elementwise(cpu: &Cpu) {
    let input: Vec<f32> = (0..8192).map(|i| (i % 97) as f32 / 12.0 - 4.0).collect();
    let mut output = vec![0f32; input.len()];
    for act in [
        Act::Relu,
        Act::Exp,
        Act::Ln,
        Act::Tanh,
        Act::Sigmoid,
        Act::Erf,
        Act::Gelu,
        Act::GeluTanh,
        Act::Silu,
        Act::HardSwish,
        Act::Elu(1.0),
        Act::Softplus,
        Act::Mish,
        Act::Rsqrt,
    ] {
        let seconds = time(|| act::map(cpu, act, black_box(&input), &mut output));
        line(&format!("{act:?}"), input.len(), seconds);
    }
    let row = vec![0.5; 384];
    let len = 21 * 384;
    let seconds =
        time(|| binary(cpu, Binary::Add, black_box(&input[..len]), Right::Row(&row), &mut output[..len]));
    line("add row", len, seconds);
}

fn rows(cpu: &Cpu) {
    let mut data = vec![0.25f32; 64 * 128];
    let seconds = time(|| softmax(cpu, black_box(&mut data), [64, 128, 1]));
    line("softmax [64, 128]", data.len(), seconds);
    let input: Vec<f32> = (0..32 * 384).map(|i| (i % 31) as f32).collect();
    let mut output = vec![0f32; input.len()];
    let (gamma, beta) = (vec![1f32; 384], vec![0f32; 384]);
    let layer = Norm { kind: Kind::Layer, epsilon: 1e-5, gamma: Some(&gamma), beta: Some(&beta) };
    let seconds = time(|| norm(cpu, layer, black_box(&input), 384, Extra::default(), &mut output));
    line("layer norm [32, 384]", input.len(), seconds);
    let seconds = time(|| reduce(cpu, Reduce::Sum, black_box(&input), [32, 384, 1], &mut output[..32]));
    line("sum [32, 384]", input.len(), seconds);
    let seconds = time(|| reduce(cpu, Reduce::Max, black_box(&input), [1, 32, 384], &mut output[..384]));
    line("max [1, 32, 384]", input.len(), seconds);
}

fn attend(cpu: &Cpu) {
    for (batch, heads, queries, keys, width) in
        [(8, 12, 128, 128, 32), (1, 12, 512, 512, 64), (1, 12, 1, 512, 64)]
    {
        let shape = Attention {
            batch,
            heads,
            kv_heads: heads,
            queries,
            keys,
            width,
            value_width: width,
            scale: 0.2,
            softcap: 0.0,
            causal: None,
            mask: None,
        };
        let (qs, ks) = (Strides::rows_first(heads, queries, width), Strides::rows_first(heads, keys, width));
        let q: Vec<f32> = (0..batch * heads * queries * width).map(|i| (i % 13) as f32 / 13.0).collect();
        let k: Vec<f32> = (0..batch * heads * keys * width).map(|i| (i % 17) as f32 / 17.0).collect();
        let mut out = vec![0f32; q.len()];
        let seconds =
            time(|| attention(cpu, &shape, (black_box(&q), qs), (&k, ks), (&k, ks), (&mut out, qs)));
        let flops = (4 * batch * heads * queries * keys * width) as f64;
        println!(
            "  attention {batch}x{heads}x{queries}x{keys}x{width}  {:.1} GFLOP/s, {:.3} ms",
            flops / seconds / 1e9,
            seconds * 1e3
        );
    }
}
