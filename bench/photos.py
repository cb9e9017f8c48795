"""Photographs that lie in well-known Python packages, as data for models of ImageNet: bench/photos.py FOLDER.

Writes FOLDER/calibrate.npz and FOLDER/judge.npz (`input`: f32 [N, 3, 224, 224], (RGB - 127) / 128, as
EfficientNet-Lite wants it). No photograph is in both. Of each there are the whole picture, cut to a square, and square crops of 60 to
100 % of its shorter side, half of them mirrored. The packages are read where they are installed, or from wheels in
FOLDER: pip download --no-deps -d FOLDER foolbox==3.3.4 imgaug==0.4.0 ultralytics gradio; pip install scikit-image
scikit-learn matplotlib. Those that are missing are left out, and said to be.
"""

import argparse
import importlib.util
import io
import pathlib
import zipfile

import numpy as np
from PIL import Image

SIDE = 224
INSTALLED = {
    "sklearn": ["datasets/images/china.jpg", "datasets/images/flower.jpg"],
    "skimage": ["data/astronaut.png", "data/coffee.png", "data/chelsea.png", "data/rocket.jpg",
                "data/motorcycle_left.png"],
    "matplotlib": ["mpl-data/sample_data/grace_hopper.jpg"],
}
WHEELS = {
    "foolbox": "foolbox/data/imagenet_",
    "imgaug": "imgaug/quokka.jpg",
    "ultralytics": "ultralytics/assets/",
    "gradio": "gradio/media_assets/images/",
}
# Among gradio's pictures, those that are photographs.
GRADIO = ["cheetah.jpg", "lion.jpg", "tower.jpg", "groot.jpeg"]


def photographs(folder):
    for package, files in INSTALLED.items():
        found = importlib.util.find_spec(package)
        if found is None:
            print(f"left out: {package} is not installed")
            continue
        root = pathlib.Path(found.origin).parent
        yield from ((f"{package}/{pathlib.Path(f).stem}", Image.open(root / f)) for f in files if (root / f).exists())
    for package, start in WHEELS.items():
        wheels = sorted(folder.glob(f"{package}-*.whl"))
        if not wheels:
            print(f"left out: no wheel of {package} in {folder}")
            continue
        wheel = zipfile.ZipFile(wheels[-1])
        for name in sorted(wheel.namelist()):
            end = name.rsplit("/", 1)[-1]
            if name.startswith(start) and end.lower().endswith((".jpg", ".jpeg")):
                if package != "gradio" or end in GRADIO:
                    yield f"{package}/{end}", Image.open(io.BytesIO(wheel.read(name)))


def squares(photo, count, random):
    photo = photo.convert("RGB")
    short = min(photo.size)
    for k in range(count):
        side = short if k == 0 else round(short * random.uniform(0.6, 1.0))
        free = [photo.width - side, photo.height - side]
        left, top = [f // 2 for f in free] if k == 0 else [random.integers(0, f + 1) for f in free]
        square = photo.resize((SIDE, SIDE), Image.BICUBIC, (left, top, left + side, top + side))
        yield np.asarray(square if k % 2 == 0 else square.transpose(Image.FLIP_LEFT_RIGHT))


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("folder", type=pathlib.Path)
    arguments.add_argument("--crops", type=int, default=16, help="squares of each photograph")
    given = arguments.parse_args()
    random = np.random.default_rng(0)
    given.folder.mkdir(parents=True, exist_ok=True)
    parts = {"calibrate": [], "judge": []}
    for number, (name, photo) in enumerate(photographs(given.folder)):
        part = list(parts)[number % 2]
        parts[part] += squares(photo, given.crops, random)
        print(f"{number:3} {part:9} {name} {photo.width}x{photo.height}")
    for part, pictures in parts.items():
        pixels = (np.stack(pictures).transpose(0, 3, 1, 2).astype(np.float32) - 127) / 128
        np.savez(given.folder / f"{part}.npz", input=pixels)
        print(f"{part}: {len(pictures)} squares")


if __name__ == "__main__":
    main()
