"""What the site takes from elsewhere, so that it stands in one place: results, README's figures, the settings of a run.

On a page, `<!-- measured -->` becomes the section "Measured" of README, `{results}` the folder it names, under which
everything of bench/results that can be shown is part of the site, and `<!-- settings -->` a list of `TrainConfig`.
"""

import dataclasses
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from fastft.trainer.config import FIELDS, wanted

ROOT = Path(__file__).parents[1]
SHOWN = {".md", ".png"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path in sorted((ROOT / "bench" / "results").rglob("*")):
        if path.suffix in SHOWN:
            name = path.relative_to(ROOT / "bench").as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(
    markdown: str, page: Page, config: MkDocsConfig, files: Files
) -> str:
    text = markdown.replace("<!-- measured -->", measured()).replace(
        "<!-- settings -->", settings()
    )
    return text.replace("{results}", results())


def measured() -> str:
    section = re.search(
        r"^## Measured\n(.*?)^## ", readme(), re.DOTALL | re.MULTILINE
    )
    if section is None:
        raise ValueError("README has no section 'Measured'")
    return section[1].replace("(bench/results/", "(results/")


def results() -> str:
    """The folder that README names, as the site has it."""
    named = re.search(r"bench/(results/[\w-]+)/report\.md", readme())
    if named is None:
        raise ValueError("README names no report in bench/results")
    return named[1]


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def settings() -> str:
    """A list, which fits every width."""
    return "\n".join(
        f"- **`{name}`** = {default(field)}, *{quoted(wanted(name))}*<br>{quoted(field.metadata['help'])}"
        for name, field in FIELDS.items()
    )


def default(field: "dataclasses.Field[object]") -> str:
    value = field.default
    if value is dataclasses.MISSING:
        return "to be given"
    if value is None or isinstance(value, bool):
        return {None: "`null`", True: "`true`", False: "`false`"}[value]
    listed = isinstance(value, tuple)
    return f"`[{', '.join(map(str, value))}]`" if listed else f"`{value}`"


def quoted(text: str) -> str:
    """As it is read: stars are no emphasis, and what looks like HTML is none."""
    return re.sub(r"<[\w/]+?(_\{\})?>", r"`\g<0>`", text.replace("*", "\\*"))
