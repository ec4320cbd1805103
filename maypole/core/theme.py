"""One palette for every face: CSS variables for pages, rcParams for plots, and plots that follow the page's theme.

Text has a contrast of at least 5.9:1 and series at least 3.1:1 on page and surface, in both themes; the nearest pair of
series stays apart under simulated protanopia, deuteranopia and tritanopia. Colour never speaks alone: `SERIES` and
`STATES` give each its dash, marker, glyph and border. Data and text only; knows nothing about matplotlib's objects,
templates or what is shown.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal
from xml.etree import ElementTree

NAMES = ("page", "surface", "ink", "muted", "line", "control", "link", "fail", "s1", "s2", "s3", "s4")

_LIGHT = "#ffffff #f4f6f9 #17202b #55606e #d5dbe3 #7a8696 #0b57a4 #b3261e #2276af #c47914 #015732 #6f0d70"
_DARK = "#11161d #1a212b #e6eaf0 #a5b0be #323c49 #7f8b9a #86bdff #ff8f85 #4181f7 #b37336 #77fdac #e29ee1"
LIGHT: dict[str, str] = dict(zip(NAMES, _LIGHT.split(), strict=True))
DARK: dict[str, str] = dict(zip(NAMES, _DARK.split(), strict=True))

TEXT_SIZES = (13, 16, 20, 25, 31)
"""Pixels; line height 1.5."""
SPACES = (4, 8, 16, 24, 40)
"""Pixels."""


@dataclass(frozen=True, slots=True)
class Series:
    """How one line of a plot looks: a palette name, matplotlib's dash and marker, and whether markers are filled."""

    color: str
    dash: str | tuple[int, tuple[int, ...]]
    marker: str
    filled: bool = True


BEFORE = Series("muted", "dashed", "o", filled=False)
AFTER = Series("s1", "solid", "o")
SERIES = (AFTER, Series("s2", "dashdot", "s"), Series("s3", "dotted", "^"), Series("s4", (0, (8, 2)), "D"))


@dataclass(frozen=True, slots=True)
class Look:
    """How a state looks without colour: a glyph, a CSS border, and the word that always stands beside them."""

    glyph: str
    word: str
    border: Literal["dotted", "double", "solid", "thick"]


STATES = {
    "waiting": Look("○", "waiting", "dotted"),
    "running": Look("◐", "running", "double"),
    "done": Look("✓", "done", "solid"),
    "failed": Look("✗", "failed", "thick"),
}


def css_variables() -> str:
    """`:root` rules: the palette (light, and dark where the reader prefers it), text sizes, spaces and fonts."""

    def colours(palette: dict[str, str]) -> str:
        return ";".join(f"--{name}:{value}" for name, value in palette.items())

    sizes = ";".join(f"--text-{i}:{size}px" for i, size in enumerate(TEXT_SIZES, 1))
    spaces = ";".join(f"--space-{i}:{space}px" for i, space in enumerate(SPACES, 1))
    fonts = "--sans:system-ui,sans-serif;--mono:ui-monospace,monospace"
    return (
        f":root{{color-scheme:light dark;{colours(LIGHT)};{sizes};{spaces};{fonts}}}\n"
        f"@media (prefers-color-scheme:dark){{:root{{{colours(DARK)}}}}}\n"
    )


def svg_rules() -> str:
    """The CSS that a `themable` plot needs: fill and stroke by palette name."""
    return "\n".join(f".f-{name}{{fill:var(--{name})}}.k-{name}{{stroke:var(--{name})}}" for name in NAMES) + "\n"


def rc_params(size: float = 12) -> dict[Any, Any]:
    """matplotlib's settings for a plot that `themable` can follow: light palette, real text, same bytes every time.

    size: of text, in points; a figure of w/72 inches is w CSS pixels wide, so points are pixels.
    """
    return {
        "svg.fonttype": "none",  # text stays text: small, selectable, in the page's font
        "svg.hashsalt": "maypole",  # ids are hashes of content instead of random
        "text.parse_math": False,  # a name with $ in it is a name
        "figure.constrained_layout.use": True,  # else labels are cut
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "font.family": "sans-serif",
        "font.size": size,
        "axes.titlesize": size,
        "axes.labelsize": size,
        "xtick.labelsize": size,
        "ytick.labelsize": size,
        "legend.fontsize": size,
        "legend.frameon": False,
        "text.color": LIGHT["ink"],
        "axes.labelcolor": LIGHT["ink"],
        "axes.edgecolor": LIGHT["control"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": LIGHT["line"],
        "grid.linewidth": 1,
        "xtick.color": LIGHT["control"],
        "xtick.labelcolor": LIGHT["muted"],
        "ytick.color": LIGHT["control"],
        "ytick.labelcolor": LIGHT["muted"],
        "lines.linewidth": 2,
        "lines.markersize": 6,
    }


_BY_COLOUR = {value: name for name, value in LIGHT.items()}
_DROPPED = {"metadata", "style", "script", "foreignObject", "a", "title"}
_LONG = re.compile(r"-?\d+\.\d{3,}")


def themable(svg: str, prefix: str) -> str:
    """A plot as an element for a page without inline styles: one `<svg>` that follows the page's theme.

    Styles become attributes; colours of the light palette become the classes of `svg_rules`; ids and references get
    `prefix-`, ids nobody refers to go; width and height go (the page sizes it by its viewBox); scripts, handlers,
    style sheets and references to anything outside are left out.
    """
    root = ElementTree.fromstring(svg.encode())
    used = set(re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", svg))
    referred = {a or b for a, b in used}
    _clean(root, prefix, referred)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib.update({"stroke-linejoin": "round", "stroke-linecap": "butt", "aria-hidden": "true"})
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)


def _clean(element: ElementTree.Element, prefix: str, referred: set[str]) -> None:
    element.tag = _local(element.tag)
    if element.tag != "text" and element.tag != "tspan":
        element.text = None  # the writer's line breaks
    element.tail = None
    attributes: dict[str, str] = {}
    classes: list[str] = []
    found = [(_local(name), value) for name, value in element.attrib.items()]
    for name, value in [pair for pair in found if pair[0] != "style"] + _declarations(element.get("style", "")):
        if name.startswith("on") or value.startswith("rotate(-0 ") or name in ("type", "space", "font-family"):
            continue
        if name == "id":
            if value in referred:
                attributes["id"] = f"{prefix}-{value}"
        elif name == "href":
            if value.startswith("#"):
                attributes["href"] = f"#{prefix}-{value[1:]}"
            elif value.startswith("data:image/png;base64,"):
                attributes["href"] = value
        elif name in ("fill", "stroke") and value.lower() in _BY_COLOUR:
            classes.append(f"{name[0] if name == 'fill' else 'k'}-{_BY_COLOUR[value.lower()]}")
        else:
            if name in ("d", "x", "y"):
                value = _LONG.sub(lambda m: f"{float(m[0]):.2f}", " ".join(value.split()))
            attributes[name] = value.replace("url(#", f"url(#{prefix}-")
    if classes:
        attributes["class"] = " ".join(classes)
    element.attrib.clear()
    element.attrib.update(attributes)
    for child in list(element):
        if not isinstance(child.tag, str) or _local(child.tag) in _DROPPED:
            element.remove(child)
        else:
            _clean(child, prefix, referred)


def _declarations(style: str) -> list[tuple[str, str]]:
    pairs = [tuple(part.strip() for part in text.split(":", 1)) for text in style.split(";") if ":" in text]
    out: list[tuple[str, str]] = []
    for name, value in pairs:
        if name == "font":  # the shorthand is no attribute; only its size and weight differ from the page's font
            out += [("font-size", size) for size in re.findall(r"[\d.]+px", value)[:1]]
            out += [("font-weight", weight) for weight in re.findall(r"\bbold\b|\b[1-9]00\b", value)[:1]]
        else:
            out.append((name, value))
    return out


def _local(name: str) -> str:
    return name.rsplit("}", 1)[-1]
