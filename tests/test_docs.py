"""README and docs: what derives from code is up to date, links lead somewhere, commands and snippets run."""

import contextlib
import io
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from maypole import catalogue
from maypole.claims.effects import Effect
from maypole.claims.runner import ClaimResult
from maypole.claims.verdict import combine
from maypole.cli.app import parse
from maypole.cli.commands import COMMANDS, POLE
from maypole.cli.main import run
from maypole.cli.options import split
from maypole.curate.perplexity_pruning import picture
from tests.docs_workplace import furnish

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))

import check_site  # noqa: E402
import render  # noqa: E402
from rendering import numbers  # noqa: E402

PLACES = ("*.md", "docs/**/*.md", "benchmarks/*.md")
PAGES = sorted(page.relative_to(ROOT).as_posix() for place in PLACES for page in ROOT.glob(place))
SITE = [page for page in PAGES if page.startswith("docs/") and "/_" not in page]
SYSTEMS = [page for page in SITE if page.startswith("docs/systems/")]
TEMPLATE = "docs/systems/_template.md"
FOLLOWED = ["README.md", "docs/reference/rows.md", *SYSTEMS]
FOLLOWED += [f"docs/{name}.md" for name in ("start", "engine", "server", "online", "preferences", "judges", "zoo")]
"""Pages whose marked blocks are run, and whose other commands are tried with --dry-run where they have it."""

LAUNCHERS = (["maypole"], ["accelerate"], ["torchrun"])


@dataclass(frozen=True)
class Block:
    """A block of code: its language ("" for commands), its text, and whether `<!-- run -->` stands before it."""

    language: str
    text: str
    marked: bool

    @property
    def commands(self) -> list[list[str]]:
        """The words after `maypole` in each line that runs it, be it through a launcher."""
        lines = self.text.replace("\\\n", " ").splitlines() if self.language in ("", "sh") else []
        found = (shlex.split(line.removeprefix("$ "), comments=True) for line in lines)
        return [words[words.index("maypole") + 1 :] for words in found if words[:1] in LAUNCHERS and "maypole" in words]


def blocks(page: str) -> Iterator[Block]:
    """The blocks of code of a page, in order."""
    pattern = r"^(?P<mark><!-- run -->\n)?```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$"
    for found in re.finditer(pattern, (ROOT / page).read_text(), re.MULTILINE | re.DOTALL):
        yield Block(found["language"], found["text"], found["mark"] is not None)


def headings(page: str, level: str = "##") -> list[str]:
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.findall(rf"^{level} (.+)$", text, re.MULTILINE)


def anchors(page: str) -> set[str]:
    """What the site calls the headings of a page: their words in lower case with hyphens between."""
    plain = (re.sub(r"\[(.*?)\]\(.*?\)|[`*]", r"\1", heading) for heading in headings(page, "#+"))
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in plain}


@pytest.fixture
def workplace(place: Path) -> Path:
    """A furnished folder to be in."""
    furnish(place)
    return place


@pytest.mark.parametrize("name", render.pages())
def test_derived_parts_are_up_to_date(name):
    assert render.rendered(name) == (ROOT / name).read_text(), "run: python docs/render.py"


def test_every_maker_of_derived_parts_has_its_place():
    text = "".join((ROOT / name).read_text() for name in render.pages())
    assert [name for name in render.MAKERS if name != "claim" and not re.search(f"<!-- {name}[: ]", text)] == []


def test_a_derived_part_that_does_not_end_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(render, "ROOT", tmp_path)
    (tmp_path / "page.md").write_text("<!-- pole -->\nold\n")
    with pytest.raises(ValueError, match="has no <!-- /pole -->"):
        render.rendered("page.md")


def test_a_stored_claim_is_shown_with_every_effect_and_what_it_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(numbers, "CLAIMS", tmp_path)
    assert numbers.claim("mora") == "No result is stored yet; `maypole claim mora` measures it."
    seeds = [[Effect("recall | all", "share", ours, 0.5, 0.2, "difference>=")] for ours in (0.8, 0.9, 0.7)]
    effects = combine(seeds)
    result = ClaimResult("mora", "More <rank>.", effects, [0, 1, 2], 90.0, [], {"torch": "2"}, holds=True)
    (tmp_path / "mora.json").write_text(json.dumps(result.to_json()))
    shown = numbers.claim("mora")
    assert "**Holds**: 1 of 1 effects, seeds 0, 1, 2, 2 minutes; torch 2." in shown
    assert "| recall \\| all | share | 0.8 | 0.5 | 0.3 | [0.2, 0.4] | difference>= 0.2 | ok |" in shown
    assert "[MoRA: high-rank updating](#mora) | holds | 1 of 1 |" in numbers.claims()


def test_the_readme_lists_every_system():
    text = (ROOT / "README.md").read_text()
    assert all(f"[{s.arxiv}]" in text for s in catalogue.SYSTEMS)


@pytest.mark.parametrize("page", [page for page in PAGES if page != TEMPLATE])
def test_links_between_pages_lead_somewhere(page):
    file = ROOT / page
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", file.read_text())
    inside = [link for link in links if "://" not in link]
    assert [link for link in inside if not (file.parent / link).exists()] == []
    if page in SITE:
        out_of_the_site = [link for link in inside if not (file.parent / link).resolve().is_relative_to(ROOT / "docs")]
        assert out_of_the_site == []


@pytest.mark.parametrize("page", SITE)
def test_a_page_has_no_definition_lists_which_neither_the_site_nor_github_shows(page):
    assert re.findall(r"^: .*", (ROOT / page).read_text(), re.MULTILINE) == []


def test_the_site_has_a_place_for_every_page():
    found = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert sorted(f"docs/{name}" for name in re.findall(r"[\w/-]+\.md", str(found))) == SITE


@pytest.mark.parametrize("page", [page for page in PAGES if page != TEMPLATE])
def test_links_to_a_heading_find_it(page):
    found = re.findall(r"\]\(([^):#]*\.md|)#([^)]+)\)", (ROOT / page).read_text())
    pages = [(os.path.relpath((ROOT / page).parent / link, ROOT) if link else page, name) for link, name in found]
    assert [f"{other}#{name}" for other, name in pages if name not in anchors(other)] == []


@pytest.mark.parametrize("page", SYSTEMS)
def test_a_system_page_has_the_parts_of_the_template_its_claim_a_picture_and_a_snippet_that_is_run(page):
    assert [h for h in headings(page) if h in headings(TEMPLATE)] == headings(TEMPLATE)
    assert re.search(rf"<!-- claim: {Path(page).stem}(/[a-z-]+)? -->", (ROOT / page).read_text())
    assert any(block.marked and block.language == "python" for block in blocks(page))
    assert re.search(r"^!\[[^\]]+\]\(\.\./images/", (ROOT / page).read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", [page for page in PAGES if page != TEMPLATE])
def test_commands_in_the_docs_parse(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in (words for block in blocks(page) for words in block.commands):
        if words:
            options, rest = split(words)
            assert parse(rest, options.config, COMMANDS).function


@pytest.mark.parametrize("page", PAGES)
def test_commands_named_in_the_text_exist_or_are_announced(page):
    announced = {tuple(s.command.split()[:2]) for s in catalogue.SYSTEMS}
    groups = {(word,) for word in catalogue.ROOMS | POLE}
    for text in re.findall(r"`maypole ((?:[a-z]+ ?)+)", (ROOT / page).read_text()):
        words = tuple(text.split())
        assert words in groups or words[:2] in {*COMMANDS, *announced} or words[:1] in COMMANDS


@pytest.mark.parametrize("page", FOLLOWED)
def test_what_a_page_tells_to_do_works(page, workplace, monkeypatch):
    script = workplace / "script.py"  # as if the page's code stood in one; empty, for processes that run it again
    script.touch()
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(script), raising=False)
    names: dict[str, object] = {"__name__": "__main__"}
    made: set[str] = set()
    for block in blocks(page):
        if block.language == "python" and block.marked:
            exec(compile(block.text, page, "exec"), names)
        for words in block.commands:
            if block.marked:
                assert said(words) == "", words
            elif _has_dry_run(words):
                assert tried(words, made) == "", words


def tried(words: list[str], made: set[str]) -> str:
    """What a command says that fails under --dry-run; for results `made` by those before it stand others."""
    out = words[words.index("--out") + 1] if "--out" in words else ""
    places = [i for i, word in enumerate(words) if word in made - {out} and not Path(word).exists()]
    for i in places:
        Path(words[i]).symlink_to("adapted" if words[i - 1] == "--adapter" else "base")
    try:
        return said([*words, "--dry-run"])
    finally:
        for i in places:
            Path(words[i]).unlink()
        made.add(out)


def said(words: list[str]) -> str:
    """What a command says that fails; nothing where it works."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(words)
    return err.getvalue() if code else ""


def _has_dry_run(words: list[str]) -> bool:
    _, rest = split(words)
    invocation = parse(rest, None, COMMANDS)
    return any(hasattr(config, "dry_run") for config in (*invocation.args, *invocation.kwargs.values()))


@pytest.mark.parametrize(
    ("page", "found"),
    [
        ('<a href="https://arxiv.org/abs/1">paper</a><img src="a.png"><script src="/b.js"></script>', []),
        ('<link rel="stylesheet" href="https://fonts.test/a.css">', ["index.html: https://fonts.test/a.css"]),
        ('<script src="//cdn.test/a.js"></script>', ["index.html: //cdn.test/a.js"]),
        ("<style>@import 'https://cdn.test/a.css'</style>", ["index.html: https://cdn.test/a.css"]),
    ],
)
def test_a_page_that_loads_from_another_host_is_found_out(tmp_path, page, found):
    (tmp_path / "index.html").write_text(page)
    assert list(check_site.foreign(tmp_path)) == found


def test_the_picture_of_a_pruned_corpus_is_what_its_numbers_draw():
    numbers = json.loads((ROOT / "docs" / "results" / "pictures" / "perplexity-pruning.json").read_text())
    image = (ROOT / "docs" / "images" / "perplexity-pruning.svg").read_text()
    assert image == picture.picture(numbers), "run: python docs/pruning_picture.py"
    clean = next(line for line in numbers["composition"] if line["domain"] == "wiki")
    grown = f"from {clean['documents_share']:.0%} to {clean['kept_documents_share']:.0%}".replace("%", " %")
    assert f"clean text grows {grown}" in (ROOT / "docs" / "systems" / "perplexity-pruning.md").read_text()


def test_pictures_are_small():
    assert {p.name: p.stat().st_size for p in (ROOT / "docs" / "images").iterdir() if p.stat().st_size > 150_000} == {}
