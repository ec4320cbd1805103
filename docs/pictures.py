"""Pictures of a finished tour's report for the home page: ``maypole tour --out run``, then
``python docs/pictures.py run``. Needs Chromium; knows nothing about what the report says.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

IMAGES = Path(__file__).parent / "images"
SIZE = (1120, 690)
"""Pixels: the report's full width, down to the end of its verdict."""
THEMES = {"report.png": 1, "report-dark.png": 0}
"""File -> Chromium's number of the colour scheme that the reader prefers."""


def main() -> int:
    report = Path(sys.argv[1]).resolve() / "report.html"
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None or not report.is_file():
        print("needs chromium and the directory of a finished tour", file=sys.stderr)
        return 2
    for name, scheme in THEMES.items():
        with tempfile.TemporaryDirectory() as folder:
            taken = Path(folder) / name
            flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
            flags += [f"--window-size={SIZE[0]},{SIZE[1]}", f"--blink-settings=preferredColorScheme={scheme}"]
            command = [browser, *flags, f"--screenshot={taken}", report.as_uri()]
            subprocess.run(command, check=True, capture_output=True)
            Image.open(taken).convert("RGB").quantize(128, Image.Quantize.FASTOCTREE).save(IMAGES / name, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
