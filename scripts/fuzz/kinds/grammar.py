"""The arguments of every command, with odd and wrong values. The first value is a sensible one, unless a sensible one takes minutes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

NUMBERS = (
    "1", "-1", "0", "2", "nan", "inf", "-inf", "1e999", "1e3", "0x10", "٣", "1.5", "1,2", "None", "1_0", "-", "--", "", " 3 ", "9" * 30, "9" * 5000,
)  # fmt: skip
WORDS = (
    "-", "--", "---", "é", "\udcff", "😀", "%s{}", "$HOME", "*", "None", "true", "[]", "<region>", "<|seg|>", "<|im_end|>", "<|video_pad|>", "\x1b[31m", "",
    " ", "\n", "a\nb", "a" * 300, "x" * 100_000,
)  # fmt: skip
PATHS = (
    "photo.png", "photo.png", "frames", "empty", "folder", "folder/mine.txt", "notes.txt", "pipe", "null", "loop", "dangling", "model", "model", "old",
    "old.json", "old.npz", "missing", "new", "new/a/b", "new.json", "new.npz", "new.gif", "new/../photo.png", "photo.png/x", "é.png", "\udcff.png", "a:b",
    "http://x/y.png", "file:photo.png", ".", "..", "/", "./", "~", "-", "/new", "/dev/null", "/dev/full", "/dev/zero", "/proc/self/mem", "/etc/passwd", "",
    " ", "a/" * 2000, "n" * 256,
)  # fmt: skip
"""Paths of files that exist, of files that do not, and of what is no file (kinds/commands.py makes them)."""

POINTS = (
    "1,2", "1,2,3,4", "5,5,0", "1,2,0.7", "nan,1", "1,inf", "1e400,1", "-5,3", "9999,9999", ",,", "a,b", "1;2", "1,2,99", "1,2,-1", "10,10,5,5",
    "1,2,3,4,5,6", "0,0,0,0", "",
)  # fmt: skip
SOURCES = (
    "own:frames", "folder", "frames", ".", "/", "null", "pipe", "refcoco", "refcoco:0", "refcoco:-1", "mevis,refcoco", "tfds:", "tfds:packed/x", "tfds:../x",
    "own:", "x:y:z", ",", "shapes_image", "shapes_image:2,", "refcoco:" + "9" * 30, "",
)  # fmt: skip
WRONG = ("", "-1", "0", "nan", "x", "1.5", "--")
"""Wrong values only, for arguments that take long with a right one."""

OUTPUTS = ("--json", "--masks", "--out", "--plot", "--markdown", "--output-dir")
"""Options whose values are files or folders to write."""

PROMPTS = ("Please segment the large blue square.", *WORDS)
FOLDERS = ("new", *PATHS)
MODELS = ("model", *PATHS)
TABLES = ("new.json", *PATHS)

Options = Mapping[str, Sequence[str]]
SEGMENT: Options = {
    "--model": PATHS,
    "--dtype": ("float32", "bfloat16", "int8", ""),
    "--tensor": NUMBERS,
    "--output-dir": FOLDERS,
    "--format": ("gif", "mp4", "png"),
    "--sample-frames": NUMBERS,
    "--max-new-tokens": ("2", "", "-1", "0", "1", "nan", "1.5", "x"),
    "--json": TABLES,
    "--masks": ("new.npz", *PATHS),
    "--attention": ("xla", "cudnn", "pallas_tpu", "", "x"),
    "--as-stored": (),
}
TO_JAX: Options = {
    **dict.fromkeys(("--base", "--partial", "--qwen", "--sam2"), MODELS),
    "--sam2-size": (*WORDS, *PATHS),
    "--image-size": NUMBERS,
    "--seed": NUMBERS,
    "--dry-run": (),
    "--force": (),
}
CHECK: Options = {"--samples": ("1", "-1", "0", "x", ""), "--seed": NUMBERS, "--root": (".", *PATHS), "--split": ("train", *WORDS, "val", "../x")}
PACK: Options = {
    **{"--out": FOLDERS, "--root": (".", *PATHS), "--split": ("train", *WORDS)},
    **dict.fromkeys(("--min-words", "--max-seconds", "--max-frames"), NUMBERS),
}
TRAIN: Options = {
    **{"--steps": WRONG, "--keep": WRONG, "--seed": NUMBERS, "--optim.learning-rate": NUMBERS},
    **{"--data.datasets": SOURCES, "--run-dir": FOLDERS, "--nothing": WORDS},
}
EXPORT: Options = {"--format": ("jax", "torch", "adapter", "x"), "--step": NUMBERS, "--start": PATHS, "--base": PATHS, "--force": ()}
PLAN: Options = {
    "--topology": (*WORDS, "v5e:8x8", "v5e:0x0", "h100:8", "h100:-1", "9*v5e:4x4", "cpu"),
    **{"--model": PATHS, "--frames": NUMBERS, "--json": PATHS, "--programs": WORDS},
}
EVAL: Options = {"--pictures": ("", "-1", "x"), "--clips": ("1", "", "-1", "nan"), "--model": MODELS, "--json": TABLES}
BENCH: Options = {"--repeats": WRONG, "--image-size": ("", "-1", "x"), "--against": ("folder", "notes.txt", "missing", "pipe", "null"), "--parts": ("x", "")}
ATTENTION: Options = {"--repeats": ("", "-1", "x"), "--work": ("x", ""), "--chip": ("x", ""), "--dtype": ("int8",)}
DEMO: Options = {"--output-dir": ("photo.png", "null", "/dev/null", "photo.png/x", "pipe", "loop", "a/" * 2000), "--attention": ("x", "")}

COMMANDS: Mapping[str, tuple[Sequence[Sequence[str]], Options]] = {
    "segment": ((PATHS, PROMPTS), SEGMENT),
    "ask": ((PATHS, ("What is <region>?", *WORDS)), {**SEGMENT, "--point": POINTS, "--box": POINTS}),
    "convert inspect": ((MODELS,), {"--json": ()}),
    "convert to-jax": ((("torch", *PATHS), FOLDERS), TO_JAX),
    "convert to-torch": ((MODELS, FOLDERS), {"--force": ()}),
    "data check": ((SOURCES,), CHECK),
    "data pack": ((SOURCES,), PACK),
    "train": ((PATHS,), TRAIN),
    "train export": ((PATHS, FOLDERS), EXPORT),
    "train reproduce": ((PATHS, PATHS), {}),
    "plan": ((PATHS,), PLAN),
    "parity": ((PATHS,), {"--json": PATHS}),
    "eval": ((("shapes", "x", ""),), EVAL),
    "bench models": ((), BENCH),
    "bench attention": ((), ATTENTION),
    "demo": ((), DEMO),
    "nothing": ((WORDS,), {"--help": ()}),
    "": ((), {"--help": (), "--version": (), "": ()}),
}
"""The positional arguments and the options of each command, with their values; a switch has none."""

LONG = ("bench models", "bench attention", "demo", "eval")
"""Commands that take minutes with right arguments. They are always given the first of their options, all values of which are wrong."""
