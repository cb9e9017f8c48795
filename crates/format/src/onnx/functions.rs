//! Model-local functions: the body of one, with a call's attributes put in.
//! <https://github.com/onnx/onnx/blob/main/docs/IR.md#functions>

use super::proto::{AttributeProto, FunctionProto, GraphProto, NodeProto, ValueInfoProto};

/// The function's body as a graph, for one call.
pub(super) fn instantiate(function: &FunctionProto, call: &NodeProto) -> GraphProto {
    let given = |i: usize| call.input.get(i).is_some_and(|name| !name.is_empty());
    let absent: Vec<&str> = function
        .input
        .iter()
        .enumerate()
        .filter(|&(i, _)| !given(i))
        .map(|(_, name)| name.as_str())
        .collect();
    let mut nodes = function.node.clone();
    substitute(&mut nodes, &call.attribute, &function.attribute_proto, &absent);
    let named = |name: &String| ValueInfoProto { name: Some(name.clone()), ..ValueInfoProto::default() };
    GraphProto {
        node: nodes,
        name: function.name.clone(),
        // Absent inputs stay inputs, so that positions are kept; nobody reads them.
        input: function.input.iter().map(named).collect(),
        output: function.output.iter().map(named).collect(),
        value_info: function.value_info.clone(),
        ..GraphProto::default()
    }
}

/// Number of nodes, those in bodies included.
pub(super) fn size(nodes: &[NodeProto]) -> usize {
    let bodies = nodes.iter().flat_map(|n| &n.attribute).flat_map(|a| a.g.iter().chain(&a.graphs));
    nodes.len() + bodies.map(|g| size(&g.node)).sum::<usize>()
}

fn substitute(
    nodes: &mut [NodeProto],
    given: &[AttributeProto],
    defaults: &[AttributeProto],
    absent: &[&str],
) {
    for node in nodes {
        for input in &mut node.input {
            if absent.contains(&input.as_str()) {
                input.clear();
            }
        }
        node.attribute.retain_mut(|attr| {
            if attr.ref_attr_name().is_empty() {
                for graph in attr.g.iter_mut().chain(&mut attr.graphs) {
                    substitute(&mut graph.node, given, defaults, absent);
                }
                return true;
            }
            let of = attr.ref_attr_name().to_owned();
            let found =
                given.iter().find(|a| a.name() == of).or_else(|| defaults.iter().find(|a| a.name() == of));
            match found {
                Some(value) => {
                    *attr = AttributeProto { name: attr.name.take(), ..value.clone() };
                    true
                }
                None => false,
            }
        });
    }
}
