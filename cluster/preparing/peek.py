"""`msjoe peek`: cached frames as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cluster.config import Config
from services.errors import UserError
from services.frames import FrameCache
from services.writing import writing


def peek(config: Config, video: Path, seconds: Sequence[float], out: Path) -> list[Path]:
    """Write the cached frames on screen at `seconds` of a video as PNG files; decodes the video if the cache lacks it.

    Raises VideoError when it cannot be decoded, UserError for a second past its end.
    """
    from PIL import Image

    frames = FrameCache.of(config.data, config.frames)
    known = frames.add(video)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    written = []
    for second in seconds:
        if not 0 <= second < known.num_frames:
            raise UserError(f"--at {second:g}: {video} has frames of seconds 0 to {known.num_frames - 1}")
        written.append(out / f"{video.stem}-{int(second):05d}.png")
        with writing(written[-1]):
            Image.fromarray(frames.read(known.key, [int(second)])[0]).save(written[-1])
    frames.close()
    return written
