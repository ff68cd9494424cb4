"""What is published beside the code agrees with the project: metadata, constraints, workflows, images, templates and the small model's card."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
TEXTS = [ROOT / "README.md", ROOT / "Dockerfile", ROOT / "Makefile", *sorted((ROOT / "docs").glob("*.md")), *WORKFLOWS]
OTHER_VERSIONS = ("parity", "onnx")
"""Extras that have an environment of their own, since they pin other versions."""


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def workflow(path):
    return yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)  # in which `on` is no boolean


def steps(path):
    return [step for job in workflow(path)["jobs"].values() for step in job["steps"]]


def bounds():
    extras = [requirement for extra, listed in EXTRAS.items() if extra not in OTHER_VERSIONS for requirement in listed]
    found = [Requirement(text) for text in (*PROJECT["dependencies"], *extras)]
    return [requirement for requirement in found if canonicalize_name(requirement.name) != PROJECT["name"]]


def test_workflows_run_targets_that_exist():
    used = set()
    for path in WORKFLOWS:
        for job in workflow(path)["jobs"].values():
            matrix = job.get("strategy", {}).get("matrix", {})
            for step in job["steps"]:
                for target in re.findall(r"^make (\S+)", step.get("run", ""), re.MULTILINE):
                    used |= set(matrix["target"]) if target == '"$TARGET"' else {target}
    assert {"test", "lint", "package", "onnx", "test-lowest", "test-nightly"} <= used <= TARGETS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_have_few_permissions_and_pinned_actions(path):
    assert workflow(path)["permissions"] == {"contents": "read"}
    for step in steps(path):
        if "uses" in step:
            name, version = step["uses"].split("@")
            assert re.fullmatch(r"v\d+" if name.startswith("actions/") else r"[0-9a-f]{40}", version), step["uses"]
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] == "false"


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_forms_for_issues_have_what_github_asks_for(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert form["name"] and form["description"]
    fields = [part for part in form["body"] if part["type"] != "markdown"]
    assert fields and len({part["id"] for part in fields}) == len(fields) and all(part["attributes"]["label"] for part in fields)


def test_the_python_versions_are_the_same_everywhere():
    tested = workflow(ROOT / ".github" / "workflows" / "test.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    named = [found[1] for line in PROJECT["classifiers"] if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line))]
    assert tested == named and PROJECT["requires-python"] == f">={named[0]}"


def test_constraints_are_versions_that_the_bounds_allow():
    lines = read("constraints.txt").splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.+!]+", line) for line in lines), "made by make constraints, without addresses"
    versions = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    compared = [requirement for requirement in bounds() if canonicalize_name(requirement.name) in versions]
    missing = [str(r) for r in map(Requirement, PROJECT["dependencies"]) if canonicalize_name(r.name) not in versions]
    assert not missing and PROJECT["name"] not in versions
    wrong = [str(r) for r in compared if not r.specifier.contains(versions[canonicalize_name(r.name)], prereleases=True)]
    assert not wrong


def test_a_package_has_one_lower_bound():
    """Otherwise the lower one is not what `make test-lowest` installs."""
    found = {}
    for requirement in bounds():
        found.setdefault(canonicalize_name(requirement.name), set()).add(str(requirement.specifier))
    assert not {name: specifiers for name, specifiers in found.items() if len(specifiers) > 1 and "" not in specifiers}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_extras_that_are_named_exist(path):
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"(?:unipixel[-_]jax|\.whl|/source|[\"' ]\.)\[([\w,]+)\]", text) + re.findall(r"\.venv[\w-]*/installed-([a-z,]+)", text)
    assert {extra for group in named for extra in group.split(",")} <= EXTRAS.keys()


def test_the_image_copies_what_the_installation_needs():
    """The list of what Docker sees holds the project's own folders and the files that pyproject.toml names."""
    seen = {line[1:] for line in read(".dockerignore").splitlines() if line.startswith("!")}
    assert {"pyproject.toml", "constraints.txt", PROJECT["readme"], *PROJECT["license-files"], "unipixel_jax", "convert"} == seen
    assert all((ROOT / name).exists() for name in seen)
    targets = re.findall(r"^FROM \S+ AS (\w+)$", read("Dockerfile"), re.MULTILINE)
    assert targets == ["cpu", "cuda", "tpu"] and set(targets[1:]) <= EXTRAS.keys()


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert re.search(rf"^## \[{re.escape(PROJECT['version'])}\] - (unreleased|\d{{4}}-\d\d-\d\d)$", read("CHANGELOG.md"), re.MULTILINE)
    assert {found for name in ("docs/install.md", "scripts/space/requirements.txt") for found in re.findall(r"unipixel_jax-([\d.]+)-py3", read(name))} == {
        PROJECT["version"]
    }


def test_the_small_models_card_has_the_measured_figures():
    measured = json.loads(read("docs/shapes_tiny.json"))
    card = ModelCard.load(ROOT / "unipixel_jax" / "assets" / "shapes_tiny" / "README.md")
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert values == {name: round(measured[name]["mean"], 3) for name in measured if "/" not in name}
    rows = re.findall(r"^\| [^|]+ \| ([\d.]+) \| (\d+) \|$", card.text, re.MULTILINE)
    assert [(float(value), int(count)) for value, count in rows] == [(value, measured[name]["count"]) for name, value in values.items()]
    assert card.data.license == PROJECT["license"].lower()


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/install.md"])
def test_links_lead_to_files(name):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", read(name))
    assert links and not [link for link in links if not (ROOT / name).parent.joinpath(link).exists()]


def test_help_lists_every_target_that_may_be_called():
    phony = re.search(r"^\.PHONY: (.*)$", read("Makefile"), re.MULTILINE)[1].split()
    listed = subprocess.run(["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert sorted(line.split(": ")[0] for line in listed.splitlines()) == sorted(phony) and set(phony) == TARGETS
