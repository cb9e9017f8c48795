"""Picking beside others: bench/pick.py [--only duplicates|labels|less|many|calibration].

Prints tables. Needs what tests/run installs, datasketch, cleanlab, the release build and the shared data.

duplicates: texts of Wikipedia, in parts of 60 words, with planted copies: some in other case and spaces, some with one to
four words changed. A copy counts as near when the true Jaccard similarity of the runs of five words is 0.7 or more; what
else is dropped counts as wrong unless the same is true of it and an earlier text. datasketch is asked as its documentation
says, with as many bands and rows as lessen has; with `verified`, its candidates' true similarity is looked at, too.
labels: a tenth of the labels of SST-2's training reviews (MiniLM's features) and of CIFAR-10's test images
(EfficientNet-Lite0's) is moved to another class. cleanlab looks for them by the probabilities that scikit-learn's
logistic regression gives in five folds on the same features.
less: heads (scikit-learn's logistic regression) on the 30 % that lessen picks, by features that it chooses and by the model's
end, and on 20 random 30 %, judged on reviews or tweets that nothing was picked of; and what `lessen teach` learns from them, and
from five random ones.
many: ten million made-up rows, a tenth of them copies; time and peak memory.
calibration: ResNet-20 is shrunk, calibrated on 64 of 2,000 of CIFAR-10's test images, chosen in several ways and at random
(the mean of five draws), and judged on others of the other 8,000.
"""

import argparse
import csv
import gzip
import random
import shutil
import time

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from quality import CIFAR, EFFICIENTNET, IMAGES, MINILM, SHARED, lessen, work
from teach import Images, Texts, macro_f1, pictures, reviews, tweets, write

NEAR = 0.7


def shingles(text, words=5):
    words_ = text.lower().split()
    return {" ".join(words_[i:i + words]) for i in range(max(1, len(words_) - words + 1))}


def jaccard(a, b):
    return len(a & b) / len(a | b)


def dropped(path, whys):
    """Rows that go for these reasons."""
    return [int(row["example"]) for row in csv.DictReader(open(path, encoding="utf-8")) if row["why"] in whys]


def planted(seed=1):
    """Texts, where each copy is of, and how it was made."""
    draw = random.Random(seed)
    words = []
    for name in ("wiki.test.raw.gz", "wiki.valid.tokens.gz"):
        words += gzip.open(SHARED / "data/wikitext-2" / name, "rt", encoding="utf-8").read().split()
    rows = [words[i:i + 60] for i in range(0, len(words) - 60, 20)]
    draw.shuffle(rows)
    # Runs of 60 words that begin every 20 overlap by two thirds: far from near.
    copies = {}
    for at, of in enumerate(draw.sample(range(len(rows)), len(rows) // 3)):
        copy = list(rows[of])
        if at % 2:
            for _ in range(draw.randint(1, 4)):
                copy[draw.randrange(len(copy))] = draw.choice(words)
        copies[len(rows)] = of
        rows.append(copy)
    out = [" ".join(row) for row in rows]
    for copy, of in copies.items():
        if out[copy] == out[of]:
            out[copy] = "  ".join(out[copy].upper().split())
    return out, copies


def datasketch(rows, verified):
    """Rows whose like is there before."""
    from datasketch import MinHash, MinHashLSH

    lsh = MinHashLSH(num_perm=140, params=(28, 5))
    gone, kept = set(), {}
    for at, text in enumerate(rows):
        mine = shingles(text)
        hashes = MinHash(num_perm=140)
        hashes.update_batch([s.encode() for s in mine])
        like = lsh.query(hashes)
        if verified:
            like = [other for other in like if jaccard(mine, kept[other]) >= NEAR]
        if like:
            gone.add(at)
        else:
            lsh.insert(at, hashes)
            kept[at] = mine
    return gone


def duplicates():
    rows, copies = planted()
    sets = [shingles(text) for text in rows]
    near = {copy for copy, of in copies.items() if jaccard(sets[copy], sets[of]) >= NEAR}
    print(f"{len(rows)} texts of 60 words, {len(near)} planted copies with a similarity of {NEAR} or more\n")
    print("| | found | right | time | lessen faster by |\n|---|---|---|---|---|", flush=True)
    holders = {}
    for at, mine in enumerate(sets):
        for shingle in mine:
            holders.setdefault(shingle, []).append(at)

    def right(at):
        """Is there an earlier text that is near?"""
        counts = {}
        for shingle in sets[at]:
            for other in holders[shingle]:
                if other < at:
                    counts[other] = counts.get(other, 0) + 1
        return any(n / (len(sets[at]) + len(sets[other]) - n) >= NEAR for other, n in counts.items())

    def row(name, gone, seconds, ours):
        found = len(near & gone) / len(near)
        good = sum(map(right, gone)) / len(gone)
        print(f"| {name} | {100 * found:.2f} % | {100 * good:.2f} % | {seconds:.1f} s | {seconds / ours:.1f} |", flush=True)

    data, out, gone = work / "texts.txt", work / "fewer.txt", work / "gone.csv"
    data.write_text("\n".join(rows) + "\n", encoding="utf-8")
    times = []
    for _ in range(3):
        times.append(lessen("pick", data, "-o", out, "--dropped", gone)[1])
    ours = sorted(times)[1]
    row("lessen, whole command", set(dropped(gone, {"same", "near"})), ours, ours)
    for verified in (False, True):
        start = time.time()
        found = datasketch(rows, verified)
        row("datasketch" + (", verified" if verified else ""), found, time.time() - start, ours)


def made_of(kind, rows):
    """What the Python way makes of them, as `teach` has it."""
    return kind.features(kind.backbone(), rows)


def logistic():
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))


def f1(found, planted):
    found, planted = set(found), set(planted)
    both = len(found & planted)
    precision, recall = both / max(1, len(found)), both / len(planted)
    return f"{100 * precision:.1f} % | {100 * recall:.1f} % | {200 * both / (len(found) + len(planted)):.1f}"


def moved(labels, classes, seed=7):
    """Labels, a tenth of them another class's, and which."""
    draw = np.random.default_rng(seed)
    rows = draw.choice(len(labels), len(labels) // 10, replace=False)
    labels = np.array(labels)
    labels[rows] = (labels[rows] + draw.integers(1, classes, len(rows))) % classes
    return labels, rows


def cleanlab_rows(name, features, labels, planted, seconds):
    from cleanlab.filter import find_label_issues

    start = time.time()
    probabilities = cross_val_predict(logistic(), features, labels, cv=5, method="predict_proba")
    folds = time.time() - start
    for how in ("prune_by_noise_rate", "both", "confident_learning"):
        start = time.time()
        found = np.flatnonzero(find_label_issues(labels, probabilities, filter_by=how))
        print(f"| {name} | cleanlab, {how} | {f1(found, planted)} | {folds + time.time() - start:.1f} s |", flush=True)


def labels():
    print("| data | | right | found | F1 | time without features |\n|---|---|---|---|---|---|", flush=True)
    train, _ = reviews()
    noisy, planted = moved([int(label) for _, label in train], 2)
    data, gone, cache = work / "noisy.csv", work / "gone.csv", work / "cache"
    write([(text, label) for (text, _), label in zip(train, noisy)], data)
    ask = ["pick", data, "--model", MINILM, "--cache", cache, "--labels", "-o", work / "clean.csv", "--dropped", gone,
           "--near", "1"]
    lessen(*ask)
    _, seconds, _ = lessen(*ask)
    print(f"| SST-2 | lessen, whole command | {f1(dropped(gone, {'label'}), planted)} | {seconds:.1f} s |", flush=True)
    lessen(*ask, "--features", "sentence_embedding")
    print(f"| SST-2 | lessen, by the model's end | {f1(dropped(gone, {'label'}), planted)} | |", flush=True)
    cleanlab_rows("SST-2", made_of(Texts, train), noisy, planted, seconds)

    images = work / "images"
    images.mkdir()
    for page in IMAGES.glob("test_*.png"):
        shutil.copy(page, images)
    noisy, planted = moved(np.fromfile(IMAGES / "labels.u8", np.uint8), 10)
    noisy.astype(np.uint8).tofile(images / "labels.u8")
    ask[1], ask[3], ask[8] = images, EFFICIENTNET, work / "clean"
    lessen(*ask[:-2])
    shutil.rmtree(work / "clean")
    _, seconds, _ = lessen(*ask[:-2])
    print(f"| CIFAR-10 | lessen, whole command | {f1(dropped(gone, {'label'}), planted)} | {seconds:.1f} s |", flush=True)
    cleanlab_rows("CIFAR-10", made_of(Images, pictures()[1]), noisy, planted, seconds)


def less():
    print("| data | examples | head | all | random 30 % (95 %) | picked | by the model's end |\n|---|---|---|---|---|---|---|",
          flush=True)
    for name, read, flags, score in [
            ("SST-2", reviews, ["--labels"], lambda found, truth: 100 * float((found == truth).mean())),
            ("tweets, macro F1", tweets, ["--labels", "--balanced"], macro_f1)]:
        train, test = read()
        if name == "SST-2":
            rest = gzip.open(SHARED / "data/sst2/test.tsv.gz", "rt", encoding="utf-8").read().splitlines()
            test = test + [line.rsplit("\t", 1) for line in rest]
        data, out = work / "train.csv", work / "picked.csv"
        write(train, data)
        places = {}
        for at, row in enumerate(csv.reader(open(data, encoding="utf-8", newline=""))):
            places.setdefault(tuple(row), at - 1)
        picks = []
        for features in [], ["--features", "sentence_embedding"]:
            report, _, _ = lessen("pick", data, "--model", MINILM, "--keep", "30%", *flags, *features, "-o", out)
            rows = [places[tuple(row)] for row in csv.reader(open(out, encoding="utf-8", newline=""))][1:]
            picks.append((report["by"], rows))
        features, judged = made_of(Texts, train), made_of(Texts, test)
        classes, truth = (np.array([int(label) for _, label in rows]) for rows in (train, test))

        def taught(rows):
            weight = "balanced" if "--balanced" in flags else None
            head = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000, class_weight=weight))
            return score(head.fit(features[rows], classes[rows]).predict(judged), truth)

        def by_lessen(rows):
            part, new = work / "part.csv", work / "taught.onnx"
            write([train[row] for row in rows], part)
            lessen("teach", MINILM, "--data", part, *(flag for flag in flags if flag == "--balanced"), "-o", new)
            return score(Texts.answers(new, "logits", test).argmax(1), truth)

        def row(head, teach, draws, student):
            draw = np.random.default_rng(3)
            others = [teach(draw.permutation(len(train))[:len(picks[0][1])]) for _ in range(draws)]
            mean, wide = np.mean(others), student * np.std(others, ddof=1) * (1 + 1 / draws) ** 0.5
            picked = " | ".join(f"{teach(rows):.2f}, {by}" for by, rows in picks)
            print(f"| {name} | {len(train)} to pick of, {len(test)} to judge | {head} | {teach(np.arange(len(train))):.2f} "
                  f"| {mean:.2f} ({mean - wide:.2f} to {mean + wide:.2f}) | {picked} |", flush=True)

        # Student's t of 95 % with one degree of freedom less than there are draws.
        row("scikit-learn", taught, 20, 2.093)
        row("lessen teach", by_lessen, 5, 2.776)


def many(count=10_000_000):
    draw = np.random.default_rng(5)
    words = np.array([f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "lmnrst"])
    data, out = work / "many.txt", work / "fewer.txt"
    copies = 0
    with open(data, "w", encoding="utf-8") as file:
        for _ in range(count // 100_000):
            rows = words[draw.integers(0, len(words), (90_000, 20))].tolist()
            lines = [" ".join(row) for row in rows]
            again = draw.integers(0, len(rows), 10_000)
            for at, of in enumerate(again):
                row = list(rows[of])
                if at % 2:
                    # A word of 20 at one end: 15 of 17 runs of five stay the same.
                    row[0] = "another"
                lines.append(" ".join(row))
            copies += len(again)
            file.write("\n".join(lines) + "\n")
    report, seconds, peak = lessen("pick", data, "-o", out)
    gone = sum(d["count"] for d in report["dropped"])
    print(f"{count} rows of 20 words, {data.stat().st_size / 1e9:.2f} GB, {copies} copies: {gone} go; {seconds:.0f} s, "
          f"{count / seconds:.0f} rows a second, peak memory {peak / 1000:.2f} GB")


def calibration(count=64):
    _, images = pictures()
    pool, rest, model = work / "pool", work / "rest", SHARED / "models/resnet20.onnx"
    Images.write(images[:2000], pool), Images.write(images[2000:], rest)
    print("| 64 examples to calibrate on | 8 bits: distance | points lost | --smaller 10: distance | points lost |\n"
          "|---|---|---|---|---|")

    def shrunken(by, seed):
        chosen = work / f"{by}-{seed}"
        lessen("pick", pool, "--model", model, "--preprocess", CIFAR, "--keep", count, "--by", by, "--seed", seed, "-o", chosen)
        found = []
        for goal in ([], ["--smaller", 10]):
            receipt, _, _ = lessen("shrink", model, "--preprocess", CIFAR, "--data", rest, "--calibrate-on", chosen, *goal,
                                   "-o", work / "calibrated.onnx")
            found += [receipt["quality"]["distance"], receipt["quality"]["lost"]["value"]]
        return found

    for by, draws in (("random", 5), ("k-center", 1), ("herding", 1), ("facility", 1)):
        rows = np.array([shrunken(by, seed) for seed in range(1, draws + 1)])
        cell = lambda i, digits: (f"{rows[:, i].mean():.{digits}f}" + (f" ({rows[:, i].min():.{digits}f} to "
                                  f"{rows[:, i].max():.{digits}f})" if draws > 1 else ""))
        print(f"| {by} | {cell(0, 5)} | {cell(1, 2)} | {cell(2, 4)} | {cell(3, 2)} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", choices=["", *(part.__name__ for part in PARTS)])
    options = parser.parse_args()
    for part in PARTS:
        if options.only in ("", part.__name__):
            print(f"\n{part.__name__}\n")
            part()


PARTS = (duplicates, labels, less, many, calibration)

if __name__ == "__main__":
    main()
