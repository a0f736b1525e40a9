"""Hooks of the site (mkdocs.yml): pages that are kept elsewhere in the project, links that fit both, and formulas.

A link that is right in the project is right in the site: where the site has the file, it leads there; where it has none
(code, yaml), the name stays and the link goes.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
#: Pages of the site that lie outside of docs/: path in the project -> path in the site.
ELSEWHERE = {
    "METHODS.md": "methods/index.md",
    "CONTRIBUTING.md": "contributing.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
}
#: Pages of the reference, and the packages whose public names they show.
REFERENCE = {
    "losses": ["rlhf_lightning.losses"],
    "credit": ["rlhf_lightning.credit"],
    "selection": ["rlhf_lightning.selection"],
    "rewards": ["rlhf_lightning.rewards"],
    "methods": ["rlhf_lightning.methods"],
    "package": ["rlhf_lightning"],
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are kept elsewhere, and those of the reference."""
    for path, uri in ELSEWHERE.items():
        files.append(File.generated(config, uri, content=(ROOT / path).read_text(encoding="utf-8")))
    for name, packages in REFERENCE.items():
        lines = [f"# {name.capitalize()}", *(f"::: {package}" for package in packages)]
        files.append(File.generated(config, f"reference/{name}.md", content="\n\n".join(lines) + "\n"))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Fit links and formulas of a page to the site; what stands in code blocks stays."""
    path = page.file.src_uri
    source = next((path for path, uri in ELSEWHERE.items() if uri == page.file.src_uri), f"docs/{path}")
    parts = _FENCE.split(markdown)
    return "".join(
        _named(part) if part.startswith("```") else _fitted(part, source, page.file.src_uri) for part in parts
    )


def _named(block: str) -> str:
    """A code block; one that a test runs has a title that says so."""
    return re.sub(r"\A```bash run\n", '```bash title="runs as it stands"\n', block)


def _fitted(text: str, source: str, uri: str) -> str:
    """One stretch of a page.

    Args:
        text: Markdown.
        source: the page's path in the project.
        uri: and in the site.
    """
    text = re.sub(r"\$`([^`]+)`\$", r"\\(\1\\)", text)

    def fitted(match: re.Match[str]) -> str:
        image, words, target, anchor = match[1], match[2], match[3], match[4] or ""
        if re.match(r"[a-z]+:", target):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        there = ELSEWHERE.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if path == "README.md":
            there = "index.md"
        if there is None:
            return words if (ROOT / path).exists() else match[0]
        return f"{image}[{words}]({posixpath.relpath(there, posixpath.dirname(uri) or '.')}{anchor})"

    return _LINK.sub(fitted, text)
