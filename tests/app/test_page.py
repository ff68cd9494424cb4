"""The page in a real browser: each tab with a photo and a clip, brush, clicks, errors, narrow and wide, dark and light."""

import io
import json
import os
from pathlib import Path

import av
import numpy as np
import pytest
from chromium import files_below
from PIL import Image
from selenium.webdriver.common.keys import Keys

import unipixel_jax

TABS = ["Image segmentation", "Video segmentation", "Image regions", "Video regions", "PixelQA", "Click to correct", "Live", "Chat", "Memory"]
PHOTO = Path(unipixel_jax.__file__).parent / "assets" / "photo.png"
SHOTS = os.environ.get("UNIPIXEL_TEST_SCREENSHOTS")
"""A folder for pictures of every tab, wide and narrow, light and dark."""

CONTRAST = """
const light = c => { const v = c.map(x => x / 255).map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
const numbers = s => s.match(/[\\d.]+/g).map(Number);
const ground = e => { for (; e; e = e.parentElement) { const c = numbers(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0.9) return c; }
    return [255, 255, 255]; };
const worst = {};
for (const e of document.querySelectorAll('h1, p, span, label, button, textarea, input, li, div')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.offsetParent || e.disabled || e.closest('[class*=toast]') || getComputedStyle(e).opacity < 1) continue;
    const [a, b] = [light(numbers(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) worst[e.textContent.trim().slice(0, 40)] = ratio;
}
return worst;
"""
"""Texts with less than the contrast that WCAG asks for."""


def shot(visitor, name):
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        visitor.screenshot(Path(SHOTS) / f"page_{name}.png")


def answered(visitor, identity, words):
    """Wait until the answer holds some words, and return all of it."""
    visitor.wait(lambda: words in visitor.text(f"#{identity}-answer"), f"{identity} does not answer {words!r}")
    return visitor.text(f"#{identity}-answer")


def at(example, number):
    """The place of an object in an example as shares of width and height."""
    x, y = example.places[number]
    return x / 384, y / 384


def test_the_page_says_what_it_is(visitor):
    visitor.open()
    assert visitor.driver.title == "UniPixel"
    assert "It knows drawn shapes only" in visitor.text("#ux-banner")
    assert [tab.text.strip() for tab in visitor.all("#ux-tabs button[role=tab]")] == TABS
    assert not visitor.all("footer")


def test_image_segmentation(visitor, examples):
    visitor.open().upload("image-segmentation-photo", examples[0][0].path)
    visitor.source("#image-segmentation-photo img")
    visitor.write("image-segmentation-prompt", examples[0][0].prompt, enter=True)
    said = answered(visitor, "image-segmentation", "tokens/s")
    assert "It is the large red cross1." in said.replace("\n", "") and "pixels, score" in said
    assert visitor.all("#image-segmentation-answer .ux-chip.ux-object-1")
    shot(visitor, "image_segmentation")
    overlay = visitor.source("#image-segmentation-result img")
    found = json.loads(visitor.download("image-segmentation-coco-json"))
    assert [item["category_id"] for item in found["annotations"]] == [1]
    with Image.open(io.BytesIO(visitor.download("image-segmentation-masks-png"))) as labels:
        assert labels.size == (384, 384) and np.count_nonzero(np.asarray(labels)) == found["annotations"][0]["area"]
    visitor.choose("image-segmentation-look", "Cut-out")
    visitor.wait(lambda: visitor.source("#image-segmentation-result img") != overlay, "the look does not change")
    with Image.open(io.BytesIO(visitor.download("image-segmentation-picture"))) as cut:
        assert cut.mode == "RGBA" and np.count_nonzero(np.asarray(cut)[..., 3]) == found["annotations"][0]["area"]


def test_video_segmentation(visitor, examples, tmp_path):
    visitor.open().tab("Video segmentation")
    visitor.upload("video-segmentation-clip", examples[1][0].path)
    visitor.source("#video-segmentation-clip video")
    visitor.write("video-segmentation-prompt", examples[1][0].prompt)
    visitor.click("#video-segmentation-run")
    assert "in 8 of 8 frames" in answered(visitor, "video-segmentation", "frames/s")
    visitor.source("#video-segmentation-result video")
    shot(visitor, "video_segmentation")
    (tmp_path / "film.mp4").write_bytes(visitor.download("video-segmentation-mp4"))
    with av.open(str(tmp_path / "film.mp4")) as film:
        assert sum(1 for _ in film.decode(video=0)) == 8
    with Image.open(io.BytesIO(visitor.download("video-segmentation-contact-sheet"))) as sheet:
        assert sheet.width > 1000


def test_image_regions_by_points_boxes_and_brush(visitor, examples):
    example = examples[0][0]
    visitor.open().tab("Image regions")
    visitor.upload("image-regions-photo", example.path)
    blank = visitor.source("#image-regions-board img")
    visitor.click_at("image-regions-board", *at(example, -1))
    visitor.wait(lambda: visitor.source("#image-regions-board img") != blank, "a click leaves no mark")
    visitor.click("#image-regions-run")
    assert "It is a large red cross." in answered(visitor, "image-regions", "red cross")
    shot(visitor, "image_regions")
    visitor.choose("image-regions-tool", "Box")
    for corner in ((0.02, 0.32), (0.36, 0.71)):
        before = visitor.source("#image-regions-board img")
        visitor.click_at("image-regions-board", *corner)
        visitor.wait(lambda before=before: visitor.source("#image-regions-board img") != before, "a corner leaves no mark")
    visitor.write("image-regions-prompt", "What is <region>?", enter=True)
    answered(visitor, "image-regions", "blue square")
    visitor.choose("image-regions-tool", "Brush")
    visitor.element("#image-regions-editor canvas")
    visitor.wait(lambda: visitor.text("#image-regions-editor").strip() != "", "the editor has no tools")
    place = at(example, 3)  # the yellow square, of which a small disc is painted
    visitor.drag("#image-regions-editor canvas", brush_places(visitor, place))
    visitor.click("#image-regions-run")
    assert "yellow square" in answered(visitor, "image-regions", "yellow")
    shot(visitor, "image_regions_brush")


def brush_places(visitor, place):
    """A stroke around a place of the picture, as shares of the editor's canvas, in whose middle the square picture lies."""
    width, height = (visitor.element("#image-regions-editor canvas").size[key] for key in ("width", "height"))
    side = picture_side(visitor)
    turns = [(0, 0), (0.03, 0), (0.03, 0.03), (-0.03, 0.03), (-0.03, -0.03), (0.03, -0.03), (0, 0)]
    return [(0.5 + (place[0] + x - 0.5) * side / width, 0.5 + (place[1] + y - 0.5) * side / height) for x, y in turns]


def picture_side(visitor):
    """The side of the picture in the editor, in pixels of the page, from the zoom that the editor tells."""
    zoom = next(int(word[:-1]) for word in visitor.text("#image-regions-editor").split() if word.endswith("%"))
    return 384 * zoom / 100


def test_video_regions_on_any_frame(visitor, examples):
    visitor.open().tab("Video regions")
    visitor.upload("video-regions-clip", examples[1][0].path)
    first = visitor.source("#video-regions-board img")
    slide(visitor, "video-regions-frame", 5)
    visitor.wait(lambda: visitor.source("#video-regions-board img") != first, "the slider shows no other frame")
    slide(visitor, "video-regions-frame", 0)
    visitor.wait(lambda: visitor.text("#video-regions-board") is not None and visitor.source("#video-regions-board img"), "")
    before = visitor.source("#video-regions-board img")
    visitor.click_at("video-regions-board", *at(examples[1][0], 0))
    visitor.wait(lambda: visitor.source("#video-regions-board img") != before, "a click leaves no mark")
    visitor.click("#video-regions-run")
    assert "purple triangle" in answered(visitor, "video-regions", "purple")
    visitor.source("#video-regions-result video")
    shot(visitor, "video_regions")


def slide(visitor, identity, value):
    """Set a slider by its number, as with the keyboard."""
    number = visitor.element(f"#{identity} input[type=number]")
    number.send_keys(Keys.CONTROL, "a")
    number.send_keys(str(value), Keys.ENTER, Keys.TAB)


def test_pixelqa_of_a_photo_and_a_clip(visitor, examples):
    photo, clip = examples[0][0], examples[1][0]
    visitor.open().tab("PixelQA")
    visitor.upload("pixelqa-photo", photo.path)
    for count, number in enumerate((3, 4), start=1):
        visitor.click_at("pixelqa-board", *at(photo, number))
        visitor.wait(lambda count=count: len(visitor.all("#pixelqa-objects .ux-chip")) == count, "a click adds no object")
    visitor.write("pixelqa-name", "cross", enter=True)
    visitor.wait(lambda: "1 cross" in visitor.text("#pixelqa-objects"), "the object has no name")
    visitor.write("pixelqa-prompt", "Do [0] and [cross] have the same colour?", enter=True)
    said = answered(visitor, "pixelqa", "tokens/s")
    assert "yellow" in said and "red" in said and "no." in said
    assert visitor.all("#pixelqa-answer .ux-said .ux-object-7") and visitor.all("#pixelqa-answer .ux-said .ux-object-1")
    shot(visitor, "pixelqa")
    visitor.write("pixelqa-prompt", "What is [moon]?", enter=True)
    visitor.told("the question speaks of [moon], which is not marked: expected some of [0], [cross]")
    visitor.click("#pixelqa-change")
    visitor.choose("pixelqa-kind", "Clip")
    visitor.upload("pixelqa-clip", clip.path)
    visitor.click_at("pixelqa-board", *at(clip, 0))
    visitor.wait(lambda: len(visitor.all("#pixelqa-objects .ux-chip")) == 1, "a click adds no object")
    visitor.write("pixelqa-prompt", "What is [0]?", enter=True)
    assert "in 8 of 8 frames" in answered(visitor, "pixelqa", "purple triangle")


def test_a_click_changes_the_mask_and_the_rest_of_the_clip(visitor, examples):
    clip = examples[1][0]
    visitor.open().tab("Click to correct")
    visitor.upload("correct-clip", clip.path)
    visitor.write("correct-prompt", clip.prompt, enter=True)
    answered(visitor, "correct", "Click where a mask is wrong")
    before = visitor.source("#correct-board img")
    visitor.click_at("correct-board", *at(clip, 1))
    said = answered(visitor, "correct", "Track again")
    assert said and visitor.source("#correct-board img") != before
    shot(visitor, "correct")
    visitor.click("#correct-again")
    answered(visitor, "correct", "Click where a mask is wrong")
    visitor.click("#correct-undo")
    answered(visitor, "correct", "Track again")
    visitor.choose("correct-kind", "Photo")
    visitor.upload("correct-photo", examples[0][0].path)
    visitor.write("correct-prompt", examples[0][0].prompt, enter=True)
    visitor.wait(lambda: "large red cross" in visitor.text("#correct-answer"), "the photo is not segmented")
    before = visitor.source("#correct-board img")
    visitor.choose("correct-sign", "Beside it")
    visitor.click_at("correct-board", *at(examples[0][0], 2))
    visitor.wait(lambda: visitor.source("#correct-board img") != before, "a click beside the object changes nothing")


def test_live_clip_and_camera(visitor, examples):
    clip = examples[1][0]
    visitor.open().tab("Live")
    assert [label.text.strip() for label in visitor.all("#live-kind label")] == ["Camera", "Clip"], "streams need --allow-url"
    visitor.choose("live-kind", "Clip")
    visitor.upload("live-clip", clip.path)
    visitor.write("live-prompt", clip.prompt)
    visitor.click("#live-run")
    visitor.wait(lambda: "frame 7" in visitor.text("#live-now"), "the clip is not played to its end")
    assert visitor.all("#live-now .ux-chip") and visitor.source("#live-now img").startswith("data:image/jpeg")
    shot(visitor, "live")
    visitor.choose("live-kind", "Camera")
    visitor.wait(lambda: "Frames appear here" in visitor.text("#live-now"), "the clip does not go")
    visitor.click("#live-camera button[aria-label='Click to Access Webcam'], #live-camera .access-webcam, #live-camera div[title='grant webcam access']")
    visitor.click("#live-camera button[aria-label='start stream'], #live-camera .button-wrap button")
    visitor.wait(lambda: "frames/s · It is the" in visitor.text("#live-now") and visitor.all("#live-now .ux-chip"), "the camera is not followed")
    shot(visitor, "live_camera")


def test_chat_remembers_objects(visitor):
    visitor.open().tab("Chat")
    visitor.upload("chat-photo", PHOTO)
    visitor.source("#chat-board img")
    visitor.write("chat-prompt", "Please segment the large blue square.", enter=True)
    visitor.wait(lambda: "It is the large blue square" in visitor.text("#chat-talk"), "no answer")
    visitor.source("#chat-result img")
    assert len(visitor.all("#chat-objects .ux-chip")) == 1
    before = visitor.source("#chat-board img")
    visitor.click_at("chat-board", 74 / 320, 147 / 320)
    visitor.wait(lambda: visitor.source("#chat-board img") != before, "a click leaves no mark")
    visitor.write("chat-prompt", "What is <region>?", enter=True)
    visitor.wait(lambda: "large green triangle" in visitor.text("#chat-talk"), "no second answer")
    shot(visitor, "chat")
    visitor.write("chat-prompt", "<b>What</b> is [0]?", enter=True)
    visitor.wait(lambda: "<b>What</b>" in visitor.text("#chat-talk"), "a question is not shown as it is written")
    visitor.click("#chat-anew")
    visitor.wait(lambda: "none" in visitor.text("#chat-objects"), "the conversation does not begin anew")


def test_memory_fills_while_it_tracks(visitor, examples):
    clip = examples[1][0]
    visitor.open().tab("Memory")
    visitor.upload("memory-clip", clip.path)
    visitor.source("#memory-clip video")
    visitor.write("memory-prompt", clip.prompt, enter=True)
    visitor.wait(lambda: len(visitor.all("#memory-bank .ux-slot:not(.ux-free)")) == 7, "the memory does not fill")
    said = visitor.text("#memory-bank")
    assert "frame 0" in said and "prompted" in said and "ago" in said and "1.00" in said
    shot(visitor, "memory")
    visitor.click("#memory-stop")


def test_errors_are_told_in_words(visitor, examples, tmp_path):
    visitor.open().click("#image-segmentation-run")
    visitor.told("there are no words yet: say what to look for")
    visitor.write("image-segmentation-prompt", "Please segment the red circle.", enter=True)
    visitor.told("there is no picture or clip yet: upload one, or choose an example")
    visitor.tab("Video segmentation")
    (tmp_path / "broken.mp4").write_bytes(b"no film at all")
    visitor.upload("video-segmentation-clip", tmp_path / "broken.mp4")
    visitor.write("video-segmentation-prompt", "Please segment the red circle.")
    visitor.wait(lambda: visitor.all("#video-segmentation-clip video"), "the upload does not end")
    visitor.click("#video-segmentation-run")
    visitor.told("is not a photo or video that can be read")
    visitor.tab("Image regions")
    visitor.click("#image-regions-run")
    visitor.told("nothing is marked yet")
    visitor.tab("Image segmentation")
    shot(visitor, "error")


SLOW = pytest.mark.slow


WIDE = """return [...document.querySelectorAll("*")].filter(e => e.getBoundingClientRect().right > window.innerWidth + 1)
    .map(e => [e, e.parentElement].map(x => x.tagName + "." + x.className + Math.round(x.getBoundingClientRect().right)).join(" in ")).slice(0, 12)"""
"""The elements that reach beyond the right side."""


@pytest.mark.parametrize(
    ("width", "theme"), [(1360, "dark"), (380, "light"), pytest.param(1360, "light", marks=SLOW), pytest.param(380, "dark", marks=SLOW)]
)
def test_every_tab_is_legible_and_fits(visitor, width, theme):
    visitor.open(width, 800, theme)
    faint = {}
    for label in TABS:
        visitor.tab(label)
        visitor.wait(lambda: visitor.all(".ux-lead"), f"{label} is empty")
        shot(visitor, f"{width}_{theme}_{label.lower().replace(' ', '_')}")
        inner, needed = visitor.driver.execute_script("return [window.innerWidth, document.documentElement.scrollWidth]")
        assert needed <= inner == width, f"{label} needs {needed} pixels: {visitor.driver.execute_script(WIDE)}"
        if found := visitor.driver.execute_script(CONTRAST):
            faint[label] = found
    assert faint == {}


def test_it_ends_well_and_leaves_no_file(served, visitor):
    """The last test of this file: the page is told to end, which it takes as it takes Ctrl-C."""
    _, process, folder = served
    assert [path for path in files_below(folder) if ".part" in str(path)]
    process.terminate()
    assert process.wait(60) == 130
    assert [path.name for path in files_below(folder)] == ["log.txt"]
    assert "Traceback" not in (folder / "log.txt").read_text()
