"""Parts that are other files: settings shown as they are, CONTRIBUTING, the palette. Makes nothing up."""

import re
from pathlib import Path

from maypole.core.theme import DARK, LIGHT

ROOT = Path(__file__).parent.parent.parent
LANGUAGES = {".yaml": "yaml", ".py": "python"}


def listing(name: str) -> str:
    """A file of the repository as a block of code."""
    text = (ROOT / name).read_text().rstrip("\n")
    return f"```{LANGUAGES[Path(name).suffix]}\n{text}\n```"


def contributing() -> str:
    """CONTRIBUTING without its title, its links as seen from docs/."""
    _, _, text = (ROOT / "CONTRIBUTING.md").read_text().partition("\n\n")
    return re.sub(r"\]\(docs/", "](", text.rstrip("\n"))


def palette() -> str:
    """The site's colours: the theme's own names, set from maypole's palette."""
    return "\n".join(
        f"{selector} {{\n" + "\n".join(f"  {name}: {colours[colour]};" for name, colour in _ROLES.items()) + "\n}"
        for selector, colours in (('[data-md-color-scheme="default"]', LIGHT), ('[data-md-color-scheme="slate"]', DARK))
    )


_ROLES = {
    "--md-default-bg-color": "page",
    "--md-default-fg-color": "ink",
    "--md-default-fg-color--light": "muted",
    "--md-default-fg-color--lighter": "control",
    "--md-default-fg-color--lightest": "line",
    "--md-typeset-color": "ink",
    "--md-typeset-a-color": "link",
    "--md-accent-fg-color": "link",
    "--md-primary-fg-color": "page",
    "--md-primary-fg-color--light": "surface",
    "--md-primary-fg-color--dark": "surface",
    "--md-primary-bg-color": "ink",
    "--md-primary-bg-color--light": "muted",
    "--md-code-bg-color": "surface",
    "--md-code-fg-color": "ink",
    "--md-code-hl-name-color": "ink",
    "--md-code-hl-keyword-color": "s4",
    "--md-code-hl-string-color": "s3",
    "--md-code-hl-number-color": "fail",
    "--md-code-hl-special-color": "fail",
    "--md-code-hl-function-color": "link",
    "--md-code-hl-constant-color": "link",
    "--md-code-hl-comment-color": "muted",
    "--md-code-hl-operator-color": "muted",
    "--md-code-hl-punctuation-color": "muted",
    "--md-code-hl-generic-color": "muted",
    "--md-code-hl-variable-color": "muted",
    "--md-footer-bg-color": "surface",
    "--md-footer-bg-color--dark": "surface",
    "--md-footer-fg-color": "ink",
    "--md-footer-fg-color--light": "muted",
    "--md-footer-fg-color--lighter": "muted",
}
"""The theme's name of a colour -> ours."""
