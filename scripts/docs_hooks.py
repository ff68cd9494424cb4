"""Hooks of mkdocs (mkdocs.yml): what the pages name outside of docs/ becomes part of the site, and the packages are laid out as they are imported."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "build" / "reference"
NOTEBOOK = re.compile(r"\]\((?:\.\./)+(notebooks/\w+\.ipynb)\)")
OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?:configs|scripts|tests)\b[^)]*\)")
"""A link to a file of the project that is no page. On the site it is its text alone, since no address of the project is known to it."""

ROW, CODE = re.compile(r"^\|.*$", re.MULTILINE), re.compile(r"`[^`]+`")
"""Tables of Markdown on repositories want a bar within code escaped, and Python-Markdown shows the backslash."""


@event_priority(100)  # before mkdocstrings, which looks for the folder
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Lay out the package for griffe as Python sees it: the folder convert/ is imported as unipixel_jax.convert (pyproject.toml)."""
    package = REFERENCE / "unipixel_jax"
    package.mkdir(parents=True, exist_ok=True)
    for path in (*(ROOT / "unipixel_jax").iterdir(), ROOT / "convert"):
        place = package / path.name
        if path.name == "__init__.py":  # a copy, since griffe looks for modules where this file really lies
            shutil.copy(path, place)
        elif not place.is_symlink():
            place.symlink_to(path)
    return config


@event_priority(100)  # before mkdocs-jupyter, which turns notebooks into pages
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the notebooks, which lie beside docs/."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        files.append(File(f"notebooks/{path.name}", str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to notebooks at their pages, take away links to files that are no part of the site, and unescape bars within code."""
    up = "../" * page.file.src_uri.count("/")
    linked = OUTSIDE.sub(r"\1", NOTEBOOK.sub(rf"]({up}\1)", markdown))
    return ROW.sub(lambda row: CODE.sub(lambda code: code[0].replace(r"\|", "|"), row[0]), linked)
