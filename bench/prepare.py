"""What preparations change: bench/prepare.py.

Prints a table: each model in few bits without `--prepare` and with it. Needs what tests/run installs, the release build
and the shared data; the rows of EfficientNet-Lite0 take the photographs that bench/photos.py FOLDER writes. `distance` is
the mean squared distance of the outputs from the original's, relative to theirs, and `held out` the metric, both on
examples that neither calibration nor search has seen: those of the receipt, and for EfficientNet-Lite0 other photographs,
of which is said how often both models name the same class (its distance is the square of the mean relative one).
"""

import argparse
import pathlib

from quality import CIFAR, IMAGES, MINILM, SHARED, STSB, lessen, work

TEXTS = STSB / "stsb-en-train.csv.gz"
RESNET20 = SHARED / "models/resnet20.onnx"
LITE0 = SHARED / "models/efficientnet_lite0.onnx"
EIGHT = []
SEVEN, TEN = ["--smaller", 7, "--force"], ["--smaller", 10, "--force"]

CASES = [
    ("MiniLM-L6", MINILM, TEXTS, [], [
        ("8 bits", EIGHT, ["smooth", "rotate", "measured"]),
        ("--smaller 7", SEVEN, ["awq", "rotate"]),
        ("--smaller 10", TEN, ["awq", "rotate", "measured"]),
    ]),
    ("ResNet-20", RESNET20, IMAGES, ["--preprocess", CIFAR], [
        ("8 bits", EIGHT, ["equalize", "smooth", "measured"]),
        ("--smaller 7", SEVEN, ["equalize"]),
    ]),
]


def cases(photos):
    yield from CASES
    if photos:
        yield ("EfficientNet-Lite0", LITE0, photos / "calibrate.npz", [], [
            ("8 bits", EIGHT, ["equalize", "smooth", "measured"]),
        ])


def row(name, how, prepare, model, data, flags, goal):
    asked = ["--prepare", prepare] if prepare else []
    small = work / "small.onnx"
    start = f"| {name} | {how} | {prepare or 'none'}"
    try:
        receipt, seconds, _ = lessen("shrink", model, "--data", data, *flags, *goal, *asked, "-o", small)
    except RuntimeError as error:
        print(f"{start} | {str(error).strip()} | | | |", flush=True)
        return
    if prepare == "measured":
        done = [p["method"] for p in receipt["plan"].get("passes", [])]
        start += f" ({', '.join(done) or 'nothing'} kept)"
    quality = receipt["quality"]
    distance, held_out = quality["distance"], f"{quality['after']['value']:.4f}, lost {quality['lost']['value']:.4f}"
    if model == LITE0:
        found, _, _ = lessen("compare", model, small, "--data", data.parent / "judge.npz")
        distance = found["distance"]["relative"]["value"] ** 2
        held_out = f"{found['agreement']['value']:.2f} % alike"
    print(f"{start} | {receipt['smaller']['value']:.2f} | {distance:.3g} | {held_out} | {seconds:.0f} s |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a part of a model's name")
    parser.add_argument("--photos", type=pathlib.Path, help="the folder that bench/photos.py has written")
    options = parser.parse_args()
    print("| model | how | --prepare | times smaller | distance | held out | time |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name, model, data, flags, goals in cases(options.photos):
        if options.only.lower() not in name.lower():
            continue
        for how, goal, preparations in goals:
            for prepare in ["", *preparations]:
                row(name, how, prepare, model, data, flags, goal)


if __name__ == "__main__":
    main()
