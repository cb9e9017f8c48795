"""Writes models in old versions of the ONNX operators, and what onnxruntime computes: make.py FOLDER.

Each becomes FOLDER/NAME/ in the form of ../onnx_nodes/export.py. Where the runtime has no kernel of that age, the
reference evaluator of the onnx package answers.
"""

import json
import pathlib
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

F, I = np.float32, np.int64
ELEM = helper.np_dtype_to_tensor_dtype


def ramp(*shape, dtype=F):
    n = int(np.prod(shape))
    return ((np.arange(n) * 37 + 11) % 101 / 50.5 - 0.995).astype(dtype).reshape(shape)


def one(op, inputs, outputs=1, constants=(), rank_known=True, **attrs):
    """A model of one node: inputs, then constants."""
    names = [f"x{i}" for i in range(len(inputs))]
    made = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, names + [f"c{i}" for i in range(len(constants))], made, name=f"the_{op}", **attrs)
    shapes = [list(x.shape) if rank_known else None for x in inputs]
    return helper.make_graph(
        [node],
        op,
        [helper.make_tensor_value_info(n, ELEM(x.dtype), s) for n, x, s in zip(names, inputs, shapes)],
        [helper.make_empty_tensor_value_info(n) for n in made],
        [numpy_helper.from_array(c, f"c{i}") for i, c in enumerate(constants)],
    ), inputs


def in_branch():
    """A Squeeze and a Softmax inside both branches of an If."""
    def branch(name, axis):
        nodes = [
            helper.make_node("Squeeze", ["x0"], [f"{name}_s"], axes=[0]),
            helper.make_node("Softmax", [f"{name}_s"], [f"{name}_y"], axis=axis),
        ]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(f"{name}_y", 1, None)])
    node = helper.make_node("If", ["cond"], ["y0"], then_branch=branch("a", 0), else_branch=branch("b", 1))
    return helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x0", 1, [1, 2, 3, 4]), helper.make_tensor_value_info("cond", 9, [])],
        [helper.make_tensor_value_info("y0", 1, None)],
    ), [ramp(1, 2, 3, 4), np.array(True)]


def cases():
    """(name, version, (graph, inputs))"""
    x = ramp(2, 3, 4)
    image = ramp(1, 2, 4, 4)
    for axis in (0, 1, 2):
        for op in ("Softmax", "LogSoftmax", "Hardmax"):
            yield f"{op}_axis{axis}", 11, one(op, [x], axis=axis)
            yield f"{op}_axis{axis}_free", 9, one(op, [x], rank_known=False, axis=axis)
    yield "Softmax_default", 7, one("Softmax", [x])
    yield "Softmax_minus1", 11, one("Softmax", [x], axis=-1, rank_known=False)
    yield "Softmax_ones", 9, one("Softmax", [ramp(2, 5, 1, 1)], axis=1)
    yield "Squeeze", 11, one("Squeeze", [ramp(1, 3, 1, 2)], axes=[0, 2])
    yield "Squeeze_all", 7, one("Squeeze", [ramp(1, 3, 1, 2)])
    yield "Unsqueeze", 11, one("Unsqueeze", [x], axes=[0, 3])
    for op in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSumExp", "SumSquare"):
        yield f"Reduce{op}", 11, one(f"Reduce{op}", [x], axes=[1], keepdims=0)
        yield f"Reduce{op}_two", 9, one(f"Reduce{op}", [x], axes=[0, 2])
    yield "ReduceLogSum", 11, one("ReduceLogSum", [np.abs(x) + 1], axes=[1])
    yield "ReduceSum_all", 8, one("ReduceSum", [x])
    yield "ReduceMean_13", 13, one("ReduceMean", [x], axes=[-1])
    yield "Split", 11, one("Split", [x], outputs=2, axis=2, split=[1, 3])
    yield "Split_even", 11, one("Split", [x], outputs=2, axis=2)
    yield "Split_even_13", 13, one("Split", [x], outputs=3, axis=1)
    yield "Clip", 7, one("Clip", [x], min=-0.5, max=0.25)
    yield "Clip_min", 10, one("Clip", [x], min=-0.5)
    yield "Clip_none", 10, one("Clip", [x])
    yield "Clip_f64", 10, one("Clip", [x.astype(np.float64)], max=0.5)
    yield "Pad", 10, one("Pad", [x], pads=[0, 1, 0, 1, 0, 2])
    yield "Pad_value", 7, one("Pad", [x], pads=[0, 1, 0, 1, 0, 2], value=0.5)
    yield "Pad_edge", 10, one("Pad", [x], pads=[0, 1, 0, 0, 0, 2], mode="edge")
    yield "Slice", 9, one("Slice", [x], starts=[1, -2], ends=[3, 1000], axes=[1, 2])
    yield "Slice_no_axes", 7, one("Slice", [x], starts=[0, 1], ends=[1, 3])
    yield "TopK", 9, one("TopK", [x], outputs=2, k=2)
    yield "TopK_10", 10, one("TopK", [x], outputs=2, constants=[np.array([2], I)], axis=1)
    yield "Dropout", 7, one("Dropout", [x], ratio=0.3)
    yield "Dropout_mask", 9, drop_second(one("Dropout", [x], outputs=2, ratio=0.3))
    yield "Dropout_10", 10, one("Dropout", [x])
    for mode in ("nearest", "linear"):
        yield f"Upsample_{mode}", 7, one("Upsample", [image], mode=mode, scales=[1.0, 1.0, 2.0, 3.0])
        up, down = np.array([1, 1, 2, 1.5], F), np.array([1, 1, 0.6, 0.6], F)
        yield f"Upsample_{mode}_9", 9, one("Upsample", [image], constants=[up], mode=mode)
        yield f"Resize_{mode}_up", 10, one("Resize", [image], constants=[up], mode=mode)
        yield f"Resize_{mode}_down", 10, one("Resize", [image], constants=[down], mode=mode)
    sizes = [np.array([], F), np.array([], F), np.array([1, 2, 7, 3], I)]
    yield "Resize_sizes", 11, one("Resize", [image], constants=sizes, mode="linear")
    scales = [np.array([], F), np.array([1, 1, 2, 2], F)]
    yield "Resize_cubic", 11, one("Resize", [image], constants=scales, mode="cubic")
    stats = [ramp(2), ramp(2) + 1, ramp(2), np.abs(ramp(2)) + 0.5]
    yield "BatchNormalization", 7, one("BatchNormalization", [image], constants=stats, epsilon=1e-3)
    yield "BatchNormalization_9", 9, one("BatchNormalization", [image], constants=stats)
    indices, updates = np.array([[1, 0, 2]], I), np.array([[1.0, 1.1, 1.2]], F)
    yield "Scatter", 9, one("Scatter", [ramp(3, 3)], constants=[indices, updates])
    rois = [np.array([[0, 0, 3, 3], [1, 0, 2, 3]], F), np.array([0, 0], I)]
    yield "RoiAlign", 10, one("RoiAlign", [image], constants=rois, output_height=2, output_width=2)
    grid = ramp(1, 3, 3, 2)
    for mode in ("bilinear", "bicubic", "nearest"):
        yield f"GridSample_{mode}", 16, one("GridSample", [image, grid], mode=mode)
    yield "GridSample", 16, one("GridSample", [image, grid])
    yield "DFT", 17, one("DFT", [ramp(1, 8, 2, 1)])
    yield "DFT_axis", 17, one("DFT", [ramp(1, 4, 8, 1)], axis=2, onesided=1)
    yield "GroupNormalization", 18, one(
        "GroupNormalization", [ramp(2, 6, 3)], constants=[ramp(3) + 1, ramp(3)], num_groups=3)
    yield "Erf", 9, one("Erf", [x])
    yield "ArgMax", 11, one("ArgMax", [x], axis=1)
    yield "GRU", 7, one("GRU", [ramp(4, 2, 3)], outputs=2, constants=[ramp(1, 15, 3), ramp(1, 15, 5)], hidden_size=5)
    yield "in_branch", 11, in_branch()


def drop_second(made):
    """Takes the second output of the node out of the graph's outputs: made, but not read."""
    graph, inputs = made
    del graph.output[1]
    return graph, inputs


def answer(model, inputs):
    feed = {i.name: x for i, x in zip(model.graph.input, inputs)}
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feed)
    except Exception as why:
        print(f"{model.graph.name} {model.opset_import[0].version}: {str(why)[:120]}; asking the reference", file=sys.stderr)
        return ReferenceEvaluator(model).run(None, feed)


def typed(model, results):
    """States the types of the outputs, so that the checker accepts the model."""
    for info, result in zip(model.graph.output, results):
        info.type.CopyFrom(helper.make_tensor_type_proto(ELEM(result.dtype), None))


def main(folder):
    for name, version, (graph, inputs) in cases():
        ir = min(helper.find_min_ir_version_for([helper.make_opsetid("", version)]), 10)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=max(ir, 4))
        for info in model.graph.output:
            if not info.type.WhichOneof("value"):
                info.type.tensor_type.elem_type = 7 if info.name == "y1" and graph.name == "TopK" else ELEM(inputs[0].dtype)
                if graph.name == "ArgMax":
                    info.type.tensor_type.elem_type = 7
        results = answer(model, inputs)
        typed(model, results)
        out = folder / name
        out.mkdir(parents=True, exist_ok=True)
        (out / "model.onnx").write_bytes(model.SerializeToString())
        files = {"inputs": [], "outputs": []}
        for kind, values in (("inputs", inputs), ("outputs", results)):
            for i, value in enumerate(values):
                file = f"{kind}_{i}.pb"
                (out / file).write_bytes(numpy_helper.from_array(np.asarray(value), file).SerializeToString())
                files[kind].append(file)
        (out / "case.json").write_text(json.dumps({"rtol": 1e-4, "atol": 1e-5, "sets": [files]}))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
