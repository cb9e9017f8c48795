//! Where the time of a run goes, operator by operator.
//!
//! `cargo run --release -p lessen --example profile -- MODEL [threads] [nodes]` makes runs on made-up inputs for two
//! seconds and prints the time of each kind of operator, as it runs after all fusions; with `nodes`, of each node.

use lessen::shapes::{bind, made_up};
use lessen::{Cpu, Datum, Model, Runner};
use std::collections::HashMap;
use std::time::Instant;

#[derive(Default)]
struct Profile {
    start: Option<Instant>,
    /// Seconds, runs and what it makes, by name.
    times: HashMap<String, (f64, usize, String)>,
    nodes: bool,
}

impl graph::run::Watch for Profile {
    fn before(&mut self, _: graph::NodeId, _: &graph::Node, _: &[Option<Datum>]) {
        self.start = Some(Instant::now());
    }

    fn after(&mut self, id: graph::NodeId, node: &graph::Node, outputs: &[Datum]) {
        let Some(start) = self.start.take() else { return };
        let time = start.elapsed().as_secs_f64();
        let made = match outputs.first() {
            Some(Datum::Tensor(t)) => format!("{} {:?}", t.dtype(), t.shape()),
            _ => String::new(),
        };
        let kind = format!("{} {}", node.op.name(), made.split(' ').next().unwrap_or_default());
        let name = if self.nodes { format!("{:4} {kind}", id.index()) } else { kind };
        let entry = self.times.entry(name).or_default();
        *entry = (entry.0 + time, entry.1 + 1, made);
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let path = args.first().ok_or("which model?")?;
    let threads = args.get(1).map_or(Ok(1), |t| t.parse())?;
    let cpu = Cpu::new(threads)?;
    let model = Model::open(path)?;
    let runner = Runner::new(&model, &cpu)?;
    let mut shaped = model.inner().graph.clone();
    bind(&mut shaped, &[])?;
    let inputs = made_up(&shaped)?;
    for _ in 0..3 {
        runner.run(&inputs)?;
    }
    let mut profile = Profile { nodes: args.len() > 2, ..Profile::default() };
    let (begin, mut runs) = (Instant::now(), 0);
    while begin.elapsed().as_secs_f64() < 2.0 {
        runner.run_watched(&inputs, &mut profile)?;
        runs += 1;
    }
    let whole = begin.elapsed().as_secs_f64() / runs as f64;
    let mut times: Vec<_> = profile.times.into_iter().collect();
    match args.len() > 2 {
        true => times.sort_by(|a, b| a.0.cmp(&b.0)),
        false => times.sort_by(|a, b| b.1.0.total_cmp(&a.1.0)),
    }
    println!("{:40} {:>6} {:>9} {:>6}", "operator", "nodes", "ms", "share");
    for (name, (time, count, made)) in times {
        let (ms, nodes) = (1e3 * time / runs as f64, count / runs);
        let shape = if args.len() > 2 { made } else { String::new() };
        println!("{name:40} {nodes:6} {ms:9.3} {:5.1}% {shape}", 1e-1 * ms / whole);
    }
    println!("{:40} {:6} {:9.3}", "whole", "", 1e3 * whole);
    Ok(())
}
