"""Candidate frames are those on screen at whole seconds, and no file brings the caller down."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest

from services import video as module
from services.errors import VideoError
from services.video import DecodeProcess, ReaderError, decode, each_second, frame_size

TOKENS = 8


def save(path: Path, frames: Iterator[module.Frame]) -> None:
    """A `write` that tests read back."""
    path.write_bytes(pickle.dumps(list(frames)))


def fill(frames: Iterator[module.Frame]) -> None:
    """A `write` on a full disk."""
    next(frames)
    raise OSError(errno.ENOSPC, "No space left on device")


def decoded(path: Path, tokens: int = TOKENS) -> tuple[list[float], np.ndarray]:
    frames: list[module.Frame] = []
    decode(str(path), tokens, lambda each: frames.extend(list(each)))
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
        last = int(np.floor(times[-1] + module.EPSILON))
        expected = [int(np.flatnonzero(times <= i + module.EPSILON)[-1]) for i in range(last + 1)]
        assert [frame for _, frame in each_second((t, n) for n, t in enumerate(times))] == expected


@pytest.mark.parametrize("times", [[0.0, 5.0, 2.0], [0.0, 1.0, 90000.0]])
def test_a_broken_clock_is_refused(times):
    with pytest.raises(ReaderError, match="timestamps jump"):
        list(each_second((t, None) for t in times))


def test_every_second_shows_its_own_frame(video, read_numbers):
    times, frames = decoded(video)
    assert frames.dtype == np.uint8 and frames.shape == (12, *frame_size(96, 168, TOKENS), 3)
    assert read_numbers(frames) == [100 * i for i in range(12)]
    assert times == pytest.approx(range(12), abs=1e-3)


@pytest.mark.parametrize("reader", ["_decord_frames", "_pyav_frames"])
@pytest.mark.parametrize("start", [0.0, 2.5])
def test_variable_frame_rate(reader, start, make_video, read_numbers, tmp_path):
    """Long stills, bursts, and a first frame that is not at zero; each reader alone."""
    shown = [0.0, 3.2, 3.24, 3.28, 4.9, 5.0, 6.6, 6.9, 7.2, 10.99, 11.01, 13.5]
    path = make_video(tmp_path / "v.mp4", [start + t for t in shown])
    times, frames = zip(*getattr(module, reader)(str(path), 56, 84), strict=True)
    on_screen = [max(t for t in shown if t <= second) for second in range(14)]
    assert times == pytest.approx(on_screen, abs=2e-3)
    assert read_numbers(np.stack(frames)) == [round((start + t) * 100) for t in on_screen]


def test_a_turned_video_stands_upright_whoever_reads_it(make_video, tmp_path):
    path = make_video(tmp_path / "phone.mp4", [0.0, 1.0, 2.55], turned=True)
    height, width = frame_size(168, 96, TOKENS)
    by_decord, by_av = (
        np.stack([pixels for _, pixels in read(str(path), height, width)])
        for read in (module._decord_frames, module._pyav_frames)
    )
    assert decoded(path)[1].shape == by_decord.shape == by_av.shape == (3, height, width, 3)
    assert height > width and np.abs(by_decord.astype(int) - by_av).mean() < 8
    assert np.abs(by_decord[2, ::-1].astype(int) - by_av[2]).mean() > 30, "the picture is no palindrome"


def test_a_codec_newer_than_decord(make_video, read_numbers, tmp_path):
    path = make_video(tmp_path / "new.mp4", [0.0, 0.5, 1.0, 1.5, 2.0], codec="libsvtav1")
    assert read_numbers(decoded(path)[1]) == [0, 100, 200]


@pytest.mark.parametrize(("first", "second", "room"), [("decord", "pyav", 2**28), ("pyav", "decord", 0)])
def test_the_other_reader_starts_anew_where_one_gives_up(first, second, room, video, read_numbers, monkeypatch):
    """And decord reads first only what its memory can hold."""
    monkeypatch.setattr(module, "DECORD_BYTES", room)
    used = []

    def reading(name, gives_up):
        read = getattr(module, f"_{name}_frames")

        def frames(*args):
            used.append(name)
            yield from islice(read(*args), 5 if gives_up else None)
            if gives_up:
                raise RuntimeError("no more")

        frames.__name__ = read.__name__
        return frames

    monkeypatch.setattr(module, f"_{first}_frames", reading(first, True))
    monkeypatch.setattr(module, f"_{second}_frames", reading(second, False))
    assert read_numbers(decoded(video)[1]) == [100 * i for i in range(12)]
    assert used == [first, second]


def broken(kind: str, folder: Path, video: Path) -> Path:
    path = folder / f"{kind}.mp4"
    content = video.read_bytes()
    if kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "garbage":
        path.write_bytes(np.random.default_rng(0).bytes(5000))
    elif kind == "corrupt":
        middle = content.index(b"mdat") + 4 + len(content) // 2
        path.write_bytes(content[: middle - 2000] + b"\xa5" * 4000 + content[middle + 2000 :])
    elif kind == "audio":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=16000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 16000
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "No such file"),
        ("truncated", "not a readable video"),
        ("garbage", "not a readable video"),
        ("audio", "has no video stream"),
        ("corrupt", "cannot be decoded .decord: .*; pyav: "),
    ],
)
def test_a_broken_file_says_why(kind, reason, video, tmp_path):
    path = broken(kind, tmp_path, video)
    with pytest.raises(VideoError, match=reason) as error:
        decoded(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_the_child_decodes_stays_and_survives_a_bad_video(video, read_numbers, tmp_path):
    process, out = DecodeProcess(), tmp_path / "out"
    process.decode(str(video), TOKENS, partial(save, out), 60)
    first = process.pid
    with pytest.raises(VideoError, match="No such file"):
        process.decode(str(tmp_path / "none.mp4"), TOKENS, partial(save, out), 60)
    with pytest.raises(OSError, match="No space left"):
        process.decode(str(video), TOKENS, fill, 60)
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
    stopped = process.pid
    os.kill(stopped, signal.SIGSTOP)
    begin = time.monotonic()
    with pytest.raises(VideoError, match="longer than the deadline of 0.3 s"):
        process.decode(str(video), TOKENS, partial(save, tmp_path / "a"), 0.3)
    assert time.monotonic() - begin < 5
    with pytest.raises(ProcessLookupError):
        os.kill(stopped, 0)
    process.decode(str(video), TOKENS, partial(save, tmp_path / "b"), 60)
    assert (tmp_path / "b").exists() and process.pid != stopped


def test_an_interrupted_call_leaves_no_answer_behind(video, read_numbers, make_video, tmp_path):
    process, out = DecodeProcess(), tmp_path / "out"
    other = make_video(tmp_path / "other.mp4", [3.0, 4.0])
    process.decode(str(video), TOKENS, partial(save, out), 60)
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    try:
        os.kill(process.pid, signal.SIGSTOP)
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        with pytest.raises(KeyboardInterrupt):
            process.decode(str(video), TOKENS, partial(save, out), 60)
    finally:
        signal.signal(signal.SIGUSR1, before)
    process.decode(str(other), TOKENS, partial(save, out), 60)
    assert read_numbers(np.stack([pixels for _, pixels in pickle.loads(out.read_bytes())])) == [300, 400]


def test_a_dying_child_is_noticed_at_once_and_replaced(video, tmp_path):
    process = DecodeProcess()
    process.decode(str(video), TOKENS, partial(save, tmp_path / "a"), 60)
    os.kill(process.pid, signal.SIGSTOP)
    threading.Timer(0.3, os.kill, (process.pid, signal.SIGSEGV)).start()
    threading.Timer(0.4, os.kill, (process.pid, signal.SIGCONT)).start()
    with pytest.raises(VideoError, match="decoder died .SIGSEGV"):
        process.decode(str(video), TOKENS, partial(save, tmp_path / "a"), 60)
    process.decode(str(video), TOKENS, partial(save, tmp_path / "b"), 60)
    os.kill(process.pid, signal.SIGKILL)
    time.sleep(0.2)
    process.decode(str(video), TOKENS, partial(save, tmp_path / "c"), 60)
    assert (tmp_path / "b").exists() and (tmp_path / "c").exists(), "one that died between two calls costs no video"


def test_the_child_is_light_and_starts_from_a_daemonic_process(video, tmp_path):
    """What a worker of a pool is, and the strictest a Ray actor can be."""
    script = f"""
import multiprocessing, pathlib, sys
from functools import partial
from itertools import islice
from services.video import DecodeProcess
from services.frames import write_frames

def work(out):
    DecodeProcess().decode({str(video)!r}, 8, partial(write_frames, out, "v"), 60)

if __name__ == "__main__":
    assert not {{"av", "decord", "torch", "ray"}} & set(sys.modules), "the parent opens no video"
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
