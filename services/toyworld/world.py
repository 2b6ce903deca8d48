"""The toy world's videos and questions: drawn shapes on plain backgrounds, and *needles*, shapes seen for seconds only.

Invariants: the seed decides every byte. A needle's shape and colour occur nowhere else in its video, so every question
has exactly one right answer, and only the needle's seconds show it. Right letters are spread evenly over all questions.
A video shows one picture per second, encoded as H.264 at 4 frames per second with a key frame every 2 seconds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from services.config import ToyWorldConfig
from services.errors import UserError
from services.schema import LETTERS, Question

WIDTH, HEIGHT, FPS = 112, 84, 4
"""Pixels (multiples of 28: 12 visual tokens a frame) and encoded frames per second."""
COLOURS = {
    "red": (220, 30, 30),
    "green": (20, 170, 50),
    "blue": (30, 60, 230),
    "yellow": (250, 230, 30),
    "orange": (255, 130, 0),
    "purple": (150, 30, 190),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "ring", "hexagon")
PLACES = {"top left": (24, 21), "top right": (88, 21), "bottom left": (24, 63), "bottom right": (88, 63)}
KINDS = ("colour", "shape", "place")
"""What can be asked about a needle."""
NUM_OPTIONS = 4
MAX_NEEDLES = 6
"""Needles of one video: two shapes and two colours are left for the rest of the picture."""
MIN_NEEDLE, MAX_NEEDLE = 2, 6
"""Seconds a needle is visible."""


@dataclass(frozen=True)
class Needle:
    """A shape that is visible from second `first` to second `last`, both included."""

    shape: str
    colour: str
    place: str
    first: int = 0
    last: int = 0

    @property
    def pass_rate(self) -> float:
        """A *nominal* pass rate in eighths, 0 at 2 seconds to 0.75 at 6: a plausible spread, measured on no model."""
        return max(0, round((self.last - self.first + 1 - MIN_NEEDLE) * 1.5)) / 8


def ask(kind: str, needle: Needle, letter: str, rng: np.random.Generator, *, id: str = "", video: str = "") -> Question:
    """A question of that kind about the needle, with three random wrong options and the right one at `letter`."""
    text, truth, pool = {
        "colour": (f"What colour is the {needle.shape}?", needle.colour, list(COLOURS)),
        "shape": (f"Which shape is {needle.colour}?", needle.shape, list(SHAPES)),
        "place": (f"Where is the {needle.shape}?", needle.place, list(PLACES)),
    }[kind]
    options = rng.choice([option for option in pool if option != truth], NUM_OPTIONS - 1, replace=False).tolist()
    options.insert(LETTERS.index(letter), truth)
    return Question(id, video, text, tuple(options), letter, needle.pass_rate, "toyworld")


def write_videos_and_questions(config: ToyWorldConfig, root: Path, progress: Callable[[str, int, int], None]) -> None:
    """Write `videos/*.mp4`, `questions.jsonl` and `questions.parquet` under `root`.

    Raises:
        UserError: more questions a video than can be asked about its needles.
    """
    if config.questions_per_video > MAX_NEEDLES * len(KINDS):
        raise UserError(f"toyworld.questions_per_video: at most {MAX_NEEDLES * len(KINDS)}")
    (root / "videos").mkdir()
    total = config.videos * config.questions_per_video
    letters = np.random.default_rng([config.seed, config.videos]).permutation(total) % NUM_OPTIONS
    rows: list[dict[str, object]] = []
    for index in range(config.videos):
        rng = np.random.default_rng([config.seed, index])
        seconds = int(rng.integers(config.min_seconds, config.max_seconds + 1))
        shapes, colours = rng.permutation(SHAPES).tolist(), rng.permutation(list(COLOURS)).tolist()
        needles = _needles(rng, shapes, colours, seconds, min(config.questions_per_video, MAX_NEEDLES))
        video = f"videos/{index:04d}.mp4"
        encode(root / video, _pictures(rng, seconds, needles, shapes[MAX_NEEDLES:], colours[MAX_NEEDLES:]))
        first_kind = int(rng.integers(len(KINDS)))
        for number in range(config.questions_per_video):
            needle = needles[number % MAX_NEEDLES]
            kind = KINDS[(first_kind + number + number // MAX_NEEDLES) % len(KINDS)]
            asked = ask(kind, needle, LETTERS[letters[len(rows)]], rng, id=f"toy-{index:04d}-{number}", video=video)
            rows.append(_row(asked, needle))
        progress("videos", index + 1, config.videos)
    (root / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), root / "questions.parquet")


def _row(question: Question, needle: Needle) -> dict[str, object]:
    """The training format's row; `needle` is an extra column that readers ignore."""
    return {
        "id": question.id,
        "video": question.video,
        "question": question.question,
        "options": list(question.options),
        "answer": question.answer,
        "pass_rate": question.pass_rate,
        "data_source": question.data_source,
        "needle": [needle.first, needle.last],
    }


def _needles(rng: np.random.Generator, shapes: list[str], colours: list[str], seconds: int, count: int) -> list[Needle]:
    """One needle in each of `count` equal stretches of the video."""
    stretch, needles = max(1, seconds // count), []
    for index in range(count):
        length = min(int(rng.integers(MIN_NEEDLE, MAX_NEEDLE + 1)), stretch)
        first = min(index * stretch + int(rng.integers(stretch - length + 1)), seconds - length)
        place = str(rng.choice(list(PLACES)))
        needles.append(Needle(shapes[index], colours[index], place, first, first + length - 1))
    return needles


def encode(path: Path, pictures: Iterator[np.ndarray]) -> None:
    """Encode pictures ([H, W, 3] uint8, one per second) as an MP4 of `FPS` frames per second.

    Without x264's lookahead, whose thread would make one encoding in some differ from the others by a few bytes.
    """
    options = {"preset": "veryfast", "tune": "zerolatency", "crf": "23", "g": str(2 * FPS), "threads": "1"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for second, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            for repeat in range(FPS):
                frame.pts = second * FPS + repeat
                container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _pictures(
    rng: np.random.Generator, seconds: int, needles: list[Needle], shapes: list[str], colours: list[str]
) -> Iterator[np.ndarray]:
    """One picture per second: scenes of 5 to 20 seconds with one to three drifting shapes, and the needles on top."""
    scene_ends = 0
    for second in range(seconds):
        if second == scene_ends:
            scene_ends += int(rng.integers(5, 21))
            background, count = _background(rng), int(rng.integers(1, 4))
            places, drifts = rng.uniform((15, 15), (WIDTH - 15, HEIGHT - 15), (count, 2)), rng.normal(0, 2, (count, 2))
            looks = [(str(rng.choice(shapes)), str(rng.choice(colours)), rng.uniform(6, 11)) for _ in range(count)]
        picture = Image.fromarray(np.clip(background + rng.normal(0, 6), 0, 255).astype(np.uint8))
        draw = ImageDraw.Draw(picture)
        places = np.clip(places + drifts, 8, (WIDTH - 8, HEIGHT - 8))
        for (shape, colour, radius), (x, y) in zip(looks, places, strict=True):
            _draw(draw, shape, colour, x, y, radius)
        for needle in needles:
            if needle.first <= second <= needle.last:
                _draw(draw, needle.shape, needle.colour, *PLACES[needle.place], radius=16)
        yield np.asarray(picture)


def _background(rng: np.random.Generator) -> np.ndarray:
    """[H, W, 3] float32: a ramp between two muted colours in a random direction, with stripes of a random width."""
    low, high = rng.uniform(50, 190, (2, 3))
    angle, waves, depth = rng.uniform(0, 2 * math.pi), rng.uniform(0, 12), rng.uniform(0, 25)
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    ramp = (x * math.cos(angle) + y * math.sin(angle))[..., None]
    mix = (ramp / math.sqrt(2) + 1) / 2
    return (low + (high - low) * mix + depth * np.sin(waves * ramp)).astype(np.float32)


def _draw(draw: ImageDraw.ImageDraw, shape: str, colour: str, x: float, y: float, radius: float) -> None:
    """Draw one shape around (x, y), in pixels."""
    fill = COLOURS[colour]
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        draw.ellipse(box, fill=fill)
    elif shape == "ring":
        draw.ellipse(box, outline=fill, width=max(3, round(radius / 3)))
    elif shape == "cross":
        arm = radius / 3
        draw.rectangle((x - arm, y - radius, x + arm, y + radius), fill=fill)
        draw.rectangle((x - radius, y - arm, x + radius, y + arm), fill=fill)
    else:
        radii, turn = {
            "square": ((1.2,) * 4, math.pi / 4),
            "diamond": ((1.2, 0.8) * 2, 0.0),
            "triangle": ((1.2,) * 3, 0.0),
            "star": ((1.2, 0.5) * 5, 0.0),
            "hexagon": ((1.0,) * 6, 0.0),
        }[shape]
        angles = [turn + 2 * math.pi * corner / len(radii) for corner in range(len(radii))]
        corners = [
            (x + radius * r * math.sin(a), y - radius * r * math.cos(a)) for r, a in zip(radii, angles, strict=True)
        ]
        draw.polygon(corners, fill=fill)
