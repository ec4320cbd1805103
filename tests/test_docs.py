import re
import sys
from pathlib import Path

import pytest

from maypole import catalogue

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))

import render  # noqa: E402

PLACES = ("*.md", "docs/**/*.md", "benchmarks/*.md")
PAGES = sorted(page.relative_to(ROOT).as_posix() for place in PLACES for page in ROOT.glob(place))


@pytest.mark.parametrize("name", render.PARTS)
def test_derived_parts_are_up_to_date(name):
    assert render.rendered(name) == (ROOT / name).read_text(), "run: python docs/render.py"


def test_the_readme_lists_every_system():
    text = (ROOT / "README.md").read_text()
    assert all(f"[{s.arxiv}]" in text for s in catalogue.SYSTEMS)


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page):
    file = ROOT / page
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", file.read_text())
    missing = [link for link in links if "://" not in link and not (file.parent / link).exists()]
    assert not missing
