"""The documentation site builds without a warning, says what the pages say in the repository, and no link leads nowhere."""

import dataclasses
import os
import re
import subprocess
import sys
import typing

import pytest
from blocks import ROOT, read
from markdown_it import MarkdownIt

import unipixel_jax
from scripts.make_docs_pictures import PICTURES, TARGET
from unipixel_jax.train.config import TrainConfig

PAGES = sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md") if path.parent.name not in ("plans", "api"))
TAGS = ("table", "li", "code", "h2", "h3", "img")
LIMIT = 2_000_000


def mkdocs(*arguments):
    words = [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = mkdocs("--site-dir", folder)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return folder


def article(site, page):
    """Return the HTML of a page's article, without the navigation."""
    name = page.removesuffix(".md")
    text = (site / ("" if name == "index" else name) / "index.html").read_text(encoding="utf-8")
    return text[text.index("<article") : text.index("</article>")]


def counts(html):
    return {tag: len(re.findall(rf"<{tag}[ >]", html)) for tag in TAGS}


@pytest.mark.parametrize("page", PAGES)
def test_pages_read_as_in_the_repository(site, page):
    assert counts(article(site, page)) == counts(MarkdownIt("commonmark").enable("table").render(read(f"docs/{page}")))


def test_bars_within_code_are_not_escaped(site):
    assert r"\|" in read("docs/inference.md") and r"\|" not in article(site, "inference.md")


def test_every_public_name_has_an_entry(site):
    entries = "".join(path.read_text(encoding="utf-8") for path in (site / "api").rglob("index.html"))
    for name, home in unipixel_jax._HOMES.items():
        assert f'id="{home}.{name}"' in entries, name


def test_notebooks_are_shown_with_their_pictures(site):
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        shown = (site / "notebooks" / path.stem / "index.html").read_text(encoding="utf-8")
        held = path.read_text(encoding="utf-8").count('"image/png"') + path.read_text(encoding="utf-8").count('"image/jpeg"')
        assert held and shown.count("<img") >= held


def test_search_knows_the_pages(site):
    index = (site / "search" / "search_index.json").read_text(encoding="utf-8")
    assert all(f'"location":"{page.removesuffix(".md")}/"' in index for page in PAGES if page != "index.md")


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{page}" for page in PAGES)])
def test_files_that_are_linked_exist(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", re.sub(r"```.*?```", "", read(page), flags=re.DOTALL)):
        assert ((ROOT / page).parent / target).exists(), target


@pytest.mark.parametrize(("link", "said"), [("[a](missing.md)", "missing.md"), ("[a](other.md#missing)", "#missing"), ("[a](folder/)", "folder/")])
def test_a_link_that_leads_nowhere_stops_the_build(tmp_path, link, said):
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "index.md").write_text(f"# A\n\n{link}\n")
    (tmp_path / "pages" / "other.md").write_text("# B\n")
    settings = {"INHERIT": ROOT / "mkdocs.yml", "docs_dir": "pages", "site_dir": "site", "hooks": "[]", "plugins": "[]", "watch": "[]", "extra_css": "[]"}
    lines = [*(f"{key}: {value}" for key, value in settings.items()), "nav: [index.md, other.md]"]
    (tmp_path / "mkdocs.yml").write_text("\n".join(lines) + "\n")
    done = mkdocs("--config-file", tmp_path / "mkdocs.yml")
    assert done.returncode == 1 and said in done.stderr


def field(path):
    """Whether a training run has a field by this path, such as data.max-tokens."""
    kind = TrainConfig
    for part in path.replace("-", "_").split("."):
        hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        if part not in hints:
            return False
        kind = next((one for one in typing.get_args(hints[part]) if dataclasses.is_dataclass(one)), hints[part])
    return True


def test_fields_that_take_the_place_of_the_references_exist():
    table = read("docs/from_unipixel.md").split("Every argument that")[1].split("What a step computes")[0]
    rows = [row for row in re.findall(r"^\|.*\| (.*) \|$", table, re.MULTILINE)[2:] if "convert to-jax" not in row and "train export" not in row]
    named = re.findall(r"--([\w.-]+)", " ".join(rows))
    assert len(named) > 35 and [path for path in named if not field(path)] == []
    assert not field("data.max-token") and not field("batch-size.more")


def test_pictures_are_those_of_the_script_and_small():
    there = {path.name for path in TARGET.iterdir()}
    assert there == set(re.findall(r"pictures/([\w.]+)", read("docs/pictures.md")))
    assert {name.split(".")[0] for name in there} == set(PICTURES) | {"sheet"}
    assert sum(path.stat().st_size for path in TARGET.iterdir()) < LIMIT
