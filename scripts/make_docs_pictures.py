#!/usr/bin/env python3
"""Make the pictures of docs/pictures.md: real commands and calls with the small model that ships with the package, whose results are put side by side.

python scripts/make_docs_pictures.py [NAME ...]

Without names all are made. `page` needs Chromium and its driver (Debian: chromium, chromium-driver).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageSequence

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "pictures"
PHOTO, CLIP = ROOT / "unipixel_jax" / "assets" / "photo.png", ROOT / "unipixel_jax" / "assets" / "clip.gif"
FIND, FOLLOW = "Please segment the large blue square.", "Please segment the yellow circle."
GREEN_TRIANGLE, RED_CIRCLE, BLUE_SQUARE = (74, 147), (110, 99), (124, 222)
"""Places of three things of the photo (scripts/draw_demo_media.py prints them)."""
COLOURS, FRAME_MILLISECONDS, GAP = 128, 160, 8
INK, PAPER, SCREEN, TYPED, SAID = (30, 30, 30), (255, 255, 255), (24, 26, 33), (130, 200, 255), (225, 225, 225)


def command(folder: Path, *words: str, stdin: str = "") -> list[str]:
    """Run ``unipixel-jax`` in a folder and return the lines that it prints."""
    done = subprocess.run([sys.executable, "-m", "unipixel_jax.cli", *words], cwd=folder, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"unipixel-jax {' '.join(words)} failed: {done.stderr}")
    return done.stdout.splitlines()


def frames_of(path: Path) -> list[Image.Image]:
    """Return the frames of a picture or an animation in RGB."""
    with Image.open(path) as image:
        return [frame.convert("RGBA").convert("RGB") for frame in ImageSequence.Iterator(image)]


def row(pictures: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Put pictures of one height side by side, each above its caption."""
    line = 26
    out = Image.new("RGB", (sum(p.width for p in pictures) + GAP * (len(pictures) - 1), pictures[0].height + line), PAPER)
    draw, left = ImageDraw.Draw(out), 0
    for picture, caption in zip(pictures, captions, strict=True):
        out.paste(picture, (left, 0))
        draw.text((left + picture.width / 2, picture.height + line / 2), caption, INK, ImageFont.load_default(15), anchor="mm")
        left += picture.width + GAP
    return out


def terminal(lines: Sequence[str], size: tuple[int, int]) -> Image.Image:
    """Write lines as a terminal shows them, the last of them at the bottom; what a user typed begins with ``$`` or ``>``."""
    out = Image.new("RGB", size, SCREEN)
    draw, font, height = ImageDraw.Draw(out), ImageFont.load_default(14), 20
    wrapped = [(line, part) for line in lines for part in _wrapped(draw, line, font, size[0] - 20)]
    for number, (line, part) in enumerate(wrapped[-((size[1] - 16) // height) :]):
        draw.text((10, 8 + number * height), part, TYPED if line.startswith(("$", ">")) else SAID, font)
    return out


def _wrapped(draw: ImageDraw.ImageDraw, line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    parts = [""]
    for letter in line:
        if draw.textlength(parts[-1] + letter, font) > width:
            parts.append("   ")
        parts[-1] += letter
    return parts


def marked(picture: Image.Image, on: Sequence[tuple[int, int]] = (), off: Sequence[tuple[int, int]] = ()) -> Image.Image:
    """Draw clicks on an object as green discs, and clicks beside it as red ones."""
    out = picture.copy()
    draw = ImageDraw.Draw(out)
    for points, colour in ((on, (0, 200, 80)), (off, (230, 40, 40))):
        for x, y in points:
            draw.ellipse((x - 7, y - 7, x + 7, y + 7), colour, PAPER, 2)
    return out


def save(name: str, pictures: Sequence[Image.Image], milliseconds: int = FRAME_MILLISECONDS) -> None:
    """Write a PNG, or a GIF of several pictures, with few colours, and say how large it is."""
    together = Image.new("RGB", (pictures[0].width, pictures[0].height * len(pictures)))
    for number, picture in enumerate(pictures):
        together.paste(picture, (0, number * picture.height))
    # One palette for all, so that what stays is stored once; by octree, which keeps the hues of small things.
    palette = together.quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    path = TARGET / f"{name}.{'png' if len(few) == 1 else 'gif'}"
    if len(few) == 1:
        few[0].save(path, optimize=True)
    else:
        few[0].save(path, save_all=True, append_images=few[1:], duration=milliseconds, loop=0, optimize=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")


def segment(folder: Path) -> None:
    """Words to masks in a photo."""
    command(folder, "segment", str(PHOTO), FIND, "--prompt", "Please segment the small red circle.", "--prompt", "Please segment the green triangle.")
    save("segment", [row([frames_of(PHOTO)[0], frames_of(folder / "outputs" / "photo-objects.png")[0]], ["the photo", "three prompts, three objects"])])


def track(folder: Path) -> None:
    """Words to masks on every frame of a clip."""
    command(folder, "segment", str(CLIP), FOLLOW, "--prompt", "Please segment the large purple square.", "--format", "gif")
    pairs = zip(frames_of(CLIP), frames_of(folder / "outputs" / "clip-objects.gif"), strict=True)
    save("track", [row(pair, ["the clip", "two prompts, every frame"]) for pair in pairs])


def looks(folder: Path) -> None:
    """The looks of a result, and a contact sheet."""
    shown = []
    for look in ("overlay", "cutout"):
        command(folder, "segment", str(PHOTO), FIND, "--look", look, "--output-dir", look)
        with Image.open(folder / look / "photo-objects.png") as image:
            found = image.convert("RGBA")
        tiles = np.indices((found.height, found.width)).sum(0) // 16 % 2 * 40 + 190 if look == "cutout" else np.zeros((found.height, found.width))
        board = Image.fromarray(tiles.astype(np.uint8)).convert("RGBA")
        shown.append(Image.alpha_composite(board, found).convert("RGB"))
    save("looks", [row([frames_of(PHOTO)[0], *shown], ["the photo", "--look overlay", "--look cutout"])])
    command(folder, "segment", str(CLIP), FOLLOW, "--sheet", "sheet.png")
    sheet = frames_of(folder / "sheet.png")[0]
    save("sheet", [sheet.resize((900, round(sheet.height * 900 / sheet.width)), Image.Resampling.LANCZOS)])


def regions(folder: Path) -> None:
    """PixelQA: points, a question, masks and an answer that speaks of them."""
    points = [word for x, y in (GREEN_TRIANGLE, BLUE_SQUARE) for word in ("--point", f"{x},{y}")]
    question = "Which is larger, <region> or <region>?"
    said = command(folder, "ask", str(PHOTO), question, *points)
    screen = terminal([f'$ unipixel-jax ask photo.png "{question}" {" ".join(points)}', *said[:3]], (360, 320))
    photo = marked(frames_of(PHOTO)[0], [GREEN_TRIANGLE, BLUE_SQUARE])
    save("regions", [row([photo, frames_of(folder / "outputs" / "photo-objects.png")[0], screen], ["two points", "what they point at", "the answer"])])


def chat(folder: Path) -> None:
    """A conversation, turn by turn."""
    turns = ([FIND], ["/point 74,147", "What is <region>?"], ["Segment the small red circle."], ["Which is larger, [0] or [1]?"])
    said = command(folder, "chat", str(PHOTO), stdin="\n".join(line for turn in turns for line in turn) + "\n")
    answers = [line for line in said if line and " pixels, box " not in line and not line.startswith("outputs/")]
    if len(answers) != len(turns):
        raise SystemExit(f"{len(turns)} questions have {len(answers)} answers: {said}")
    lines, shown, frames = ["$ unipixel-jax chat photo.png"], frames_of(PHOTO)[0], []
    for number, (turn, answer) in enumerate(zip(turns, answers, strict=True), start=1):
        lines += [f"> {line}" for line in turn]
        frames.append(row([shown, terminal(lines, (460, 320))], ["", ""]))
        lines.append(answer)
        overlay = folder / "outputs" / f"photo-chat-{number}.png"
        if overlay.exists():
            shown = frames_of(overlay)[0]
        frames.append(row([shown, terminal(lines, (460, 320))], ["", ""]))
    save("chat", frames, 1500)


def service(folder: Path) -> None:
    """The service follows an object for a client without JAX: frames as they come."""
    from unipixel_jax.client import Client
    from unipixel_jax.infer.visualize import draw_objects

    words = [sys.executable, "-u", "-m", "unipixel_jax.cli", "serve", "--port", "0", "--max-batch", "1", "--devices", "1"]
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            lines = iter(process.stdout or ())
            address = next(line.split()[-1] for line in lines if line.startswith("ready on"))
            clip, seen, frames = frames_of(CLIP), [f'> client.track("clip.gif", "{FOLLOW}")'], []
            with Client(address) as client:
                for frame in client.track(CLIP, FOLLOW):
                    found = frame.objects[0]
                    seen.append(f"frame {frame.number}: box {list(found.box or ())}, score {found.score:.3f}")
                    drawn = draw_objects(np.asarray(clip[frame.number]), [found.mask()])
                    frames.append(row([Image.fromarray(drawn), terminal(seen, (400, 256))], ["masks that the client decodes", "server-sent events"]))
        finally:
            process.terminate()
    save("service", frames, 400)


def annotation(folder: Path) -> None:
    """Draw the answers of annotation backends to words and to clicks, beside a label image that annotation tools import."""
    from unipixel_jax.infer.annotating import Annotator
    from unipixel_jax.infer.visualize import draw_objects
    from unipixel_jax.processing.prompts import Clicks

    photo = np.asarray(frames_of(PHOTO)[0])
    annotator = Annotator.from_settings({})
    words = annotator.find(photo, "blue square, red circle")
    clicked = annotator.find(photo, clicks=Clicks(on=[GREEN_TRIANGLE]))
    command(folder, "segment", str(PHOTO), FIND, "--prompt", "Please segment the small red circle.", "--format", "png")
    labels = next((folder / "outputs" / "photo-png").rglob("*.png"))
    pictures = [
        Image.fromarray(draw_objects(photo, [region.mask for region in words])),
        marked(Image.fromarray(draw_objects(photo, [region.mask for region in clicked])), [GREEN_TRIANGLE]),
        frames_of(labels)[0],
    ]
    save("annotation", [row(pictures, ['words: "blue square, red circle"', "one click", "--format png"])])


def sam2(folder: Path) -> None:
    """SAM 2.1 without words: a click, the clip tracked, a correction."""
    from unipixel_jax import Sam2Predictor
    from unipixel_jax.infer.loading import EMBEDDED
    from unipixel_jax.infer.visualize import draw_objects

    clip, click = frames_of(CLIP), (127, 78)
    session = Sam2Predictor.from_pretrained(EMBEDDED).track(CLIP)
    session.add(0, points=[click])
    frames = []
    for result in session.propagate():
        drawn = Image.fromarray(draw_objects(np.asarray(clip[result.frame]), list(result.masks)))
        first = marked(clip[0], [click])
        frames.append(row([first, drawn], ["a click on frame 0", f"frame {result.frame}"]))
    save("sam2", frames)


def export(folder: Path) -> None:
    """The programs that were written, run by the runtime, beside JAX."""
    from unipixel_jax import UniPixel
    from unipixel_jax.export.to_stablehlo import StableHloProgram
    from unipixel_jax.infer.visualize import draw_objects
    from unipixel_jax.runtime.session import Runtime

    command(folder, "export", "shapes", "programs", "--format", "stablehlo", "--objects", "1")
    theirs: NDArray[np.bool_] = Runtime.open(folder / "programs", StableHloProgram).segment(CLIP, FOLLOW).objects[0].masks
    ours: NDArray[np.bool_] = UniPixel.from_pretrained(dtype="float32").segment(CLIP, FOLLOW).objects[0].masks
    frames = []
    for number, picture in enumerate(frames_of(CLIP)):
        pixels = np.asarray(picture)
        drawn = [Image.fromarray(draw_objects(pixels, [masks[number]])) for masks in (ours, theirs)]
        differ = int((ours[number] != theirs[number]).sum())
        frames.append(row(drawn, ["unipixel-jax segment", f"exported, differing pixels: {differ}"]))
    save("export", frames)


def page(folder: Path) -> None:
    """The page: words are typed, the answer comes."""
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    words = [sys.executable, "-u", "-m", "unipixel_jax.cli", "app", "--port", "7869"]
    process = subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    try:
        next(line for line in process.stdout or () if "http://" in line)
        driver = webdriver.Chrome(options=options)
        shots: list[Path] = []

        def shot() -> None:
            shots.append(folder / f"page{len(shots)}.png")
            driver.execute_script("window.scrollTo(0, 0)")
            driver.save_screenshot(str(shots[-1]))

        def there(selector: str) -> webdriver.remote.webelement.WebElement:
            return WebDriverWait(driver, 300).until(lambda d: next((e for e in d.find_elements(By.CSS_SELECTOR, selector) if e.is_displayed()), None))

        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 1100, "height": 980, "deviceScaleFactor": 1, "mobile": False})
        driver.get("http://127.0.0.1:7869?__theme=light")
        there("#image-segmentation-photo")
        driver.find_element(By.CSS_SELECTOR, "#image-segmentation-photo input[type=file]").send_keys(str(PHOTO))
        there("#image-segmentation-photo img")
        line = there("#image-segmentation-prompt textarea, #image-segmentation-prompt input")
        for part in ("Please segment ", "the large blue square."):
            line.send_keys(part)
            shot()
        there("#image-segmentation-run").click()
        WebDriverWait(driver, 300).until(lambda d: "tokens/s" in d.find_element(By.CSS_SELECTOR, "#image-segmentation-answer").text)
        there("#image-segmentation-result img")
        shot()
        driver.quit()
    finally:
        process.terminate()
        process.wait()
    save("page", [Image.open(path).convert("RGB").resize((770, 686), Image.Resampling.LANCZOS) for path in shots], 1500)


PICTURES = {make.__name__: make for make in (segment, track, looks, regions, chat, service, annotation, sam2, export, page)}


def main() -> None:
    """Make the pictures that are named, each in a folder of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *PICTURES], metavar="NAME", help=f"{', '.join(PICTURES)}; all by default")
    TARGET.mkdir(exist_ok=True)
    for name in parser.parse_args().names or PICTURES:
        with tempfile.TemporaryDirectory() as folder:
            PICTURES[name](Path(folder))
    print(json.dumps({"bytes of all": sum(path.stat().st_size for path in TARGET.iterdir())}))


if __name__ == "__main__":
    main()
