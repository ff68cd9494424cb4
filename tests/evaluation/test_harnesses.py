"""The adapters of other harnesses give what the model answers, one answer a request and in order, and refuse what it cannot do.

The harnesses are not installed here. Stubs stand for what the adapters use of them: lmms_eval/api/model.py:lmms, its registry and command, and
vlmeval/vlm/base.py:BaseModel with vlmeval/config.py:supported_VLM.
"""

import abc
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from unipixel_jax import UniPixel
from unipixel_jax.data.synthetic.language import full_name
from unipixel_jax.data.synthetic.scene import draw_scene
from unipixel_jax.errors import UserError
from unipixel_jax.processing.frames import open_frames

SCRIPTS = Path(__file__).parents[2] / "scripts"
NEW = 16


class Lmms(abc.ABC):
    is_simple = True

    def __init__(self):
        self.task_dict = {}

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...


class BaseModel:
    def __init__(self):
        self.dump_image_func = None

    def generate(self, message, dataset=None):
        return self.generate_inner(message, dataset)


def stub(monkeypatch, name, **content):
    """A module of a harness, and the packages above it."""
    parent, _, _ = name.rpartition(".")
    if parent and parent not in sys.modules:
        stub(monkeypatch, parent)
    module = ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture(scope="module")
def adapters():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        patch.syspath_prepend(SCRIPTS / "adapters")
        stub(patch, "lmms_eval.api.model", lmms=Lmms)
        stub(patch, "vlmeval.vlm.base", BaseModel=BaseModel)
        names = ("answering", "lmms_eval_adapter", "vlmevalkit_adapter")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
        for name in names:
            del sys.modules[name]


@pytest.fixture(scope="module")
def model():
    return UniPixel.from_pretrained(dtype="float32")


@pytest.fixture(scope="module")
def lmms(adapters):
    return adapters.lmms_eval_adapter.UniPixelJax(batch_size="2", dtype="float32", devices=1, sample_frames=2)


@pytest.fixture(scope="module")
def vlm(adapters):
    return adapters.vlmevalkit_adapter.UniPixelJax(dtype="float32", sample_frames=4, max_new_tokens=NEW)


@pytest.fixture(scope="module")
def photos():
    """Drawn photos, a question about each, and what the model should say."""
    made = []
    for seed in range(4):
        scene = draw_scene(np.random.default_rng(seed))
        made.append((Image.fromarray(scene.frames[0]), f"Segment the {full_name(scene, 0)}."))
        made.append((Image.fromarray(scene.frames[0]), "Describe the image."))
    return made


@pytest.fixture(scope="module")
def clip(adapters, tmp_path_factory):
    """A video of a second that shows one scene, and then a second of another."""
    from sample_data.discs import write_video

    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    scenes = [draw_scene(np.random.default_rng(seed)) for seed in (0, 1)]
    write_video(path, [Image.fromarray(scene.frames[0]) for scene in scenes for _ in range(10)])
    return str(path)


def ask(lmms, messages, **settings):
    """Requests as lmms-eval makes them of chat messages, answered."""
    lmms.task_dict = {"task": {"test": messages}}
    settings = {"max_new_tokens": NEW, "temperature": 0, "until": ["\n\n"]} | settings
    requests = [SimpleNamespace(args=("", lambda doc: doc, settings, number, "task", "test")) for number in range(len(messages))]
    return lmms.generate_until(requests)


def turn(*content, role="user"):
    pieces = [{"type": "text", "text": piece} if isinstance(piece, str) else piece for piece in content]
    return {"role": role, "content": pieces}


def image(photo):
    return {"type": "image", "url": photo}


def test_answers_of_lmms_eval_are_those_of_the_model_in_order(model, lmms, photos, tmp_path):
    assert not lmms.is_simple
    expected = [model.answer(photo, words, max_new_tokens=NEW).text for photo, words in photos]
    assert len(set(expected)) > 4
    assert ask(lmms, [[turn(image(photo), words)] for photo, words in photos]) == expected
    photos[0][0].save(tmp_path / "photo.png")
    assert ask(lmms, [[turn(image(str(tmp_path / "photo.png")), photos[0][1])]]) == expected[:1]


def test_an_answer_ends_where_the_request_says(model, lmms, photos):
    photo, words = photos[0]
    whole, short = (model.answer(photo, words, max_new_tokens=count).text for count in (NEW, 3))
    assert short != whole and whole.count(" ") > 1
    message = [turn(image(photo), words)]
    assert ask(lmms, [message], max_new_tokens=3) == [short]
    assert ask(lmms, [message], until=" ") == [whole.split(" ")[0]]
    assert ask(lmms, [message], until=["", "<|seg|>", "never"]) == [whole.split("<|seg|>")[0]]
    assert ask(lmms, [message], until=None) == [whole]


def test_words_of_the_system_come_first_and_an_assistants_last_ones_begin_the_answer(model, lmms, vlm, photos):
    photo, words = photos[0]
    start = "It is the large"
    expected = model.track(photo, f"Look closely.\n{words}", answer_start=start, max_new_tokens=NEW).answer.text.removeprefix(start)
    plain = model.answer(photo, words, max_new_tokens=NEW).text
    assert expected and expected != plain
    assert ask(lmms, [[turn("Look closely.", role="system"), turn(image(photo), words), turn(start, role="assistant")]]) == [expected]
    message = [
        {"type": "text", "value": "Look closely.", "role": "system"},
        {"type": "image", "value": photo},
        {"type": "text", "value": words},
        {"type": "text", "value": start, "role": "assistant"},
    ]
    assert vlm.generate(message) == expected


def test_parts_of_a_video(model, lmms, clip):
    words = "Describe the image."
    halves = [open_frames(clip).between(start, start + 1) for start in (0, 1)]
    expected = [model.track(half, words, sample_frames=2, max_new_tokens=NEW).answer.text for half in halves]
    assert expected[0] != expected[1]
    shown = [
        {"type": "video", "url": clip, "start_time": 1.0, "end_time": None},
        {"type": "video", "url": {"url": clip, "type": "video", "video_start": 0, "video_end": 1}},
    ]
    assert ask(lmms, [[turn(media, words)] for media in shown]) == expected[::-1]


def test_rounds_of_lmms_eval(model, lmms, photos):
    """A task asks one or two rounds, with the answers before them, and drops the first answer at the end."""
    def messages(doc, round_idx=0, previous_output=None, previous_round_info=None):
        photo, words, rounds = doc
        assert previous_round_info == (None if round_idx < 2 else "known")
        if round_idx == rounds:
            return None, True, previous_output[1:], None
        said = f"You said: {previous_output[-1]} " if previous_output else ""
        made = [turn(image(photo), said + words)]
        return (made, False, previous_output, "known") if round_idx else made

    docs = [(*photo, rounds) for photo, rounds in zip(photos, (1, 2, 1), strict=False)]
    lmms.task_dict = {"task": {"test": docs}}
    requests = [SimpleNamespace(args=("", messages, {"max_new_tokens": NEW}, number, "task", "test")) for number in range(3)]
    photo, words = photos[1]
    first = model.answer(photo, words, max_new_tokens=NEW).text
    assert lmms.generate_until_multi_round(requests) == [[], [model.answer(photo, f"You said: {first} {words}", max_new_tokens=NEW).text], []]


def test_what_the_model_cannot_do_is_refused(adapters, lmms, photos):
    photo, words = photos[0]
    shown = {
        "request 1 shows image, image": [turn(image(photo), image(photo), words)],
        "request 1 shows text alone": [turn(words)],
        "request 1 shows audio": [turn({"type": "audio", "url": "a.wav"}, words)],
        "request 1 has answers of earlier turns": [turn(image(photo), words), turn("It is.", role="assistant"), turn(words)],
        "request 1: no/photo.png does not exist": [turn(image("no/photo.png"), words)],
    }
    for message, second in shown.items():
        with pytest.raises(UserError, match=message):
            ask(lmms, [[turn(image(photo), words)], second])
    for message, settings in {"temperature is 0.7": {"temperature": 0.7}, "num_beams is 4": {"num_beams": 4}}.items():
        with pytest.raises(UserError, match=message):
            ask(lmms, [[turn(image(photo), words)]], **settings)
    assert len(ask(lmms, [[turn(image(photo), words)]], temperature=0.7, do_sample=False)) == 1
    with pytest.raises(UserError, match="no likelihoods"):
        lmms.loglikelihood([])
    make = adapters.lmms_eval_adapter.UniPixelJax
    for message, options in {"batch_size is auto": {"batch_size": "auto"}, "device is cuda:0": {"device": "cuda:0"}, "expected 1 to 8": {"devices": 9}}.items():
        with pytest.raises(UserError, match=message):
            make(**options)


def test_answers_of_vlmevalkit_are_those_of_the_model(model, vlm, photos, clip):
    for photo, words in photos[:2]:
        message = [{"type": "image", "value": photo}, {"type": "text", "value": "Look."}, {"type": "text", "value": words}]
        assert vlm.generate(message, dataset="MMBench") == model.answer(photo, f"Look.\n{words}", max_new_tokens=NEW).text
    words = "Segment the rightmost object."
    video = [{"type": "video", "value": clip}, {"type": "text", "value": words}]
    assert vlm.VIDEO_LLM and vlm.nframe == 4
    few, many = (model.track(clip, words, sample_frames=count, max_new_tokens=NEW).answer.text for count in (1, 4))
    assert few != many
    assert vlm.generate(video) == many
    vlm.nframe = 1
    assert vlm.generate(video) == few
    with pytest.raises(UserError, match="shows image, video"):
        vlm.generate([{"type": "image", "value": photos[0][0]}, *video])


def test_vlmevalkit_is_started_with_the_model(adapters, model, photos, tmp_path, monkeypatch, capsys):
    stub(monkeypatch, "vlmeval.config", supported_VLM={})
    photos[0][0].save(tmp_path / "photo.png")
    run = tmp_path / "run.py"
    run.write_text(
        "import json, sys\n"
        "from vlmeval.config import supported_VLM\n"
        f"message = [dict(type='image', value={str(tmp_path / 'photo.png')!r}), dict(type='text', value={photos[0][1]!r})]\n"
        "answer = supported_VLM[sys.argv[2]]().generate(message)\n"
        "print(json.dumps([sys.argv, answer]))\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["adapter", str(run), "--dtype", "float32", "--max-new-tokens", "3", "--data", "MMBench"])
    adapters.vlmevalkit_adapter.main()
    argv, answer = json.loads(capsys.readouterr().out)
    assert argv == [str(run), "--model", "shapes_tiny", "--data", "MMBench"]
    assert answer == model.answer(*photos[0], max_new_tokens=3).text
    monkeypatch.setattr(sys, "argv", ["adapter", "no/run.py", "--data", "MMBench"])
    with pytest.raises(SystemExit):
        adapters.vlmevalkit_adapter.main()
    assert "no/run.py is no file" in capsys.readouterr().err


def test_lmms_eval_is_started_with_the_model(adapters, monkeypatch):
    registered = []
    stub(monkeypatch, "lmms_eval.models", MODEL_REGISTRY_V2=SimpleNamespace(register_manifest=lambda manifest: registered.append(("registered", *manifest))))
    stub(monkeypatch, "lmms_eval.models.registry_v2", ModelManifest=lambda model_id, chat_class_path: (model_id, chat_class_path))
    stub(monkeypatch, "lmms_eval.__main__", cli_evaluate=lambda: registered.append("started"))
    adapters.lmms_eval_adapter.main()
    assert registered == [("registered", "unipixel_jax", "lmms_eval_adapter.UniPixelJax"), "started"]
