"""Writing that is complete or not there, and reading that no file can turn against its reader."""

import io
import json
import logging
import os
import struct
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path

import PIL
import pytest
from PIL import Image

from unipixel_jax.core.files import aside_of, read_json, read_json_object, remove_abandoned, replacing, require_regular_file, writable
from unipixel_jax.errors import MAX_MESSAGE, UserError, one_line, run_command
from unipixel_jax.processing.media import read_media

LONG = "長" * 80 + ".json"  # 245 bytes


@pytest.mark.parametrize("name", ["a.json", LONG, "no_suffix", "." + "x" * 200, "a." + "s" * 250, "with:colon and space.png"])
def test_a_file_is_replaced_whatever_its_name(tmp_path, name):
    target = tmp_path / "deep" / "er" / name
    for text in ("old", "new"):
        with replacing(target) as aside:
            aside.write_text(text)
            assert target.exists() == (text == "new")
    assert target.read_text() == "new" and os.listdir(target.parent) == [name]


def test_nothing_is_left_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a.txt") as aside:
        aside.write_text("half")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "elsewhere" / "real.json")
    with replacing(link) as aside:
        aside.write_text("new")
    assert link.is_symlink() and (tmp_path / "elsewhere" / "real.json").read_text() == "new"


@pytest.mark.parametrize(
    "path",
    ["/dev/null", "/dev", "/", "{tmp}", "{tmp}/fifo", "{tmp}/file/a.json", "{tmp}/" + "n" * 300, "{tmp}/circle", "{tmp}/a\0b", "{tmp}/" + "a/" * 1000],
)
def test_what_cannot_be_written_is_known_before(tmp_path, path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    path = path.format(tmp=tmp_path)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(UserError, match=r"expected the name of a file|cannot be written|expected at most 200"):
        writable(path)
    with pytest.raises(UserError, match=r"expected the name of a file|cannot be written|expected at most 200"), replacing(path) as aside:
        aside.write_text("x")
    assert sorted(os.listdir(tmp_path)) == before and not Path("/dev/null").is_file()


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_writes_is_not(tmp_path):
    program = "import sys; from pathlib import Path; from unipixel_jax.core.files import aside_of; print(aside_of(Path(sys.argv[1])))"
    found = subprocess.run([sys.executable, "-c", program, tmp_path / "a.png"], capture_output=True, text=True, check=True)
    dead, dead_folder, ours = Path(found.stdout.strip()), Path(found.stdout.strip().replace(".png", "")), aside_of(tmp_path / "b.png")
    for file in (dead, ours, tmp_path / ".unipixel-mine.part.png", tmp_path / ".photo.png"):
        file.write_text("x")
    (dead_folder / "params").mkdir(parents=True)
    remove_abandoned.cache_clear()
    with replacing(tmp_path / "c.png") as aside:
        aside.write_text("c")
    assert sorted(os.listdir(tmp_path)) == sorted([ours.name, ".unipixel-mine.part.png", ".photo.png", "c.png"])


def test_json_is_read(tmp_path):
    for content in (b'{"a": [1, 2.5, "\xc3\xa4"]}', b'\xef\xbb\xbf{"a": [1, 2.5, "\xc3\xa4"]}'):
        (tmp_path / "a.json").write_bytes(content)
        assert read_json(tmp_path / "a.json") == read_json_object(tmp_path / "a.json") == {"a": [1, 2.5, "ä"]}
    (tmp_path / "a.json").write_text('"\\ud83d\\ude00"')
    assert read_json(tmp_path / "a.json") == "\N{GRINNING FACE}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe{\0}\0", "is not JSON"),
        (b'{"a": "\xe4"}', "is not JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": -Infinity}', "-Infinity is no number"),
        (b'{"a": 1e999}', "1e999 is too large"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "is not JSON"),
        (b'{"a": "\\ud800"}', "is not JSON .*surrogates not allowed"),
        (b'{"a\\udfff": 1}', "is not JSON .*surrogates not allowed"),
        (b"[1, 2]", "holds a list, expected a JSON object"),
        (b'"' + b"x" * 3000 + b'"', "larger than"),
    ],
)
def test_json_that_is_refused(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.json.*{message}.*: copy it again"):
        read_json_object(tmp_path / "a.json", most=2000 if "larger" in message else 2_000_000)


@pytest.mark.parametrize("name", ["missing", "folder", "fifo", "socket-like", "file/below", "a\0b"])
def test_only_regular_files_are_opened(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "socket-like").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="expected a photo"):
        require_regular_file(tmp_path / name, "expected a photo")
    with pytest.raises(UserError):
        read_json(tmp_path / name)


class PanicException(BaseException):
    """Stands in for pyo3's exception of this name, which is no ``Exception``."""


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("a\nb\x1b[31m"), 1, "error: a b\\x1b[31m"),
        (FileNotFoundError(2, "No such file or directory", "a.json"), 1, "error: a.json: No such file or directory"),
        (OSError("odd"), 1, "error: a file: odd"),
        (KeyboardInterrupt(), 130, "error: interrupted; what was not complete was not written"),
        (MemoryError(), 1, "error: not enough memory (the system gave none): use a smaller input, or a machine with more"),
        (PanicException("regex"), 1, "error: PanicException: regex (this should not happen; --verbose shows where)"),
        (RecursionError("deep"), 1, "error: RecursionError: deep (this should not happen; --verbose shows where)"),
        (ValueError("x" * 10**6), 1, "error: ValueError: " + "x" * (MAX_MESSAGE - 12) + " ..."),
    ],
)
def test_every_error_is_one_line(error, status, said, capsys):
    def run():
        raise error

    assert run_command(run, verbose=False) == status
    captured = capsys.readouterr()
    assert captured.err == said + "\n" and captured.out == ""
    assert run_command(run, verbose=True) == status
    if status == 1:
        assert "Traceback" in capsys.readouterr().err


def test_wrong_arguments_keep_their_status():
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: sys.exit(2), verbose=False)
    assert ended.value.code == 2


def test_a_message_is_bounded_and_printable():
    assert one_line("name\twith\r\nbreaks\u2028and\x00") == "name\\twith breaks and\\x00"
    assert len(one_line("y" * 10**6)) < MAX_MESSAGE + 10


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    program = (
        "import sys; from unipixel_jax.errors import run_command\n"
        "sys.exit(run_command(lambda: len([print('line') for _ in range(100000)]), False))"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert isinstance(process.stdout, io.TextIOBase) and process.stdout.readline() == "line\n"
    process.stdout.close()
    assert process.stderr is not None and process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 1


def test_commands_run_outside_the_main_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(run_command(lambda: 7, verbose=False)))
    thread.start()
    thread.join()
    assert found == [7]


def test_being_told_to_end_is_an_interruption():
    program = (
        "import os, signal, sys; from unipixel_jax.errors import run_command\n"
        "sys.exit(run_command(lambda: os.kill(os.getpid(), signal.SIGTERM) or 0, False))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.returncode == 130 and found.stderr.startswith("error: interrupted") and json.dumps(found.stdout) == '""'


def test_what_pillow_passes_over_in_a_file_is_not_printed(tmp_path, capsys, caplog):
    exif = Image.Exif()
    exif[0x010E] = "a description"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.tiff", exif=exif)
    content = (tmp_path / "a.tiff").read_bytes()
    entry = struct.pack("<HHI", 0x010E, 2, 14)
    assert content.count(entry) == 1
    (tmp_path / "a.tiff").write_bytes(content.replace(entry, struct.pack("<HHI", 0x010E, 2, 9_999_999)))
    # Pillow 13 passes over the tag with a warning; Pillow 12, which Gradio asks for, warns and gives the file up.
    passes = int(PIL.__version__.split(".")[0]) >= 13
    told, outcome = ("Tag data larger than file", nullcontext()) if passes else ("Truncated File Read", pytest.raises(UserError))
    with pytest.warns(UserWarning, match=told), outcome:
        read_media(tmp_path / "a.tiff")
    if passes:
        assert run_command(lambda: len(read_media(tmp_path / "a.tiff").frames), verbose=False) == 1
    assert run_command(lambda: logging.getLogger("PIL.TiffImagePlugin").error("more samples than can be decoded") or 0, verbose=False) == 0
    assert caplog.text == ""
    assert capsys.readouterr().err == ""
