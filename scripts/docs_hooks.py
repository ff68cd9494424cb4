"""Hooks of mkdocs (mkdocs.yml): what the pages name outside of docs/ becomes part of the site, and the packages are laid out as they are imported."""

from __future__ import annotations

import posixpath
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
UPWARDS = re.compile(r"\[([^\]]+)\]\((\.\./[^)#\s]+)(?:#[^)]*)?\)")
"""A link that begins with the folder above."""
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
    """Point links to notebooks at their pages, take away links to files that are no part of the site, and unescape bars within code.

    A link to another file of the project is its text alone, since no address of the project is known to the site.
    """
    folder = posixpath.dirname(page.file.src_uri)
    up = "../" * page.file.src_uri.count("/")

    def inside(link: re.Match[str]) -> str:
        return link[1] if posixpath.normpath(posixpath.join(folder, link[2])).startswith("../") else link[0]

    linked = UPWARDS.sub(inside, NOTEBOOK.sub(rf"]({up}\1)", markdown))
    return ROW.sub(lambda row: CODE.sub(lambda code: code[0].replace(r"\|", "|"), row[0]), linked)
