//! Transposes that follow each other become one, those that change nothing go, and one that only moves axes of size
//! one goes into the reshape behind it.

use std::sync::Arc;

use kernel::Cpu;

use super::pattern::replace;
use crate::ops::reshape::Reshape;
use crate::ops::transpose::Transpose;
use crate::{Dim, Graph, Node, NodeId, Result, Tensor, ValueId};

/// The input of a transpose and the order of its axes.
pub(super) fn order(graph: &Graph, node: &Node) -> Option<(ValueId, Vec<usize>)> {
    let transpose = node.op.as_any().downcast_ref::<Transpose>()?;
    let x = node.input(0)?;
    let rank = graph.value(x).fact.rank().or(transpose.perm().map(<[i64]>::len))?;
    Some((x, transpose.order(rank).ok()?))
}

/// Puts transposes together; says how many.
pub(super) fn merge(graph: &mut Graph, _: &Cpu) -> Result<usize> {
    graph.infer()?;
    let mut count = 0;
    for id in graph.node_ids() {
        count += usize::from(step(graph, id)?);
    }
    Ok(count)
}

fn step(graph: &mut Graph, id: NodeId) -> Result<bool> {
    let Some(node) = graph.node(id) else { return Ok(false) };
    let Some((mut x, mut axes)) = order(graph, node) else { return reshape(graph, id) };
    let before = graph.producer(x).and_then(|(_, before)| order(graph, before));
    let joined = before.is_some();
    if let Some((source, first)) = before.filter(|(_, first)| first.len() == axes.len()) {
        x = source;
        axes = axes.into_iter().map(|a| first[a]).collect();
    } else if joined {
        return Ok(false);
    }
    if axes.is_sorted() && pass(graph, id, x)? {
        return Ok(true);
    }
    if joined {
        let perm: Vec<i64> = axes.iter().map(|&a| a as i64).collect();
        replace(graph, id, Node::new(Arc::new(Transpose::new(&perm)), vec![Some(x)]))?;
    }
    Ok(joined)
}

/// Puts `x` in the place of what a node makes, when the names of the graph's inputs and outputs allow it.
fn pass(graph: &mut Graph, id: NodeId, x: ValueId) -> Result<bool> {
    let Some(y) = graph.node(id).and_then(|n| n.output(0)) else { return Ok(false) };
    if !graph.outputs.contains(&y) {
        graph.replace_value(y, x);
        graph.remove_node(id);
        return Ok(true);
    }
    let Some((maker, node)) = graph.producer(x).filter(|_| !graph.outputs.contains(&x)) else {
        return Ok(false);
    };
    let Some(at) = node.outputs.iter().position(|&o| o == Some(x)) else { return Ok(false) };
    graph.remove_node(id);
    graph.set_output(maker, at, Some(y))?;
    graph.replace_value(x, y);
    Ok(true)
}

/// Makes a reshape read what is before a transpose that only moves axes of size one.
fn reshape(graph: &mut Graph, id: NodeId) -> Result<bool> {
    let plan = || {
        let node = graph.node(id)?;
        node.op.as_any().downcast_ref::<Reshape>()?;
        let (_, before) = graph.producer(node.input(0)?)?;
        let (x, axes) = order(graph, before)?;
        let sizes = graph.value(x).fact.shape()?;
        let moving: Vec<usize> = axes.into_iter().filter(|&a| sizes[a] != Dim::Is(1)).collect();
        let shape = graph.value(node.output(0)?).fact.shape()?;
        let sizes: Vec<i64> = shape.iter().map(|d| d.size().map_or(-1, |d| d as i64)).collect();
        let known = sizes.iter().filter(|&&d| d < 0).count() < 2 && !sizes.contains(&0);
        (moving.is_sorted() && known).then_some((x, sizes))
    };
    let Some((x, sizes)) = plan() else { return Ok(false) };
    let shape = graph.add_constant("shape", Tensor::vector(&sizes));
    replace(graph, id, Node::new(Arc::new(Reshape::new()), vec![Some(x), Some(shape)]))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::ramp;
    use crate::ops::unary::Unary;
    use crate::run::Session;
    use crate::{DType, Fact};

    #[test]
    fn transposes_meet_and_names_stay() {
        let cpu = Cpu::new(1).unwrap();
        let mut g = Graph::new("g");
        let dims = [2usize, 1, 4].map(Dim::from).to_vec();
        let x = g.add_input("x", Fact::tensor(DType::F32, dims)).unwrap();
        let e = g.add_op("e", Unary::named("Exp").unwrap(), &[x]).unwrap();
        let a = g.add_op("a", Transpose::new(&[1, 2, 0]), &[e]).unwrap();
        let back = g.add_op("back", Transpose::new(&[2, 0, 1]), &[a]).unwrap();
        let other = g.add_op("other", Transpose::new(&[2, 1, 0]), &[a]).unwrap();
        let r = g.add_op("r", Transpose::new(&[1, 0, 2]), &[x]).unwrap();
        let shape = g.add_constant("shape", Tensor::vector(&[8i64]));
        let flat = g.add_op("flat", Reshape::new(), &[r, shape]).unwrap();
        g.outputs = vec![back, other, flat];
        let mut after = g.clone();
        super::super::run(&mut after, &[&[super::super::Pass { name: "", apply: merge }]], &cpu).unwrap();
        let kinds: Vec<&str> = after.nodes().map(|(_, n)| n.kind()).collect();
        assert_eq!(kinds, ["Exp", "Transpose", "Reshape"]);
        let run = |g| Session::new(g, &cpu).unwrap().run(vec![("x", ramp(&[2, 1, 4]).into())]).unwrap();
        let names = |g: &Graph| g.outputs.iter().map(|&o| g.value(o).name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&after), names(&g));
        assert_eq!(run(after), run(g));
    }
}
