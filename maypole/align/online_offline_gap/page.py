"""The report as one file for people: no script, nothing fetched, in the reader's light or dark. Knows nothing about how
its numbers came about.
"""

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from maypole.core import theme

COLUMNS = {
    "cell": "run", "peak_win_rate": "wins most", "peak_kl": "at KL", "peak_step": "at step",
    "win_rate": "wins at the end", "kl": "KL", "fall": "fall", "proxy_win_rate": "wins by the proxy",
    "pair_accuracy": "pairs told apart", "length": "tokens an answer", "alike": "alike",
}  # fmt: skip
"""Of a run's line in the report -> the table's heads."""


def page(document: Mapping[str, Any], svg: str, title: str, command: str) -> str:
    """HTML of the report `document`, with the picture `svg` made to follow the reader's theme."""
    style = theme.css_variables() + theme.svg_rules() + _resource("page.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return _template().render(
        document=document,
        title=title,
        command=command,
        heads=COLUMNS,
        findings=[finding(one) for one in document["comparisons"]],
        picture=Markup(theme.themable(svg, "gap")),
        style=Markup(style),  # ours alone, and escaping would change its hash
        policy=f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
    )


def finding(one: Mapping[str, Any]) -> str:
    """A comparison as a sentence."""
    where = " ".join(filter(None, (one["experiment"], one["size"])))
    best = f"{one['arm']} wins {one['best']:.3f} at its best, {one['against']} {one['best_against']:.3f}"
    if one["experiment"] == "classification":
        told = f"{one['arm']} tells {one['pair_accuracy']:.3f} of held-out pairs apart at the end"
        return f"{where}: {told}, {one['against']} {one['pair_accuracy_against']:.3f}; {best}."
    if not one["bins"]:
        return f"{where}: {best}; they were never at the same distance from where they began."
    bins = len(one["bins"])
    return (
        f"{where}: {best}; at the same distance {one['mean_difference']:+.3f} in the mean, above in {one['above']} of "
        f"{bins} distances."
    )


def number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.globals.update(number=number)
    return environment.from_string(_resource("page.html.jinja"))


@cache
def _resource(name: str) -> str:
    return resources.files("maypole.align.online_offline_gap").joinpath(name).read_text(encoding="utf-8")
