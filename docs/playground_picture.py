"""A picture of the server's page for docs/server.md: ``python docs/playground_picture.py``. Needs Chromium.

The shipped base runs the map-reduce example, and the page is taken down to the end of its table.
"""

import io
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).parent.parent
BASE = ROOT / "maypole" / "village" / "base" / "village-4M-prose"
SIZE = {"width": 1120, "height": 800}


def main() -> int:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("needs chromium", file=sys.stderr)
        return 2
    command = [sys.executable, "-m", "maypole.cli.main", "serve", str(BASE), "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        url = next(line.split()[-1] for line in server.stderr if "serving at" in line).removesuffix("/v1")
        try:
            picture = taken(browser, f"{url}/#program")
        finally:
            server.terminate()
    image = Image.open(io.BytesIO(picture)).convert("RGB").quantize(64, Image.Quantize.FASTOCTREE)
    image.save(ROOT / "docs" / "images" / "playground.png", optimize=True)
    return 0


def taken(browser: str, url: str) -> bytes:
    """The page after the run, as PNG."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport=SIZE, reduced_motion="reduce")
        page.goto(url)
        page.get_by_role("button", name="Run", exact=True).click()
        expect(page.locator("#run-rows tr")).to_have_count(1, timeout=60_000)
        page.mouse.move(0, 0)
        table = page.locator(".calls").bounding_box()
        assert table is not None
        clip = {"x": 0, "y": 0, "width": SIZE["width"], "height": table["y"] + table["height"] + 16}
        picture = page.screenshot(full_page=True, clip=clip)
        chromium.close()
        return picture


if __name__ == "__main__":
    sys.exit(main())
