"""Bring what is outside of ``docs/`` into the site, so that each text is written once.

The front page is the README. A link to a file of the repository that is no page, such as a flow,
leads to a page that shows the file.
"""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import dirname, normpath, relpath
from typing import Any

from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "deployments/README.md": "deployments.md",
}
SOURCES = {page: source for source, page in PAGES.items()}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")


def on_config(config: Any) -> Any:
    """List the decisions by themselves: a new one needs no line in mkdocs.yml."""
    decisions = sorted(path.name for path in (REPOSITORY / "docs/design").glob("*.md"))
    for entry in config.nav:
        if isinstance(entry, dict) and entry.get("Decisions"):
            entry["Decisions"] = [f"design/{name}" for name in decisions]
    return config


def on_files(files: Files, config: Any) -> Files:
    for source, page in PAGES.items():
        text = (REPOSITORY / source).read_text("utf-8")
        files.append(File.generated(config, page, content=text))
    shown = {
        target
        for file in list(files.documentation_pages())
        for target in _targets(_source_of(file.src_uri), file.content_string)
        if page_of(target).startswith("files/") and (REPOSITORY / target).is_file()
    }
    for target in sorted(shown):
        files.append(File.generated(config, page_of(target), content=_shown(target)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links at the site's pages; of the comments for the tests, only names of files stay."""
    here = page.file.src_uri
    if here.startswith("files/"):
        return markdown
    source = _source_of(here)

    def point(link: re.Match[str]) -> str:
        return relpath(page_of(_target(source, link[1])), dirname(here) or ".")

    markdown = re.sub(r"^<!-- file: (.*) -->\n```(\w+)", r'```\2 title="\1"', markdown, flags=re.M)
    markdown = re.sub(r"^<!-- .* -->\n", "", markdown, flags=re.M)
    return re.sub(
        _CODE, lambda part: part[0] if part["code"] else LINK.sub(point, part[0]), markdown
    )


_CODE = re.compile(r"(?P<code>^```.*?^```$)|.+?(?=^```|\Z)", re.M | re.S)


def page_of(target: str) -> str:
    """The page of the site for a file of the repository."""
    if target in PAGES:
        return PAGES[target]
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    return f"files/{target}.md"


def _source_of(page: str) -> str:
    return SOURCES.get(page, f"docs/{page}")


def _target(source: str, link: str) -> str:
    return normpath(f"{dirname(source)}/{link}" if dirname(source) else link)


def _targets(source: str, markdown: str) -> set[str]:
    text = re.sub(r"^```.*?^```$", "", markdown, flags=re.M | re.S)
    return {_target(source, link) for link in LINK.findall(text)}


def _shown(target: str) -> str:
    language = {".py": "python", ".yaml": "yaml", ".json": "json"}.get(Path(target).suffix, "text")
    text = (REPOSITORY / target).read_text("utf-8")
    return f"# {target}\n\n````{language}\n{text}````\n"
