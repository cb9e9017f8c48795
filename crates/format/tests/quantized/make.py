"""Makes the models of this folder and what onnxruntime computes with them: make.py FOLDER.

Small random networks, quantised by onnxruntime's own tools in the forms that people's models have, and single
operators of its domain. Needs numpy, onnx 1.23, onnxruntime 1.32.
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh
from onnxruntime import quantization as q

MS = "com.microsoft"
rng = np.random.default_rng(7)


def f32(*shape, scale=1.0):
    return (rng.normal(size=shape) * scale).astype(np.float32)


def model(nodes, inputs, outputs, constants, opset=17):
    info = lambda items: [h.make_tensor_value_info(n, t, s) for n, t, s in items]
    graph = h.make_graph(nodes, "g", info(inputs), info(outputs),
                         [nh.from_array(v, k) if isinstance(v, np.ndarray) else v for k, v in constants.items()])
    opsets = [h.make_opsetid("", opset), h.make_opsetid(MS, 1)]
    return h.make_model(graph, opset_imports=opsets, ir_version=10)


def image_net():
    c = {"w1": f32(8, 3, 3, 3, scale=0.3), "b1": f32(8), "w2": f32(8, 8, 3, 3, scale=0.2), "b2": f32(8),
         "w3": f32(8, 1, 3, 3, scale=0.4), "b3": f32(8), "w4": f32(5, 8), "b4": f32(5)}
    nodes = [
        h.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        h.make_node("Relu", ["c1"], ["r1"]),
        h.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        h.make_node("Conv", ["p1", "w2", "b2"], ["c2"], pads=[1, 1, 1, 1]),
        h.make_node("Add", ["c2", "p1"], ["a"]),
        h.make_node("Relu", ["a"], ["r2"]),
        h.make_node("Conv", ["r2", "w3", "b3"], ["c3"], pads=[1, 1, 1, 1], group=8, strides=[2, 2]),
        h.make_node("Concat", ["c3", "c3"], ["cc"], axis=1),
        h.make_node("Slice", ["cc", "zero", "eight", "one"], ["s"]),
        h.make_node("GlobalAveragePool", ["s"], ["g"]),
        h.make_node("Flatten", ["g"], ["f"]),
        h.make_node("Gemm", ["f", "w4", "b4"], ["y"], transB=1),
    ]
    c |= {"zero": np.array([0]), "eight": np.array([8]), "one": np.array([1])}
    return model(nodes, [("x", T.FLOAT, [2, 3, 8, 8])], [("y", T.FLOAT, [2, 5])], c)


def row_net():
    c = {"w1": f32(16, 12, scale=0.5), "b1": f32(12), "w2": f32(12, 12, scale=0.5), "w3": f32(12, 6), "b3": f32(6)}
    nodes = [
        h.make_node("MatMul", ["x", "w1"], ["m1"]),
        h.make_node("Add", ["m1", "b1"], ["a1"]),
        h.make_node("Relu", ["a1"], ["r1"]),
        h.make_node("MatMul", ["r1", "w2"], ["k"]),
        h.make_node("Transpose", ["k"], ["t"], perm=[0, 2, 1]),
        h.make_node("MatMul", ["r1", "t"], ["qk"]),
        h.make_node("MatMul", ["qk", "r1"], ["v"]),
        h.make_node("MatMul", ["v", "w3"], ["m3"]),
        h.make_node("Add", ["b3", "m3"], ["y"]),
    ]
    return model(nodes, [("x", T.FLOAT, [2, 5, 16])], [("y", T.FLOAT, [2, 5, 6])], c)


class Data(q.CalibrationDataReader):
    def __init__(self, shape):
        self.items = iter([{"x": f32(*shape)} for _ in range(8)])

    def get_next(self):
        return next(self.items, None)


def static(net, shape, **kwargs):
    with tempfile.TemporaryDirectory() as folder:
        a, b = f"{folder}/a.onnx", f"{folder}/b.onnx"
        onnx.save(net, a)
        q.quantize_static(a, b, Data(shape), **kwargs)
        return onnx.load(b)


def dynamic(net, **kwargs):
    with tempfile.TemporaryDirectory() as folder:
        a, b = f"{folder}/a.onnx", f"{folder}/b.onnx"
        onnx.save(net, a)
        q.quantize_dynamic(a, b, **kwargs)
        return onnx.load(b)


def single(op, inputs, out, constants=(), **attrs):
    """One operator of onnxruntime's domain; all inputs but the first are constants."""
    names = [f"i{i}" if v is not None else "" for i, v in enumerate(inputs)]
    first = inputs[0]
    kind = h.np_dtype_to_tensor_dtype(first.dtype)
    fixed = {n: v for n, v in list(zip(names, inputs))[1:] if v is not None}
    node = h.make_node(op, names, ["y"], domain=MS, **attrs)
    net = model([node], [("i0", kind, list(first.shape))], [("y", out, None)], fixed, opset=21)
    return net, {"i0": first}


def bytes_(*shape):
    return rng.integers(0, 256, size=shape).astype(np.uint8)


def cases():
    u8, s8 = q.QuantType.QUInt8, q.QuantType.QInt8
    image, rows = (2, 3, 8, 8), (2, 5, 16)
    for name, act, weight, channel, form in [
        ("qdq_u8s8_channel", u8, s8, True, q.QuantFormat.QDQ),
        ("qdq_s8s8", s8, s8, False, q.QuantFormat.QDQ),
        ("operator_u8s8_channel", u8, s8, True, q.QuantFormat.QOperator),
        ("operator_u8u8", u8, u8, False, q.QuantFormat.QOperator),
    ]:
        kwargs = dict(quant_format=form, activation_type=act, weight_type=weight, per_channel=channel)
        yield f"image_{name}", static(image_net(), image, **kwargs), {"x": f32(*image)}
        yield f"rows_{name}", static(row_net(), rows, **kwargs), {"x": f32(*rows)}
    yield "rows_dynamic", dynamic(row_net(), weight_type=s8), {"x": f32(*rows)}
    yield "rows_dynamic_channel", dynamic(row_net(), weight_type=s8, per_channel=True), {"x": f32(*rows)}
    yield "image_dynamic", dynamic(image_net(), weight_type=u8), {"x": f32(*image)}

    for bits in (2, 4, 8):
        k, n, size = 40, 6, 16
        b, s = bytes_(n, 3, size * bits // 8), f32(n, 3, scale=0.1)
        z = bytes_(n, -(-3 * bits // 8))
        attrs = dict(K=k, N=n, bits=bits, block_size=size)
        yield f"nbits{bits}", *single("MatMulNBits", [f32(3, k), b, s], T.FLOAT, **attrs)
        yield f"nbits{bits}_zero", *single("MatMulNBits", [f32(1, k), b, s, z, None, f32(n)], T.FLOAT, **attrs)
    yield "nbits4_real_zero", *single("MatMulNBits", [f32(2, 40), bytes_(6, 3, 8), f32(6, 3), f32(6, 3)], T.FLOAT,
                                      K=40, N=6, bits=4, block_size=16)
    for kind in (0, 1):
        yield f"bnb4_{kind}", *single("MatMulBnb4", [f32(2, 32), bytes_(48), f32(6)], T.FLOAT, K=32, N=3,
                                      block_size=16, quant_type=kind)
    w = rng.integers(-127, 128, size=(8, 6)).astype(np.int8)
    ws = np.abs(f32(6, scale=0.02))
    yield "dynamic_quantize_matmul", *single("DynamicQuantizeMatMul", [f32(2, 3, 8), w, ws, None, f32(6)], T.FLOAT)
    one, zero = lambda v: np.array(v, np.float32), lambda v: np.array(v, np.uint8)
    yield "integer_to_float", *single("MatMulIntegerToFloat",
                                      [bytes_(3, 8), w, one(0.02), ws, zero(120), None, f32(6)], T.FLOAT)
    x = bytes_(1, 4, 5, 5)
    grid = [one(0.02), zero(120)]
    yield "leaky", *single("QLinearLeakyRelu", [x, *grid, one(0.02), zero(30)], T.UINT8, alpha=0.1)
    yield "sigmoid", *single("QLinearSigmoid", [x, *grid, one(1 / 255), zero(0)], T.UINT8)
    yield "softmax", *single("QLinearSoftmax", [x, *grid, one(1 / 256), zero(0)], T.UINT8, axis=-1, opset=13)
    yield "average", *single("QLinearAveragePool", [x, *grid, one(0.015), zero(100)], T.UINT8, kernel_shape=[3, 2],
                             strides=[2, 1], pads=[1, 0, 1, 1])
    yield "global_average", *single("QLinearGlobalAveragePool", [x, *grid, one(0.005), zero(100)], T.UINT8)
    yield "add", *single("QLinearAdd", [x, *grid, bytes_(4, 1, 5), one(0.03), zero(7), one(0.04), zero(99)], T.UINT8)
    yield "mul", *single("QLinearMul", [x, *grid, bytes_(4, 1, 5), one(0.03), zero(7), one(0.05), zero(99)], T.UINT8)
    data = h.make_tensor("t", T.UINT4, [6, 32], rng.integers(0, 16, size=192).tolist())
    ids = np.array([[5, 0], [3, 3]], np.int64)
    node = h.make_node("GatherBlockQuantized", ["t", "i", "s", "z"], ["y"], domain=MS, block_size=16)
    fixed = {"t": data, "s": f32(6, 2), "z": h.make_tensor("z", T.UINT4, [6, 2], list(range(12)))}
    yield "gather", model([node], [("i", T.INT64, [2, 2])], [("y", T.FLOAT, None)], fixed, 21), {"i": ids}
    node = h.make_node("GatherBlockQuantized", ["t", "i", "s", "z"], ["y"], domain=MS, block_size=16, bits=4)
    fixed = {"t": bytes_(6, 24), "s": f32(6, 3), "z": bytes_(6, 2)}
    yield "gather_bytes", model([node], [("i", T.INT64, [2, 2])], [("y", T.FLOAT, None)], fixed, 21), {"i": ids}


def main(folder):
    found = {}
    for name, net, inputs in cases():
        del net.metadata_props[:]
        net.producer_name, net.producer_version = "", ""
        data = net.SerializeToString()
        outputs = ort.InferenceSession(data).run(None, inputs)
        put = lambda v: {"type": str(v.dtype), "shape": list(v.shape),
                         "data": [float(f"{x:.9g}") for x in v.ravel().tolist()]}
        found[name] = {"inputs": {k: put(v) for k, v in inputs.items()}, "outputs": [put(v) for v in outputs]}
        (folder / f"{name}.onnx").write_bytes(data)
    text = ",\n".join(f'"{k}": {json.dumps(v, separators=(",", ":"))}' for k, v in found.items())
    (folder / "cases.json").write_text("{\n" + text + "\n}\n")


main(pathlib.Path(sys.argv[1]))
