"""Writes tests of operators of com.microsoft, with the outputs of onnxruntime, in the form of export.py's.

    python contrib.py FOLDER
"""

import json
import pathlib
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

RNG = np.random.default_rng(7)


def f(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def i32(values):
    return np.array(values, dtype=np.int32)


def i64(values):
    return np.array(values, dtype=np.int64)


# name: (operator, inputs or None, number of outputs, attributes)
CASES = {
    "fused_matmul": ("FusedMatMul", [f(2, 5, 3), f(2, 4, 5)], 1, dict(alpha=0.5, transA=1, transB=1)),
    "fused_matmul_batch": ("FusedMatMul", [f(3, 2, 5), f(2, 4, 5)], 1, dict(transBatchA=1, transB=1)),
    "fused_matmul_batch_both": (
        "FusedMatMul", [f(5, 2, 3), f(5, 2, 4)], 1, dict(transBatchA=1, transBatchB=1, transA=1)),
    "fused_conv": (
        "FusedConv", [f(1, 2, 5, 6), f(3, 2, 3, 3), f(3), f(1, 3, 5, 6)], 1,
        dict(activation="Relu", pads=[1, 1, 1, 1], kernel_shape=[3, 3])),
    "fused_conv_leaky": (
        "FusedConv", [f(1, 2, 5, 6), f(3, 2, 3, 3), f(3)], 1,
        dict(activation="LeakyRelu", activation_params=[0.2], kernel_shape=[3, 3])),
    "fused_gemm": (
        "FusedGemm", [f(3, 5), f(4, 5), f(4)], 1,
        dict(activation="LeakyRelu", activation_alpha=0.3, transB=1, alpha=0.5, beta=2.0)),
    "skip_layer_norm": ("SkipLayerNormalization", [f(2, 3, 8), f(2, 3, 8), f(8), f(8), f(8)], 4, dict(epsilon=1e-5)),
    "skip_simplified": ("SkipSimplifiedLayerNormalization", [f(2, 3, 8), f(2, 3, 8), f(8)], 4, dict(epsilon=1e-5)),
    "rotary": (
        "RotaryEmbedding", [f(2, 3, 16), i64([[0, 1, 2], [3, 1, 0]]), f(6, 4), f(6, 4)], 1, dict(interleaved=0)),
    "rotary_heads": (
        "RotaryEmbedding", [f(1, 2, 3, 8), i64([2]), f(6, 4), f(6, 4)], 1, dict(interleaved=1)),
    "multi_head": ("MultiHeadAttention", [f(2, 3, 8), f(2, 5, 8), f(2, 5, 8)], 1, dict(num_heads=2)),
    "multi_head_bias": (
        "MultiHeadAttention", [f(2, 3, 8), f(2, 5, 8), f(2, 5, 8), f(24), i32([[1, 1, 0, 1, 0], [1] * 5])], 1,
        dict(num_heads=2)),
    "multi_head_causal": ("MultiHeadAttention", [f(2, 3, 8)] * 3, 1, dict(num_heads=2, unidirectional=1)),
    "multi_head_past": (
        "MultiHeadAttention",
        [f(2, 1, 8), f(2, 1, 8), f(2, 1, 8), None, None, f(2, 2, 1, 4), f(2, 2, 3, 4), f(2, 2, 3, 4)], 3,
        dict(num_heads=2)),
    "group_query_first": (
        "GroupQueryAttention", [f(1, 3, 64), f(1, 3, 32), f(1, 3, 32), None, None, i32([2]), i32(3)], 3,
        dict(num_heads=4, kv_num_heads=2)),
    "group_query_next": (
        "GroupQueryAttention",
        [f(1, 1, 64), f(1, 1, 32), f(1, 1, 32), f(1, 2, 5, 16), f(1, 2, 5, 16), i32([5]), i32(6), f(9, 8), f(9, 8)], 3,
        dict(num_heads=4, kv_num_heads=2, do_rotary=1, local_window_size=3)),
    "group_query_capped": (
        "GroupQueryAttention", [f(2, 3, 64), f(2, 3, 32), f(2, 3, 32), None, None, i32([2, 2]), i32(3)], 3,
        dict(num_heads=4, kv_num_heads=2, softcap=0.5, scale=0.7)),
    "embed_layer_norm": (
        "EmbedLayerNormalization",
        [i32([[1, 2, 0], [3, 4, 4]]), i32([[0, 1, 1], [0, 0, 1]]), f(6, 8), f(4, 8), f(2, 8), f(8), f(8),
         i32([[1, 1, 0], [1, 1, 1]])], 3, dict(epsilon=1e-5)),
    "attention": (
        "Attention", [f(2, 3, 8), f(8, 24), f(24), i32([[1, 1, 0], [1, 1, 1]])], 1, dict(num_heads=2)),
    "attention_causal": ("Attention", [f(2, 3, 8), f(8, 24), f(24)], 1, dict(num_heads=2, unidirectional=1)),
    "attention_past": (
        "Attention", [f(2, 1, 8), f(8, 24), f(24), None, f(2, 2, 2, 3, 4)], 2, dict(num_heads=2)),
}


def write(folder, name, op, inputs, outputs, attrs):
    names = [f"x{i}" if v is not None else "" for i, v in enumerate(inputs)]
    node = helper.make_node(op, names, [f"y{i}" for i in range(outputs)], domain="com.microsoft", **attrs)
    given = [(n, v) for n, v in zip(names, inputs) if v is not None]
    infos = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in given]
    results = [onnx.ValueInfoProto(name=f"y{i}") for i in range(outputs)]
    graph = helper.make_graph([node], name, infos, results)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = []
    for i in range(outputs):
        try:
            values.append(session.run([f"y{i}"], dict(given))[0])
        except Exception:  # an optional output that this operator does not make
            values.append(None)
    values = [None if v is not None and v.size == 0 else v for v in values]
    out = folder / f"test_ms_{name}"
    out.mkdir(parents=True, exist_ok=True)
    (out / "model.onnx").write_bytes(model.SerializeToString())

    def put(prefix, items):
        paths = []
        for i, value in enumerate(items):
            if value is None:
                paths.append(None)
                continue
            paths.append(f"{prefix}{i}.pb")
            (out / paths[-1]).write_bytes(numpy_helper.from_array(np.asarray(value)).SerializeToString())
        return paths

    sets = [{"inputs": put("x", [v for _, v in given]), "outputs": put("y", values)}]
    (out / "case.json").write_text(json.dumps({"rtol": 1e-3, "atol": 1e-5, "sets": sets}))


if __name__ == "__main__":
    for name, (op, inputs, outputs, attrs) in CASES.items():
        try:
            write(pathlib.Path(sys.argv[1]), name, op, inputs, outputs, attrs)
        except Exception as error:
            print(name, str(error)[:300])
