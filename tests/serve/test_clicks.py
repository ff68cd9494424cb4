"""Clicks in place of words: SAM 2.1 alone answers them, as it does annotators, and follows what they mark through a clip, as an annotated clip is tracked."""

import asyncio
import gc
import json
import threading
import tracemalloc

import jax
import numpy as np
import pytest
from made_files import many_frames, video
from running_service import KEY, form, png, question, text64, wait_for

from unipixel_jax.client import Clicks, Client, ServiceError
from unipixel_jax.demo import ASSETS
from unipixel_jax.infer import clicks as answering
from unipixel_jax.infer.annotating import Annotator
from unipixel_jax.infer.many import Job, Options, run_jobs
from unipixel_jax.infer.sam2 import Sam2Predictor
from unipixel_jax.infer.tracking import Tracker
from unipixel_jax.processing.frames import Frame, FrameSource
from unipixel_jax.processing.prompts import numbered
from unipixel_jax.processing.rle import encode_mask
from unipixel_jax.serve.running import warm_up

CIRCLE, SQUARE, TRIANGLE = (109, 98), (125, 222), (74, 147)
"""Places (x, y) in the photo that ships with the package: within its small red circle, its large blue square and its large green triangle."""
PHOTO = ASSETS / "photo.png"


def middle(clip, place, frame):
    """A point in the middle of an object of a drawn clip."""
    rows, columns = np.nonzero(clip.masks[place, frame])
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    return float(columns[nearest]) + 0.5, float(rows[nearest]) + 0.5


def test_each_click_on_a_photo_gets_what_an_annotator_gets(client, model):
    annotator = Annotator(model)
    stroke = np.zeros((320, 320), bool)
    stroke[215:225, 100:150] = True
    asked = [Clicks([CIRCLE]), Clicks([SQUARE], [TRIANGLE, (165, 190)]), Clicks(box=(60, 70, 150, 400)), Clicks(brush=stroke)]
    found = client.segment(PHOTO, clicks=asked)
    assert found.text == "" and found.size == (320, 320) and found.frames == [0] and found.usage.total_tokens == 0
    for number, (item, clicks) in enumerate(zip(found.objects, asked, strict=True), start=1):
        (wanted,) = annotator.find(PHOTO, clicks=clicks)
        assert item.number == number and item.span is None and item.found and item.areas == [wanted.mask.sum()]
        np.testing.assert_array_equal(item.mask(), wanted.mask)
        assert item.scores[0] == pytest.approx(wanted.score, abs=1e-5) and item.scores[0] <= item.presence[0] <= 1
    (frame,) = client.track(PHOTO, clicks=asked)
    assert frame.number == 0 and [own.encoded for own in frame.objects] == [item.masks[0] for item in found.objects]


def test_points_correct_a_mask_that_is_known(client, model):
    before = client.segment(PHOTO, clicks=[Clicks([SQUARE])]).objects[0].mask()
    (after,) = client.segment(PHOTO, clicks=[Clicks(off=[(165, 190)], mask=before)]).objects
    predictor = Sam2Predictor(model.loaded.model.sam2)
    wanted = answering.find_by_clicks(predictor, predictor.encode(PHOTO), Clicks(off=[(165, 190)], mask=before))
    np.testing.assert_array_equal(after.mask(), wanted.mask)
    assert (after.mask() != before).any() and (after.mask() & before).sum() > before.sum() / 2


def test_objects_have_the_numbers_that_were_asked_for(client):
    circle, square = client.segment(PHOTO, clicks=[Clicks([CIRCLE]), Clicks([SQUARE])]).objects
    first, second = client.segment(PHOTO, clicks=[Clicks([CIRCLE], number=2), Clicks([SQUARE], number=1)]).objects
    assert (first.masks, second.masks) == (square.masks, circle.masks)


def test_json_is_what_a_form_is(http):
    asked = {"clicks": [{"on": [SQUARE], "off": [TRIANGLE]}, {"box": [60, 70, 150, 130]}]}
    of_form = http.post("/v1/segment", **form(json.dumps(asked), PHOTO.read_bytes())).json()
    of_json = http.post("/v1/segment", json=asked | {"media": text64(PHOTO.read_bytes()), "prompt": None}).json()
    assert of_json["objects"] == of_form["objects"] and len(of_json["objects"]) == 2
    assert 0 < of_json["timing"]["read"] <= of_json["timing"]["answered"] <= of_json["timing"]["total"]


def test_a_clip_is_tracked_as_an_annotated_clip_is(client, model, clip):
    """Prompts on several frames, in another order than that of their objects; one is on two frames, and one has a mask that a point corrects."""
    mask = clip.masks[0, 4].copy()
    asked = [
        Clicks([middle(clip, 0, 4)], mask=mask, frame=4, number=2),
        Clicks([middle(clip, 1, 1)], [middle(clip, 0, 1)], frame=1, number=1),
        Clicks([middle(clip, 1, 3)], frame=3, number=1),
    ]
    session = Sam2Predictor(model.loaded.model.sam2).track(clip.frames)
    session.add(1, points=asked[1].on + asked[1].off, labels=[1, 0])
    session.add(3, 1, points=asked[2].on)
    session.add(4, mask=mask)
    session.add(4, 2, points=asked[0].on)
    wanted = list(session.propagate())
    frames = [png(frame) for frame in clip.frames]
    whole = client.segment(frames, clicks=asked)
    assert whole.text == "" and whole.frames == [1, 2, 3, 4, 5] == [result.frame for result in wanted]
    for place, result in enumerate(wanted):
        for number, item in enumerate(whole.objects):
            np.testing.assert_array_equal(item.mask(place), result.masks[number])
            assert item.scores[place] == pytest.approx(float(result.scores[number]), abs=1e-5)
    assert any(item.found for item in whole.objects)
    tracked = list(client.track(frames, clicks=asked))
    assert [frame.number for frame in tracked] == whole.frames
    assert [[own.encoded for own in frame.objects] for frame in tracked] == [[item.masks[place] for item in whole.objects] for place in range(5)]


def test_a_video_is_tracked_from_the_marked_frame(client, model, tmp_path):
    """Its marked frame is picked, and the others are read in order."""
    path = tmp_path / "a.mp4"
    content = video(path, 9, (64, 48))
    session = Sam2Predictor(model.loaded.model.sam2).track(path)
    session.add(5, box=(10, 10, 40, 40))
    wanted = list(session.propagate())
    found = client.segment(content, clicks=[Clicks(box=(10, 10, 40, 40), frame=5)])
    assert found.frames == [5, 6, 7, 8] and found.size == (48, 64)
    for place, result in enumerate(wanted):
        np.testing.assert_array_equal(found.objects[0].mask(place), result.masks[0])
    assert [frame.number for frame in client.track(content, clicks=[Clicks(box=(10, 10, 40, 40), frame=5)])] == found.frames


WRONG = {
    "outside": ([Clicks([(321, 5)])], "the point 321,5 lies outside the picture of 320x320"),
    "outside beside": ([Clicks([(5, 5)], [(5, 400)])], "the point 5,400 lies outside"),
    "only beside": ([Clicks([(5, 5)]), Clicks(off=[(5, 5)])], "clicks 2 hold points beside an object alone: give a point on the object"),
    "nothing": ([Clicks()], "clicks 1 hold nothing"),
    "box without area": ([Clicks(box=(5, 5, 5, 9))], "the box 5, 5, 5, 9 has no area"),
    "empty mask": ([Clicks(mask=np.zeros((320, 320), bool))], "the mask is empty"),
    "empty stroke": ([Clicks(brush=np.zeros((320, 320), bool))], "the brush stroke is empty"),
    "another size": ([Clicks(mask=np.ones((20, 30), bool))], r"the mask is bool \[20, 30\], expected bool \[320, 320\]"),
    "no such frame": ([Clicks([(5, 5)], frame=1)], "has no frame 1: expected 0, since it is one picture"),
    "a gap": ([Clicks([(5, 5)], number=1), Clicks([(5, 5)], number=3)], "are 1, 3: expected 1, 2, ... without gaps"),
    "some numbers": ([Clicks([(5, 5)], number=1), Clicks([(5, 5)])], "are 1, none: expected"),
    "twice": ([Clicks([(5, 5)], number=1), Clicks([(5, 6)], number=1)], "object 1 is clicked on twice on frame 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_clicks_that_mean_nothing_get_one_message(client, name):
    clicks, words = WRONG[name]
    for ask in (client.segment, lambda *args, **named: next(client.track(*args, **named))):
        with pytest.raises(ServiceError, match=words) as error:
            ask(PHOTO, clicks=clicks)
        assert error.value.status == 422 and "\n" not in str(error.value)


def test_frames_that_a_clip_does_not_have(client):
    with pytest.raises(ServiceError, match="has no frame 9: expected 0 to 5") as error:
        client.segment(many_frames(6), clicks=[Clicks([(5, 5)], frame=9)])
    assert error.value.status == 422
    with pytest.raises(ServiceError, match="clicks on 17 frames, expected at most 16"):
        client.segment(many_frames(20), clicks=[Clicks([(5, 5)], frame=frame, number=1) for frame in range(17)])


@pytest.mark.parametrize("media", ["photo", "clip"])
def test_a_click_for_which_nobody_waits_is_given_up(running, client, clip, monkeypatch, media):
    gate, begun, real = threading.Event(), threading.Event(), Tracker.add if media == "clip" else answering.find_by_clicks

    def slow(*args, **named):
        begun.set()
        gate.wait(60)
        return real(*args, **named)

    monkeypatch.setattr(*((Tracker, "add") if media == "clip" else (answering, "find_by_clicks")), slow)
    files = [png(frame) for frame in clip.frames] if media == "clip" else PHOTO.read_bytes()
    asked = [Clicks([(40, 40)])]
    before, gone = running.metric("unipixel_masks_total"), 'unipixel_requests_total{route="/v1/segment",status="499"}'
    left = running.metric(gone)

    def ask_and_leave():
        with Client(running.url, KEY, timeout=0.5) as leaving, pytest.raises(ServiceError, match="timed out"):
            leaving.segment(files, clicks=asked)

    threads = [threading.Thread(target=ask_and_leave) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert begun.is_set()
    wait_for(lambda: running.metric(gone) - left == 3)
    gate.set()
    running.idle()
    assert running.metric("unipixel_masks_total") - before <= 1, "what nobody waits for was done"
    monkeypatch.undo()
    assert client.segment(files, clicks=asked).objects


def test_a_clip_of_any_length_takes_the_same_memory(model, clip):
    """The memory held on the device and on the host stays the same between two frames of a clip whose frames are made as they are read."""
    frames = FrameSource("long", 60, None, False, lambda: (Frame(number, None, clip.frames[number % 6].copy()) for number in range(60)))
    asked = numbered([Clicks([middle(clip, 0, 2)], frame=2), Clicks([middle(clip, 1, 5)], frame=5)])
    device, host = [], []
    tracemalloc.start()
    for result in answering.clicked(model.loaded, frames, frames.take([2, 5]), asked):
        if result.frame % 10 == 9:
            gc.collect()
            device.append(sum(array.nbytes for array in jax.live_arrays()))
            host.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    # before the last ten frames, while others are still read ahead
    assert len(device) == 6 and max(device[1:-1]) - min(device[1:-1]) < 1 << 16
    assert max(host[1:-1]) - min(host[1:-1]) < clip.frames[0].nbytes


def test_clicks_compile_nothing_after_the_warm_up(running, client, clip, compiled):
    asyncio.run(warm_up(running.service, 96, 64))
    compiled.clear()
    on = [middle(clip, 0, 2), middle(clip, 0, 3)]
    client.segment(PHOTO, clicks=[Clicks([SQUARE]), Clicks([SQUARE], [TRIANGLE, CIRCLE], box=(60, 70, 150, 130))])
    client.segment([png(frame) for frame in clip.frames], clicks=[Clicks(on, frame=2)])
    client.segment([png(frame) for frame in clip.frames[:4]], clicks=[Clicks(mask=clip.masks[0, 1], frame=1)])
    assert compiled == []
    client.segment(PHOTO, clicks=[Clicks([SQUARE] * 20)])
    assert compiled, "the listener hears nothing"


def test_jobs_that_are_known_to_come_may_have_clicks_too(client, model, clip, scenes):
    jobs = [
        Job(scenes[0].frames[0], question(scenes[0]), id="words"),
        Job(PHOTO, "", clicks=numbered([Clicks([SQUARE])]), id="photo"),
        Job(clip.frames, "", clicks=numbered([Clicks([middle(clip, 0, 2)], frame=2)]), id="clip"),
        Job(PHOTO, "", clicks=numbered([Clicks([(999, 5)])]), id="outside"),
    ]
    options = Options(rows=4, max_new_tokens=24, threads=1)
    found = {outcome.job.id: outcome for outcome in run_jobs(model.loaded, model.sampling, 0, jobs, options, jax.devices()[:1])}
    assert found["words"].prediction.objects and "outside the picture" in found["outside"].reason
    assert found["photo"].prediction.objects[0].runs[0] == client.segment(PHOTO, clicks=[Clicks([SQUARE])]).objects[0].masks[0]
    assert list(found["clip"].prediction.frames) == [2, 3, 4, 5]
    assert encode_mask(found["clip"].prediction.objects[0].mask(0)) == found["clip"].prediction.objects[0].runs[0]
