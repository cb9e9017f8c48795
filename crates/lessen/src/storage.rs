//! Where the bytes of a model are: in weights of which width, in their scales, in the rest of the file.

use std::collections::{HashMap, HashSet};

use graph::{DType, Graph, NodeId, Tensor, ValueId};
use serde::Serialize;

/// The bytes of one class of weights.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Storage {
    /// What they are: `float`, `codes of 8 bits`, `tables of 3 bits`, `biases of 32 bits`,
    /// `scales and zero points`, `whole numbers` (sizes, indices), `graph and names`.
    pub name: String,
    /// Bits of an element, for weights.
    pub bits: Option<u32>,
    /// Number of elements, for weights; with what fills up bytes.
    pub elements: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What a constant is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Class {
    /// Weights as floating-point numbers of this width.
    Float(u32),
    /// Codes of this width, of products.
    Codes(u32),
    /// Codes of this width, looked up by row.
    Tables(u32),
    Scales,
    /// Whole numbers of 32 bits that are added to products.
    Biases,
    /// Sizes, indices, masks.
    Whole,
}

/// The classes of the constants of a graph, biggest first, and what else is in a file of so many bytes. `None` when the
/// constants are more than the file, which then holds them in another form.
pub(crate) fn storage(graph: &Graph, file: u64) -> Option<Vec<Storage>> {
    let mut sums: HashMap<Class, (u64, u64)> = HashMap::new();
    collect(graph, &mut sums);
    let mut found: Vec<Storage> = Vec::new();
    for (class, (count, bytes)) in sums {
        let elements = match class {
            // Planes hold parts of elements.
            Class::Codes(bits) | Class::Tables(bits) => 8 * bytes / u64::from(bits.max(1)),
            _ => count,
        };
        let (name, bits) = match class {
            Class::Float(32) => ("float".to_string(), Some(32)),
            Class::Float(bits) => (format!("float of {bits} bits"), Some(bits)),
            Class::Codes(bits) => (format!("codes of {bits} bits"), Some(bits)),
            Class::Tables(bits) => (format!("tables of {bits} bits"), Some(bits)),
            Class::Scales => ("scales and zero points".into(), None),
            Class::Biases => ("biases of 32 bits".into(), Some(32)),
            Class::Whole => ("whole numbers".into(), None),
        };
        found.push(Storage { name, bits, elements, bytes });
    }
    found.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
    let constants: u64 = found.iter().map(|s| s.bytes).sum();
    let rest = file.checked_sub(constants)?;
    found.push(Storage { name: "graph and names".into(), bits: None, elements: 0, bytes: rest });
    Some(found)
}

fn collect(graph: &Graph, sums: &mut HashMap<Class, (u64, u64)>) {
    let classes = classify(graph);
    let readers = graph.readers();
    for (id, value) in graph.values() {
        let Some(tensor) = &value.constant else { continue };
        // The file has only what is used.
        if readers[id.index()].is_empty() && !graph.outputs.contains(&id) && !graph.inputs.contains(&id) {
            continue;
        }
        let class = classes.get(&id).copied().unwrap_or(match tensor.dtype() {
            dtype if dtype.is_float() => Class::Float(dtype.bits() as u32),
            _ => Class::Whole,
        });
        let sum = sums.entry(class).or_default();
        *sum = (sum.0 + tensor.len() as u64, sum.1 + tensor.bytes().len() as u64);
    }
    for (_, node) in graph.nodes() {
        for body in node.op.bodies() {
            collect(body, sums);
        }
    }
}

/// Operators between the parts of codes and what reads the codes.
const JOINTS: [&str; 11] = [
    "BitShift",
    "BitwiseAnd",
    "BitwiseOr",
    "Concat",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Transpose",
    "Unsqueeze",
];

/// The constants that stand for quantized weights: codes and what scales them.
fn classify(graph: &Graph) -> HashMap<ValueId, Class> {
    let readers = graph.readers();
    let mut found = HashMap::new();
    for (_, node) in graph.nodes() {
        if !node.op.domain().is_empty() {
            continue;
        }
        let (codes, scales): (&[usize], &[usize]) = match node.kind() {
            "DequantizeLinear" => (&[0], &[1, 2]),
            "QuantizeLinear" => (&[], &[1, 2]),
            "MatMulInteger" | "ConvInteger" => (&[0, 1], &[2, 3]),
            "QLinearMatMul" | "QLinearConv" => (&[0, 3], &[1, 2, 4, 5, 6, 7]),
            "Cast" => (&[0], &[]),
            "Mul" if reads_dynamic_scale(graph, node) => (&[], &[0, 1]),
            _ => continue,
        };
        for value in codes.iter().filter_map(|&i| node.input(i)) {
            let parts = Parts::of(graph, &readers, value);
            let class = if parts.table { Class::Tables(parts.bits) } else { Class::Codes(parts.bits) };
            found.extend(parts.codes.into_iter().map(|id| (id, class)));
            found.extend(parts.zeros.into_iter().map(|id| (id, Class::Scales)));
            found.extend(parts.biases.into_iter().map(|id| (id, Class::Biases)));
        }
        for value in scales.iter().filter_map(|&i| node.input(i)) {
            if graph.constant(value).is_some() {
                found.insert(value, Class::Scales);
            }
        }
    }
    // Scales that are looked up with the rows of a table: one number a row, or a group of it.
    for (_, node) in graph.nodes().filter(|(_, n)| n.kind() == "Gather" && n.op.domain().is_empty()) {
        let Some(table) = node.input(0) else { continue };
        let one = graph.constant(table).is_some_and(|t| t.rank() > 1 && t.shape().last() == Some(&1));
        let scales = node.output(0).is_some_and(|row| {
            readers[row.index()].iter().filter_map(|&r| graph.node(r)).all(|r| r.kind() == "Mul")
        });
        if one && scales {
            found.insert(table, Class::Scales);
        }
    }
    found
}

fn reads_dynamic_scale(graph: &Graph, node: &graph::Node) -> bool {
    let dynamic = |value: ValueId| {
        graph
            .producer(value)
            .is_some_and(|(_, n)| n.kind() == "DynamicQuantizeLinear" && n.output(1) == Some(value))
    };
    node.reads().any(dynamic)
}

/// The constants that a value is put together from.
#[derive(Default)]
struct Parts {
    codes: Vec<ValueId>,
    /// Zero points of a table's rows.
    zeros: Vec<ValueId>,
    /// Sums in 32 bits that are scaled back.
    biases: Vec<ValueId>,
    /// Bits of a code.
    bits: u32,
    /// True when rows are looked up.
    table: bool,
}

impl Parts {
    fn of(graph: &Graph, readers: &[Vec<NodeId>], value: ValueId) -> Parts {
        let mut parts = Parts::default();
        let mut seen = HashSet::from([value]);
        let mut left = vec![(value, false)];
        while let Some((value, looked_up)) = left.pop() {
            if let Some(tensor) = graph.constant(value) {
                parts.add(readers, graph, value, tensor, looked_up);
                continue;
            }
            let Some((_, node)) = graph.producer(value) else { continue };
            if !JOINTS.contains(&node.kind()) {
                continue;
            }
            // What else these read are sizes and indices.
            let first = matches!(node.kind(), "Gather" | "Reshape" | "Slice" | "Split" | "Unsqueeze");
            let most = if first { 1 } else { node.inputs.len() };
            let looked_up = looked_up || node.kind() == "Gather";
            for &input in node.inputs.iter().take(most).flatten() {
                if seen.insert(input) {
                    left.push((input, looked_up));
                }
            }
        }
        parts
    }

    fn add(
        &mut self,
        readers: &[Vec<NodeId>],
        graph: &Graph,
        value: ValueId,
        tensor: &Tensor,
        looked_up: bool,
    ) {
        let dtype = tensor.dtype();
        if dtype == DType::I32 && !looked_up {
            self.biases.push(value);
        } else if tensor.len() < 2 || !dtype.is_int() || dtype.bits() > 8 {
            // Masks and shifts, sizes.
        } else if looked_up && tensor.rank() > 1 && tensor.shape().last() == Some(&1) {
            self.zeros.push(value);
        } else {
            self.table |= looked_up;
            self.bits += width(graph, readers, value).unwrap_or(dtype.bits() as u32);
            self.codes.push(value);
        }
    }
}

/// Bits of an element of a plane: those of the mask that is laid on it, or on its rows where they are looked up.
fn width(graph: &Graph, readers: &[Vec<NodeId>], plane: ValueId) -> Option<u32> {
    let nodes = |value: ValueId| readers[value.index()].iter().filter_map(|&r| graph.node(r));
    let rows = nodes(plane).filter(|n| n.kind() == "Gather").filter_map(|n| n.output(0));
    rows.chain([plane]).find_map(|value| {
        let mask = |n: &graph::Node| n.reads().filter(|&v| v != value).find_map(|v| graph.constant(v));
        let masks = nodes(value).filter(|n| n.kind() == "BitwiseAnd").filter_map(mask);
        let bits = |m: &Tensor| m.to_ints().ok()?.first().map(|m| m.count_ones());
        masks.filter(|m| m.len() == 1).find_map(bits)
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::shrink::{Choice, Plan, Request, shrink};
    use crate::{Cpu, Model};

    fn digits(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/digits").join(name)
    }

    /// Shrinks the example as asked: the classes of its bytes, and the elements that the plan says are in few bits.
    fn stored(request: &Request) -> (Vec<Storage>, u64) {
        let cpu = Cpu::new(1).unwrap();
        let model = Model::open(digits("digits.onnx")).unwrap();
        let (small, receipt) = shrink(&model, request, &cpu, &|_| ()).unwrap();
        let found = storage(&small.inner().graph, receipt.bytes_after.value as u64).unwrap();
        assert_eq!(found.iter().map(|s| s.bytes).sum::<u64>() as f64, receipt.bytes_after.value);
        (found, receipt.plan.changed().map(|s| s.elements as u64).sum())
    }

    fn names(found: &[Storage]) -> Vec<&str> {
        found.iter().map(|s| s.name.as_str()).collect()
    }

    #[test]
    fn every_byte_has_a_class_and_every_width_its_own() {
        let (_, first) = {
            let model = Model::open(digits("digits.onnx")).unwrap();
            shrink(&model, &Request::default(), &Cpu::new(1).unwrap(), &|_| ()).unwrap()
        };
        for (choice, class) in [
            ("keep", "float"),
            ("w2", "codes of 2 bits"),
            ("w3", "codes of 3 bits"),
            ("w4", "codes of 4 bits"),
            ("w7", "codes of 7 bits"),
        ] {
            let mut plan: Plan = first.plan.clone();
            let choice: Choice = choice.parse().unwrap();
            plan.steps.iter_mut().for_each(|s| s.choice = choice);
            let (found, elements) = stored(&Request { plan: Some(&plan), ..Request::default() });
            assert_eq!((found[0].name.as_str(), names(&found).last()), (class, Some(&"graph and names")));
            let codes: Vec<&Storage> = found.iter().filter(|s| s.name.starts_with("codes")).collect();
            if choice == Choice::Keep {
                assert!(codes.is_empty());
                continue;
            }
            assert_eq!(codes.len(), 1, "{found:?}");
            assert!(codes[0].elements.abs_diff(elements) < 16, "{elements}: {found:?}");
            assert!(names(&found).contains(&"scales and zero points"));
        }
    }

    #[test]
    fn eight_bits_have_biases_and_scales() {
        let data = learn::data::open(&digits("test.npz"), &learn::data::Options::default()).unwrap();
        let (found, elements) = stored(&Request { data: Some(&*data), ..Request::default() });
        assert_eq!(found[0].name, "codes of 8 bits");
        assert_eq!(found[0].elements, elements);
        for class in ["biases of 32 bits", "scales and zero points"] {
            assert!(names(&found).contains(&class), "{found:?}");
        }
        assert!(
            found.iter().filter(|s| s.name == "float").all(|s| s.bytes < found[0].bytes / 20),
            "{found:?}"
        );
    }

    #[test]
    fn a_file_smaller_than_its_constants_is_not_explained() {
        let mut graph = Graph::new("g");
        let id = graph.add_constant("w", Tensor::vector(&[1f32; 8]));
        graph.outputs.push(id);
        assert!(storage(&graph, 31).is_none());
        let found = storage(&graph, 40).unwrap();
        assert_eq!((found[0].bytes, found[0].elements, found[1].bytes), (32, 8, 8));
    }
}
