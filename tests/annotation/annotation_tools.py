"""The tools that load our files, and small stand-ins for them where they are not installed.

The stand-ins keep what the tools document and no more: Label Studio's ML backend (label_studio_ml/api.py, model.py, exceptions.py and label_studio_sdk's
``parse_config``) and X-AnyLabeling-Server (app/models/__init__.py, app/core/registry.py, app/schemas). With the folders of the tools' own sources in
``LABEL_STUDIO_ML`` and ``X_ANYLABELING_SERVER``, as `make annotation` has them, the same tests run in these.
"""

import dataclasses
import importlib.util
import json
import math
import os
import sys
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import ClassVar
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
FILES = ROOT / "scripts" / "annotation"


def module(name, path):
    """A file as a module under a name."""
    spec = importlib.util.spec_from_file_location(name, path)
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


@contextmanager
def standing_in(package, contents):
    """While it lasts, a package and its modules hold these contents."""
    names = [package, *(f"{package}.{name}" for name in contents)]
    for name, own in zip(names, [{}, *contents.values()], strict=True):
        made = sys.modules[name] = ModuleType(name)
        made.__dict__.update(own)
        made.__path__ = []
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


# Label Studio


class AnswerException(Exception):
    def __init__(self, status, msg="", result=None):
        super().__init__(msg)
        self.status, self.msg, self.result = status, msg, result


def parse_config(text):
    """The control tags of a labelling configuration by their names."""
    root = ElementTree.fromstring(text)
    objects = {tag.get("name"): tag for tag in root.iter() if (tag.get("value") or "").startswith("$")}
    controls = {}
    for tag in root.iter():
        if tag.get("toName"):
            names = tag.get("toName").split(",")
            inputs = [{"type": objects[name].tag, "value": objects[name].get("value")[1:]} for name in names]
            labels = [label.get("value") for label in tag.iterfind("Label")]
            controls[tag.get("name")] = {"type": tag.tag, "to_name": names, "inputs": inputs, "labels": labels}
    return controls


class LabelStudioMLBase:
    _cache: ClassVar = defaultdict(dict)

    def __init__(self, project_id=None, label_config=None):
        self.project_id = project_id or ""
        if label_config is not None:
            self.set("parsed_label_config", json.dumps(parse_config(label_config)))
        self.setup()

    def set(self, key, value):
        self._cache[self.project_id][key] = value

    def has(self, key):
        return key in self._cache[self.project_id]

    @property
    def parsed_label_config(self):
        return json.loads(self._cache[self.project_id]["parsed_label_config"])

    def get_local_path(self, url, task_id=None):
        """Only what stands below ``LOCAL_FILES_DOCUMENT_ROOT`` is read, as the SDK reads it without an address of Label Studio."""
        prefix, _, name = url.partition("?d=")
        path = (Path(os.environ["LOCAL_FILES_DOCUMENT_ROOT"]) / name).resolve()
        if prefix != "/data/local-files/" or not path.is_relative_to(Path(os.environ["LOCAL_FILES_DOCUMENT_ROOT"]).resolve()):
            raise FileNotFoundError(f"Can't resolve url, neither hostname or project_dir passed: {url}")
        return str(path)


@dataclasses.dataclass
class ModelResponse:
    predictions: list


def stand_in_post(backend, request):
    """Label Studio's ``/predict``: the status and the JSON of the answer."""
    params = dict(request.get("params", {}))
    try:
        made = backend(project_id=str(request.get("project")).split(".")[0], label_config=request.get("label_config"))
        response = made.predict(request.get("tasks"), context=params.pop("context", {}), **params)
    except AnswerException as error:
        return error.status, {"status": error.status, "detail": error.msg, "result": error.result}
    return 200, {"results": response.predictions}


def label_studio(folder):
    """The backend's module, and a function that posts a request to ``/predict`` and returns the status and the answer."""
    source = os.environ.get("LABEL_STUDIO_ML")
    if source is None:
        own = {name: {kind.__name__: kind} for name, kind in (("exceptions", AnswerException), ("model", LabelStudioMLBase), ("response", ModelResponse))}
        with standing_in("label_studio_ml", own):
            made = module("unipixel_label_studio", FILES / "label_studio" / "model.py")
        return made, lambda request: stand_in_post(made.UniPixelBackend, request)
    os.environ["MODEL_DIR"] = str(folder)
    sys.path.insert(0, source)
    sys.path.insert(0, str(FILES / "label_studio"))
    server = module("unipixel_label_studio_server", FILES / "label_studio" / "_wsgi.py")
    client = server.app.test_client()

    def post(request):
        response = client.post("/predict", json=request)
        return response.status_code, response.get_json()

    return sys.modules["model"], post


# X-AnyLabeling


class BaseModel:
    def __init__(self, config):
        self.config = config
        self.model_id, self.display_name, self.params = config["model_id"], config["display_name"], config.get("params", {})


@dataclasses.dataclass
class Shape:
    label: str
    shape_type: str
    points: list
    score: float | None = None
    group_id: int | None = None

    def __post_init__(self):
        assert self.shape_type in ("polygon", "rectangle", "rotation", "point", "line", "circle", "linestrip", "quadrilateral")
        assert self.score is None or 0 <= self.score <= 1
        assert self.group_id is None or self.group_id > 0
        assert all(len(point) == 2 and all(type(value) is float and math.isfinite(value) for value in point) for point in self.points)


def x_anylabeling():
    """The class that the server registers as ``unipixel``."""
    source, file = os.environ.get("X_ANYLABELING_SERVER"), FILES / "x_anylabeling" / "unipixel.py"
    if source is not None:
        sys.path.insert(0, source)
        import app.core.registry

        module("app.models.unipixel", file)
        return app.core.registry._MODEL_REGISTRY["unipixel"]
    registered = {}

    def register_model(*names):
        return lambda cls: registered.update(dict.fromkeys(names, cls)) or cls

    own = {"core": {}, "core.registry": {"register_model": register_model}, "schemas": {}, "schemas.shape": {"Shape": Shape}}
    with standing_in("app", own | {"models": {"BaseModel": BaseModel}}):
        module("app.models.unipixel", file)
    return registered["unipixel"]
