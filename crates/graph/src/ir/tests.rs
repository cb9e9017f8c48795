use super::*;
use crate::ops::unary::Unary;
use crate::{DType, Dim};

fn chain() -> (Graph, ValueId, ValueId) {
    let mut g = Graph::new("chain");
    let x = g.add_input("x", Fact::tensor(DType::F32, vec![Dim::named("n")])).unwrap();
    let a = g.add_op("a", Unary::named("Exp").unwrap(), &[x]).unwrap();
    let b = g.add_op("b", Unary::named("Neg").unwrap(), &[a]).unwrap();
    g.outputs.push(b);
    (g, a, b)
}

#[test]
fn names_are_unique_and_values_are_made_once() {
    let (mut g, a, b) = chain();
    assert!(g.add_value(Value { name: "a".into(), ..Value::default() }).is_err());
    assert_ne!(g.fresh_name("a"), "a");
    let (node, _) = g.producer(b).unwrap();
    assert!(g.set_output(node, 0, Some(a)).is_err());
    assert!(g.check().is_ok());
}

#[test]
fn facts_flow_through_added_operators() {
    let (g, _, b) = chain();
    assert_eq!(g.value(b).fact, Fact::tensor(DType::F32, vec![Dim::named("n")]));
}

#[test]
fn sorting_finds_cycles() {
    let (mut g, a, b) = chain();
    g.sort().unwrap();
    let (first, _) = g.producer(a).unwrap();
    g.set_input(first, 0, Some(b));
    assert!(g.check().is_err());
    assert!(g.sort().unwrap_err().to_string().contains("cycle"));
}

#[test]
fn sorting_mends_a_wrong_order() {
    let (mut g, a, b) = chain();
    let (first, _) = g.producer(a).unwrap();
    let node = g.node(first).unwrap().clone();
    g.remove_node(first);
    g.add_node(node).unwrap();
    assert!(g.check().is_err());
    g.sort().unwrap();
    g.check().unwrap();
    assert!(g.producer(b).is_some());
}

#[test]
fn removed_nodes_leave_their_readers_without_a_maker() {
    let (mut g, a, _) = chain();
    let (first, _) = g.producer(a).unwrap();
    g.remove_node(first);
    assert!(g.check().unwrap_err().to_string().contains("nothing makes"));
}

#[test]
fn nodes_that_are_appended_have_names_of_their_own() {
    let mut graph = Graph::new("test");
    let mut x = graph.add_input("x", Fact::tensor(DType::F32, vec![Dim::from(2)])).unwrap();
    for _ in 0..3 {
        x = graph.append("y", "Relu", 14, &Attrs::new(), &[x]).unwrap();
    }
    let names: std::collections::HashSet<_> = graph.nodes().map(|(_, node)| node.name.clone()).collect();
    assert!(names.len() == 3 && names.contains("y"), "{names:?}");
}
