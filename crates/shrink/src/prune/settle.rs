//! Shapes that a model computes while it runs, where they can be told before: exporters write the sizes of heads beside
//! sizes that they look up, and what is looked up cannot lose channels. `Reshape` to `[n, t, 12, 32]` becomes that to the
//! constant `[0, 0, 12, 32]`.

use graph::{Dim, Fact, Graph, Node, Tensor};

use crate::Result;

/// Makes the shapes constant that can be, and takes away what nobody needs then; says whether there were any.
///
/// # Errors
/// When the graph does not fit together.
pub fn settle(graph: &mut Graph) -> Result<bool> {
    let mut changed = false;
    for id in graph.node_ids() {
        let Some(shape) = graph.node(id).and_then(|node| told(graph, node)) else { continue };
        let shape = graph.add_constant("shape", Tensor::vector(&shape));
        graph.set_input(id, 1, Some(shape));
        changed = true;
    }
    if changed {
        remove_dead(graph);
        graph.infer()?;
        graph.check()?;
    }
    Ok(changed)
}

/// The shape that a `Reshape` computes, with 0 where it takes a size over and -1 where one follows from the rest.
fn told(graph: &Graph, node: &Node) -> Option<Vec<i64>> {
    let shape = node.input(1).filter(|v| node.kind() == "Reshape" && graph.constant(*v).is_none())?;
    if node.op.attrs().int_or("allowzero", 0).ok()? != 0 {
        return None;
    }
    let fact = |v| &graph.value(v).fact;
    let (x, ints): (&Fact, &Vec<Dim>) = (fact(node.input(0)?), fact(shape).ints.as_ref()?);
    let known = x.shape().unwrap_or(&[]);
    let number = |(i, dim): (usize, &Dim)| match dim {
        Dim::Is(n) => *n,
        dim if known.get(i).is_some_and(|d| d.same(dim)) => 0,
        _ => -1,
    };
    let list: Vec<i64> = ints.iter().enumerate().map(number).collect();
    (list.iter().filter(|n| **n == -1).count() <= 1).then_some(list)
}

fn remove_dead(graph: &mut Graph) {
    let mut needed = vec![false; graph.value_count()];
    graph.outputs.iter().for_each(|id| needed[id.index()] = true);
    let mut dead = Vec::new();
    for (id, node) in graph.nodes().rev() {
        match node.outputs.iter().flatten().any(|v| needed[v.index()]) {
            true => node.reads().for_each(|v| needed[v.index()] = true),
            false => dead.push(id),
        }
    }
    dead.into_iter().for_each(|id| graph.remove_node(id));
}

#[cfg(test)]
mod tests {
    use graph::{Attrs, DType};

    use super::*;
    use crate::prune::groups::groups;
    use crate::prune::groups::tests::one;

    /// Two products with heads between them, their number beside sizes that are looked up.
    fn looked_up() -> Graph {
        let mut g = Graph::new("heads");
        let size = vec![Dim::named("n"), Dim::named("t"), Dim::Is(6)];
        let x = g.add_input("x", Fact::tensor(DType::F32, size)).unwrap();
        let none = Attrs::new;
        let w = g.add_constant("w", graph::op::ramp(&[6, 12]));
        let y = one(&mut g, "MatMul", "q", &[x, w], none());
        let sizes = one(&mut g, "Shape", "sizes", &[y], none());
        let [first, second, rest] =
            [vec![0i64], vec![1], vec![3, 4]].map(|l| g.add_constant("i", Tensor::vector(&l)));
        let n = one(&mut g, "Gather", "n", &[sizes, first], none());
        let t = one(&mut g, "Gather", "t", &[sizes, second], none());
        let shape = one(&mut g, "Concat", "shape", &[n, t, rest], none().int("axis", 0));
        let y = one(&mut g, "Reshape", "heads", &[y, shape], none());
        let y = one(&mut g, "Relu", "relu", &[y], none());
        let whole = g.add_constant("i", Tensor::vector(&[12i64]));
        let shape = one(&mut g, "Concat", "shape", &[n, t, whole], none().int("axis", 0));
        let y = one(&mut g, "Reshape", "joined", &[y, shape], none());
        let w = g.add_constant("w", graph::op::ramp(&[12, 5]));
        let y = one(&mut g, "MatMul", "o", &[y, w], none());
        g.outputs.push(y);
        g.infer().unwrap();
        g
    }

    #[test]
    fn heads_are_found_behind_shapes_that_are_looked_up() {
        let mut g = looked_up();
        assert!(groups(&g).is_empty());
        assert!(settle(&mut g).unwrap());
        assert_eq!(groups(&g)[0].units.len(), 3);
        assert!(g.nodes().all(|(_, n)| n.kind() != "Shape" && n.kind() != "Concat"));
        assert!(!settle(&mut g).unwrap());
    }
}
