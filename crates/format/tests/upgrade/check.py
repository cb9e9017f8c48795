"""Checks raised models with onnx's checker and onnxruntime: check.py REWRITE FOLDER VERSION...

REWRITE is the built example `rewrite`; FOLDER holds cases as make.py or ../onnx_nodes/export.py write them.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator


# Operators that draw random numbers, and masked scores that onnxruntime shows as -inf from version 25 on, as the
# least number before.
DRAWS = ("test_bernoulli", "test_training_dropout")
MASKED = tuple(f"test_attention_4d_with_past_and_present_qk_matmul_bias_{n}d_mask_causal" for n in (3, 4))


def tensor(folder, item):
    if not isinstance(item, str):
        raise ValueError("not a tensor")
    return numpy_helper.to_array(onnx.load_tensor(folder / item))


def fast(model, feed):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feed)


def reference(model, feed):
    return ReferenceEvaluator(model).run(None, feed)


def passes(what):
    try:
        what()
        return True
    except Exception:
        return False


def compare(got, want, case):
    if isinstance(want, list):
        assert isinstance(got, list) and len(got) == len(want), "another sequence"
        for pair in zip(got, want):
            compare(*pair, case)
        return
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == want.dtype, "another type"
    if got.dtype.kind in "OUS":
        np.testing.assert_array_equal(got, want)
    else:
        np.testing.assert_allclose(got, want, rtol=case["rtol"], atol=case["atol"])


def check(folder, before, after):
    if passes(lambda: onnx.checker.check_model(before)):
        onnx.checker.check_model(after)
    case = json.loads((folder / "case.json").read_text())
    for items in case["sets"]:
        try:
            feed = {i.name: tensor(folder, t) for i, t in zip(before.graph.input, items["inputs"])}
        except Exception:
            continue
        for run in (fast, reference):
            if passes(lambda: (run(before, feed), run(after, feed))):
                break
        else:
            if passes(lambda: fast(before, feed)) or passes(lambda: reference(before, feed)):
                raise RuntimeError("it does not run any more")
            continue
        for got, want in zip(run(after, feed), run(before, feed)):
            compare(got, want, case)


def main(rewrite, folder, *versions):
    out = pathlib.Path(tempfile.mkdtemp())
    folders = [f for f in sorted(pathlib.Path(folder).iterdir()) if not f.name.startswith(DRAWS) and f.name not in MASKED]
    jobs = [(f, v) for f in folders for v in versions]
    lines = "".join(f"{f}/model.onnx\t{out}/{f.name}.{v}.onnx\t{v}\n" for f, v in jobs)
    answers = subprocess.run([rewrite], input=lines, capture_output=True, text=True, check=True).stdout.splitlines()
    good = refused = bad = 0
    for (case, version), answer in zip(jobs, answers, strict=True):
        before = onnx.load(case / "model.onnx")
        if answer != "ok":
            refused += 1
            print(f"refused {case.name} to {version}: {answer.split(': ', 1)[-1]}")
            continue
        try:
            after = onnx.load(out / f"{case.name}.{version}.onnx")
            own = {o.version for o in before.opset_import if not o.domain}
            want = {max(v, int(version)) for v in own}
            assert {o.version for o in after.opset_import if not o.domain} == want, "the version is not raised"
            check(case, before, after)
            good += 1
        except Exception as why:
            bad += 1
            print(f"BAD {case.name} to {version}: {type(why).__name__} {str(why)[:500]}")
    print(f"{good} good, {refused} refused, {bad} bad")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
