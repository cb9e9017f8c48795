"""What examples made by lessen are worth for calibration, beside none and real ones: bench/selfmade.py.

Prints a table. Needs what bench/quality.py needs. Each file is judged by `lessen eval` on real examples: all 10,000 test
images of CIFAR-10 (of which `--data` has seen half in calibration and search), all 1,379 test pairs of STS-B (`--data` is
STS-B's training set). `agree` is the share of examples of which both models name the same class (not for texts),
`apart` how far their outputs are apart, relative to the original's.
"""

import argparse

from quality import CIFAR, IMAGES, MINILM, SHARED, STSB, lessen, work

WAYS = [("no data", []), ("self-made", ["--self-made"]), ("real", None)]


def rows(name, model, opening, data, test, goals):
    before = lessen("eval", model, *opening, "--data", test)[0]["value"]["value"]
    print(f"| {name} | f32 | | 1.00x | {before:.4f} | | | |", flush=True)
    for goal in goals:
        for way, flags in WAYS:
            small = work / "small.onnx"
            flags = ["--data", data] if flags is None else flags
            receipt, seconds, _ = lessen("shrink", model, *opening, *flags, *goal, "--force", "-o", small)
            tokenizer = ["--tokenizer", MINILM] if model == MINILM else opening
            value = lessen("eval", small, *tokenizer, "--data", test)[0]["value"]
            alike = lessen("compare", model, small, *opening, "--data", test, "--task", "agree")[0]
            agree = f"{alike['agreement']['value']:.2f} %" if value["unit"] == "%" else ""
            apart = alike["distance"]["relative"]["value"]
            what = f"{name} | {' '.join(goal) or '8 bits'} | {way} | {receipt['smaller']['value']:.2f}x"
            print(f"| {what} | {value['value']:.4f} | {agree} | {apart:.3f} | {seconds:.0f} s |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a part of a model's name")
    only = parser.parse_args().only.lower()
    goals = [[], ["--smaller", "7"], ["--smaller", "10"]]
    print("| model | goal | calibrated on | times smaller | metric | agree | apart | time |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for layers in (20, 56):
        if only in f"resnet-{layers}":
            model = SHARED / f"models/resnet{layers}.onnx"
            rows(f"ResNet-{layers}", model, ["--preprocess", CIFAR], IMAGES, IMAGES, goals)
    if only in "minilm-l6":
        rows("MiniLM-L6", MINILM, [], STSB / "stsb-en-train.csv.gz", STSB / "stsb-en-test.csv.gz", goals)


if __name__ == "__main__":
    main()
