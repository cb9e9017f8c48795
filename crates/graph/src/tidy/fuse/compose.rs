//! Functions that exporters write as sums of others: GELU, SiLU, hard swish, layer normalisation.

use std::sync::Arc;

use kernel::Cpu;

use crate::op::Reader;
use crate::ops;
use crate::tidy::pattern::{Match, Pattern, any, constant, either, number, op, replace};
use crate::{Attrs, Graph, Node, NodeId, Op, Result, ValueId};

/// An operator and its inputs.
type Made = (Arc<dyn Op>, Vec<ValueId>);

/// A pattern and the operator that it becomes.
struct Rule {
    name: &'static str,
    pattern: fn() -> Pattern,
    /// What it becomes; `None` when the match does not qualify after all.
    make: fn(&Graph, &Match) -> Option<Made>,
}

/// In this order: longer patterns before those they contain.
static RULES: &[Rule] = &[
    Rule { name: "gelu", pattern: gelu, make: |_, m| one("Gelu", 20, Attrs::new(), m.get("x")?) },
    Rule {
        name: "gelu-tanh",
        pattern: gelu_tanh,
        make: |_, m| one("Gelu", 20, Attrs::new().text("approximate", "tanh"), m.get("x")?),
    },
    Rule { name: "silu", pattern: silu, make: |_, m| one("Swish", 24, Attrs::new(), m.get("x")?) },
    Rule {
        name: "hard-swish",
        pattern: hard_swish,
        make: |_, m| one("HardSwish", 14, Attrs::new(), m.get("x")?),
    },
    Rule { name: "layer-norm", pattern: layer_norm, make: make_layer_norm },
];

fn read(kind: &str, version: i64, attrs: Attrs, inputs: usize) -> Option<Arc<dyn Op>> {
    ops::find("", kind, version)?;
    ops::read("", kind, &Reader { attrs: &attrs, version, inputs, outputs: 1 }).ok()
}

fn one(kind: &str, version: i64, attrs: Attrs, x: ValueId) -> Option<Made> {
    Some((read(kind, version, attrs, 1)?, vec![x]))
}

/// `x / 2 * (1 + erf(x / sqrt(2)))`, whichever way round.
fn gelu() -> Pattern {
    let root = std::f32::consts::SQRT_2;
    let scaled = either([op("Div", [any("x"), number(root)]), op("Mul", [any("x"), number(1.0 / root)])]);
    let gate = op("Add", [op("Erf", [scaled]), number(1.0)]);
    let half = || either([op("Mul", [any("x"), number(0.5)]), op("Div", [any("x"), number(2.0)])]);
    either([
        op("Mul", [op("Mul", [any("x"), gate.clone()]), number(0.5)]),
        op("Mul", [half(), gate.clone()]),
        op("Mul", [any("x"), op("Mul", [gate, number(0.5)])]),
    ])
}

/// `x / 2 * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
fn gelu_tanh() -> Pattern {
    let root = (2.0 / std::f32::consts::PI).sqrt();
    let cube =
        either([op("Pow", [any("x"), number(3.0)]), op("Mul", [any("x"), op("Mul", [any("x"), any("x")])])]);
    let inner = op("Add", [any("x"), op("Mul", [cube, number(0.044715)])]);
    let gate = op("Add", [op("Tanh", [op("Mul", [inner, number(root)])]), number(1.0)]);
    let half = op("Mul", [any("x"), number(0.5)]);
    either([
        op("Mul", [half, gate.clone()]),
        op("Mul", [op("Mul", [any("x"), gate.clone()]), number(0.5)]),
        op("Mul", [any("x"), op("Mul", [gate, number(0.5)])]),
    ])
}

fn silu() -> Pattern {
    op("Mul", [any("x"), op("Sigmoid", [any("x")])])
}

/// `x * clip(x + 3, 0, 6) / 6`, or `x * hard_sigmoid(x)` with the slope 1/6.
fn hard_swish() -> Pattern {
    let gate = || op("Clip", [op("Add", [any("x"), number(3.0)]), number(0.0), number(6.0)]);
    let sixth = 1.0 / 6.0;
    either([
        op("Div", [op("Mul", [any("x"), gate()]), number(6.0)]),
        op("Mul", [op("Mul", [any("x"), gate()]), number(sixth)]),
        op("Mul", [any("x"), op("Div", [gate(), number(6.0)])]),
    ])
}

/// `(x - mean) / sqrt(var + epsilon) * gamma + beta` over the last axis.
fn layer_norm() -> Pattern {
    let mean = || op("ReduceMean", [any("x")]).named("mean");
    let centred = || either([op("Sub", [any("x"), mean()]), op("Cast", [op("Sub", [any("x"), mean()])])]);
    let square = either([op("Pow", [centred(), number(2.0)]), op("Mul", [centred(), centred()])]);
    let var = op("ReduceMean", [square]).named("var");
    let root = op("Sqrt", [op("Add", [var, constant("epsilon")])]);
    let unit = op("Div", [centred(), root]);
    let scaled = op("Mul", [unit, constant("gamma")]);
    op("Add", [scaled, constant("beta")])
}

fn make_layer_norm(graph: &Graph, m: &Match) -> Option<Made> {
    let rank = graph.value(m.get("x")?).fact.rank()?;
    let last = |name: &str| {
        let node = graph.node(m.node(name)?)?;
        let attrs = node.op.attrs();
        let axes = match node.input(1) {
            Some(axes) => graph.constant(axes)?.to_ints().ok()?,
            None => attrs.opt_ints("axes").ok()??,
        };
        let keeps = attrs.flag_or("keepdims", true).ok()?;
        (keeps && axes.len() == 1 && (axes[0] == -1 || axes[0] == rank as i64 - 1)).then_some(())
    };
    last("mean")?;
    last("var")?;
    let (gamma, beta) = (m.get("gamma")?, m.get("beta")?);
    let vector = |v: ValueId| graph.value(v).fact.rank() == Some(1);
    let width = graph.value(gamma).fact.count()?;
    let fits = vector(gamma) && vector(beta) && graph.value(beta).fact.count() == Some(width);
    let epsilon = graph.constant(m.get("epsilon")?)?.to_f32().ok()?.first().copied()?;
    let known = graph.value(m.get("x")?).fact.shape()?.last()?.size();
    if !fits || width < 2 && known != Some(1) {
        return None;
    }
    let attrs = Attrs::new().int("axis", -1).float("epsilon", epsilon);
    Some((read("LayerNormalization", 17, attrs, 3)?, vec![m.get("x")?, gamma, beta]))
}

/// Applies all rules.
pub(in crate::tidy) fn fuse(graph: &mut Graph, _: &Cpu) -> Result<usize> {
    let mut count = 0;
    for rule in RULES {
        let pattern = (rule.pattern)();
        let ends = ends(&pattern);
        let mut readers = graph.readers();
        for id in graph.node_ids() {
            if !graph.node(id).is_some_and(|n| ends.contains(&n.kind())) {
                continue;
            }
            let Some(found) = pattern.find(graph, id, &readers) else { continue };
            let Some((op, inputs)) = (rule.make)(graph, &found) else { continue };
            tracing::trace!(rule = rule.name, "fused");
            swap(graph, id, op, inputs, &found)?;
            readers = graph.readers();
            count += 1;
        }
    }
    Ok(count)
}

/// The operators that a pattern can end in.
fn ends(pattern: &Pattern) -> Vec<&'static str> {
    match pattern {
        Pattern::Op(kind, _) => vec![kind],
        Pattern::Named(_, inner) => ends(inner),
        Pattern::Either(patterns) => patterns.iter().flat_map(ends).collect(),
        _ => Vec::new(),
    }
}

/// Puts one operator in the place of a match.
pub(super) fn swap(
    graph: &mut Graph,
    root: NodeId,
    op: Arc<dyn Op>,
    inputs: Vec<ValueId>,
    found: &Match,
) -> Result<()> {
    replace(graph, root, Node::new(op, inputs.into_iter().map(Some).collect()))?;
    for &id in found.nodes.iter().filter(|&&id| id != root) {
        graph.remove_node(id);
    }
    Ok(())
}
