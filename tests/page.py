#!/usr/bin/env python3
"""The receipt's page in a real browser: tests/page.py [--keep FOLDER] [LESSEN].

Makes a receipt from examples/digits under a hostile name, opens it in headless Chromium 1200 and 400 pixels wide, light
and dark, and checks that nothing is loaded, that nothing sticks out, that every picture has a size, that every text can be
read (contrast of 4.5 at least), and that the console stays empty. With --keep the screenshots stay in FOLDER. Without
Chromium it says so and is skipped."""

import html
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
         "--virtual-time-budget=4000", "--enable-logging=stderr"]

# A name that would run and load something, if it became markup.
HOSTILE = "<img src=x onerror=console.error(document.domain)>&\"'.onnx"

PARTS = ["Before and after", "What size costs", "Where the bytes are", "What changed in the answers",
         "What it means for each class", "The examples that changed most", "Passes", "Weights", "Made from", "All numbers"]

# Runs in a copy of the page and tells the page around it what it finds.
LOOK = """
const wide = document.documentElement.clientWidth, out = [], small = [], dim = [], broken = [];
const name = e => e.tagName + (e.className && e.className.baseVal === undefined ? '.' + e.className : '') +
  ' ' + (e.textContent || '').trim().slice(0, 40);
const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
for (const e of document.querySelectorAll('body *')) {
  const box = e.getBoundingClientRect(), style = getComputedStyle(e);
  if (!box.width || style.visibility === 'hidden' || e.closest('pre')) continue;
  if (box.right > wide + 0.5 || box.left < -0.5) out.push(name(e) + ' ' + box.left + ' to ' + box.right);
  if ([...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) {
    let behind = e, back = [0, 0, 0, 0];
    while (behind && (back.length === 4 && back[3] === 0)) {
      back = rgb(getComputedStyle(behind).backgroundColor);
      behind = behind.parentElement;
    }
    const front = rgb(e instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(front), light(back)].sort((x, y) => y - x), contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) dim.push(name(e) + ' ' + contrast.toFixed(2));
  }
}
for (const e of document.querySelectorAll('svg')) {
  const box = e.getBoundingClientRect();
  if (getComputedStyle(e.parentElement).display !== 'none' && (box.width < 20 || box.height < 10))
    small.push(name(e) + ' ' + box.width + 'x' + box.height);
}
for (const e of document.querySelectorAll('img')) if (!e.naturalWidth) broken.push(e.alt);
const from = performance.getEntriesByType('resource').map(e => e.name).filter(name => !name.startsWith('data:'));
parent.postMessage({ from, title: document.title, out, small, dim, broken, wide, scroll: document.documentElement.scrollWidth,
  height: document.documentElement.scrollHeight, svgs: document.querySelectorAll('svg').length,
  dark: matchMedia('(prefers-color-scheme: dark)').matches }, '*');
"""

AROUND = """<!doctype html><meta charset=utf-8><style>body{{margin:0}}iframe{{border:0;display:block}}</style>
<iframe src="{page}" width={width} height={height}></iframe><pre id=found hidden></pre>
<script>addEventListener('message', e => document.getElementById('found').textContent = JSON.stringify(e.data))</script>"""


def browser():
    names = ["chromium", "chromium-browser", "google-chrome", "chrome"]
    return next((path for path in map(shutil.which, names) if path), None)


def run(chromium, place, page, width, height, dark, *more):
    """What Chromium writes about a page that is shown in a frame of this size."""
    around = place / "around.html"
    around.write_text(AROUND.format(page=page.name, width=width, height=height))
    with tempfile.TemporaryDirectory(prefix="lessen-chromium-") as profile:
        done = subprocess.run(
            [chromium, *FLAGS, f"--user-data-dir={profile}", f"--window-size={max(width, 500)},{height}",
             f"--blink-settings=preferredColorScheme={0 if dark else 1}", *more, around.as_uri()],
            capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        sys.exit(f"error: Chromium ended with {done.returncode}: {done.stderr[-2000:]}")
    return done


def check(chromium, place, page, width, dark, keep):
    what = f"{width} pixels, {'dark' if dark else 'light'}"
    done = run(chromium, place, page, width, 1000, dark, "--dump-dom")
    said = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    found = re.search(r'<pre id="found"[^>]*>(.*?)</pre>', done.stdout, re.S)
    if not found or not found.group(1):
        sys.exit(f"error: {what}: the page did not answer: {done.stderr[-2000:]}")
    found = json.loads(html.unescape(found.group(1)))
    faults = [f"{kind}: {one}" for kind in ("out", "small", "dim", "broken", "from") for one in found[kind]]
    faults += [f"console: {line}" for line in said]
    if found["scroll"] > found["wide"]:
        faults.append(f"the page is {found['scroll']} pixels wide in a window of {found['wide']}")
    if found["wide"] != width or found["dark"] != dark:
        faults.append(f"shown {found['wide']} pixels wide, dark {found['dark']}")
    if found["title"] != f"Receipt: {HOSTILE}":
        faults.append(f"the title is {found['title']!r}")
    if found["svgs"] < 5:
        faults.append(f"only {found['svgs']} pictures")
    if keep:
        picture = keep / f"receipt-{width}-{'dark' if dark else 'light'}.png"
        run(chromium, place, page, width, found["height"], dark, f"--screenshot={picture.resolve()}")
    print(f"{what}: {found['svgs']} pictures, {found['height']} pixels high: "
          + ("good" if not faults else f"{len(faults)} faults"))
    return [f"{what}: {fault}" for fault in faults]


def main():
    args = sys.argv[1:]
    keep = None
    if args[:1] == ["--keep"]:
        keep = pathlib.Path(args[1])
        keep.mkdir(parents=True, exist_ok=True)
        args = args[2:]
    chromium = browser()
    if not chromium:
        print("skipped: no Chromium (apt-get install chromium)")
        return
    lessen = args[0] if args else os.environ.get("LESSEN", ROOT / "target/release/lessen")
    with tempfile.TemporaryDirectory(prefix="lessen-page-") as folder:
        place = pathlib.Path(folder)
        digits = ROOT / "examples/digits"
        model = place / HOSTILE
        shutil.copy(digits / "digits.onnx", model)
        done = subprocess.run([lessen, "shrink", model, "--data", digits / "test.npz", "--smaller", "6", "--lose", "2",
                               "--zeros", "30%", "--frontier", "--force", "--quiet", "-o", place / "small.onnx"],
                              capture_output=True, text=True)
        if done.returncode not in (0, 2):
            sys.exit(f"error: shrink ended with {done.returncode}: {done.stderr}")
        text = (place / "small.html").read_text()
        for part in PARTS:
            if f"<h2>{part}</h2>" not in text:
                sys.exit(f"error: the page has no part {part!r}")
        if "http" in text or "<script" in text:
            sys.exit("error: the page has a script or an address")
        page = place / "page.html"
        page.write_text(text.replace("</html>", f"<script>{LOOK}</script></html>"))
        faults = []
        for width in (1200, 400):
            for dark in (False, True):
                faults += check(chromium, place, page, width, dark, keep)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
