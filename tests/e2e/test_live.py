"""Jobs that come live: answers are those of each alone, in whatever pieces they are made and whoever comes beside them; what nobody waits for is given up."""

import itertools
import queue
import threading

import jax
import numpy as np
import pytest

from unipixel_jax import Point, UniPixel
from unipixel_jax.data.synthetic.language import full_name
from unipixel_jax.data.synthetic.scene import draw_scene
from unipixel_jax.infer import engine, many
from unipixel_jax.infer.clips import AT_ONCE
from unipixel_jax.infer.generate import Sampling
from unipixel_jax.infer.job_source import Watcher
from unipixel_jax.infer.many import Job, Options
from unipixel_jax.processing.frames import Frame, FrameSource
from unipixel_jax.processing.prompts import Clicks, numbered

NEW = 24


@pytest.fixture(scope="module")
def model():
    return UniPixel.from_pretrained(dtype="float32")


class Running:
    """A runner on a thread of its own that takes jobs until it is closed."""

    def __init__(self, model, rows=4):
        self.bell, self.jobs, self.found, self.groups = threading.Event(), queue.SimpleQueue(), {}, []
        self.arrived = threading.Condition()
        options = Options(rows, NEW, threads=2, live=self.bell, note_group=self.groups.append)
        self.thread = threading.Thread(target=self._run, args=(model, options))
        self.thread.start()

    def _run(self, model, options):
        for outcome in many.run_jobs(model.loaded, model.sampling, model.seed, self._feed(), options, jax.devices()[:1]):
            with self.arrived:
                assert outcome.job.id not in self.found
                self.found[outcome.job.id] = outcome
                self.arrived.notify_all()

    def _feed(self):
        while True:
            try:
                job = self.jobs.get_nowait()
            except queue.Empty:
                yield None
                continue
            if job is None:
                return
            yield job

    def put(self, *jobs):
        for job in jobs:
            self.jobs.put(job)
        self.bell.set()

    def get(self, name):
        with self.arrived:
            assert self.arrived.wait_for(lambda: name in self.found, timeout=120), f"{name} was lost"
            return self.found[name]

    def close(self):
        self.put(None)
        self.thread.join(120)
        assert not self.thread.is_alive()


@pytest.fixture(scope="module")
def running(model):
    runner = Running(model)
    yield runner
    runner.close()


class Seen(Watcher):
    def __init__(self, takes_frames=False):
        self.takes_frames, self.tokens, self.texts, self.lines, self.prompt = takes_frames, [], [], [], 0

    def read(self, tokens):
        self.prompt = tokens

    def said(self, tokens):
        self.tokens.append(tokens.tolist())

    def answered(self, answer):
        self.texts.append(answer.text)

    def frame(self, line):
        self.lines.append(line)


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(np.random.default_rng(seed)) for seed in range(3)] + [draw_scene(np.random.default_rng(5), 6)]


def question(scene, **options):
    return Job(scene.frames[0], f"Segment the {full_name(scene, 0)}.", **options)


def test_answers_are_those_of_each_alone(model, running, scenes):
    jobs = [question(scene, id=f"photo {number}", watcher=Seen()) for number, scene in enumerate(scenes[:3])]
    jobs.append(Job(scenes[0].frames[0], "What is <region>?", [Point(40, 50)], id="point", watcher=Seen()))
    jobs.append(Job(scenes[3].frames, f"Segment the {full_name(scenes[3], 0)}.", id="clip", sample_frames=4, watcher=Seen()))
    running.put(*jobs)
    for job in jobs:
        wanted = model.segment(job.media, job.prompt, job.references, sample_frames=job.sample_frames, max_new_tokens=NEW)
        found = running.get(job.id).prediction
        assert list(found.tokens) == list(wanted.tokens) and found.text == wanted.text and found.frames == wanted.frames
        for ours, theirs in zip(found.objects, wanted.objects, strict=True):
            assert ours.span == theirs.span and np.mean(ours.masks != theirs.masks) < 1e-3
            np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)
        seen = job.watcher
        assert seen.prompt > 10 and seen.texts == [found.text] and seen.tokens[-1] == list(found.tokens)
        assert all(after[: len(before)] == before for before, after in zip(seen.tokens, seen.tokens[1:], strict=False))
    assert max(running.groups) > 1


def test_frames_go_to_whom_follows_them(model, running, scenes):
    clip = Job(scenes[3].frames, f"Segment the {full_name(scenes[3], 0)}.", id="frames", sample_frames=4, watcher=Seen(takes_frames=True))
    running.put(clip)
    assert running.get("frames").prediction is not None
    wanted = [result.to_json() for result in model.track(clip.media, clip.prompt, sample_frames=4, max_new_tokens=NEW)]
    assert [line["frame"] for line in clip.watcher.lines] == list(range(6))
    assert [line["objects"][0]["mask"] for line in clip.watcher.lines] == [line["objects"][0]["mask"] for line in wanted]


def test_clips_whose_users_are_not_ready_let_others_pass(running, scenes):
    class Slow(Seen):
        is_ready = False

        def ready(self):
            return self.is_ready

    words = f"Segment the {full_name(scenes[3], 0)}."
    slow = [Job(scenes[3].frames, words, id=f"slow {number}", sample_frames=4, watcher=Slow(takes_frames=True)) for number in range(AT_ONCE + 1)]
    running.put(*slow, Job(scenes[3].frames, words, id="quick", sample_frames=4, watcher=Seen(takes_frames=True)))
    assert running.get("quick").prediction is not None
    assert not any(job.watcher.lines for job in slow)
    for job in slow:
        job.watcher.is_ready = True
    assert all(running.get(job.id).prediction is not None and len(job.watcher.lines) == 6 for job in slow)


def test_photos_with_clicks_or_words_do_not_wait_for_clips(running, scenes):
    endless = FrameSource("long", 1 << 30, None, False, lambda: (Frame(number, None, scenes[3].frames[number % 6]) for number in itertools.count()))
    clicks = numbered([Clicks([(40, 40)])])
    clips = [Job(endless, "", clicks=clicks, id=f"long {number}", watcher=Seen(takes_frames=True)) for number in range(AT_ONCE + 1)]
    running.put(*clips)
    running.put(Job(scenes[0].frames[0], "", clicks=clicks, id="clicks beside", watcher=Seen()), question(scenes[0], id="words beside"))
    found = running.get("clicks beside").prediction
    assert found.text == "" and len(found.objects) == 1 and running.get("words beside").prediction.objects
    assert not any(job.id in running.found for job in clips)
    for job in clips:
        job.watcher.cancelled = True
    assert all(running.get(job.id).reason == "cancelled" for job in clips)
    assert sum(bool(job.watcher.lines) for job in clips) == AT_ONCE and all(job.watcher.texts == [""] for job in clips)


def test_pieces_of_tokens_give_the_whole_answer(model, running, scenes, monkeypatch):
    monkeypatch.setattr(many, "LIVE_STEPS", 1)
    job = question(scenes[1], id="pieces", watcher=Seen())
    running.put(job)
    found = running.get("pieces").prediction
    assert list(found.tokens) == list(model.segment(job.media, job.prompt, max_new_tokens=NEW).tokens)
    assert len(job.watcher.tokens) >= len(found.tokens) - 1 and [len(own) for own in job.watcher.tokens[:3]] == [2, 3, 4]


def test_what_is_drawn_depends_on_the_seed_and_not_on_the_neighbours(running, scenes):
    warm = Sampling(temperature=3.0, top_p=0.95)
    alone = [question(scenes[0], id=f"alone {seed}", sampling=warm, seed=seed) for seed in (1, 2)]
    for job in alone:
        running.put(job)
        running.get(job.id)
    beside = [question(scenes[0], id=f"beside {seed}", sampling=warm, seed=seed) for seed in (1, 2)]
    greedy = question(scenes[0], id="beside greedy")
    one = question(scenes[0], id="likeliest of one", sampling=Sampling(temperature=3.0, top_k=1), seed=4)
    running.put(*beside, greedy, one)
    tokens = {job.id: list(running.get(job.id).prediction.tokens) for job in [*alone, *beside, greedy, one]}
    assert tokens["alone 1"] == tokens["beside 1"] != tokens["alone 2"] == tokens["beside 2"]
    assert tokens["beside greedy"] == tokens["likeliest of one"] != tokens["alone 1"]


def test_history_comes_before_the_prompt_and_its_objects_are_not_segmented(running, scenes):
    first = question(scenes[2], id="first")
    running.put(first)
    text = running.get("first").prediction.text
    turns = [{"role": "user", "content": first.prompt}, {"role": "assistant", "content": text}]
    watcher = Seen()
    running.put(Job(first.media, first.prompt, id="second", history=turns, skip_objects=text.count("<|seg|>"), watcher=watcher))
    second = running.get("second").prediction
    assert all(item.span is not None for item in second.objects) and watcher.prompt > 0


@pytest.mark.parametrize("when", ["waiting", "running", "followed"])
def test_a_job_for_which_nobody_waits_is_given_up(running, scenes, monkeypatch, when):
    class Leaving(Seen):
        def said(self, tokens):
            self.cancelled = self.cancelled or when == "running"

        def frame(self, line):
            self.lines.append(line)
            self.cancelled = True

    watcher = Leaving(takes_frames=when == "followed")
    watcher.cancelled = when == "waiting"
    monkeypatch.setattr(many, "LIVE_STEPS", 1)
    media = scenes[3].frames if when == "followed" else scenes[0].frames[0]
    scene = scenes[3] if when == "followed" else scenes[0]
    running.put(Job(media, f"Segment the {full_name(scene, 0)}.", id=when, sample_frames=4, watcher=watcher))
    outcome = running.get(when)
    assert outcome.prediction is None and outcome.reason == "cancelled" and len(watcher.lines) <= 1
    running.put(question(scenes[0], id=f"after {when}"))
    assert running.get(f"after {when}").prediction is not None


def test_an_error_fails_those_that_were_there(running, scenes, monkeypatch):
    def failing(*args, **static):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "decode_rows", failing)
        running.put(question(scenes[0], id="unlucky"))
        outcome = running.get("unlucky")
    assert outcome.reason == "RuntimeError: out of memory" and isinstance(outcome.error, RuntimeError)
    running.put(question(scenes[0], id="lucky"))
    assert running.get("lucky").prediction is not None
