"""Questions about scenes of shapes, each with its one right answer.

A question names things by what sets them apart, and an answer gives the full name just before its ``<|seg|>``, so that words reach the mask that mean the same
in every scene. No space stands between: the state that is segmented is then that of the last word, which carries its own meaning, and not that of a space.
Whether two things are alike is said after what each is, so that words are compared, and not two regions of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unipixel_jax.data.synthetic.scene import Scene
from unipixel_jax.processing.tokenizer import REF_TOKEN, SEG_TOKEN

SIDES = {"leftmost": (0, 1), "rightmost": (0, -1), "topmost": (1, 1), "bottommost": (1, -1)}
"""Words for the ends of the picture: the axis, and the sign by which the thing at that end has the smallest coordinate."""
MARGIN = 8.0
"""Pixels by which a thing must be further out than the next to be called the leftmost, or to lie further left."""
ASKED = (0.55, 0.25, 0.2)
"""Shares of the three ways to ask for a thing: by its appearance, by the side at which it lies, and by what lies in front of it."""
SINGLE = 0.35
"""How often a question about two remembered things is about one of them."""
ALIKE, DIFFERENT = 4.0, 0.5
"""Weights of the question whether two things have the same colour or shape, beside 1 of the others: as many answers are yes as no."""
FIND = ("Segment {}.", "Please segment {}.", "Can you segment {} in this image?", "Where is {}? Please respond with the segmentation mask.", "Find {}.")
POINT = (f"What is {REF_TOKEN}?", f"Describe {REF_TOKEN}.", f"Please describe {REF_TOKEN} in detail.")
REGION = ("What is {}?", "Describe {}.", "Please describe {} in detail.")


@dataclass(frozen=True)
class Question:
    """Words about a scene.

    Attributes:
        kind: what it asks, for scores by kind.
        text: the question; ``<|ref|>`` stand for ``referred``.
        answer: the right answer; ``<|seg|>`` stand for ``segmented``.
        referred: the things that are pointed at.
        segmented: the things that the answer segments.
    """

    kind: str
    text: str
    answer: str
    referred: tuple[int, ...] = ()
    segmented: tuple[int, ...] = ()


def full_name(scene: Scene, thing: int) -> str:
    """The size, colour and shape of a thing, as words. No two things of a scene have the same."""
    t = scene.things[thing]
    return f"{t.size} {t.colour} {t.shape}"


def names(scene: Scene, thing: int) -> list[str]:
    """Every name that only this thing of the scene has, from short ones to the full one."""
    own = scene.things[thing]
    found = []
    for parts in (("shape",), ("colour", "shape"), ("size", "shape"), ("size", "colour", "shape")):
        words = [getattr(own, part) for part in parts]
        if sum([getattr(t, part) for part in parts] == words for t in scene.things) == 1:
            found.append(" ".join(words))
    return found


def at_side(scene: Scene, word: str, shape: str | None) -> int | None:
    """The thing (of a shape, or of any) at one end of the picture; None where it is not clearly there, or alone."""
    axis, sign = SIDES[word]
    among = [i for i, t in enumerate(scene.things) if shape in (None, t.shape)]
    order = sorted(among, key=lambda i: sign * scene.centres[i, axis])
    if len(order) < 2 or abs(scene.centres[order[1], axis] - scene.centres[order[0], axis]) < MARGIN:
        return None
    return order[0]


def find(scene: Scene, rng: np.random.Generator, done: frozenset[int] = frozenset(), shares: Sequence[float] = ASKED) -> Question:
    """A question that asks to segment a thing.

    Args:
        scene: what is asked about.
        rng: of the choice.
        done: things that were segmented before. Another one is asked for by its appearance, if there is one.
        shares: of the three ways to ask (see ``ASKED``). Where the scene does not allow the second or third, the appearance is named.
    """
    kind = rng.choice(("look", "side", "behind"), p=shares)
    thing = int(rng.choice([i for i in range(len(scene.things)) if i not in done] or len(scene.things)))
    words = str(rng.choice(names(scene, thing)))
    if kind == "side":
        word, shape = str(rng.choice(tuple(SIDES))), scene.things[thing].shape if rng.random() < 0.5 else None
        placed = at_side(scene, word, shape)
        if placed is not None:
            thing, words = placed, f"{word} {shape or 'object'}"
        else:
            kind = "look"
    elif kind == "behind":
        pairs = [(back[0], front) for front in range(len(scene.things)) if len(back := scene.behind(front)) == 1]
        if pairs:
            thing, front = pairs[int(rng.integers(len(pairs)))]
            words = f"object behind the {rng.choice(names(scene, front))}"
        else:
            kind = "look"
    return Question(str(kind), str(rng.choice(FIND)).format(f"the {words}"), f"It is the {full_name(scene, thing)}{SEG_TOKEN}.", segmented=(thing,))


def point_at(scene: Scene, rng: np.random.Generator, masks: bool) -> Question:
    """A question that asks to describe a thing that is pointed at, or, if ``masks`` are learned, to segment it."""
    thing = int(rng.integers(len(scene.things)))
    if masks and rng.random() < 0.5:
        text = str(rng.choice(FIND)).format(REF_TOKEN)
        return Question("point_segment", text, f"It is this object{SEG_TOKEN}.", (thing,), (thing,))
    return Question("point", str(rng.choice(POINT)), f"It is a {full_name(scene, thing)}.", (thing,))


def describe(scene: Scene, thing: int, rng: np.random.Generator, number: int = 0) -> Question:
    """A question what a remembered thing is, which is called by its number."""
    return Question("what", str(rng.choice(REGION)).format(f"[{number}]"), f"It is a {full_name(scene, thing)}.")


def about(scene: Scene, things: tuple[int, ...], rng: np.random.Generator, single: float = SINGLE) -> Question:
    """A question about one thing called [0], or about two called [0] and [1] (PixelQA), of which a share of ``single`` is about one of them."""
    chosen = int(rng.integers(len(things)))
    thing = scene.things[things[chosen]]
    one = (
        describe(scene, things[chosen], rng, chosen),
        Question("colour", f"What colour is [{chosen}]?", f"[{chosen}] is {thing.colour}."),
        Question("shape", f"What shape is [{chosen}]?", f"[{chosen}] is a {thing.shape}."),
    )
    if len(things) == 1 or rng.random() < single:
        return one[int(rng.integers(len(one)))]
    first, second = (scene.things[i] for i in things)
    gap = scene.centres[things[0], 0] - scene.centres[things[1], 0]
    alike = {f"same_{what}": getattr(first, what) == getattr(second, what) for what in ("colour", "shape")}
    weights = {kind: ALIKE if yes else DIFFERENT for kind, yes in alike.items()}
    weights |= {"larger": float(first.size != second.size), "left": float(abs(gap) >= MARGIN)}
    kind = str(rng.choice(tuple(weights), p=np.array(tuple(weights.values())) / sum(weights.values())))
    if kind == "larger":
        return Question(kind, "Which is larger, [0] or [1]?", f"[{int(first.size == 'small')}] is larger.")
    if kind == "left":
        return Question(kind, "Which is further left, [0] or [1]?", f"[{int(gap > 0)}] is further left.")
    what = kind.removeprefix("same_")
    named = [thing.colour if what == "colour" else f"a {thing.shape}" for thing in (first, second)]
    return Question(kind, f"Do [0] and [1] have the same {what}?", f"[0] is {named[0]}, [1] is {named[1]}: {'yes' if alike[kind] else 'no'}.")
