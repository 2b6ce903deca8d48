"""What preparing is worth: a second `msjoe prepare` beside the first, and key frames read from the cache beside one copy.

    python -m benchmarks.caches --videos 100

The first table times the command itself over videos of different content; the second run finds them all in the cache. The
other reads random frames of an hour-long video, cached raw at the size of a full-size recipe, and copies as many bytes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.video import FPS, TOKENS, make_clip, repeat, seconds_of
from cluster import toyworld
from services.frames import FrameCache

HOUR = 3600
READS = 50


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=100)
    parser.add_argument("--seconds", type=int, default=60, help="of each of them")
    parser.add_argument("--frames", type=int, default=32, help="key frames read at once")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _show_prepare(Path(folder), options)
    with tempfile.TemporaryDirectory() as folder:
        _show_reads(Path(folder), options.frames)


def _show_prepare(root: Path, options: argparse.Namespace) -> None:
    clip, videos = root / "clip.mp4", root / "videos"
    videos.mkdir()
    make_clip(clip, "libx264", 360, 640)
    for index in range(options.videos):
        repeat(clip, videos / f"{index:03d}.mp4", options.seconds + index / FPS)
    recipe = Path(toyworld.__file__).parents[2] / "cluster" / "recipes" / "toy.yaml"
    command = [sys.executable, "-m", "cluster.cli", "prepare", str(videos), "--recipe", str(recipe)]
    command += [f"--cache={root / 'cache'}", f"--embedder.model={toyworld.MODELS / 'clip'}"]
    runs = [seconds_of(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)) for _ in range(2)]
    title = (
        f"msjoe prepare, {options.videos} videos of {options.seconds} s, 640x360 at {FPS} fps, {os.cpu_count()} cores"
    )
    table = Table("run", "s", "times faster", title=title)
    for name, seconds in zip(("first", "second"), runs, strict=True):
        table.add_row(name, f"{seconds:.2f}", f"{runs[0] / seconds:.0f}")
    Console().print(table)


def _show_reads(root: Path, num_frames: int) -> None:
    clip, video = root / "clip.mp4", root / "hour.mp4"
    make_clip(clip, "libx264", 720, 1280, fps=1)
    repeat(clip, video, HOUR)
    cache = FrameCache(root / "cache", TOKENS, HOUR)
    key = cache.add(video).key
    rng = np.random.default_rng(0)
    frames = cache.read(key, range(num_frames))
    reads, copies = [], []
    for _ in range(READS):
        indices = sorted(rng.choice(HOUR, num_frames, replace=False))
        cache.read(key, indices)  # warms these frames' pages
        reads.append(seconds_of(lambda indices=indices: cache.read(key, indices)))
        copies.append(seconds_of(frames.copy))
    cache.close()
    title = (
        f"{num_frames} frames of {frames.shape[2]}x{frames.shape[1]}, {frames.nbytes / 2**20:.0f} MiB; {READS} reads"
    )
    table = Table("way", "ms", "times a copy", title=title)
    for name, times in (("one copy in memory", copies), ("an hour-long video's cached frames, warm", reads)):
        median = statistics.median(times)
        table.add_row(name, f"{1000 * median:.1f}", f"{median / statistics.median(copies):.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
