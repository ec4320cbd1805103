import io
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from maypole.core import theme


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.fixture(scope="module")
def drawn() -> str:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(theme.rc_params()):
        figure = Figure(figsize=(4, 3))
        axes = figure.add_subplot()
        axes.plot([1, 2], [3, 4], color=theme.LIGHT["s1"], marker="o", label="a <script> $x$")
        axes.scatter([1, 2], [3, 4], color=theme.LIGHT["s2"]).set_rasterized(True)
        axes.legend()
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


@pytest.mark.parametrize("palette", [theme.LIGHT, theme.DARK])
def test_text_and_series_have_their_contrast_on_page_and_surface(palette):
    for ground in ("page", "surface"):
        assert min(contrast(palette[c], palette[ground]) for c in ("ink", "muted", "link", "fail")) >= 5.9
        assert min(contrast(palette[c], palette[ground]) for c in ("s1", "s2", "s3", "s4", "control")) >= 3.1


def test_css_variables_hold_both_palettes():
    css = theme.css_variables()
    light, dark = css.split("@media (prefers-color-scheme:dark)")
    assert all(f"--{name}:{value}" in light for name, value in theme.LIGHT.items())
    assert all(f"--{name}:{value}" in dark for name, value in theme.DARK.items())


def test_series_never_differ_by_colour_alone():
    assert len({(s.dash, s.marker) for s in theme.SERIES}) == len(theme.SERIES)
    assert (theme.BEFORE.dash, theme.BEFORE.filled) != (theme.AFTER.dash, theme.AFTER.filled)


def test_themable_leaves_no_style_no_font_and_only_classes_for_colours(drawn):
    out = theme.themable(drawn, "s2p1")
    assert "style" not in out
    assert "font-family" not in out
    assert not re.search(r'(fill|stroke)="#', out)
    assert "k-s1" in out
    assert set(re.findall(r"[fk]-(\w+)", out)) <= set(theme.NAMES)


def test_themable_prefixes_every_id_and_reference(drawn):
    out = theme.themable(drawn, "s2p1")
    ids = re.findall(r' id="([^"]+)"', out)
    references = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', out)
    assert ids
    assert len(ids) == len(set(ids))
    assert {a or b for a, b in references} == set(ids)
    assert all(i.startswith("s2p1-") for i in ids)


def test_themable_keeps_a_raster_layer_and_text_as_text(drawn):
    root = ElementTree.fromstring(theme.themable(drawn, "p"))
    assert [e.get("href", "")[:22] for e in root.iter("image")] == ["data:image/png;base64,"]
    assert "a <script> $x$" in [e.text for e in root.iter("text")]


def test_themable_drops_what_could_run_or_load():
    evil = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" onload="x()">'
        '<script>x()</script><style>@import "y"</style><a xlink:href="javascript:x()"><text>t</text></a>'
        '<image xlink:href="https://host/x.png"/><use xlink:href="javascript:x()"/><foreignObject/></svg>'
    )
    out = theme.themable(evil, "p")
    assert not re.search(r"script|onload|import|host|foreign|<a", out)


def test_themable_is_byte_equal_twice(drawn):
    assert theme.themable(drawn, "p") == theme.themable(drawn, "p")


def test_the_font_shorthand_becomes_size_and_weight():
    svg = '<svg xmlns="http://www.w3.org/2000/svg"><text style="font: bold 12px Arial; fill: #17202b">t</text></svg>'
    text = ElementTree.fromstring(theme.themable(svg, "p")).find("text")
    assert text is not None
    assert text.attrib == {"font-size": "12px", "font-weight": "bold", "class": "f-ink"}


def test_importing_the_theme_leaves_matplotlib_unloaded():
    code = "import sys, maypole.core.theme; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
