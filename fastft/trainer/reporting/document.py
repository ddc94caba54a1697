"""What the HTML pages of this package share: one file each, no network, no script, light or dark as the reader has it,
and fit for a phone."""

from collections.abc import Iterable
from html import escape

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --paper: #fff; --soft: #5b5b63; --line: #d9d9de; --chip: #f1f1f4;
  --special: #7b1fa2; --bar: #2f9e4f; --limit: #c2410c; --fail: #b91c1c; --warn: #92600a; --good: #1d7a3a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6ea; --paper: #16161a; --soft: #a3a3ad; --line: #36363d;
  --chip: #222228; --special: #d59af0; --bar: #4fc073; --limit: #fb923c; --fail: #f87171; --warn: #e8b04a;
  --good: #5fd086; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.3rem; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; } p { margin: .3rem 0; } .soft, figcaption, h4 { color: var(--soft); }
h4 { font-weight: normal; font-style: italic; margin: .6rem 0 .2rem; }
.text { font: .85rem/1.75 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  padding: .6rem .7rem; background: var(--chip); border-radius: .4rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 1rem 0; } dt { font-weight: 600; }
.sub { padding-left: 1rem; font-weight: normal; }
dd { margin: 0; } figure { margin: 1rem 0; } summary { cursor: pointer; color: var(--soft); }
@media (max-width: 34rem) { dl { grid-template-columns: 1fr; } dd { margin: 0 0 .5rem; } body { padding: .7rem; }
  .sub { padding-left: 0; } }
"""


def document(title: str, body: str, style: str = "") -> str:
    """A whole page. title: plain text; body: HTML; style: what this page has beyond `STYLE`."""
    name = escape(title)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{name}</title>\n'
        f"<style>{STYLE}{style}</style>\n</head>\n<body>\n<h1>{name}</h1>\n{body}</body>\n</html>\n"
    )


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of names and values, both plain text; a name that begins with a space belongs to the one before."""
    told = "".join(
        f"<dt{' class=sub' if name.startswith(' ') else ''}>{escape(name.strip())}</dt><dd>{escape(value)}</dd>\n"
        for name, value in pairs
    )
    return f"<dl>\n{told}</dl>\n"
