"""Each route gives what the model gives, to curl's forms, to JSON, and to our client."""

import json

import httpx
import numpy as np
import pytest
from running_service import KEY, NEW, form, png, question, text64

from unipixel_jax.client import Box, Client, Mask, Point, ServiceError
from unipixel_jax.infer.prediction import Prediction
from unipixel_jax.processing.rle import encode_mask


def same(found, wanted: Prediction):
    assert found.text == wanted.text and list(found.size) == list(wanted.size) and list(found.frames) == list(wanted.frames)
    for ours, theirs in zip(found.objects, wanted.objects, strict=True):
        assert ours.span == (None if theirs.span is None else list(theirs.span))
        assert np.mean([ours.mask(frame) != theirs.masks[frame] for frame in range(len(found.frames))]) < 1e-3
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)


def test_a_photo_and_words(client, model, scenes):
    found = client.segment(png(scenes[0].frames[0]), question(scenes[0]))
    wanted = model.segment(scenes[0].frames[0], question(scenes[0]), max_new_tokens=NEW)
    same(found, wanted)
    (item,) = found.objects
    assert found.text[slice(*item.span)] == "<|seg|>" and item.found and item.boxes[0][2] > 0 and item.areas[0] == item.mask().sum()
    assert found.usage.completion_tokens == len(wanted.tokens) and found.usage.total_tokens > found.usage.completion_tokens


def test_json_is_what_a_form_is(http, scenes):
    content, asked = png(scenes[0].frames[0]), {"prompt": "What is <region>?", "references": [{"point": [40, 50]}]}
    of_form = http.post("/v1/segment", **form(json.dumps(asked), content)).json()
    for media in (text64(content), f"data:image/png;base64,{text64(content)}"):
        of_json = http.post("/v1/segment", json=asked | {"media": media}).json()
        assert of_json.keys() == of_form.keys() and of_json["text"] == of_form["text"] != ""
    assert 0 < of_json["timing"]["read"] <= of_json["timing"]["answered"] <= of_json["timing"]["total"]


def test_points_boxes_and_masks(client, model, scenes):
    photo = scenes[1].frames[0]
    mask = np.zeros(photo.shape[:2], bool)
    mask[30:60, 30:70] = True
    found = client.segment(png(photo), "Is <region> left of <region>, or <region>?", [Point(40, 50), Box(10, 10, 60, 60), Mask(mask)])
    assert found.text and found.usage.prompt_tokens > 0
    with pytest.raises(ServiceError, match="outside the image") as error:
        client.segment(png(photo), "What is <region>?", [Point(999, 5)])
    assert error.value.status == 422 and error.value.code == "invalid_input"
    with pytest.raises(ServiceError, match="the mask is bool"):
        client.segment(png(photo), "What is <region>?", [Mask(mask[:-1])])


def test_the_frames_of_a_clip_are_sent_as_they_come(client, model, clip):
    frames = [png(frame) for frame in clip.frames]
    whole = client.segment(frames, question(clip), sample_frames=4)
    same(whole, model.segment(clip.frames, question(clip), sample_frames=4, max_new_tokens=NEW))
    tracked = list(client.track(frames, question(clip), sample_frames=4))
    assert [frame.number for frame in tracked] == list(whole.frames) == list(range(6))
    assert [encode_mask(frame.objects[0].mask()) for frame in tracked] == list(whole.objects[0].masks)


def test_a_photo_is_followed_for_one_frame(running, client, scenes):
    photo, before = png(scenes[0].frames[0]), running.metric("unipixel_masks_total")
    (frame,) = client.track(photo, question(scenes[0]))
    assert running.metric("unipixel_masks_total") - before == len(frame.objects) == 1
    (item,) = client.segment(photo, question(scenes[0])).objects
    (own,) = frame.objects
    assert frame.number == 0 and (own.number, own.encoded, own.box, own.area) == (1, item.masks[0], item.boxes[0], item.areas[0])
    assert [own.score, own.presence] == [item.scores[0], item.presence[0]]


def test_an_answer_without_objects_has_no_frames(client, clip):
    assert list(client.track([png(frame) for frame in clip.frames], "What is <region>?", [Point(40, 50)], sample_frames=4)) == []


def test_a_conversation(client, model, scenes):
    photo = png(scenes[2].frames[0])
    first = client.chat(photo, question(scenes[2]), max_tokens=NEW)
    same(first, model.segment(scenes[2].frames[0], question(scenes[2]), max_new_tokens=NEW))
    second = client.chat(photo, question(scenes[2]), first.text, question(scenes[2]), max_tokens=NEW)
    assert second.usage.prompt_tokens > first.usage.total_tokens
    assert all(item.span is not None for item in second.objects)
    drawn = [client.chat(photo, "What is at the left?", temperature=3.0, seed=seed).text for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_health_models_and_metrics(running, http):
    health = httpx.get(f"{running.url}/health", trust_env=False)
    assert health.status_code == 200 and health.json() == {"status": "ready", "model": "shapes_tiny", "waiting": 0}
    assert [item["id"] for item in http.get("/v1/models").json()["data"]] == ["shapes_tiny"]
    assert http.get("/v1/models/shapes_tiny").json()["object"] == "model" and http.get("/v1/models/other").status_code == 404
    told = http.get("/metrics")
    assert told.headers["content-type"].startswith("text/plain")
    for name in ("unipixel_requests_total", "unipixel_queue_length", "unipixel_batch_size_sum", "unipixel_tokens_total", "unipixel_masks_total"):
        assert f"\n{name}" in told.text


@pytest.mark.parametrize("key", ["", "wrong", KEY[:-1], f"{KEY}x"])
def test_nothing_without_the_key(running, key):
    with httpx.Client(base_url=running.url, headers={"Authorization": f"Bearer {key}"} if key else {}, trust_env=False) as http:
        for method, path in (("GET", "/v1/models"), ("GET", "/metrics"), ("POST", "/v1/segment"), ("GET", "/nothing"), ("GET", "/openapi.json")):
            refused = http.request(method, path)
            assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
            assert refused.json()["error"]["code"] == "invalid_api_key"
    with Client(running.url, key) as client, pytest.raises(ServiceError, match="key is missing or wrong"):
        client.segment(b"x", "x")


def test_pages_of_other_origins_are_refused(http):
    asked = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    refused = http.options("/v1/segment", headers=asked)
    assert refused.status_code == 405 and not [name for name in refused.headers if name.startswith("access-control")]


def test_the_client_says_that_nothing_answers():
    with Client("http://127.0.0.1:9") as client, pytest.raises(ServiceError, match="does not answer"):
        client.segment(b"x", "x")
