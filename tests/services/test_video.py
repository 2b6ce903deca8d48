"""Candidate frames are those on screen at whole seconds, and no file brings the caller down."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from services import decord_reader
from services import video as module
from services.candidates import EPSILON, Frame, each_second
from services.decode_process import DecodeProcess
from services.errors import DecoderLost, VideoError
from services.video import decode, frame_numbers, frame_rate, read_with_decord, read_with_pyav
from services.visual import frame_size
from tests.services.odd_videos import Odd, read_numbers, ten_hours, write_video

TOKENS = 8


def save(path: Path, frames: Iterator[Frame]) -> None:
    """A `write` that tests read back."""
    path.write_bytes(pickle.dumps(list(frames)))


def fill(frames: Iterator[Frame]) -> None:
    """A `write` on a full disk."""
    next(frames)
    raise OSError(errno.ENOSPC, "No space left on device")


def run_late(frames: Iterator[Frame]) -> None:
    """A `write` whose own storage does not answer in time."""
    next(frames)
    raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")


def die(frames: Iterator[Frame]) -> None:
    """A `write` that no process survives."""
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(frames: Iterator[Frame]) -> None:
    """A `write` that never ends."""
    signal.pause()


def interrupt_and_save(out: Path, frames: Iterator[Frame]) -> None:
    """A `write` amid which the caller is interrupted."""
    os.kill(os.getppid(), signal.SIGUSR1)
    save(out, frames)


def fail_once(marker: Path, how: str, out: Path, frames: Iterator[Frame]) -> None:
    """A `write` under whose first call the process hangs or dies."""
    if not marker.exists():
        next(frames)
        marker.touch()
        os.kill(os.getpid(), signal.SIGSTOP if how == "hangs" else signal.SIGSEGV)
    save(out, frames)


def decoded(path: Path, tokens: int = TOKENS, read: Callable[..., Any] = decode) -> tuple[list[float], np.ndarray]:
    frames: list[Frame] = []
    assert read(str(path), tokens, lambda each: frames.extend(list(each))) in (True, None)
    return [time for time, _ in frames], np.stack([pixels for _, pixels in frames])


@pytest.mark.parametrize(
    ("source", "tokens", "size"),
    [
        ((360, 640), 256, (336, 588)),
        ((720, 1280), 32, (112, 196)),
        ((280, 280), 10**6, (280, 280)),
        ((5, 9), 256, (28, 28)),
        ((28, 5600), 32, (28, 896)),
        ((5600, 28), 32, (896, 28)),
        ((480, 640), 1, (28, 28)),
    ],
)
def test_frame_size(source, tokens, size):
    assert frame_size(*source, tokens) == size


def test_frame_size_keeps_its_promises():
    rng = np.random.default_rng(0)
    for height, width, tokens in rng.integers((1, 1, 1), (2200, 4000, 800), (3000, 3)).tolist():
        h, w = frame_size(height, width, tokens)
        assert h % 28 == 0 and w % 28 == 0 and 28 <= h < height + 28 and 28 <= w < width + 28
        assert h * w <= 784 * tokens
        if tokens >= 64 and 0.5 < height / width < 2 and min(height, width) > 200:
            assert abs(np.log((h / w) / (height / width))) < 0.13
            assert h * w >= 0.75 * min(784 * tokens, height * width)


def test_each_second_is_the_rule():
    """Against the definition: the last frame with timestamp <= i + eps, for i = 0 … floor(last + eps)."""
    rng = np.random.default_rng(1)
    for _ in range(200):
        times = np.concatenate([[0.0], np.cumsum(rng.choice([0.04, 0.3, 0.999, 1.003, 4.2], rng.integers(0, 30)))])
        last = int(np.floor(times[-1] + EPSILON))
        expected = [int(np.flatnonzero(times <= i + EPSILON)[-1]) for i in range(last + 1)]
        assert [frame for _, frame in each_second((t, n) for n, t in enumerate(times))] == expected


@pytest.mark.parametrize("times", [[0.0, 5.0, 2.0], [0.0, 1.0, 90000.0]])
def test_a_broken_clock_is_refused(times):
    with pytest.raises(VideoError, match="timestamps jump"):
        list(each_second((t, None) for t in times))


def test_every_second_shows_its_own_frame(video, read_numbers):
    times, frames = decoded(video)
    assert frames.dtype == np.uint8 and frames.shape == (12, *frame_size(96, 168, TOKENS), 3)
    assert read_numbers(frames) == [100 * i for i in range(12)]
    assert times == pytest.approx(range(12), abs=1e-3)


def outcome(path: Path, read_numbers: Callable[[np.ndarray], list[int]]) -> list[int] | str:
    """The numbers that the video's candidates show, or the reason why it has none."""
    try:
        return read_numbers(decoded(path)[1])
    except VideoError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        return str(error).removeprefix(f"{path}: ")


def test_odd_videos_give_their_frames(odds, read_numbers):
    """Codecs, containers, clocks, turns and sizes of every kind, and containers that lie about their length."""
    expected = {name: odd.numbers for name, odd in odds.items() if odd.numbers is not None}
    assert {name: outcome(odds[name].path, read_numbers) for name in expected} == expected


def test_broken_videos_say_why(odds, read_numbers, tmp_path):
    reasons = {odd.path: odd.reason for odd in odds.values() if odd.numbers is None}
    reasons |= {
        tmp_path / "none.mp4": "not a readable video .No such file",
        tmp_path: "not a readable video .Is a directory",
    }
    found = {path: outcome(path, read_numbers) for path in reasons}
    assert {path: answer for path, answer in found.items() if not re.search(reasons[path], str(answer))} == {}


def test_decord_reads_plain_videos_and_leaves_the_rest(odds, read_numbers):
    """Open GOPs, reordered frames, uneven clocks and overlong sound are plain; what only PyAV gets right is not."""
    readings = {}
    for name, odd in odds.items():
        frames: list[Frame] = []
        if read_with_decord(str(odd.path), TOKENS, lambda each, frames=frames: frames.extend(each)):
            readings[name] = read_numbers(np.stack([pixels for _, pixels in frames]))
    assert readings == {name: odds[name].numbers for name in readings}
    assert {"plain.mp4", "hevc.mp4", "vp9.webm", "uneven.mp4", "late.mp4", "one-frame.mp4", "long-sound.mkv"} <= set(
        readings
    )
    assert not any(re.search("interlaced|10-bit|av1|turned|wide|starts|avi$|ts$", name) for name in readings)


def test_decord_leaves_what_it_cannot_hold(video, monkeypatch):
    frames = deque(maxlen=0)
    assert read_with_decord(str(video), TOKENS, frames.extend)
    monkeypatch.setattr(decord_reader, "DECORD_BYTES", 12 * 10 * 28 * 28 * 3)
    assert not read_with_decord(str(video), TOKENS, frames.extend)


@pytest.mark.parametrize("source", ["index-first.mp4", "vp9.webm", "hevc-10-bit.mkv", "flash.flv", "b-frames.avi"])
def test_wherever_a_file_is_cut_no_frame_is_missing(source, odds, read_numbers, tmp_path):
    """A file whose container says how long it is, is refused where it breaks off before its last candidate."""
    folder = odds["plain.mp4"].path.parent
    content, path = (folder / source).read_bytes(), tmp_path / source
    whole = outcome(folder / source, read_numbers)
    assert whole == [0, 100, 200, 300, 400]
    refused = 0
    for size in np.linspace(0, len(content), 60, dtype=int)[:-1]:
        path.write_bytes(content[:size])
        answer = outcome(path, read_numbers)
        assert isinstance(answer, str) or answer == whole, f"cut after {size} of {len(content)} bytes"
        refused += isinstance(answer, str)
    assert refused > 30


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.ts", "v.flv"])
@pytest.mark.parametrize(
    "settings",
    ["bframes=3", "bframes=8:b-pyramid=normal:ref=5", "bframes=3:open-gop=1:keyint=12", "bframes=2:interlaced=1"],
)
def test_frames_left_undecoded_change_no_pixel(name, settings, tmp_path, monkeypatch):
    """Against decoding everything; timestamps are uneven, and some lie on whole seconds."""
    steps = np.random.default_rng(2).choice([0.02, 0.04, 0.1, 0.3], 200)
    times = sorted({*np.round(np.cumsum(steps), 2).tolist(), *map(float, range(10))})
    path = write_video(tmp_path / name, times, encoder={"x264-params": f"b-adapt=0:{settings}"})
    with av.open(str(path)) as container:
        everything = [(frame.time, frame) for frame in container.decode(video=0)]
    rule = [(t, module._upright(f, 84, 140)) for t, f in each_second((t - everything[0][0], f) for t, f in everything)]
    taken = []
    monkeypatch.setattr(module, "each_second", lambda shown: each_second(taken.append(f) or f for f in shown))
    seconds, frames = decoded(path, 16, read_with_pyav)
    assert seconds == pytest.approx([t for t, _ in rule])
    assert np.array_equal(frames, [pixels for _, pixels in rule])
    assert len(everything) == len(times)
    assert len(taken) == len(times) if "interlaced" in settings else len(taken) < 0.8 * len(times)
    if "interlaced" not in settings and name in ("v.mp4", "v.mkv"):
        again, others = decoded(path, 16, read_with_decord)
        assert again == seconds
        assert np.abs(others.astype(int) - frames).mean() < 2, "decord's are the same frames"


def test_ten_hours_take_little_time_and_memory(tmp_path, read_numbers, monkeypatch):
    path, converted = ten_hours(tmp_path / "long.mp4"), []
    upright = module._upright
    monkeypatch.setattr(module, "_upright", lambda *args: converted.append(args) or upright(*args))
    seconds, frames = [], []
    read_with_pyav(str(path), 1, lambda each: [(seconds.append(t), frames.append(f[:1])) for t, f in each])
    assert read_numbers(np.stack(frames)) == [i // 100 for i in range(36_000)]
    assert len(converted) == 361, "each frame once, however long it stays on screen"
    process = DecodeProcess()
    process.decode(str(path), 256, partial(deque, maxlen=0), 60)
    assert peak_mebibytes(process.pid) < 200


def peak_mebibytes(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def test_the_child_decodes_stays_and_survives_a_bad_video(video, read_numbers, tmp_path):
    process, out = DecodeProcess(), tmp_path / "out"
    process.decode(str(video), TOKENS, partial(save, out), 60)
    first = process.pid
    with pytest.raises(VideoError, match="No such file"):
        process.decode(str(tmp_path / "none.mp4"), TOKENS, partial(save, out), 60)
    with pytest.raises(OSError, match="No space left"):
        process.decode(str(video), TOKENS, fill, 60)
    with pytest.raises(TimeoutError, match="Connection timed out"):  # no deadline of the video's
        process.decode(str(video), TOKENS, run_late, 60)
    out.unlink()
    process.decode(str(video), TOKENS, partial(save, out), 60)
    assert process.pid == first
    frames = pickle.loads(out.read_bytes())
    assert read_numbers(np.stack([pixels for _, pixels in frames])) == [100 * i for i in range(12)]
    process.close()
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


def test_a_hanging_child_is_killed_at_the_deadline_and_replaced(video, tmp_path):
    process = DecodeProcess()
    process.decode(str(video), TOKENS, partial(save, tmp_path / "a"), 60)
    hanging = process.pid
    with pytest.raises(VideoError, match="longer than the deadline of 0.3 s"):
        process.decode(str(video), TOKENS, hang, 0.3)
    with pytest.raises(ProcessLookupError):
        os.kill(hanging, 0)
    process.decode(str(video), TOKENS, partial(save, tmp_path / "b"), 60)
    assert (tmp_path / "b").exists() and process.pid != hanging


@pytest.mark.parametrize("how", ["hangs", "dies"])
def test_when_decord_hangs_or_dies_pyav_reads(how, video, read_numbers, tmp_path):
    process, out, marker, deadline = DecodeProcess(), tmp_path / "out", tmp_path / how, 4.0
    while (
        not out.exists()
    ):  # half of the deadline may be too short to reach the place where it hangs, on a busy machine
        marker.unlink(missing_ok=True)
        with contextlib.suppress(DecoderLost):
            process.decode(str(video), TOKENS, partial(fail_once, marker, how, out), deadline)
        deadline *= 2
    assert marker.exists()
    assert read_numbers(np.stack([pixels for _, pixels in pickle.loads(out.read_bytes())])) == list(range(0, 1200, 100))


def test_an_interrupted_call_leaves_no_answer_behind(video, read_numbers, make_video, tmp_path):
    process, out = DecodeProcess(), tmp_path / "out"
    other = make_video(tmp_path / "other.mp4", [3.0, 4.0])
    process.decode(str(video), TOKENS, partial(save, out), 60)
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            process.decode(str(video), TOKENS, partial(interrupt_and_save, out), 60)
    finally:
        signal.signal(signal.SIGUSR1, before)
    process.decode(str(other), TOKENS, partial(save, out), 60)
    assert read_numbers(np.stack([pixels for _, pixels in pickle.loads(out.read_bytes())])) == [300, 400]


def test_a_dying_child_is_noticed_at_once_and_replaced(video, tmp_path):
    process = DecodeProcess()
    with pytest.raises(VideoError, match="decoder died .SIGSEGV"):
        process.decode(str(video), TOKENS, die, 60)
    process.decode(str(video), TOKENS, partial(save, tmp_path / "b"), 60)
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    process.decode(str(video), TOKENS, partial(save, tmp_path / "c"), 60)
    assert (tmp_path / "b").exists() and (tmp_path / "c").exists(), "one that died between two calls costs no video"


def test_the_child_is_light_and_starts_from_a_daemonic_process(video, tmp_path):
    """What a worker of a pool is, and the strictest a Ray actor can be."""
    script = f"""
import multiprocessing, pathlib, sys
from functools import partial
from services.decode_process import DecodeProcess
from services.frames import write_frames

def work(out):
    DecodeProcess().decode({str(video)!r}, 8, partial(write_frames, out, "v", "raw"), 60)

if __name__ == "__main__":
    assert not {{"av", "torch", "ray"}} & set(sys.modules), "the parent opens no video"
    child = multiprocessing.get_context("spawn").Process(target=work, args=(pathlib.Path(sys.argv[1]),), daemon=True)
    child.start()
    child.join()
    sys.exit(child.exitcode)
"""
    main = tmp_path / "main.py"
    main.write_text(script)
    root = Path(module.__file__).parents[1]
    subprocess.run([sys.executable, main, tmp_path / "out"], env=os.environ | {"PYTHONPATH": str(root)}, check=True)
    assert (tmp_path / "out").stat().st_size > 0
    process = DecodeProcess()
    process.decode(str(video), TOKENS, partial(save, tmp_path / "a"), 60)
    maps = Path(f"/proc/{process.pid}/maps").read_text()
    assert "libavcodec" in maps and "libtorch" not in maps and "_raylet" not in maps


def test_frame_rate(tmp_path: Path) -> None:
    even = write_video(tmp_path / "even.mp4", np.arange(50) / 25, tick=Fraction(1, 25))
    uneven = write_video(tmp_path / "uneven.mp4", [*np.arange(10) / 10, *np.arange(1, 3, 0.05)])
    assert frame_rate(str(even)) == pytest.approx(25)
    assert frame_rate(str(uneven)) == pytest.approx(50 / 3, rel=0.05), "50 frames in 3 seconds"
    (tmp_path / "no.mp4").write_bytes(b"no video")
    with pytest.raises(VideoError, match="no.mp4: not a readable video"):
        frame_rate(str(tmp_path / "no.mp4"))


def test_frame_numbers_are_those_of_a_plain_decoder(odds: dict[str, Odd], tmp_path: Path) -> None:
    """Whatever codec, container and clock; a plain decoder turns no picture, so that those are left out."""
    refused = set()
    for name, odd in odds.items():
        if odd.numbers is None or name.startswith("turned"):
            continue
        try:
            numbers, count = frame_numbers(str(odd.path))
        except VideoError as error:
            assert "does not say when each of its frames is shown" in str(error)
            refused.add(name)
            continue
        with av.open(str(odd.path), metadata_errors="replace") as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        shown = [read_numbers(frames[number][None])[0] for number in numbers]
        assert (name, shown, count) == (name, odd.numbers, len(frames))
    assert refused == {"bare.h264"}
    slow = write_video(tmp_path / "slow.mp4", [0, 0.4, 2.6, 2.8, 3.4])
    assert frame_numbers(str(slow)) == ([0, 1, 1, 3], 5), "the frame on screen, not the nearest"
