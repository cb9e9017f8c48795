//! What a file holds beside its weights, made small: in a small model the graph's text is a third of it. Nothing here
//! changes what the model computes.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use graph::ir::Home;
use graph::op::Reader;
use graph::{Attr, Graph, Node, NodeId, Tensor, ValueId, ops};

use crate::Result;

/// Puts constants that are added to what a convolution makes, one for each channel, into the convolution as its
/// bias; says how many.
///
/// # Errors
/// When the graph breaks a rule.
pub fn biases(graph: &mut Graph) -> Result<usize> {
    let mut count = 0;
    for id in graph.node_ids() {
        let readers = graph.readers();
        let Some((sum, bias)) = graph.node(id).and_then(|node| added(graph, node, &readers)) else {
            continue;
        };
        let Some(output) = graph.node(sum).and_then(|n| n.output(0)) else { continue };
        let like = graph.node(sum).map(|n| n.name.clone()).unwrap_or_default();
        let bias = graph.add_constant(&format!("{like}.bias"), bias);
        graph.remove_node(sum);
        graph.set_input(id, 2, Some(bias));
        graph.set_output(id, 0, Some(output))?;
        count += 1;
    }
    Ok(count)
}

/// The addition after a convolution without a bias, and what it adds to each channel.
fn added(graph: &Graph, conv: &Node, readers: &[Vec<NodeId>]) -> Option<(NodeId, Tensor)> {
    let (channel, group) = match conv.kind() {
        "Conv" => (0, 1),
        "ConvTranspose" => (1, usize::try_from(conv.op.attrs().int_or("group", 1).ok()?).ok()?),
        _ => return None,
    };
    if conv.input(2).is_some() || !conv.op.domain().is_empty() {
        return None;
    }
    let made = conv.output(0)?;
    let weight = graph.constant(conv.input(1)?)?.shape();
    let channels = weight.get(channel)?.checked_mul(group)?;
    let &[sum] = readers[made.index()].as_slice() else { return None };
    let node = graph.node(sum).filter(|n| n.kind() == "Add" && n.op.domain().is_empty())?;
    let other = if node.input(0) == Some(made) { node.input(1)? } else { node.input(0)? };
    let bias = graph.constant(other)?;
    let after = weight.len() - 2;
    let mut per_channel = vec![1; after + 1];
    per_channel[0] = channels;
    let shape = bias.shape();
    let fits = shape == per_channel || shape.split_first() == Some((&1, &per_channel));
    let free = !graph.outputs.contains(&made) && !graph.inputs.contains(&other);
    if !fits || !free {
        return None;
    }
    Some((sum, Tensor::vector(&bias.values::<f32>().ok()?)))
}

/// Leaves out of a graph what its meaning does not need: constants that stand there twice, nodes that make
/// constants, attributes that say what holds anyway, and what exporters note at nodes and values.
///
/// # Errors
/// When the graph breaks a rule.
pub fn lean(graph: &mut Graph, version: i64) -> Result<()> {
    graph.infer()?;
    merge(graph);
    notes(graph);
    defaults(graph, version)
}

/// Texts and entries of nodes and of values inside, such as the lines of a program that they come from.
fn notes(graph: &mut Graph) {
    for id in graph.node_ids() {
        if let Some(node) = graph.node_mut(id) {
            node.doc.clear();
            node.metadata.clear();
        }
    }
    let kept = |id: &ValueId| graph.inputs.contains(id) || graph.outputs.contains(id);
    let inside: Vec<ValueId> = graph.values().map(|(id, _)| id).filter(|id| !kept(id)).collect();
    for id in inside {
        let value = graph.value_mut(id);
        value.doc.clear();
        value.metadata.clear();
    }
}

/// Keeps one of equal constants, as an initializer.
fn merge(graph: &mut Graph) {
    let named = |graph: &Graph, id| graph.inputs.contains(&id) || graph.outputs.contains(&id);
    let mut first: HashMap<u64, Vec<ValueId>> = HashMap::new();
    let mut same = Vec::new();
    for (id, value) in graph.values() {
        let Some(tensor) = value.constant.as_ref().filter(|_| !named(graph, id)) else { continue };
        let mut hasher = DefaultHasher::new();
        (tensor.dtype().to_onnx(), tensor.shape()).hash(&mut hasher);
        match tensor.as_strings() {
            Ok(strings) => strings.hash(&mut hasher),
            Err(_) => tensor.bytes().hash(&mut hasher),
        }
        let seen = first.entry(hasher.finish()).or_default();
        match seen.iter().find(|&&other| graph.constant(other).is_some_and(|t| equal(t, tensor))) {
            Some(&other) => same.push((id, other)),
            None => seen.push(id),
        }
    }
    for (again, kept) in same {
        graph.replace_value(again, kept);
    }
    for id in first.into_values().flatten() {
        let value = graph.value_mut(id);
        if matches!(value.home, Home::Node(..)) {
            value.home = Home::Initializer;
        }
    }
}

/// The same type, shape and bits: NaN equals itself, and 0 is not -0.
fn equal(a: &Tensor, b: &Tensor) -> bool {
    let bits = || match (a.as_strings(), b.as_strings()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a.bytes() == b.bytes(),
    };
    a.dtype() == b.dtype() && a.shape() == b.shape() && bits()
}

/// (attribute, the number that each element has when it is left out)
const DEFAULTS: &[(&str, i64)] = &[("dilations", 1), ("pads", 0), ("strides", 1)];
/// Operators whose attributes of [`DEFAULTS`] may be left out.
const WINDOWS: &[&str] = &["AveragePool", "Conv", "ConvTranspose", "MaxPool"];

fn defaults(graph: &mut Graph, version: i64) -> Result<()> {
    for id in graph.node_ids() {
        let weight = graph.node(id).and_then(|n| n.input(1)).and_then(|w| graph.value(w).fact.sizes());
        let weight = weight.map(|sizes| sizes.len());
        let Some(node) = graph.node_mut(id) else { continue };
        if !WINDOWS.contains(&node.kind()) || !node.op.domain().is_empty() {
            continue;
        }
        let mut attrs = node.op.attrs();
        for &(name, default) in DEFAULTS {
            if matches!(attrs.get(name), Some(Attr::Ints(all)) if all.iter().all(|&n| n == default)) {
                attrs.remove(name);
            }
        }
        // The weight has the sizes of the kernel.
        if ["Conv", "ConvTranspose"].contains(&node.kind()) && weight.is_some_and(|n| n > 2) {
            attrs.remove("kernel_shape");
        }
        let (inputs, outputs) = (node.inputs.len(), node.outputs.len());
        node.op = ops::read("", node.kind(), &Reader { attrs: &attrs, version, inputs, outputs })?;
    }
    Ok(())
}

/// Bytes that names of values take in the file of a graph: each stands where it is made and where it is read.
pub fn name_bytes(graph: &Graph) -> usize {
    let of = |id: ValueId| graph.value(id).name.len();
    let nodes = graph.nodes().flat_map(|(_, n)| n.reads().chain(n.outputs.iter().flatten().copied()));
    nodes.map(of).sum::<usize>()
        + graph.values().filter(|(_, v)| v.constant.is_some()).map(|(_, v)| v.name.len()).sum::<usize>()
}

/// Gives all values but inputs and outputs the shortest names there are, and takes those of the nodes. A graph is
/// left as it is when its nodes have bodies, which use names from outside, or when it has annotations of values.
///
/// # Errors
/// When the graph breaks a rule.
pub fn shorten(graph: &mut Graph) -> Result<()> {
    if !graph.extra.is_empty() || graph.nodes().any(|(_, n)| !n.op.bodies().is_empty()) {
        return Ok(());
    }
    // The most used first: they get the shortest names.
    let mut uses: HashMap<ValueId, usize> = HashMap::new();
    for (_, node) in graph.nodes() {
        for value in node.reads().chain(node.outputs.iter().flatten().copied()) {
            *uses.entry(value).or_default() += 1;
        }
    }
    let kept = |id: &ValueId| graph.inputs.contains(id) || graph.outputs.contains(id);
    let mut values: Vec<(ValueId, usize)> = uses.into_iter().filter(|(id, _)| !kept(id)).collect();
    values.sort_by_key(|&(id, uses)| (std::cmp::Reverse(uses), id));
    // Names that are still in use are passed over.
    let mut names = (0..).map(letters);
    for (id, _) in values {
        let free = names.find(|name| graph.find(name).is_none());
        graph.rename(id, &free.unwrap_or_default())?;
    }
    for id in graph.node_ids() {
        if let Some(node) = graph.node_mut(id) {
            node.name.clear();
        }
    }
    Ok(())
}

/// The names a, b, .. Z, aa, ba, .. in the order of their lengths.
fn letters(mut number: usize) -> String {
    const LETTERS: &[u8; 52] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let mut name = String::new();
    loop {
        name.push(char::from(LETTERS[number % LETTERS.len()]));
        number /= LETTERS.len();
        if number == 0 {
            return name;
        }
        number -= 1;
    }
}

#[cfg(test)]
mod tests {
    use graph::op::ramp;
    use graph::run::Session;
    use graph::{Attrs, DType, Datum, Dim, Fact};
    use kernel::{Cpu, Isa};

    use super::*;

    const VERSION: i64 = 17;

    fn add(g: &mut Graph, kind: &str, name: &str, inputs: &[ValueId], attrs: Attrs) -> ValueId {
        let reader = Reader { attrs: &attrs, version: VERSION, inputs: inputs.len(), outputs: 1 };
        let op = ops::read("", kind, &reader).unwrap();
        let node = Node { name: name.into(), ..Node::new(op, inputs.iter().copied().map(Some).collect()) };
        g.add_with_outputs(name, node, 1, None).unwrap().1[0]
    }

    /// A convolution, transposed perhaps, and what is added to it.
    fn convolution(kind: &str, weight: &[usize], bias: &[usize]) -> Graph {
        let mut g = Graph::new("conv");
        let size = vec![Dim::Is(2), Dim::Is(4), Dim::Is(5), Dim::Is(5)];
        let x = g.add_input("x", Fact::tensor(DType::F32, size)).unwrap();
        let w = g.add_constant("w", ramp(weight));
        let b = g.add_constant("b", ramp(bias));
        let attrs = || Attrs::new().int("group", 2).ints("pads", &[0; 4]).ints("strides", &[2, 2]);
        let y = add(&mut g, kind, "conv", &[x, w], attrs().ints("kernel_shape", &[3, 3]));
        let y = add(&mut g, "Add", "sum", &[b, y], Attrs::new());
        let last = add(&mut g, "Relu", "last", &[y], Attrs::new());
        g.outputs.push(last);
        g.infer().unwrap();
        g
    }

    fn run(g: &Graph) -> Vec<f32> {
        let session = Session::new(g.clone(), &Cpu::with_isa(Isa::best(), 1).unwrap()).unwrap();
        let y = session.run(vec![("x", Datum::Tensor(ramp(&[2, 4, 5, 5])))]).unwrap();
        y[0].tensor().unwrap().as_slice::<f32>().unwrap().to_vec()
    }

    fn kinds(g: &Graph) -> Vec<&str> {
        g.nodes().map(|(_, n)| n.kind()).collect()
    }

    #[test]
    fn additions_by_channel_become_a_bias() {
        for (kind, weight, bias, folds) in [
            ("Conv", [6, 2, 3, 3], &[1, 6, 1, 1][..], true),
            ("Conv", [6, 2, 3, 3], &[6, 1, 1], true),
            ("Conv", [6, 2, 3, 3], &[1, 6, 1, 2], false),
            ("Conv", [6, 2, 3, 3], &[1, 1, 1, 1], false),
            ("Conv", [6, 2, 3, 3], &[2, 6, 1, 1], false),
            ("ConvTranspose", [4, 3, 3, 3], &[1, 6, 1, 1], true),
        ] {
            let before = convolution(kind, &weight, bias);
            let mut after = before.clone();
            assert_eq!(biases(&mut after).unwrap(), usize::from(folds), "{kind} {bias:?}");
            after.check().unwrap();
            assert_eq!(kinds(&after).contains(&"Add"), !folds, "{kind} {bias:?}");
            let apart = run(&before).iter().zip(run(&after)).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(apart < 1e-5, "{kind} {bias:?}: {apart}");
        }
    }

    #[test]
    fn sums_that_somebody_else_needs_stay() {
        let mut g = convolution("Conv", &[6, 2, 3, 3], &[6, 1, 1]);
        let made = g.nodes().find(|(_, n)| n.kind() == "Conv").unwrap().1.output(0).unwrap();
        g.outputs.push(made);
        assert_eq!(biases(&mut g).unwrap(), 0);
    }

    #[test]
    fn attributes_that_say_what_holds_anyway_are_left_out() {
        let before = convolution("Conv", &[6, 2, 3, 3], &[6, 1, 1]);
        let mut after = before.clone();
        lean(&mut after, VERSION).unwrap();
        let attrs = after.nodes().next().unwrap().1.op.attrs();
        let names: Vec<&str> = attrs.iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["strides", "group"]);
        assert_eq!(run(&before), run(&after));
    }

    #[test]
    fn equal_constants_are_kept_once() {
        let mut g = Graph::new("g");
        let mut x = g.add_input("x", Fact::tensor(DType::F32, vec![Dim::Is(2)])).unwrap();
        // 0 and -0 are not the same, and neither are numbers of different types.
        for (i, number) in [1.5f32, 0.0, 1.5, -0.0].into_iter().enumerate() {
            let c = g.add_constant("c", Tensor::scalar(number));
            g.value_mut(c).home = Home::Node(format!("maker {i}"), "value");
            x = add(&mut g, "Mul", "product", &[x, c], Attrs::new());
        }
        g.outputs.push(x);
        g.infer().unwrap();
        lean(&mut g, VERSION).unwrap();
        let read: std::collections::BTreeSet<ValueId> = g.nodes().map(|(_, n)| n.input(1).unwrap()).collect();
        assert_eq!(read.len(), 3);
        assert!(read.iter().all(|&id| matches!(g.value(id).home, Home::Initializer)));
    }

    #[test]
    fn short_names_keep_inputs_outputs_and_the_meaning() {
        let mut g = convolution("Conv", &[6, 2, 3, 3], &[6, 1, 1]);
        let (want, bytes) = (run(&g), name_bytes(&g));
        shorten(&mut g).unwrap();
        g.check().unwrap();
        let names = |ids: &[ValueId]| ids.iter().map(|&id| g.value(id).name.clone()).collect::<Vec<_>>();
        assert_eq!((names(&g.inputs), names(&g.outputs)), (vec!["x".into()], vec!["last".into()]));
        assert!(name_bytes(&g) < bytes && g.nodes().all(|(_, n)| n.name.is_empty()));
        assert_eq!(run(&g), want);
    }

    #[test]
    fn letters_are_all_different() {
        let all: std::collections::HashSet<String> = (0..10_000).map(letters).collect();
        assert_eq!(all.len(), 10_000);
        assert_eq!([0, 51, 52, 53].map(letters), ["a", "Z", "aa", "ba"]);
        assert!((0..52 + 52 * 52).all(|i| letters(i).len() <= 2));
    }
}
