//! Whole channels, neurons and heads go, so that the model is physically smaller; what stays is refitted to the outputs
//! of the original (He, Zhang, Sun: "Channel pruning for accelerating very deep neural networks", 2017,
//! <https://arxiv.org/abs/1707.06168>).

use graph::Graph;
use kernel::Cpu;
use serde::{Deserialize, Serialize};

use super::groups::{self, Group};
use super::recover;
use super::settle::settle;
use crate::carry::Examples;
use crate::{Error, Result};

/// Which channels of a group stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Channels {
    /// The name of the node whose weight makes the channels.
    pub group: String,
    /// The numbers of the channels that stay, ascending; of attention, those of the heads.
    pub keep: Vec<u32>,
}

/// Takes channels away and refits the weights behind them on these examples (named inputs, batch by batch): each in the
/// order of the graph, on what the changed weights before it make, to what the original makes. Gives the squared
/// distance of the model's outputs from the original's on the examples, relative to theirs.
///
/// # Errors
/// When there are no examples, a group is not there, a channel cannot go, or the model cannot be run.
pub fn apply(graph: &mut Graph, cuts: &[Channels], examples: impl Into<Examples>, cpu: &Cpu) -> Result<f64> {
    let examples: Examples = examples.into();
    if examples.is_empty() {
        return Err(Error::Calibration("channels cannot go without examples to refit the others on".into()));
    }
    settle(graph)?;
    let found = groups::groups(graph);
    let cuts =
        cuts.iter().map(|c| Ok((find(&found, &c.group)?, c.keep.as_slice()))).collect::<Result<Vec<_>>>()?;
    let old = graph.clone();
    let kept = groups::cut(graph, &cuts)?;
    recover::recover(&old, graph, &kept, &examples, cpu)?;
    recover::distance(&old, graph, &examples.all()?, cpu)
}

/// The group of this name.
///
/// # Errors
/// [`Error::Plan`] when there is none.
pub fn find<'a>(groups: &'a [Group], name: &str) -> Result<&'a Group> {
    groups.iter().find(|g| g.name == name).ok_or_else(|| {
        let names: Vec<&str> = groups.iter().map(|g| g.name.as_str()).take(8).collect();
        let more = if groups.len() > names.len() { ", .." } else { "" };
        Error::Plan(format!(
            "node {name:?} makes no channels that can go; these do: {}{more}",
            names.join(", ")
        ))
    })
}

#[cfg(test)]
mod tests {
    use graph::op::ramp;
    use graph::{Attrs, DType, Datum, Dim, Fact, Tensor};
    use kernel::Isa;

    use super::*;
    use crate::gram::tests::cpu;
    use crate::prune::groups::tests::{attention, one};
    use crate::walk::Example;

    /// Two convolutions; of the eight channels between them four are sums of the other four, more or less.
    fn network() -> Graph {
        let mut g = Graph::new("net");
        let size = vec![Dim::named("n"), Dim::Is(3), Dim::Is(6), Dim::Is(6)];
        let x = g.add_input("x", Fact::tensor(DType::F32, size)).unwrap();
        let mut first = ramp(&[8, 3, 3, 3]);
        let data = first.as_mut_slice::<f32>().unwrap();
        for i in 0..4 * 27 {
            data[4 * 27 + i] = 0.5 * data[i] - 0.25 * data[(i + 27) % 108] + 0.01 * data[4 * 27 + i];
        }
        let (a, b) = (g.add_constant("w", first), g.add_constant("b", ramp(&[8])));
        let pads = || Attrs::new().ints("pads", &[1; 4]);
        let y = one(&mut g, "Conv", "first", &[x, a, b], pads());
        let c = g.add_constant("w", ramp(&[5, 8, 3, 3]));
        let y = one(&mut g, "Conv", "second", &[y, c], pads());
        g.outputs.push(y);
        g.infer().unwrap();
        g
    }

    fn examples(graph: &Graph) -> Vec<Example> {
        let fact = &graph.value(graph.inputs[0]).fact;
        let shape: Vec<usize> = fact.shape().unwrap().iter().map(|d| d.size().unwrap_or(7)).collect();
        let one = |k: usize| {
            let n: usize = shape.iter().product();
            let data: Vec<f32> =
                (0..n).map(|i| ((i * i + 7 * i * k + 31 * k) % 97) as f32 / 48.0 - 1.0).collect();
            vec![("x".to_string(), Datum::Tensor(Tensor::new(&shape, &data).unwrap()))]
        };
        (1..5).map(one).collect()
    }

    fn halved() -> Vec<Channels> {
        vec![Channels { group: "first".into(), keep: vec![0, 1, 2, 3] }]
    }

    #[test]
    fn what_others_can_make_up_for_is_made_up_for() {
        let graph = network();
        let mut plain = graph.clone();
        let found = groups::groups(&plain);
        groups::cut(&mut plain, &[(find(&found, "first").unwrap(), &halved()[0].keep)]).unwrap();
        let without = recover::distance(&graph, &plain, &examples(&graph), &cpu()).unwrap();
        let mut small = graph.clone();
        let error = apply(&mut small, &halved(), examples(&graph), &cpu()).unwrap();
        assert!(error < 0.1 * without && without > 0.3, "{error} {without}");
        assert_eq!(small.constant(graph.find("w").unwrap()).unwrap().shape(), [4, 3, 3, 3]);
    }

    #[test]
    fn threads_change_nothing() {
        for (graph, cuts) in [
            (network(), halved()),
            (
                attention(),
                vec![
                    Channels { group: "q".into(), keep: vec![0, 2] },
                    Channels { group: "up".into(), keep: (0..12).collect() },
                ],
            ),
        ] {
            let of = |threads| {
                let mut small = graph.clone();
                let cpu = Cpu::with_isa(Isa::best(), threads).unwrap();
                let error = apply(&mut small, &cuts, examples(&graph), &cpu).unwrap();
                let all: Vec<Vec<u8>> =
                    small.values().filter_map(|(_, v)| Some(v.constant.as_ref()?.bytes().to_vec())).collect();
                (error.to_bits(), all)
            };
            assert_eq!(of(1), of(3));
        }
    }

    #[test]
    fn heads_and_neurons_are_fitted_better_than_cut() {
        let graph = attention();
        for (group, keep) in [("q", vec![1, 2]), ("up", (0..14).collect::<Vec<u32>>())] {
            let mut plain = graph.clone();
            let found = groups::groups(&plain);
            groups::cut(&mut plain, &[(find(&found, group).unwrap(), &keep)]).unwrap();
            let without = recover::distance(&graph, &plain, &examples(&graph), &cpu()).unwrap();
            let cuts = vec![Channels { group: group.into(), keep }];
            let mut small = graph.clone();
            let error = apply(&mut small, &cuts, examples(&graph), &cpu()).unwrap();
            assert!(error < 0.5 * without, "{group}: {error} {without}");
        }
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        let mut g = network();
        let error = apply(&mut g, &halved(), Vec::new(), &cpu()).unwrap_err();
        assert!(error.to_string().contains("examples"), "{error}");
        let wrong = vec![Channels { group: "second".into(), keep: vec![0] }];
        let all = examples(&g);
        let error = apply(&mut g, &wrong, all, &cpu()).unwrap_err().to_string();
        assert!(error.contains("\"second\"") && error.contains("first"), "{error}");
    }
}
