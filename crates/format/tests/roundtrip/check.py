"""Reads and writes models and compares what came out with what went in: check.py REWRITE MODEL...

REWRITE is the built example `rewrite`. Allowed are attributes that state a default, sizes without a
number written in another way ("?", -1, nothing), sizes of outputs and inner values that are known better, and
constants that nobody reads, which are left out.
"""

import collections
import functools
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper


def attribute(a, opsets=None):
    if a.type == onnx.AttributeProto.TENSOR:
        return a.name, tensor(a.t, with_name=False)
    if a.type == onnx.AttributeProto.GRAPH:
        return a.name, graph(a.g, opsets, inside=True)
    if a.type == onnx.AttributeProto.STRING:
        return a.name, a.s
    return a.name, a.SerializeToString(deterministic=True)


def tensor(t, with_name=True):
    if t.data_type == onnx.TensorProto.STRING:
        data = tuple(t.string_data)
    else:
        try:
            data = numpy_helper.to_array(t).tobytes()
        except Exception:
            data = t.raw_data
    return t.name if with_name else "", t.data_type, tuple(t.dims), data, t.doc_string if with_name else ""


def properties(p):
    return tuple((e.key, e.value) for e in p)


def own(domain):
    return "" if domain == "ai.onnx" else domain


@functools.cache
def defaults(kind, domain, version):
    try:
        schema = onnx.defs.get_schema(kind, version, domain)
    except Exception:
        return {}
    return {n: attribute(a.default_value)[1] for n, a in schema.attributes.items() if a.default_value.name}


def node(n, opsets):
    attributes = defaults(n.op_type, own(n.domain), opsets.get(own(n.domain), 1)) | dict(attribute(a, opsets) for a in n.attribute)
    trim = lambda names: tuple(names[:max((i + 1 for i, x in enumerate(names) if x), default=0)])
    return (n.op_type, own(n.domain), n.overload, n.name, trim(n.input), trim(n.output), sorted(attributes.items()),
            n.doc_string, properties(n.metadata_props))


def all_nodes(g):
    for n in g.node:
        yield n
        for a in n.attribute:
            for body in ([a.g] if a.HasField("g") else []) + list(a.graphs):
                yield from all_nodes(body)
                yield from (onnx.NodeProto(input=[o.name]) for o in body.output)


def graph(g, opsets, inside=False):
    """What is compared of a graph, by part."""
    read = {i for n in all_nodes(g) for i in n.input} | {o.name for o in g.output}
    nodes = [n for n in g.node if n.op_type != "Constant" or n.output[0] in read]
    value_or_name = (lambda v: v.name) if inside else value
    made = {t.name for t in g.initializer}
    return {
        "name": g.name, "doc": g.doc_string, "metadata": properties(g.metadata_props),
        "inputs": [value(v, names=True) for v in g.input],
        "outputs": [value_or_name(v) for v in g.output],
        "nodes": sorted(repr(node(n, opsets)) for n in nodes),
        "initializers": sorted(map(repr, map(tensor, g.initializer))),
        "sparse": sorted(s.SerializeToString(deterministic=True) for s in g.sparse_initializer),
        "values": sorted((value_or_name(v) for v in g.value_info if v.name not in made), key=str),
        "quantization": sorted(q.SerializeToString(deterministic=True) for q in g.quantization_annotation),
    }


def sizes(kind, names):
    """The type as text, sizes without a number alike."""
    which = kind.WhichOneof("value")
    if which in ("sequence_type", "optional_type"):
        return which, sizes(getattr(kind, which).elem_type, names)
    if which != "tensor_type":
        return kind.SerializeToString(deterministic=True)
    name = lambda d: names and d.dim_param not in ("", "?") and d.dim_param
    dims = [d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else name(d) for d in kind.tensor_type.shape.dim]
    return kind.tensor_type.elem_type, dims if kind.tensor_type.HasField("shape") else None


def value(v, names=False):
    return v.name, sizes(v.type, names), v.doc_string, properties(v.metadata_props)


def better(a, b):
    """Does type `b` say all that `a` says?"""
    if isinstance(a, tuple) and isinstance(b, tuple) and isinstance(a[0], int):
        if a[0] != b[0] or (a[1] is not None and b[1] is None):
            return False
        return a[1] is None or len(a[1]) == len(b[1]) and all(x is False or x == y for x, y in zip(a[1], b[1]))
    return a == b or (isinstance(a, tuple) and isinstance(b, tuple) and a[0] == b[0] and better(a[1], b[1]))


def model(m):
    parts = {
        "opsets": sorted((own(o.domain), o.version) for o in m.opset_import),
        "ir": m.ir_version, "producer": (m.producer_name, m.producer_version),
        "domain": m.domain, "version": m.model_version, "model doc": m.doc_string,
        "model metadata": properties(m.metadata_props),
        "functions": [f.SerializeToString(deterministic=True) for f in m.functions],
        "training": [t.SerializeToString(deterministic=True) for t in m.training_info],
    }
    return parts | graph(m.graph, {own(o.domain): o.version for o in m.opset_import})


def passes(what):
    try:
        what()
        return True
    except Exception:
        return False


def random(info, rng):
    kind = info.type.tensor_type
    shape = [d.dim_value or 2 for d in kind.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)


def run(path, feed):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options).run(None, feed)


def differences(before_path, after_path):
    before, after = onnx.load(before_path), onnx.load(after_path)
    a, b = model(before), model(after)
    for part in a:
        if part in ("outputs", "values") and len(a[part]) == len(b[part]):
            pairs = list(zip(a[part], b[part]))
            if all(x[0] == y[0] and x[2:] == y[2:] and better(x[1], y[1]) for x, y in pairs):
                continue
        if a[part] != b[part]:
            counts = isinstance(a[part], list)
            lost = (collections.Counter(map(repr, a[part])) - collections.Counter(map(repr, b[part]))) if counts else a[part]
            came = (collections.Counter(map(repr, b[part])) - collections.Counter(map(repr, a[part]))) if counts else b[part]
            yield f"{part}: {str(list(lost) if counts else lost)[:300]} became {str(list(came) if counts else came)[:300]}"
    if passes(lambda: onnx.checker.check_model(str(before_path))):
        try:
            onnx.checker.check_model(str(after_path))
        except Exception as why:
            yield f"checker: {str(why)[:200]}"
    rng = np.random.default_rng(0)
    given = {t.name for t in before.graph.initializer}
    feeds = {}
    if not passes(lambda: feeds.update({i.name: random(i, rng) for i in before.graph.input if i.name not in given})):
        return
    if not passes(lambda: run(before_path, feeds)):
        return
    wants = [run(before_path, feeds) for _ in range(2)]
    same = lambda x, y: passes(lambda: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)))
    if not all(same(x, y) for x, y in zip(*wants)):
        return
    try:
        got = run(after_path, feeds)
    except Exception as why:
        yield f"does not run any more: {str(why)[:200]}"
        return
    if not all(same(x, y) for x, y in zip(got, wants[0])):
        yield "other results"


def main(rewrite, *paths):
    with tempfile.TemporaryDirectory() as out:
        jobs = [(pathlib.Path(p), pathlib.Path(out) / f"{i}.onnx") for i, p in enumerate(paths)]
        lines = "".join(f"{a}\t{b}\n" for a, b in jobs)
        answers = subprocess.run([rewrite], input=lines, capture_output=True, text=True, check=True).stdout.splitlines()
        good = refused = bad = 0
        for (before, after), answer in zip(jobs, answers, strict=True):
            if answer != "ok":
                refused += 1
                print(f"refused {answer}")
                continue
            found = list(differences(before, after))
            bad += bool(found)
            good += not found
            for difference in found:
                print(f"BAD {before.parent.name}/{before.name}: {difference}")
    print(f"{good} good, {refused} refused, {bad} bad")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
