"""The sentences of training: the project's own, those of a file, and those that the script takes from a clone of the reference."""

import json
import sys
from dataclasses import fields

import numpy as np
import pytest
from marked_samples import CONFIG, EVERY_WRITER, TOKENIZER, assembled, first_question

from unipixel_jax.data.annotation import DrawOptions
from unipixel_jax.data.draw import draw
from unipixel_jax.data.loader import LoaderOptions
from unipixel_jax.data.pipeline import DrawSample, open_loader, open_mixture
from unipixel_jax.data.sources import open_source
from unipixel_jax.data.templates import OWN, Templates, read_templates
from unipixel_jax.errors import UserError

import reference_templates  # isort: skip  marked_samples makes scripts/ importable

OPTIONS = DrawOptions(sample_frames=(4, 4), image_size=CONFIG.sam2.image_size)
KINDS = {
    "image_query": "refcoco",
    "video_query": "mevis",
    "sentence": "reason_seg",
    "explanatory": "reason_seg",
    "question": "groundmore",
    "description": "ref_sav",
    "caption": "inst_it_image_short_caption_raw_ref",
    "describe": "osprey_detail_description",
    "locate": "videorefer_qa_mem",
}
"""A source whose samples ask in each way."""

CLONE = {
    "unipixel/constants.py": "SEG_TOKEN = '<|seg|>'\nREF_TOKEN = '<|ref|>'\nLIMIT = 3\n",
    "unipixel/dataset/sub_classes/segmentation.py": """
import nothing_that_exists
from unipixel.constants import SEG_TOKEN
SEG_IMAGE_QUERY_PROMPTS = ['Photo {}.', 'Picture {}.']
SEG_VIDEO_QUERY_PROMPTS = ['Film {}.']
SEG_SENTENCE_PROMPTS = ['Sentence {}.']
SEG_QUESTION_PROMPTS = ['Question {}.']
SEG_EXPLANATORY_PROMPTS = ('Reason {}.',)
SEG_DESCRIPTION_PROMPTS = ['Depicted {}.']
SEG_RESPONSES = [f'{SEG_TOKEN}!', f'See {SEG_TOKEN}!']
raise RuntimeError('this code was run')
""",
    "unipixel/dataset/sub_classes/referring.py": "REF_IMAGE_SHORT_PROMPTS = [f'Short {REF_TOKEN} {{!}}.']\n",
    "unipixel/dataset/sub_classes/region.py": "REG_DETAILED_PROMPTS = ['Long {}.']\n",
    "unipixel/dataset/sub_classes/memory.py": "SEG_MEMORY_PROMPTS = ['Found {}.']\n",
}
"""A stand-in for a clone of the reference, with other words."""


@pytest.fixture
def clone(tmp_path):
    for name, text in CLONE.items():
        path = tmp_path / "clone" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "clone"


@pytest.fixture
def root(tmp_path):
    for name in set(KINDS.values()):
        EVERY_WRITER[name](tmp_path)
    return tmp_path


@pytest.fixture
def convert(clone, tmp_path, monkeypatch):
    """Run the script on the stand-in; returns the path of the file that it writes."""

    def run(*edits):
        for name, old, new in edits:
            path = clone / name
            assert old in path.read_text()
            path.write_text(path.read_text().replace(old, new))
        out = tmp_path / "templates.json"
        monkeypatch.setattr(sys, "argv", ["reference_templates.py", str(clone), "--out", str(out)])
        assert reference_templates.main() == 0
        return out

    return run


def matches(text, templates):
    """Whether a text is one of the templates with something in its place."""
    halves = [template.replace("{{", "{").replace("}}", "}").split("{}") for template in templates]
    return any(text.startswith(first) and text.endswith(last) and len(text) > len(first + last) for first, last in halves)


def test_the_words_of_the_benchmarks_are_learned():
    """Protocol of unipixel/eval/infer_seg.py, infer_videorefer_d.py and infer_pixelqa.py."""
    assert OWN.image_query[0] == "Please segment the {} in this image."
    assert OWN.video_query[0] == "Please segment the {} in this video."
    assert OWN.sentence[0] == "{} Please provide the segmentation mask."
    assert OWN.explanatory[0] == "{} Please provide the segmentation mask and explain why."
    assert OWN.question[0] == "{} Please answer the question and provide the segmentation mask."
    assert OWN.description[0] == "Please segment the object according to the description: {}"
    assert OWN.describe[0].format("[0]") == "Please give a detailed description of the highlighted object [0] in the video."
    assert OWN.locate[0] == "{} Please localize the relevant objects with IDs."
    for field in fields(Templates):
        sentences = getattr(OWN, field.name)
        assert len(set(sentences)) == len(sentences) > 5, field.name


def test_a_file_replaces_the_words_of_every_kind(root, convert):
    theirs = read_templates(convert())
    assert theirs.caption == ("Short {} {{!}}.",) and theirs.answer == ("<|seg|>!", "See <|seg|>!") and theirs.explanatory == ("Reason {}.",)
    for kind, name in KINDS.items():
        source = open_source(name, root)
        found = {OWN: 0, theirs: 0}
        for templates in found:
            for index in range(len(source)):
                example = draw(source[index], OPTIONS, np.random.default_rng(index), templates)
                assembled(example)
                asked = first_question(example)
                if kind == "describe":  # after the list of the regions
                    asked = asked.splitlines()[-1]
                found[templates] += matches(asked, getattr(templates, kind))
                assert not any(matches(asked, getattr(other, kind)) for other in found if other is not templates)
                if kind == "image_query":
                    assert example.messages[1]["content"] in templates.answer
        assert found[OWN] == found[theirs] > 0, kind


def test_lists_that_a_file_does_not_name_are_the_projects_own(tmp_path):
    (tmp_path / "some.json").write_text(json.dumps({"locate": ["{} Where?"]}))
    templates = read_templates(tmp_path / "some.json")
    assert templates == Templates(locate=("{} Where?",)) and templates.caption == OWN.caption and templates.digest() != OWN.digest()


def test_worker_processes_use_them_and_a_resumed_run_needs_the_same(root, convert):
    theirs = read_templates(convert())
    batches = {}
    for templates, workers in ((OWN, 0), (theirs, 0), (theirs, 1)):
        draw_sample = DrawSample(TOKENIZER, CONFIG, OPTIONS, templates=templates)
        with open_loader(open_mixture("refcoco", root, 2), draw_sample, LoaderOptions(workers=workers, threads=1)) as loader:
            batches[templates, workers] = next(loader).arrays.inputs.input_ids
            state = json.loads(json.dumps(loader.state()))
            loader.restore(state)
    np.testing.assert_array_equal(batches[theirs, 0], batches[theirs, 1])
    assert not np.array_equal(batches[theirs, 0], batches[OWN, 0])
    with open_loader(open_mixture("refcoco", root, 2), DrawSample(TOKENIZER, CONFIG, OPTIONS), LoaderOptions()) as other:
        with pytest.raises(UserError, match=f"checksum of data.templates: {theirs.digest()} before, {OWN.digest()} now"):
            other.restore(state)
        del state["settings"]  # as in a checkpoint of an earlier version
        other.restore(state)
        assert other.step == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"querry": ["{}"]}, "names a list 'querry', expected some of image_query, video_query, sentence, question"),
        ({"caption": []}, "the list caption is empty"),
        ({"caption": "What is {}?"}, r"caption is 'What is \{\}\?', expected a list"),
        ({"caption": ["What is {}?", 5]}, "caption holds '5', expected text"),
        ({"caption": ["What is it?"]}, r"caption holds 'What is it\?', expected \{\} once"),
        ({"caption": ["{} and {}"]}, r"expected \{\} once"),
        ({"caption": ["{name}"]}, "no other field"),
        ({"caption": ["{!r}"]}, "no other field"),
        ({"caption": ["{:9999999999}"]}, "no other field"),
        ({"caption": ["{} {"]}, "braces that are meant as such are written twice"),
        ({"caption": ["{} <|ref|>"]}, "no special token"),
        ({"answer": ["It is {}."]}, r"expected <\|seg\|> once"),
        ({"answer": ["<|seg|> <|seg|>"]}, r"expected <\|seg\|> once"),
        ({"answer": ["<|seg|> <|mem|>"]}, "no other special token"),
        (["{}"], "holds a list, expected a JSON object"),
    ],
    ids=str,
)
def test_wrong_files_are_refused(content, reason, tmp_path):
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=reason) as caught:
        read_templates(path)
    assert str(path) in str(caught.value)


def test_words_with_braces_are_taken_as_they_are(root):
    source = open_source("refcoco", root)
    templates = Templates(image_query=("{{literally}} {}",))
    assert first_question(draw(source[0], OPTIONS, np.random.default_rng(0), templates)).startswith("{literally} ")


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        ("segmentation.py", "SEG_SENTENCE_PROMPTS", "OTHER", "has no list SEG_SENTENCE_PROMPTS of texts"),
        ("segmentation.py", "['Film {}.']", "[print('run')]", "has no list SEG_VIDEO_QUERY_PROMPTS of texts"),
        ("segmentation.py", "['Film {}.']", "[]", "has no list SEG_VIDEO_QUERY_PROMPTS of texts"),
        ("segmentation.py", "f'{SEG_TOKEN}!'", "f'{OTHER}!'", "has no list SEG_RESPONSES of texts"),
        ("segmentation.py", "f'{SEG_TOKEN}!'", "f'{SEG_TOKEN!r}!'", "has no list SEG_RESPONSES of texts"),
        ("segmentation.py", "f'{SEG_TOKEN}!'", "f'{LIMIT}!'", "has no list SEG_RESPONSES of texts"),
        ("memory.py", "'Found {}.'", "'Found'", r"locate holds 'Found', expected \{\} once"),
        ("region.py", "['Long {}.']", "[", "is no Python file"),
    ],
)
def test_other_clones_are_refused_and_nothing_is_written(file, old, new, reason, convert, tmp_path):
    with pytest.raises(UserError, match=reason):
        convert((f"unipixel/dataset/sub_classes/{file}", old, new))
    assert not list(tmp_path.glob("*templates*"))


def test_a_folder_that_is_no_clone_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"constants.py does not exist: expected a clone"):
        reference_templates.read_lists(tmp_path)
