"""Decoding beside ffmpeg: the candidate frames of a video, one a second, through a `DecodeProcess` and through ffmpeg.

    python -m benchmarks.video --hours 0.1 --height 720

Both decode, rescale and convert to RGB on the same cores, in turns, and drop the frames. The project decodes on one thread;
ffmpeg does with one and with as many as it likes. decord reads the short video, PyAV the long one. The last table says what
memory the decoder's process took at most for each. The video is a clip of moving shapes and grain at 2.2 bits a pixel and
second, repeated.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

from imageio_ffmpeg import get_ffmpeg_exe
from rich.console import Console
from rich.table import Table

from services.candidates import Frame
from services.decode_process import DecodeProcess
from services.video import read_with_decord
from services.visual import frame_size

FPS, CLIP, SHORT = 30, 20, 12
"""Frames a second, the clip's seconds, and those of the short video."""
BITS = 2.2
"""Bits per pixel and second: 2 Mbit/s at 720p, as video sites have it."""
TOKENS = 256
"""Visual tokens of a frame, the default of the full-size recipes."""
DEADLINE = 7200
"""Seconds one decoding may take."""
Spent = tuple[float, float]
"""Seconds by the clock and of CPU time."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=0.1, help="length of the long video")
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--codec", default="libx264", choices=["libx264", "libx265"])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    seconds, width = round(options.hours * 3600), round(options.height * 16 / 18) * 2
    height, decoder = options.height, DecodeProcess()
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        make_clip(clip, options.codec, height, width)
        peaks = {}
        for length, rounds in ((SHORT, 3 * options.rounds), (seconds, options.rounds)):
            video = Path(folder) / f"{length}.mp4"
            repeat(clip, video, length)
            _compare(decoder, video, frame_size(height, width, TOKENS), length * FPS, rounds)
            peaks[length] = _peak(decoder)
        decoder.close()
    table = Table("seconds of video", "MiB at most", title="memory of the decoder's process")
    for length, peak in peaks.items():
        table.add_row(str(length), f"{peak:.0f}")
    Console().print(table)


def _compare(decoder: DecodeProcess, video: Path, size: tuple[int, int], num_frames: int, rounds: int) -> None:
    """The ways in turns, and a table of their medians, of the ratios too."""
    filters = f"fps=1,scale={size[1]}:{size[0]}"
    ways: dict[str, Callable[[], Spent]] = {
        "ffmpeg, one decoding thread": partial(_ffmpeg_drops, video, filters, ["-threads", "1"]),
        "ffmpeg, its default": partial(_ffmpeg_drops, video, filters, []),
        "this project": partial(_decoder_drops, decoder, video),
    }
    reader = "decord" if read_with_decord(str(video), TOKENS, deque[Frame](maxlen=0).extend) else "PyAV"
    spent: dict[str, list[Spent]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            spent[name].append(way())
    title = f"{num_frames // FPS} s, {num_frames} frames, read by {reader}; {os.cpu_count()} cores, {rounds} rounds"
    table = Table("way", "s", "CPU s", "frames/s", "times ffmpeg", "CPU times ffmpeg", title=title)
    floor = next(iter(spent.values()))
    for name, own in spent.items():
        wall, cpu = (statistics.median(times) for times in zip(*own, strict=True))
        ratios = [[mine / other for mine, other in zip(*pair, strict=True)] for pair in zip(own, floor, strict=True)]
        of_wall, of_cpu = (statistics.median(part) for part in zip(*ratios, strict=True))
        table.add_row(name, f"{wall:.2f}", f"{cpu:.2f}", f"{num_frames / wall:.0f}", f"{of_wall:.2f}", f"{of_cpu:.2f}")
    Console().print(table)


def seconds_of(way: Callable[[], object]) -> float:
    """By the clock."""
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def make_clip(path: Path, codec: str, height: int, width: int, fps: int = FPS) -> None:
    """Twenty seconds of moving shapes and grain."""
    source = f"testsrc2=size={width}x{height}:rate={fps},noise=alls=12:allf=t,format=yuv420p"
    rate = ["-b:v", str(round(BITS * height * width * fps / FPS)), "-g", str(8 * fps), "-preset", "veryfast"]
    _ffmpeg("-f", "lavfi", "-i", source, "-t", str(CLIP), "-c:v", codec, *rate, str(path))


def repeat(clip: Path, path: Path, seconds: float) -> None:
    """The clip over and over, its packets copied."""
    _ffmpeg("-stream_loop", "-1", "-i", str(clip), "-t", str(seconds), "-c", "copy", str(path))


def _ffmpeg(*arguments: str) -> None:
    subprocess.run([get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y", *arguments], check=True)


def _ffmpeg_drops(path: Path, filters: str, threads: list[str]) -> Spent:
    start, before = time.perf_counter(), os.times()
    _ffmpeg(*threads, "-i", str(path), "-vf", filters, "-pix_fmt", "rgb24", "-f", "rawvideo", os.devnull)
    wall, after = time.perf_counter() - start, os.times()
    return wall, after.children_user + after.children_system - before.children_user - before.children_system


def _decoder_drops(decoder: DecodeProcess, path: Path) -> Spent:
    start, before = time.perf_counter(), _cpu_seconds(decoder)
    decoder.decode(str(path), TOKENS, partial(deque, maxlen=0), DEADLINE)
    return time.perf_counter() - start, _cpu_seconds(decoder) - before


def _cpu_seconds(decoder: DecodeProcess) -> float:
    if decoder.pid is None:
        return 0.0
    fields = Path(f"/proc/{decoder.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak(decoder: DecodeProcess) -> float:
    """MiB that the decoder's process held at most."""
    status = Path(f"/proc/{decoder.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
