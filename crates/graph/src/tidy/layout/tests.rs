use proptest::prelude::*;

use super::*;
use crate::op::{Reader, ramp};
use crate::ops;
use crate::run::Session;
use crate::tidy::{self, RUN};
use crate::{Attr, Attrs, DType};

/// A graph under construction.
struct Net(Graph);

impl Net {
    fn new(shape: [usize; 4]) -> (Net, ValueId) {
        let mut graph = Graph::new("net");
        let x = graph.add_input("x", Fact::tensor(DType::F32, shape.map(Dim::from).to_vec())).unwrap();
        (Net(graph), x)
    }

    fn many(&mut self, kind: &str, attrs: Attrs, inputs: &[ValueId], outputs: usize) -> Vec<ValueId> {
        let reader = Reader { attrs: &attrs, version: 23, inputs: inputs.len(), outputs };
        let op = ops::read("", kind, &reader).unwrap();
        let node = Node::new(op, inputs.iter().copied().map(Some).collect());
        self.0.add_with_outputs(kind, node, outputs, None).unwrap().1
    }

    fn op(&mut self, kind: &str, attrs: Attrs, inputs: &[ValueId]) -> ValueId {
        self.many(kind, attrs, inputs, 1)[0]
    }

    fn constant(&mut self, shape: &[usize]) -> ValueId {
        self.0.add_constant("c", ramp(shape))
    }

    fn ints(&mut self, numbers: &[i64]) -> ValueId {
        self.0.add_constant("ints", Tensor::vector(numbers))
    }

    fn size(&self, value: ValueId) -> Vec<usize> {
        self.0.value(value).fact.sizes().unwrap()
    }

    /// A convolution with padding that keeps the size, but for the stride.
    fn conv(&mut self, x: ValueId, channels: usize, kernel: usize, stride: i64, groups: usize) -> ValueId {
        let w = self.constant(&[channels, self.size(x)[1] / groups, kernel, kernel]);
        let bias = self.constant(&[channels]);
        let pad = kernel as i64 / 2;
        let attrs = Attrs::new().ints("pads", &[pad; 4]).ints("strides", &[stride; 2]);
        self.op("Conv", attrs.int("group", groups as i64), &[x, w, bias])
    }

    fn squeeze_and_excite(&mut self, x: ValueId) -> ValueId {
        let channels = self.size(x)[1];
        let pooled = self.op("GlobalAveragePool", Attrs::new(), &[x]);
        let less = self.conv(pooled, 2, 1, 1, 1);
        let less = self.op("Relu", Attrs::new(), &[less]);
        let gate = self.conv(less, channels, 1, 1, 1);
        let gate = self.op("HardSigmoid", Attrs::new(), &[gate]);
        self.op("Mul", Attrs::new(), &[x, gate])
    }

    /// The graph after fusion, and after all passes; both compute the same.
    fn tidied(&self) -> Graph {
        let cpu = Cpu::new(1).unwrap();
        let made = |stages: &[&[tidy::Pass]]| {
            let mut graph = self.0.clone();
            tidy::run(&mut graph, stages, &cpu).unwrap();
            graph
        };
        let (before, after) = (made(&RUN[..1]), made(RUN));
        let x = ramp(&self.size(self.0.inputs[0]));
        let run =
            |g: &Graph| Session::new(g.clone(), &cpu).unwrap().run(vec![("x", x.clone().into())]).unwrap();
        let names = |g: &Graph| g.outputs.iter().map(|&o| g.value(o).name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&before), names(&after));
        for (want, got) in run(&before).iter().zip(&run(&after)) {
            let (want, got) = (want.tensor().unwrap(), got.tensor().unwrap());
            assert_eq!((want.dtype(), want.shape()), (got.dtype(), got.shape()));
            let (want, got) = (want.to_f32().unwrap(), got.to_f32().unwrap());
            let top = want.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
            for (a, b) in want.iter().zip(got.iter()) {
                let near = (a - b).abs() <= 1e-4 * top || a == b || a.is_nan() && b.is_nan();
                assert!(near, "{b}, not {a}");
            }
        }
        assert!(after.nodes().all(|(_, n)| n.kind() != "Conv" || n.op.domain() == "lessen"));
        after
    }
}

/// The operators in order, but for the reshapes that cost nothing.
fn kinds(graph: &Graph) -> Vec<&str> {
    graph.nodes().map(|(_, n)| n.kind()).collect()
}

fn transposes(graph: &Graph) -> usize {
    kinds(graph).iter().filter(|k| **k == "Transpose").count()
}

#[test]
fn a_network_of_residuals_is_transposed_at_its_input() {
    let (mut net, x) = Net::new([1, 3, 8, 8]);
    let stem = net.conv(x, 8, 3, 2, 1);
    let stem = net.op("MaxPool", Attrs::new().ints("kernel_shape", &[2, 2]), &[stem]);
    let left = net.conv(stem, 8, 3, 1, 8);
    let left = net.squeeze_and_excite(left);
    let sum = net.op("Add", Attrs::new(), &[left, stem]);
    let shift = net.constant(&[8, 1, 1]);
    let sum = net.op("Sub", Attrs::new(), &[sum, shift]);
    let both = net.op("Concat", Attrs::new().int("axis", 1), &[sum, stem]);
    let last = net.conv(both, 4, 1, 1, 1);
    let pooled = net.op("GlobalAveragePool", Attrs::new(), &[last]);
    let flat = net.op("Flatten", Attrs::new(), &[pooled]);
    net.0.outputs.push(flat);
    let after = net.tidied();
    assert_eq!(transposes(&after), 1, "{:?}", kinds(&after));
}

#[test]
fn the_heads_of_detectors_and_transposed_inputs_need_none() {
    let (mut net, x) = Net::new([1, 6, 6, 3]);
    let first = net.op("Transpose", Attrs::new().ints("perm", &[0, 3, 1, 2]), &[x]);
    let body = net.conv(first, 8, 3, 1, 1);
    let head = net.conv(body, 4, 3, 1, 1);
    let boxes = net.op("Transpose", Attrs::new().ints("perm", &[0, 2, 3, 1]), &[head]);
    let shape = net.ints(&[1, -1, 2]);
    let boxes = net.op("Reshape", Attrs::new(), &[boxes, shape]);
    let plain = net.op("Transpose", Attrs::new().ints("perm", &[0, 2, 3, 1]), &[body]);
    net.0.outputs = vec![boxes, plain];
    let after = net.tidied();
    assert_eq!(transposes(&after), 0, "{:?}", kinds(&after));
}

#[test]
fn images_are_transposed_where_they_are_small_and_asked_for_their_shape_without_it() {
    let (mut net, x) = Net::new([1, 3, 4, 4]);
    net.0.value_mut(x).fact =
        Fact::tensor(DType::F32, vec![Dim::named("n"), Dim::Is(3), Dim::Unknown, Dim::Is(4)]);
    let w = net.constant(&[4, 3, 1, 1]);
    let y = net.op("Conv", Attrs::new(), &[x, w]);
    let big = net.constant(&[1, 4, 1, 1]);
    let y = net.op("Mul", Attrs::new(), &[y, big]);
    let size = net.op("Shape", Attrs::new().int("start", 1).int("end", 4), &[y]);
    let scales = net.0.add_constant("scales", Tensor::vector(&[1f32, 1.0, 3.0, 3.0]));
    let none = net.0.add_constant("none", Tensor::new::<f32>(&[0], &[]).unwrap());
    let bigger = net.op("Resize", Attrs::new().text("mode", "nearest"), &[y, none, scales]);
    net.0.outputs = vec![bigger, size];
    let mut fixed = Net(net.0.clone());
    fixed.0.value_mut(x).fact = Fact::tensor(DType::F32, [1usize, 3, 4, 4].map(Dim::from).to_vec());
    let after = fixed.tidied();
    assert_eq!(kinds(&after), ["Transpose", "Conv", "Transpose", "Mul", "Resize"]);
    let cpu = Cpu::new(1).unwrap();
    tidy::run(&mut net.0, RUN, &cpu).unwrap();
    let image = vec![("x", ramp(&[2, 3, 5, 4]).into())];
    let out = Session::new(net.0.clone(), &cpu).unwrap().run(image).unwrap();
    assert_eq!(out[1].tensor().unwrap().to_ints().unwrap(), [4, 5, 4]);
    assert_eq!(out[0].tensor().unwrap().shape(), [2, 4, 15, 12]);
    assert_eq!(transposes(&net.0), 2, "{:?}", kinds(&net.0));
}

#[test]
fn graphs_without_convolutions_stay() {
    let (mut net, x) = Net::new([1, 3, 4, 4]);
    let y = net.op("GlobalAveragePool", Attrs::new(), &[x]);
    let y = net.op("Mul", Attrs::new(), &[x, y]);
    let y = net.op("Transpose", Attrs::new().ints("perm", &[0, 2, 3, 1]), &[y]);
    net.0.outputs.push(y);
    assert_eq!(kinds(&net.tidied()), ["GlobalAveragePool", "Mul", "Transpose"]);
}

/// Adds one operator, chosen by numbers, on one of the images there are.
fn grow(net: &mut Net, images: &mut Vec<ValueId>, [kind, from, other]: [u8; 3]) {
    let x = images[usize::from(from) % images.len()];
    let y = images[usize::from(other) % images.len()];
    let (size, free) = (net.size(x), Attrs::new);
    let channels = size[1];
    let made = match kind % 18 {
        0..=2 => net.conv(x, 1 + usize::from(other) % 7, 1 + 2 * (usize::from(other) % 2), 1, 1),
        3 => net.conv(x, channels, 3, 2, channels),
        4 => net.op("MaxPool", free().ints("kernel_shape", &[2, 2]).ints("pads", &[1, 0, 0, 1]), &[x]),
        5 => {
            let attrs = free().ints("kernel_shape", &[3, 3]).ints("pads", &[1; 4]);
            net.op("AveragePool", attrs.int("count_include_pad", i64::from(other % 2)), &[x])
        }
        6 => net.op(["Relu", "HardSwish", "Sigmoid", "Neg"][usize::from(other) % 4], free(), &[x]),
        7 if net.size(y) == size => net.op(["Add", "Mul", "Max"][usize::from(other) % 3], free(), &[x, y]),
        8 => {
            let shapes = [vec![1, channels, 1, 1], vec![channels, 1, 1], vec![size[3]], vec![]];
            let c = net.constant(&shapes[usize::from(other) % 4]);
            net.op(["Add", "PRelu"][usize::from(other / 4) % 2], free(), &[x, c])
        }
        9 if net.size(y)[2..] == size[2..] => net.op("Concat", free().int("axis", -3), &[x, y]),
        10 => {
            let pads = net.ints(&[0, i64::from(other % 3), 0, 1, 0, 0, 1, 0]);
            net.op("Pad", free().text("mode", ["constant", "edge"][usize::from(other) % 2]), &[x, pads])
        }
        11 if size[2] < 20 => {
            let sizes = net.ints(&[2, channels as i64, size[2] as i64 * 2, size[3] as i64 + 3]);
            let none = net.0.add_constant("none", Tensor::new::<f32>(&[0], &[]).unwrap());
            let mode = ["nearest", "linear"][usize::from(other) % 2];
            net.op("Resize", free().text("mode", mode), &[x, none, none, sizes])
        }
        12 => net.squeeze_and_excite(x),
        13 => {
            let axes = net.ints(&[2, -1]);
            let mean = net.op(["ReduceMean", "ReduceMax"][usize::from(other) % 2], free(), &[x, axes]);
            net.op("Sub", free(), &[x, mean])
        }
        14 => net.op("Softmax", free().int("axis", [1, 3, -2][usize::from(other) % 3]), &[x]),
        15 if channels > 1 => {
            let parts = net.many("Split", free().int("axis", 1).int("num_outputs", 2), &[x], 2);
            images.push(parts[0]);
            parts[1]
        }
        16 if size[2] > 1 => {
            let [start, end, axis] = [&[0i64], &[-1i64], &[2i64]].map(|n| net.ints(n));
            net.op("Slice", free(), &[x, start, end, axis])
        }
        17 => {
            let [gamma, beta, mean] = [(); 3].map(|()| net.constant(&[channels]));
            let variance = net.0.add_constant("v", Tensor::vector(&vec![0.5f32; channels]));
            net.op("BatchNormalization", free(), &[x, gamma, beta, mean, variance])
        }
        _ => net.op("Transpose", free().with("perm", Attr::Ints(vec![0, 1, 3, 2])), &[x]),
    };
    images.push(made);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn all_networks_compute_the_same(
        steps in prop::collection::vec([any::<u8>(), any::<u8>(), any::<u8>()], 1..20),
        outputs in prop::collection::vec(any::<u8>(), 1..3),
    ) {
        let (mut net, x) = Net::new([2, 3, 5, 6]);
        let mut images = vec![x];
        steps.into_iter().for_each(|step| grow(&mut net, &mut images, step));
        let last = *images.last().unwrap();
        let flat = net.op("Flatten", Attrs::new(), &[last]);
        net.0.outputs.push(flat);
        for at in outputs {
            let image = images[usize::from(at) % images.len()];
            if image != x && !net.0.outputs.contains(&image) {
                net.0.outputs.push(image);
            }
        }
        net.tidied();
    }
}
