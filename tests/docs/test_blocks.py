"""The commands and programs of the README and of the learning path run as they are written, and print what the page says they print."""

import re

import pytest
from blocks import ROOT, blocks, clone, read, run, without_numbers

QUICK = ("README.md", "docs/start/first_mask.md", "docs/start/pod.md")
LONG = ("docs/start/video.md", "docs/start/data.md", "docs/start/proof.md")
REASON = re.compile(r"needs \S+( \S+){2,}")


def test_every_page_of_the_learning_path_is_run():
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs" / "start").glob("*.md")}
    assert {*QUICK, *LONG} == pages | {"README.md"}


@pytest.mark.parametrize("page", [*QUICK, *LONG])
def test_what_does_not_run_says_what_it_needs(page):
    found = blocks(page)
    assert {block.language for block in found} <= {"bash", "python", "text"}
    marks = [block.reason for block in found if block.reason]
    assert all(REASON.fullmatch(reason) for reason in marks), marks
    assert read(page).count("<!-- not run") == len(marks), "a mark stands directly before its block, on one line"
    assert not [block for block in found if block.reason and block.language == "text"], "text is not run anyway"
    assert page == "README.md" or any(block.language == "bash" and not block.reason for block in found)


@pytest.mark.parametrize("page", [*QUICK, *(pytest.param(page, marks=pytest.mark.slow) for page in LONG)])
def test_the_blocks_run(page, tmp_path):
    folder = clone(tmp_path)
    for block in blocks(page):
        if block.language in ("bash", "python") and not block.reason:
            said = run(block, folder)
            assert not block.shown or without_numbers(said) == without_numbers(block.shown)


def test_a_mark_and_an_output_are_recognised(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("<!-- not run: needs a camera here -->\n```bash\nfalse\n```\n\n```bash\necho 12 a\n```\n\n```text\n7 a\n```\n\nwords\n\n```text\nb\n```\n")
    marked, plain, output, other = blocks(page)
    assert (marked.reason, marked.shown, plain.reason, plain.shown, output.shown, other.language) == ("needs a camera here", "", "", "7 a\n", "", "text")
    assert without_numbers(run(plain, tmp_path)) == without_numbers(plain.shown)
    with pytest.raises(AssertionError, match="false"):
        run(marked, tmp_path)
