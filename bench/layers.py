"""How much smaller the error of each layer becomes by least squares and by searched grids: bench/layers.py.

MiniLM-L6 on pairs of STS-B, all matrices of its encoder: zeros at half of the places, with and without a refit of what
stays; then 3 bits: GPTQ as it was published (grids from the least to the greatest weight, columns in their own order,
biases left alone), lessen's sweep on such grids, and its sweep on searched ones. The error is the squared error of a
weight's products relative to their squares, on the calibration's examples, whose inputs come through the weights changed
before; `factor` is how many times the first is the last, for the mean and for single weights. Needs what tests/run
installs, the release build and the shared data.
"""

import re
import statistics

from quality import MINILM, STSB, lessen, work

DATA = ["--data", STSB / "stsb-en-train.csv.gz"]


def replay(text, name):
    plan = work / f"{name}.toml"
    plan.write_text(text)
    receipt, seconds, _ = lessen("apply", MINILM, plan, *DATA, "--force", "-o", work / f"{name}.onnx")
    return receipt, seconds


def zeros():
    print("| half of the weights 0, which | mask alone | refitted | factor | s |\n|---|---|---|---|---|", flush=True)
    for rule in ["magnitude", "wanda", "surgeon"]:
        found, spent = [], 0
        for alone in [["--no-refit"], []]:
            receipt, seconds, _ = lessen("shrink", MINILM, *DATA, "--zeros", "50%", "--allocation", "even", "--pattern", "anywhere",
                                         "--rule", rule, *alone, "--force", "-o", work / "zeros.onnx")
            found.append(next(c["error"] for c in receipt["changes"] if c["pass"] == "zeros"))
            spent += seconds
        print(f"| {rule} | {found[0]:.5f} | {found[1]:.5f} | {found[0] / found[1]:.2f} | {spent:.0f} |", flush=True)


def bits():
    lessen("shrink", MINILM, "-o", work / "names.onnx", "--force")
    text = (work / "names.toml").read_text()
    text = re.sub(r'choice = ".*"', 'choice = "keep"', text)
    inside = re.compile(r'(node = "[^"]*"\nweight = "[^"]*encoder[^"]*"\nelements = \d+\nchoice = )"keep"')
    print("| 3 bits | GPTQ | sweep, min-max grids | sweep, searched grids | factor to GPTQ | weights: least, median, "
          "greatest factor | s |\n|---|---|---|---|---|---|---|", flush=True)
    for form, what in [("w3", "a grid for each row"), ("w3-g128", "groups of 128"), ("w3-g32", "groups of 32")]:
        three, count = inside.subn(rf'\1"{form}"', text)
        assert count > 30, count
        found, spent = [], 0
        for rounding, ranges in [("gptq", "min-max"), ("sweep", "min-max"), ("sweep", "searched")]:
            plan = re.sub(r'ranges = ".*"', f'ranges = "{ranges}"', three)
            plan = re.sub(r'rounding = ".*"', f'rounding = "{rounding}"', plan)
            receipt, seconds = replay(plan, f"{rounding}-{ranges}")
            found.append([s["error"] for s in receipt["plan"]["steps"] if s["choice"] == form])
            spent += seconds
        means = [statistics.mean(errors) for errors in found]
        each = sorted(a / b for a, b in zip(found[0], found[-1]))
        print(f"| {what} | {means[0]:.5f} | {means[1]:.5f} | {means[2]:.5f} | {means[0] / means[2]:.2f} "
              f"| {each[0]:.2f}, {statistics.median(each):.2f}, {each[-1]:.2f} | {spent:.0f} |", flush=True)


if __name__ == "__main__":
    zeros()
    bits()
