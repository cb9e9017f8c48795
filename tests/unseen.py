"""Compares the lessen command with onnxruntime on models that imitate what other programs write: detectors with
non-maximum suppression, shape arithmetic, loops, quantised and fused graphs. The models have random weights.

Run by tests/run. Models of exporters that cannot be imported are skipped, and it is said. Words given as arguments
select cases by name. LESSEN is the command, if it is not that of the release build.
"""

import importlib.util
import json
import logging
import os
import pathlib
import subprocess
import sys
import tempfile
import warnings

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper, parser

ROOT = pathlib.Path(__file__).resolve().parent.parent
LESSEN = os.environ.get("LESSEN", ROOT / "target/release/lessen")
warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
ort.set_default_logger_severity(4)
rng = np.random.default_rng(1)
work = pathlib.Path(tempfile.mkdtemp(prefix="lessen-unseen-"))
passed, failed, skipped = 0, 0, 0


def floats(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def boxes(n):
    low = rng.random((n, 2)) * 80
    return np.concatenate([low, low + rng.random((n, 2)) * 30 + 2], 1).astype(np.float32)


def lessen(*args):
    run = subprocess.run([str(LESSEN), *map(str, args), "--json", "--quiet"], capture_output=True, text=True)
    assert run.returncode == 0, f"exit code {run.returncode}: {run.stderr.strip()}"
    return json.loads(run.stdout)


def session(path, level="ORT_ENABLE_BASIC", save=None):
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    if save:
        options.optimized_model_filepath = str(save)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def in_onnxruntime(path, feeds):
    model = session(path)
    return dict(zip([o.name for o in model.get_outputs()], model.run(None, feeds)))


def difference(actual, expected):
    """How far two arrays are apart, relative to the greatest number; integers must be equal."""
    assert actual.shape == expected.shape, f"shape {actual.shape}, onnxruntime {expected.shape}"
    assert actual.dtype == expected.dtype, f"type {actual.dtype}, onnxruntime {expected.dtype}"
    if expected.size == 0 or expected.dtype.kind not in "f":
        assert (actual == expected).all(), "integers differ"
        return 0.0
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-6))


def agrees(path, feeds, tolerance):
    worst = 0.0
    np.savez(work / "in.npz", **feeds)
    lessen("run", path, "--input", work / "in.npz", "--output", work / "out.npz")
    got = np.load(work / "out.npz")
    for name, expected in in_onnxruntime(path, feeds).items():
        apart = difference(got[name], np.asarray(expected))
        assert apart <= tolerance, f"{name}: relative difference {apart:.1e}"
        worst = max(worst, apart)
    return worst


def check(name, path, feeds, tolerance=1e-4):
    """Runs, inspects and converts a model; `feeds` are inputs of several shapes."""
    global passed, failed
    if sys.argv[1:] and not any(word in name for word in sys.argv[1:]):
        return
    try:
        worst = max(agrees(path, f, tolerance) for f in feeds)
        lessen("inspect", path)
        again = work / "again.onnx"
        lessen("convert", path, again)
        for was, now in zip(in_onnxruntime(path, feeds[0]).values(), in_onnxruntime(again, feeds[0]).values()):
            assert difference(np.asarray(now), np.asarray(was)) <= tolerance, "the converted model differs"
        passed += 1
        print(f"ok      {name}: relative difference {worst:.1e}", flush=True)
    except Exception as error:
        failed += 1
        print(f"FAILED  {name}: {error}", flush=True)


def skip(name, why):
    global skipped
    skipped += 1
    print(f"skipped {name}: {why}")


# Models as text: name, version of ONNX, inputs and outputs, nodes, constants, inputs of several shapes.

NMS = """
    b3 = Unsqueeze(boxes, first) turned = Transpose<perm=[1,0]>(scores) s3 = Unsqueeze(turned, first)
    picked = NonMaxSuppression(b3, s3, most, overlap, least)
    box = Gather<axis=1>(picked, two) class = Gather<axis=1>(picked, one)
    found = Gather(boxes, box)
    b1 = Unsqueeze(box, second) c1 = Unsqueeze(class, second) pair = Concat<axis=1>(b1, c1)
    score = GatherND(scores, pair)
    count = Shape(score) k = Min(count, ten) best, order = TopK(score, k)
    final = Gather(found, order) left, rest = Split<axis=1>(final, parts)"""
KEEP = """
    sure = Greater(scores, least) places = NonZero(sure) keep = Squeeze(places, first)
    count = Shape(keep) n = Squeeze(count, first) any = Greater(n, zero)
    y = If(any) <
        then_branch = t () => (float[k,4] some) { some = Gather(boxes, keep) },
        else_branch = e () => (float[j,4] none) { none = ConstantOfShape<value=float[1]{0}>(empty) }
    >"""
GRID = """
    shape = Shape(x) n = Gather(shape, i0) h = Gather(shape, i2) w = Gather(shape, i3)
    ys = Range(i0, h, i1) xs = Range(i0, w, i1) yc = Unsqueeze(ys, a1) xr = Unsqueeze(xs, a0)
    h1 = Unsqueeze(h, a0) w1 = Unsqueeze(w, a0) hw = Concat<axis=0>(h1, w1)
    ye = Expand(yc, hw) xe = Expand(xr, hw) yu = Unsqueeze(ye, last) xu = Unsqueeze(xe, last)
    grid = Concat<axis=-1>(xu, yu) shift = Cast<to=1>(grid)
    n1 = Unsqueeze(n, a0) wide = Concat<axis=0>(n1, heads, hw) r = Reshape(x, wide)
    t = Transpose<perm=[0,1,3,4,2]>(r) s = Sigmoid(t) at, size, more = Split<axis=-1>(s, parts)
    moved = Add(at, shift) squared = Pow(size, two) all = Concat<axis=-1>(moved, squared, more)
    flat = Concat<axis=0>(n1, last, seven) y = Reshape(all, flat)"""
MASK = """
    shape = Shape(ids) b = Gather(shape, i0) s = Gather(shape, i1) b1 = Unsqueeze(b, a0) s1 = Unsqueeze(s, a0)
    target = Concat<axis=0>(b1, one, s1, s1) wide = Unsqueeze(mask, middle)
    open = Equal(target, minus) ones = ConstantOfShape<value=int64[1]{1}>(four) sizes = Where(open, ones, target)
    full = Expand(wide, sizes) f = Cast<to=1>(full) off = Sub(unit, f) hidden = Cast<to=9>(off)
    y = Where(hidden, lowest, off) e = Gather(table, ids)"""
LOOP = """
    shape = Shape(x) n1 = Slice(shape, a0, a1, a0) n = Squeeze(n1) d = Slice(shape, a1, a2, a0)
    start = ConstantOfShape(d)
    sum, steps = Loop(n, yes, start) <
    body = b (int64 i, bool go, float[d] so_far) => (bool on, float[d] then, float[d] out) {
        row = Gather(x, i) then = Add(so_far, row) out = Relu(then) on = Identity(go)
    }>"""
GROWING = """
    none = SequenceEmpty()
    last, all = Loop(, yes, x, none) <
    body = b (int64 i, bool go, float[n,d] a, seq(float[n,d]) s)
        => (bool on, float[n,d] half, seq(float[n,d]) more) {
        half = Mul(a, factor) more = SequenceInsert(s, half) next = Add(i, one) on = Less(next, k)
    }>
    y = ConcatFromSequence<axis=0>(all)"""
RESIZE = """
    shape = Shape(x) hw = Slice(shape, a2, a4) twice = Mul(hw, a2) odd = Sub(twice, a1)
    nc = Slice(shape, a0, a2) sizes = Concat<axis=0>(nc, odd)
    y = Resize<mode="{0}", coordinate_transformation_mode="{1}", nearest_mode="{2}">(x, , , sizes)"""
WHOLE = {f"i{i}": np.array(i) for i in range(4)} | {f"a{i}": np.array([i]) for i in range(5)}


def texts():
    dets = [{"boxes": boxes(n), "scores": (rng.random((n, 3)) * s).astype(np.float32)}
            for n, s in [(30, 1), (4, 0.1), (0, 1)]]
    yield ("NonMaxSuppression, also with nothing found", 13,
           "(float[n,4] boxes, float[n,3] scores) "
           "=> (float[k,4] final, float[k] best, float[k,1] left, float[k,3] rest)",
           NMS, dict(first=[0], second=[1], most=[5], overlap=np.float32([0.5]), least=np.float32([0.6]),
                     one=np.array(1), two=np.array(2), ten=[10], parts=[1, 3]), dets)
    yield ("NonZero and If, also with nothing found", 13,
           "(float[n,4] boxes, float[n] scores) => (float[k,4] y, int64[1] count)", KEEP,
           dict(least=np.float32(0.6), zero=np.array(0), first=[0], empty=[0, 4]),
           [d | {"scores": d["scores"][:, 0].copy()} for d in dets])
    yield ("a grid of anchors", 13, "(float[n,21,h,w] x) => (float[n,m,7] y)", GRID,
           WHOLE | dict(last=[-1], heads=[3, 7], seven=[7], parts=[2, 2, 3], two=np.float32(2)),
           [{"x": floats(1, 21, 4, 6)}, {"x": floats(2, 21, 3, 3)}])
    yield ("an attention mask", 13, "(int64[b,s] ids, int64[b,s] mask) => (float[b,o,s,s] y, float[b,s,8] e)", MASK,
           WHOLE | dict(one=[1], middle=[1, 2], minus=[-1] * 4, four=[4], unit=np.float32(1),
                        lowest=np.float32(-3.4e38), table=floats(20, 8)),
           [{"ids": rng.integers(0, 20, (b, s)), "mask": rng.integers(0, 2, (b, s))} for b, s in [(2, 5), (1, 1)]])
    yield ("Loop over rows, also over none", 13, "(float[n,d] x) => (float[d] sum, float[n,d] steps)", LOOP,
           WHOLE | dict(yes=np.array(True)), [{"x": floats(n, 3)} for n in [5, 1, 0]])
    yield ("Loop that grows a sequence", 13, "(float[n,d] x, int64 k) => (float[m,d] y, float[n,d] last)", GROWING,
           dict(yes=np.array(True), factor=np.float32(0.5), one=np.array(1)),
           [{"x": floats(2, 3), "k": np.array(k)} for k in [3, 1]])
    yield ("Scan", 13, "(float[n,d] x, float[d] h) => (float[d] last, float[n,d] y)",
           "last, y = Scan<num_scan_inputs=1, body = b (float[d] s, float[d] r) => (float[d] t, float[d] o) "
           "{ t = Add(s, r) o = Tanh(t) }>(h, x)", {}, [{"x": floats(5, 3), "h": floats(3)}])
    for mode, place, nearest in [("nearest", "asymmetric", "floor"), ("nearest", "half_pixel", "ceil"),
                                 ("nearest", "half_pixel", "round_prefer_floor"), ("linear", "half_pixel", "floor"),
                                 ("linear", "align_corners", "floor"), ("cubic", "pytorch_half_pixel", "floor")]:
        yield (f"Resize {mode}, {place}, {nearest}", 13, "(float[n,c,h,w] x) => (float[n,c,a,b] y)",
               RESIZE.format(mode, place, nearest), WHOLE, [{"x": floats(1, 2, 5, 7)}, {"x": floats(2, 1, 4, 3)}])
    for mode, border in [("bilinear", "zeros"), ("nearest", "reflection"), ("bicubic", "border")]:
        yield (f"GridSample {mode}, {border}", 16, "(float[n,c,h,w] x, float[n,a,b,2] g) => (float[n,c,a,b] y)",
               f'y = GridSample<mode="{mode}", padding_mode="{border}">(x, g)', {},
               [{"x": floats(2, 2, 5, 6), "g": 1.2 * floats(2, 3, 4, 2)}])
    yield ("RoiAlign, also of no box", 16, "(float[n,c,h,w] x, float[r,4] b, int64[r] i) => (float[r,c,3,4] y)",
           'y = RoiAlign<output_height=3, output_width=4, spatial_scale=0.5>(x, b, i)', {},
           [{"x": floats(2, 3, 10, 12), "b": boxes(r) / 5, "i": rng.integers(0, 2, r)} for r in [6, 0]])
    yield ("Split with sizes from an input", 13, "(float[n,6] x, int64[2] s) => (float[n,a] p, float[n,b] q)",
           "p, q = Split<axis=1>(x, s)", {}, [{"x": floats(2, 6), "s": np.array(s)} for s in [[2, 4], [0, 6]]])
    yield ("ScatterND and ScatterElements", 18,
           "(float[n,3] x, int64[m,1] i, float[m,3] u) => (float[n,3] y, float[n,3] z)",
           'y = ScatterND<reduction="add">(x, i, u) wide = Expand(i, size) z = ScatterElements<axis=0>(x, wide, u)',
           dict(size=[1, 3]), [{"x": floats(4, 3), "i": np.array([[3], [1]]), "u": floats(2, 3)}])
    yield ("Einsum", 12, "(float[b,n,q,d] x, float[b,n,k,d] y) => (float[b,n,q,k] z)",
           'z = Einsum<equation="bnqd,bnkd->bnqk">(x, y)', {}, [{"x": floats(1, 2, 3, 4), "y": floats(1, 2, 5, 4)}])
    for op, gates, more in [("LSTM", 4, ", float[q,b,5] yc"), ("GRU", 3, "")]:
        yield (f"{op} in both directions", 14,
               f"(float[s,b,4] x, int32[b] l) => (float[s,q,b,5] y, float[q,b,5] yh{more})",
               f"y, yh{more and ', yc'} = {op}<hidden_size=5, direction=\"bidirectional\">(x, w, r, bias, l)",
               dict(w=floats(2, gates * 5, 4), r=floats(2, gates * 5, 5), bias=floats(2, gates * 10)),
               [{"x": floats(6, 2, 4), "l": np.int32([6, 3])}])
    yield ("convolutions of no image", 13, "(float[n,3,h,w] x) => (float[n,4,h,w] y, float[n,4,1,1] g)",
           "y = Conv<pads=[1,1,1,1]>(x, w) g = GlobalAveragePool(y)", dict(w=floats(4, 3, 3, 3)),
           [{"x": floats(0, 3, 5, 5)}, {"x": floats(2, 3, 5, 5)}])


def written_as_text():
    for name, version, signature, nodes, constants, feeds in texts():
        model = parser.parse_model(f'<ir_version: 8, opset_import: ["": {version}]> g {signature} {{ {nodes} }}')
        model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()
                                       if f"{k}," in nodes or f"{k})" in nodes)
        onnx.save(model, work / "text.onnx")
        check(name, work / "text.onnx", feeds)


def small_net():
    """A residual network with a depthwise convolution, a squeeze and a head, of opset 13."""
    nodes = """
        a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w0, b0) a1 = Relu(a)
        d = Conv<pads=[1,1,1,1], group=64>(a1, w1) d1 = Clip(d, low, high) s = GlobalAveragePool(d1)
        e = Conv(s, w2) e1 = Sigmoid(e) m = Mul(d1, e1) p = Conv(m, w3) r = Add(p, a1)
        g = GlobalAveragePool(r) f = Flatten(g) y = Gemm<transB=1>(f, w4, b4)"""
    text = f'<ir_version: 8, opset_import: ["": 13]> g (float[n,3,h,w] x) => (float[n,10] y) {{ {nodes} }}'
    model = parser.parse_model(text)
    weights = dict(w0=floats(64, 3, 3, 3) / 5, b0=floats(64), w1=floats(64, 1, 3, 3) / 3, low=np.float32(0),
                   high=np.float32(6), w2=floats(64, 64, 1, 1) / 8, w3=floats(64, 64, 1, 1) / 8, w4=floats(10, 64),
                   b4=floats(10))
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    onnx.save(model, work / "net.onnx")
    return work / "net.onnx", [{"x": floats(n, 3, 16, 16)} for n in (4, 2)]


def tools_of_onnxruntime():
    from onnxruntime import quantization as q

    class Reader(q.CalibrationDataReader):
        def __init__(self, feeds):
            self.feeds = iter(feeds)

        def get_next(self):
            return next(self.feeds, None)

    net, feeds = small_net()
    check("a network", net, feeds)
    forms = [("QDQ", q.QuantType.QUInt8, q.QuantType.QInt8, True), ("QDQ", q.QuantType.QInt8, q.QuantType.QInt8, False),
             ("QOperator", q.QuantType.QUInt8, q.QuantType.QUInt8, False)]
    for form, activation, weight, per_channel in forms:
        to = work / "static.onnx"
        q.quantize_static(str(net), str(to), Reader(feeds), quant_format=getattr(q.QuantFormat, form),
                          activation_type=activation, weight_type=weight, per_channel=per_channel)
        # One step of an 8-bit grid.
        check(f"quantised, {form} {activation} {weight}", to, feeds, 1 / 128)
    q.quantize_dynamic(str(net), str(work / "dynamic.onnx"))
    check("quantised at run time", work / "dynamic.onnx", feeds, 1e-3)
    session(net, "ORT_ENABLE_EXTENDED", work / "optimised.onnx")
    check("optimised by onnxruntime", work / "optimised.onnx", feeds)
    onnx.save(onnx.load(net), work / "outside.onnx", save_as_external_data=True, location="outside.data",
              size_threshold=64)
    check("weights in another file", work / "outside.onnx", feeds)
    shrunk(net)


def shrunk(net):
    """The int8 model that lessen makes is the same in onnxruntime."""
    np.savez(work / "data.npz", x=floats(64, 3, 16, 16))
    lessen("shrink", net, "--data", work / "data.npz", "-o", work / "small.onnx", "--smaller", "2.5")
    onnx.checker.check_model(str(work / "small.onnx"))
    check("shrunk", work / "small.onnx", [{"x": floats(4, 3, 16, 16)}], 1 / 128)


def scikit_learn():
    from skl2onnx import to_onnx
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer, StandardScaler

    x, y = floats(60, 4), rng.integers(0, 3, 60)
    for last in [LogisticRegression(), MLPClassifier((8,), max_iter=20, random_state=0), Ridge()]:
        for first in [StandardScaler(), Normalizer(), SimpleImputer()]:
            model = make_pipeline(first, last).fit(x, y)
            plain = {"options": {id(last): {"zipmap": False}}} if hasattr(last, "predict_proba") else {}
            onnx.save(to_onnx(model, x[:1], **plain), work / "sk.onnx")
            check(f"scikit-learn, {type(first).__name__} and {type(last).__name__}", work / "sk.onnx", [{"X": x[:9]}])


def torchvision():
    import torch
    from torchvision.models import get_model

    for name, version in [("shufflenet_v2_x0_5", 11), ("mobilenet_v3_small", 13), ("efficientnet_b0", 17),
                          ("densenet121", 18), ("swin_t", 17)]:
        torch.manual_seed(0)
        model, x = get_model(name, weights=None), torch.randn(2, 3, 224, 224)
        # With the statistics of some data no layer's numbers vanish.
        for norm in [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]:
            norm.momentum = None
        model.train()(x)
        model.eval()
        torch.onnx.export(model, (x,), str(work / "torch.onnx"), input_names=["x"], opset_version=version,
                          dynamic_axes={"x": {0: "n"}}, dynamo=False)
        check(f"torchvision, {name}", work / "torch.onnx", [{"x": x.numpy()}, {"x": floats(1, 3, 224, 224)}])


def transformers():
    import torch
    from transformers import BertConfig, BertModel, MPNetConfig, MPNetModel, T5Config, T5EncoderModel

    class Named(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, ids, mask):
            return self.model(input_ids=ids, attention_mask=mask).last_hidden_state

    size = dict(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    small = dict(vocab_size=99, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    names = ["input_ids", "attention_mask"]
    for model in [BertModel(BertConfig(**size)), MPNetModel(MPNetConfig(**size)), T5EncoderModel(T5Config(**small))]:
        feeds = [dict(zip(names, [rng.integers(3, 99, s), np.ones(s, np.int64)])) for s in [(2, 9), (1, 5)]]
        example = tuple(torch.from_numpy(feeds[0][n]) for n in names)
        torch.onnx.export(Named(model).eval(), example, str(work / "torch.onnx"), input_names=names,
                          dynamic_axes={n: {0: "b", 1: "s"} for n in names}, opset_version=17, dynamo=False)
        check(f"transformers, {type(model).__name__}", work / "torch.onnx", feeds)


EXPORTERS = [
    (written_as_text, []),
    (tools_of_onnxruntime, []),
    (scikit_learn, ["sklearn", "skl2onnx"]),
    (torchvision, ["torch", "torchvision"]),
    (transformers, ["torch", "transformers"]),
]

for exporter, needs in EXPORTERS:
    missing = [module for module in needs if importlib.util.find_spec(module) is None]
    if missing:
        skip(exporter.__name__, f"{missing[0]} cannot be imported")
        continue
    try:
        exporter()
    except Exception as error:
        failed += 1
        print(f"FAILED  {exporter.__name__}: {error}", flush=True)
print(f"{passed} passed, {failed} failed, {skipped} skipped")
sys.exit(1 if failed else 0)
