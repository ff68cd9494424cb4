"""A conversation that is continued on its cache says what the whole conversation, read from its beginning, is answered with."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from random_model import random_model

from unipixel_jax import Box, Mask, Point, UniPixel
from unipixel_jax.cli import main
from unipixel_jax.data.synthetic.language import full_name
from unipixel_jax.data.synthetic.scene import draw_scene
from unipixel_jax.demo import ASSETS
from unipixel_jax.errors import UserError
from unipixel_jax.infer import chat as chats
from unipixel_jax.infer.answers import without_end
from unipixel_jax.infer.buckets import PROMPT_BUCKETS
from unipixel_jax.infer.generate import generate
from unipixel_jax.processing import batch
from unipixel_jax.processing.chat import expand_image_tokens
from unipixel_jax.processing.memory import memory_grid

NEW = 24


@pytest.fixture(scope="module")
def model():
    return UniPixel.from_pretrained(dtype="float32")


@pytest.fixture(scope="module")
def scene():
    return draw_scene(np.random.default_rng(3), 2)


def from_scratch(model, chat, messages, references, objects, new_tokens=NEW):
    """The ids of a whole conversation, and of its answer when all of it is read at once."""
    media, loaded = chat._media, model.loaded
    memory = memory_grid(np.stack([item.masks for item in objects]), media.grid_thw, model.config.vision) if objects else None
    prompt = batch.prepare_conversation(messages, media, loaded.tokenizer, model.config, references=references, memory=memory)
    inputs = batch.collate([prompt], model.config, loaded.tokenizer.pad_id, PROMPT_BUCKETS)
    limit = jnp.asarray(new_tokens, jnp.int32)
    out = generate(
        loaded.model, jax.device_put(inputs), jax.random.key(0), limit, new_token_slots=32, end_tokens=loaded.end_tokens, dtype=loaded.dtype
    )
    tokens = np.asarray(out.tokens)[0, : int(out.count[0])]
    return prompt.input_ids.tolist(), without_end(tokens, loaded.end_tokens).tolist()


def test_turns_on_the_cache_are_those_of_the_whole_conversation(model, scene):
    chat = model.chat(scene.frames)
    mask = Mask(scene.masks[1])
    questions = [
        (f"Segment the {full_name(scene, 0)}.", [], NEW),
        ("What is <region>?", [Point(30, 40)], NEW),
        ("Is [0] larger than <region>?", [mask], 3),  # cut off: its last token is read with the next turn
        ("What is <region>, and what [1]?", [Box(20, 20, 90, 90)], NEW),
    ]
    references, before = [], []
    for question, own, new_tokens in questions:
        known = list(chat.objects)
        found = chat.ask(question, own, max_new_tokens=new_tokens)
        assert len(chat.objects) == len(known) + len(found.objects) + sum(isinstance(r, Mask) for r in own)
        assert [chat.objects[number] for number in found.numbers] == list(found.objects)
        references += [r for r in own if not isinstance(r, Mask)]
        messages = chat._read.messages
        told = chat.objects[: chat._told]
        ids, answer = from_scratch(model, chat, messages[:-1], references, told, new_tokens)
        assert answer == list(found.tokens)
        assert ids[: len(before)] == before
        before = ids + answer
        assert chat.tokens == before
        text = expand_image_tokens(model.loaded.tokenizer.render(messages, add_generation_prompt=False), [chat._media.grid_thw], model.config.vision)
        whole = model.loaded.tokenizer.encode(text).tolist()
        assert whole[: len(before)] == before
    assert "[1]: <1>-<2> <|mem|>" in chat._read.messages[4]["content"] and "[0]: <1>-<2> <|mem|>" in chat._read.messages[2]["content"]
    np.testing.assert_array_equal(chat.objects[1].masks, scene.masks[1])


def test_a_first_answer_is_that_of_segment(model, scene):
    prompt = f"Segment the {full_name(scene, 1)}."
    wanted, found = model.segment(scene.frames, prompt, max_new_tokens=NEW), model.chat(scene.frames).ask(prompt, max_new_tokens=NEW)
    assert list(found.tokens) == list(wanted.tokens) and len(found.objects) == len(wanted.objects) == 1
    assert np.mean(found.objects[0].masks != wanted.objects[0].masks) < 1e-3


def test_a_second_question_costs_under_a_tenth_of_the_first(model):
    """FLOPs as XLA counts them in the compiled programs; the answer's loop counts as one token. The question is as long as the first."""
    clip = draw_scene(np.random.default_rng(5), 16).frames
    chat, costs = model.chat(clip), {}

    def counted(name):
        program = getattr(chats, name)

        def call(*args, **static):
            compiled = jax.jit(lambda *args: program(*args, **static)).lower(*args).compile()
            costs.setdefault(name, []).append(compiled.cost_analysis()["flops"])
            return program(*args, **static)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("read_media_part", "answer_turn"):
            patch.setattr(chats, name, counted(name))
        chat = model.chat(clip)
        for question in ("What is at the left?", "What is at the top?"):
            chat.ask(question, max_new_tokens=2)
    first, second = costs["read_media_part"][0] + costs["answer_turn"][0], costs["answer_turn"][1]
    assert second < 0.1 * first, f"{second / 1e6:.0f} of {first / 1e6:.0f} MFLOP"


def test_what_does_not_fit_leaves_the_conversation_as_it_was(model, scene):
    chat = model.chat(scene.frames[:1], max_slots=256)
    before = chat.tokens
    for question, references, words in (
        (" ", [], "prompt is empty"),
        ("What is <region> and <region>?", [Point(3, 3)], "expected one each"),
        ("What is <region>?", [Point(3, 999)], "outside the image"),
        ("What is <|mem|>?", [], r"1 <\|mem\|> for 0 memories"),
        ("What <|video_pad|>?", [], r"1 <\|video_pad\|> for 0 clips"),
        ("Why? " * 90, [], r"would need \d+ tokens, .* expected at most 256: begin a new one"),
    ):
        with pytest.raises(UserError, match=words):
            chat.ask(question, references, max_new_tokens=NEW)
    assert chat.tokens == before and not chat.objects
    assert chat.ask("What is <region>?", [Mask(scene.masks[0, 0])], max_new_tokens=2).text
    with pytest.raises(UserError, match="expected at most 16"):
        model.chat(scene.frames, max_slots=16)


LINES = """\
Please segment the large blue square.
/point 74,147

What is <region>?
/point 74
/jump
/mask {mask}
Is <region> larger than [0]?
What is <region>?
"""


def test_the_command_reads_lines_and_draws_each_answer(tmp_path, capsys, monkeypatch):
    mask, out = tmp_path / "mask.png", tmp_path / "out"
    pixels = np.zeros((320, 320), np.uint8)
    pixels[70:130, 80:140] = 1
    Image.fromarray(pixels).save(mask)
    monkeypatch.setattr("sys.stdin", io.StringIO(LINES.format(mask=mask)))
    argv = ["chat", str(ASSETS / "photo.png"), "--output-dir", str(out), "--max-new-tokens", "24", "--dtype", "float32"]
    assert main(argv) == 1
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0] == "It is the large blue square[0]." and lines[1].startswith("[0] ") and lines[3] == "It is a large green triangle."
    for line, words in zip(shown.err.splitlines(), ("'74' is not X,Y", "/jump is unknown", "1 <region> for 0 points"), strict=True):
        assert words in line
    assert lines[2] == str(out / "photo-chat-1.png")
    with Image.open(lines[2]) as drawn:
        assert drawn.size == (320, 320)
    assert len([line for line in lines if line.startswith("[")]) == len([path for path in lines if path.endswith(".png")]) >= 1


def test_the_command_refuses_media_before_it_loads_a_model(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(UniPixel, "from_pretrained", None)
    assert main(["chat", "no/such.png"]) == 1
    assert capsys.readouterr().err.startswith("error: no/such.png does not exist")


@pytest.mark.slow
def test_a_random_model_says_the_same_on_its_cache(rng):
    """Its tokens change with any token that is not seen, where those of a trained model seldom do."""
    model = random_model(seed=1)
    chat = model.chat(rng.integers(0, 256, (3, 120, 160, 3), dtype=np.uint8))
    for question in ("Where is it?", "What is to the left of the large red thing?", "Why?"):
        found = chat.ask(question, max_new_tokens=8)
        ids = np.asarray(chat.tokens[: len(chat.tokens) - len(found.tokens)], np.int32)
        inputs = batch.collate([batch.Conversation(ids, chat._media)], model.config, model.loaded.tokenizer.pad_id, PROMPT_BUCKETS)
        limit, ends = jnp.asarray(8, jnp.int32), model.loaded.end_tokens
        key, dtype = jax.random.key(0), model.loaded.dtype
        out = generate(model.loaded.model, jax.device_put(inputs), key, limit, new_token_slots=32, end_tokens=ends, dtype=dtype)
        assert without_end(np.asarray(out.tokens)[0, : int(out.count[0])], ends).tolist() == list(found.tokens)
