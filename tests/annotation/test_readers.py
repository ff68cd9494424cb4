"""Exports read back, and backends run, by the annotation tools' own packages (`make annotation`)."""

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import annotation_tools as tools
import numpy as np
import pytest

from unipixel_jax.demo import ASSETS

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from exported import HEIGHT, LABELS, WIDTH, results, written

pytestmark = pytest.mark.annotation


def test_label_studio_reads_its_tasks(tmp_path):
    from label_studio_sdk.converter.brush import decode_rle
    from label_studio_sdk.label_interface import LabelInterface
    from label_studio_sdk.label_interface.objects import PredictionValue

    folder = written("label-studio", tmp_path / "clip")
    config = LabelInterface((folder / "labeling_config.xml").read_text(encoding="utf-8"))
    tasks = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
    for task, result in zip(tasks, results(), strict=True):
        (prediction,) = task["predictions"]
        assert config.validate_task({"data": task["data"]})
        assert config.validate_prediction(PredictionValue(**prediction).model_dump())
        wanted = [mask for mask in result.masks if mask.any()]
        for region, mask in zip(prediction["result"], wanted, strict=True):
            np.testing.assert_array_equal(decode_rle(region["value"]["rle"]).reshape(HEIGHT, WIDTH, 4)[..., 3] > 0, mask)


def test_the_labelling_configurations_are_parsed_as_the_stand_in_parses_them():
    from label_studio_sdk._extensions.label_studio_tools.core.label_config import parse_config

    text = (tools.FILES / "label_studio" / "labeling_config.xml").read_text(encoding="utf-8")
    found = parse_config(text)
    for name, tag in tools.parse_config(text).items():
        assert {key: found[name][key] for key in ("type", "to_name", "labels")} == {key: tag[key] for key in ("type", "to_name", "labels")}
        assert [(entry["type"], entry["value"]) for entry in found[name]["inputs"]] == [(entry["type"], entry["value"]) for entry in tag["inputs"]]


def test_datumaro_reads_what_cvat_exports(tmp_path):
    from datumaro.components.annotation import AnnotationType
    from datumaro.components.dataset import Dataset

    folder = written("cvat", tmp_path / "clip")
    dataset = Dataset.import_from(str(folder), "cvat")
    names = [label.name for label in dataset.categories()[AnnotationType.label]]
    assert names == list(LABELS.values())
    items = {item.attributes["frame"]: item for item in dataset}
    for result in results():
        found = {mask.group: mask for mask in items[result.frame].annotations}
        assert list(found) == [number for number, mask in zip(result.objects, result.masks, strict=True) if mask.any()]
        for number, mask in found.items():
            assert names[mask.label] == LABELS[number]
            np.testing.assert_array_equal(np.asarray(mask.image, bool), result.masks[number - 1])


def test_labelme_reads_its_files(tmp_path):
    import labelme

    folder = written("labelme", tmp_path / "clip")
    for result in results():
        file = labelme.LabelFile(str(folder / f"{result.frame:06d}.json"))
        for number in result.objects:
            own = [shape for shape in file.shapes if shape["group_id"] == number]
            assert {shape["label"] for shape in own} <= {LABELS[number]}
            drawn, _ = labelme.utils.shapes_to_label((HEIGHT, WIDTH), own, {"_background_": 0, LABELS[number]: 1})
            np.testing.assert_array_equal(drawn > 0, result.masks[number - 1])


SERVE = """
import json, sys
from fastapi.testclient import TestClient
from app.main import app
with TestClient(app) as client:
    for request in json.load(sys.stdin):
        print("ANSWER", json.dumps(client.post("/v1/predict", json=request).json()))
    print("ANSWER", json.dumps(client.get("/v1/models").json()))
"""


def test_x_anylabeling_server_loads_the_model_and_answers(tmp_path):
    """The server itself, with our two files in their places, from a request to the answer."""
    for name in ("app", "configs"):
        shutil.copytree(Path(os.environ["X_ANYLABELING_SERVER"]) / name, tmp_path / name)
    shutil.copy(tools.FILES / "x_anylabeling" / "unipixel.py", tmp_path / "app" / "models")
    shutil.copy(tools.FILES / "x_anylabeling" / "unipixel.yaml", tmp_path / "configs" / "auto_labeling")
    (tmp_path / "models.yaml").write_text("enabled_models: [unipixel]\n")
    image = base64.b64encode((ASSETS / "photo.png").read_bytes()).decode()
    asked = [{"text_prompt": "large blue square"}, {"marks": [{"type": "point", "label": 1, "data": [125, 222]}]}, {}]
    requests = [{"model": "unipixel", "image": image, "params": params} for params in asked]
    environment = os.environ | {"XANYLABELING_MODELS_CONFIG": str(tmp_path / "models.yaml"), "PYTHONPATH": str(tools.ROOT)}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SERVE], input=json.dumps(requests), capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    answers = [json.loads(line.removeprefix("ANSWER ")) for line in run.stdout.splitlines() if line.startswith("ANSWER ")]
    assert len(answers) == 4, run.stderr
    words, click, nothing, models = answers
    assert words["success"] and {shape["label"] for shape in words["data"]["shapes"]} == {"large blue square"}
    assert click["success"] and {shape["label"] for shape in click["data"]["shapes"]} == {"AUTOLABEL_OBJECT"}
    assert nothing["success"] is False and nothing["error"]["message"].startswith("nothing is asked for")
    assert "unipixel" in json.dumps(models)
