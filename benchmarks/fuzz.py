"""Odd input at random, seeded: what comes of it is what was asked for or a reason, and nothing else.

    python -m benchmarks.fuzz videos|questions --seed 0 --minutes 2

`videos`: sound videos of many containers with random bytes changed, cut out or doubled give frames or a reason through one
`FrameCache`, never a traceback, a hang or another video's frames. `questions`: see `benchmarks.odd_cells`. Round `n` depends on
the seed and `n` alone: `--first n` repeats it.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.odd_cells import fuzz_questions
from services.errors import DecoderLost, VideoError
from services.frames import FrameCache
from tests.services.odd_videos import BT2100_PQ, picture, read_numbers, write_video

Outcome = str
"""What became of a round, in a few words; one that begins with `FAULT` is one."""
SECONDS, TOKENS, DEADLINE = 5, 8, 60
"""Length of a video, visual tokens of a frame, and seconds after which a decoder hangs."""
REALTIME = {"deadline": "realtime", "cpu-used": "8"}
SOURCES: dict[str, dict[str, object]] = {
    "h264.mp4": {},
    "fragments.mp4": {"muxer": {"movflags": "frag_keyframe+empty_moov"}},
    "turned.mov": {"turn": 90},
    "hdr.mkv": {"pix_fmt": "yuv420p10le", "encoder": BT2100_PQ},
    "hevc.mp4": {"codec": "libx265", "encoder": {"x265-params": "log-level=none"}},
    "vp9.webm": {"codec": "libvpx-vp9", "encoder": REALTIME},
    "mpeg4.avi": {"codec": "mpeg4"},
    "h264.ts": {},
    "h264.flv": {},
    "moving.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "moving.webp": {},
}
"""Videos to harm, with `write_video`'s options. Frames show whose they are: see `_number`."""


def main() -> None:
    """Run one part until its time is over; exit code 1 after a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--first", type=int, default=0, help="round to begin with")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # rows that are left out
    until, outcomes = time.monotonic() + 60 * options.minutes, Counter[Outcome]()
    with tempfile.TemporaryDirectory() as folder:
        play = PARTS[options.part](Path(folder))
        for index in count(options.first):
            if time.monotonic() > until:
                break
            outcome = play(np.random.default_rng([options.seed, index]))
            outcomes[outcome] += 1
            if outcome.startswith("FAULT"):
                Console().print(f"round {index}: {outcome}", markup=False)
    table = Table("outcome", "rounds", title=f"{options.part}, seed {options.seed}: {outcomes.total()} rounds")
    for outcome, rounds in outcomes.most_common():
        table.add_row(outcome, str(rounds))
    Console().print(table)
    raise SystemExit(any(outcome.startswith("FAULT") for outcome in outcomes))


def fuzz_videos(folder: Path) -> Callable[[np.random.Generator], Outcome]:
    """A function that plays one round."""
    contents = {name: _source(folder / name, index).read_bytes() for index, name in enumerate(SOURCES)}
    cache = FrameCache(folder / "cache", TOKENS, DEADLINE)

    def play(rng: np.random.Generator) -> Outcome:
        index = int(rng.integers(len(SOURCES)))
        name, content = list(contents.items())[index]
        path = folder / f"harmed-{name}"
        path.write_bytes(_harmed(content, rng))
        try:
            video = cache.add(path)
        except VideoError as error:
            lost = isinstance(error, DecoderLost) and "decoder died (SIG" not in str(
                error
            )  # a library's crash is a reason
            return f"FAULT {name}: {error}" if lost or "\n" in str(error) else f"{name}: a reason"
        except Exception as error:
            return f"FAULT {name}: {error!r}"
        frames = cache.read(video.key, range(video.num_frames))
        cache.remove(video.key)
        others = {
            _number(other, second) for other in range(len(SOURCES)) for second in range(SECONDS) if other != index
        }
        strangers = others & set(_numbers(frames))
        return f"FAULT {name}: frames {strangers} of another video" if strangers else f"{name}: frames"

    return play


PARTS: dict[str, Callable[[Path], Callable[[np.random.Generator], Outcome]]] = {
    "videos": fuzz_videos,
    "questions": fuzz_questions,
}
"""What makes a part's function, which plays one round, in a folder of its own."""


def _number(index: int, time: float) -> int:
    """What a frame of a source shows: four bits of its index, the same inverted, which no damage keeps, and the second."""
    return index << 8 | (15 - index) << 4 | int(time)


def _source(path: Path, index: int) -> Path:
    """A sound video whose frames show whose they are."""
    times = [second / 10 for second in range(10 * SECONDS)]
    if path.suffix == ".webp":
        images = [Image.fromarray(picture(_number(index, time))) for time in times]
        images[0].save(path, save_all=True, append_images=images[1:], duration=100, lossless=True)
        return path
    return write_video(path, times, number=partial(_number, index), **SOURCES[path.name])  # type: ignore[arg-type]


def _harmed(content: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes changed; one time in four a stretch is missing or there twice."""
    harmed = bytearray(content)
    for at in rng.integers(len(harmed), size=int(2 ** rng.uniform(0, 7))):
        harmed[at] = rng.integers(256)
    start, length = int(rng.integers(len(harmed))), int(2 ** rng.uniform(0, 12))
    choice = rng.integers(8)
    if choice == 0:
        del harmed[start : start + length]
    elif choice == 1:
        harmed[start:start] = harmed[start : start + length]
    return bytes(harmed)


def _numbers(frames: np.ndarray) -> Iterator[int]:
    """The numbers that undamaged frames show."""
    for frame, number in zip(frames, read_numbers(frames), strict=True):
        if np.abs(picture(number, *frame.shape[:2]).astype(int) - frame).mean() < 12:
            yield number


if __name__ == "__main__":
    main()
