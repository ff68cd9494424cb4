"""OpenAI's own client works unchanged."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest
from running_service import KEY, NEW, png, question, text64

from unipixel_jax.infer.answers import text_and_spans, without_end
from unipixel_jax.processing.batch import prepare_conversation
from unipixel_jax.processing.rle import decode_mask

WORDS = {"role": "user", "content": "Segment the large red circle."}
"""A conversation about no photo, which the small model answers as if there were one."""


@pytest.fixture(scope="module")
def official(running):
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def image(content):
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text64(content)}"}}


def user(words, *contents):
    return {"role": "user", "content": [*map(image, contents), {"type": "text", "text": words}]}


def test_an_answer_with_masks(official, model, scenes):
    asked = [{"role": "system", "content": "You are a helpful assistant."}, user(question(scenes[0]), png(scenes[0].frames[0]))]
    found = official.chat.completions.create(model="shapes_tiny", messages=asked, max_tokens=NEW, temperature=0)
    wanted = model.segment(scenes[0].frames[0], question(scenes[0]), max_new_tokens=NEW)
    assert found.choices[0].message.content == wanted.text and found.choices[0].finish_reason == "stop"
    assert found.usage.completion_tokens == len(wanted.tokens) and found.object == "chat.completion"
    (item,) = found.unipixel["objects"]
    assert np.mean(decode_mask(item["masks"][0]) != wanted.objects[0].masks[0]) < 1e-3


def test_a_stream_of_tokens_is_the_answer(official, scenes, monkeypatch):
    monkeypatch.setattr("unipixel_jax.infer.many.LIVE_STEPS", 2)
    options = dict(model="shapes_tiny", messages=[user(question(scenes[1]), png(scenes[1].frames[0]))], max_completion_tokens=NEW)
    whole = official.chat.completions.create(**options)
    chunks = list(official.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    words = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(words) == whole.choices[0].message.content and len(words) > 2
    last, usage = chunks[-2:]
    assert last.choices[0].finish_reason == "stop" and last.unipixel["objects"] == whole.unipixel["objects"]
    assert usage.usage == whole.usage and len({chunk.id for chunk in chunks}) == 1


def test_an_answer_that_is_cut_off(official, scenes):
    asked = dict(model="shapes_tiny", messages=[user(question(scenes[0]), png(scenes[0].frames[0]))], max_tokens=3)
    found = official.chat.completions.create(**asked)
    assert found.choices[0].finish_reason == "length" and found.usage.completion_tokens == 3
    chunks = list(official.chat.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == found.choices[0].message.content


def test_several_photos_are_frames_and_words_alone_need_no_masks(official, clip):
    frames = [png(frame) for frame in clip.frames[:3]]
    options = {"extra_body": {"unipixel": {"segment": False, "references": [{"point": [40, 50], "frame": 1}]}}}
    found = official.chat.completions.create(model="shapes_tiny", messages=[user("What is <region>?", *frames)], max_tokens=NEW, **options)
    assert found.choices[0].message.content and found.unipixel["objects"] == []


def test_words_alone_are_answered_beside_photos(official, model, scenes):
    loaded = model.loaded
    _, answer, count = model._generate(prepare_conversation([WORDS], None, loaded.tokenizer, loaded.config), NEW)
    wanted, _ = text_and_spans(without_end(np.asarray(answer.tokens)[0, :count], loaded.end_tokens), loaded.tokenizer, loaded.config.seg_token_id)

    def ask(turn):
        return official.chat.completions.create(model="shapes_tiny", messages=[turn], max_tokens=NEW)

    with ThreadPoolExecutor(4) as pool:
        photo, *alone = pool.map(ask, [user(question(scenes[0]), png(scenes[0].frames[0])), WORDS, WORDS, WORDS])
    assert photo.unipixel["objects"] and [found.choices[0].message.content for found in alone] == [wanted] * 3
    assert all(found.unipixel["objects"] == [] for found in alone)


def test_models(official):
    assert [model.id for model in official.models.list()] == ["shapes_tiny"]
    assert official.models.retrieve("shapes_tiny").id == "shapes_tiny"
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        official.models.retrieve("gpt")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"model": "gpt"}, openai.NotFoundError, "there is no model 'gpt'"),
        ({"messages": [{"role": "user", "content": "<|video_pad|>"}]}, openai.UnprocessableEntityError, "leave those tokens out of your text"),
        ({"extra_body": {"unipixel": {"references": [{"point": [1, 1]}]}}, "messages": [WORDS]}, openai.UnprocessableEntityError, "references and no media"),
        ({"messages": [{"role": "assistant", "content": "Hello."}]}, openai.UnprocessableEntityError, "the roles are assistant"),
        ({"messages": []}, openai.UnprocessableEntityError, "messages"),
        ({"temperature": -1}, openai.UnprocessableEntityError, "temperature"),
        ({"n": 2}, openai.UnprocessableEntityError, "n: "),
        ({"stop": ["x"]}, openai.UnprocessableEntityError, "stop: "),
        ({"max_tokens": 0}, openai.UnprocessableEntityError, "max_tokens"),
        ({"tools": []}, openai.UnprocessableEntityError, "tools: is no field that is known here"),
    ],
)
def test_mistakes(official, scenes, change, error, words):
    asked = {"model": "shapes_tiny", "messages": [user("What is it?", png(scenes[0].frames[0]))], "max_tokens": 2} | change
    with pytest.raises(error, match=words):
        official.chat.completions.create(**asked)


@pytest.mark.parametrize("url", ["http://example.org/a.png", "https://a.b/c", "file:///etc/passwd", "/etc/passwd", "ftp://a/b", "data:image/png,xy"])
def test_addresses_are_not_opened(official, url):
    asked = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]}]
    with pytest.raises(openai.BadRequestError, match="data:TYPE;base64,DATA"):
        official.chat.completions.create(model="shapes_tiny", messages=asked)


def test_an_error_before_the_stream_has_its_status(http, scenes):
    asked = {"model": "shapes_tiny", "messages": [user("What is <region>?", png(scenes[0].frames[0]))], "stream": True}
    refused = http.post("/v1/chat/completions", json=asked | {"unipixel": {"references": [{"point": [999, 0]}]}})
    assert refused.status_code == 422 and json.loads(refused.text)["error"]["code"] == "invalid_input"
