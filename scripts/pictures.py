"""Draws the pictures in docs/images, each by a command that a reader can repeat.

    python scripts/pictures.py

needs torch, Matplotlib, Playwright and a Chromium. The commands are printed as they are run.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

from gpt_verify.command.cli import main as gpt_verify

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"

RARE_WORD = "And Zorbukel said unto them, Hear ye. Then Zorbukel went"
#: Twelve random ids of the default checkpoint's 2003, twice.
REPETITION = ",".join(map(str, 2 * np.random.default_rng(0).integers(0, 2003, 12).tolist()))

#: A port with a known mistake, from the tests.
WRONG = "tests/altered_ports.py:eager_exact_gelu"


def command(*words: object) -> None:
    """One command, said and run; its exit status is what it is for."""
    print("gpt-verify", shlex.join(map(str, words)), flush=True)
    gpt_verify([str(word) for word in words])


def photograph(page: Path, out: Path, clip_height: int) -> None:
    """The top of a page, as a reader sees it."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no Chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        tab = browser.new_page(viewport={"width": 1280, "height": clip_height})
        tab.goto(page.as_uri())
        tab.screenshot(path=out)
        browser.close()
    smaller(out)


def smaller(picture: Path) -> None:
    """Store a picture with a palette, which flat colours do not suffer from."""
    with Image.open(picture) as image:
        flat = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    flat.save(picture, optimize=True)


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        report, lens = Path(scratch, "report.html"), Path(scratch, "lens.html")
        command("run", "--port", WRONG, "--html", report, "--quiet")
        photograph(report, IMAGES / "report.png", 1040)
        command(
            "lens",
            RARE_WORD,
            "--port",
            "huggingface-sdpa",
            "--html",
            lens,
            "--quiet",
            "--statistic",
            "kl_final_layer_nats",
        )
        photograph(lens, IMAGES / "lens.png", 1010)
    for name, what in (
        ("rare-word", [RARE_WORD]),
        ("repetition", ["--tokens", REPETITION]),
    ):
        out = IMAGES / f"lens-{name}.png"
        command("lens", *what, "--statistic", "rank_next", "--sub-blocks", "--png", out, "--quiet")
        smaller(out)


if __name__ == "__main__":
    main()
