"""`msjoe prepare` on a folder of odd and broken videos: what comes of each, whatever is killed or damaged on the way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from services.container import PROMISED_MORE
from services.frames import FrameCache
from services.storage import ABANDONED
from services.video import HDR
from tests.end_to_end.test_command import msjoe
from tests.services.odd_videos import Odd, read_numbers, ten_hours
from tests.services.test_embeddings import make_model

LONG = "ten-hours.mp4"
ENTRIES = ("frames", "features", "quarantine")


@dataclass(frozen=True)
class Prepared:
    """The outcome of one command."""

    cache: Path
    done: subprocess.CompletedProcess[str]
    videos: dict[str, dict[str, Any]]
    """The summary's rows by the file's name."""

    def counts(self) -> Counter[str]:
        return Counter(row["status"] for row in self.videos.values())


def names(cache: Path, kind: str) -> list[str]:
    """Whole entries of that kind, as paths within the cache."""
    return sorted(str(path.relative_to(cache)) for path in (cache / kind).rglob("[!.]*") if path.is_file())


def contents(cache: Path) -> dict[str, bytes]:
    return {name: (cache / name).read_bytes() for kind in ENTRIES for name in names(cache, kind)}


def times(cache: Path) -> dict[str, int]:
    return {name: (cache / name).stat().st_mtime_ns for kind in ENTRIES for name in names(cache, kind)}


@pytest.fixture(scope="module")
def folder(odds: dict[str, Odd], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every odd and broken video, and nothing else."""
    folder = tmp_path_factory.mktemp("videos")
    for odd in odds.values():
        shutil.copy(odd.path, folder)
    return folder


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A CLIP, and frames that are small but still show their numbers."""
    clip = make_model(tmp_path_factory.mktemp("models") / "clip")
    return [f"--embedder.model={clip}", "--frames.tokens_per_frame=1"]


@pytest.fixture(scope="module")
def prepare(options: list[str]) -> Callable[..., Prepared]:
    def run(cache: Path, *arguments: object) -> Prepared:
        summary = cache.with_suffix(".json")
        summary.unlink(missing_ok=True)
        done = msjoe("prepare", *arguments, f"--cache={cache}", f"--summary={summary}", *options)
        rows = json.loads(summary.read_text())["videos"] if summary.exists() else []
        return Prepared(cache, done, {Path(row["path"]).name: row for row in rows})

    return run


@pytest.fixture(scope="module")
def undisturbed(folder: Path, prepare: Callable[..., Prepared], tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    work = tmp_path_factory.mktemp("undisturbed")
    return prepare(work / "cache", folder, ten_hours(work / LONG))


def test_every_video_gives_its_frames_or_a_reason(undisturbed: Prepared, odds: dict[str, Odd]) -> None:
    assert undisturbed.done.returncode == 0, undisturbed.done.stderr
    expected = {name: odd.numbers for name, odd in odds.items() if odd.numbers is not None}
    expected[LONG] = [second // 100 for second in range(36_000)]
    reasons = {name: odd.reason for name, odd in odds.items() if odd.numbers is None} | {"empty.mp4": "is empty"}
    assert undisturbed.videos.keys() == expected.keys() | reasons.keys()

    cache, numbers = FrameCache(undisturbed.cache, 1, 60), {}
    for name in expected:
        row = undisturbed.videos[name]
        assert (row["status"], row["reason"]) == ("done", ""), row
        video = cache.find(row["path"])
        assert video is not None
        assert row["frames"] == row["seconds"] == video.num_frames
        assert row["bytes"] == cache.nbytes(video.key)
        numbers[name] = read_numbers(cache.read(video.key, range(video.num_frames)))
    assert numbers == expected
    for name, reason in reasons.items():
        row = undisturbed.videos[name]
        assert row["status"] == "quarantined"
        assert re.search(reason, row["reason"]), row
        assert row["frames"] == row["seconds"] == row["bytes"] == 0
    assert len(names(undisturbed.cache, "features")) == len(names(undisturbed.cache, "frames"))


def test_a_clip_that_an_actor_cannot_load_is_named_without_a_traceback(folder: Path, tmp_path: Path) -> None:
    clip = make_model(tmp_path / "clip")
    (clip / "open_clip_model.safetensors").unlink()
    done = msjoe("prepare", folder / "plain.mp4", f"--cache={tmp_path}", f"--embedder.model={clip}")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert f"msjoe: CLIP model {clip}: no weights beside its config" in done.stderr


def test_the_table_counts_what_the_summary_lists(undisturbed: Prepared) -> None:
    videos, console = undisturbed.videos.values(), undisturbed.done.stdout
    counts = undisturbed.counts()
    assert f"{len(videos)} videos in " in console
    for status in ("done", "cached", "quarantined"):
        assert re.search(rf"^ *{status} +{counts[status]} *$", console, re.MULTILINE), console
    for reason, count in Counter(row["reason"] for row in videos if row["reason"]).items():
        if len(reason) < 60:  # a longer one goes over two lines
            assert re.search(rf"^ *{re.escape(reason)} +{count} *$", console, re.MULTILINE), console
    notes = Counter(note for row in videos for note in row["notes"])
    assert notes.keys() == {HDR, PROMISED_MORE}
    assert undisturbed.videos["hdr.mp4"]["notes"] == [HDR]
    assert undisturbed.videos["wall-clock.webm"]["notes"] == [PROMISED_MORE]
    for note, count in notes.items():
        assert re.search(rf"^ *{note} +{count} *$", console, re.MULTILINE), console
    hours = sum(row["seconds"] for row in videos) / 3600
    assert re.search(rf"hours of video +{hours:.2f}", console)


def test_a_second_run_makes_nothing_anew(
    undisturbed: Prepared, prepare: Callable[..., Prepared], odds: dict[str, Odd]
) -> None:
    before = times(undisturbed.cache)
    again = prepare(undisturbed.cache, *(row["path"] for row in undisturbed.videos.values()))
    assert again.done.returncode == 0, again.done.stderr
    assert "preparing" not in again.done.stdout
    assert times(undisturbed.cache) == before
    assert again.videos == {
        name: row | {"status": row["status"].replace("done", "cached")} for name, row in undisturbed.videos.items()
    }
    broken = [row["path"] for row in undisturbed.videos.values() if row["status"] == "quarantined"]
    none = prepare(undisturbed.cache, *broken)
    assert (none.done.returncode, none.counts()) == (2, {"quarantined": len(broken)})
    assert "msjoe: none of the videos can be read" in none.done.stderr


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """`msjoe` at work; at the end it is killed, if it still runs."""
    line = [sys.executable, "-m", "cluster.cli", *map(str, arguments)]
    command = subprocess.Popen(line, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield command
    finally:
        if command.poll() is None:
            os.killpg(command.pid, signal.SIGKILL)
            command.wait()


def until(condition: Callable[[], Any], command: subprocess.Popen[Any]) -> Any:
    """What `condition` says once it says anything, while `command` runs."""
    deadline = time.monotonic() + 1500
    while not (answer := condition()):
        assert command.poll() is None, "the command ended first"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return answer


def workers(command: subprocess.Popen[Any], title: str) -> Iterator[psutil.Process]:
    """Processes below `command` whose command line holds `title`."""
    for process in psutil.Process(command.pid).children(recursive=True):
        try:
            if title in " ".join(process.cmdline()):
                yield process
        except psutil.NoSuchProcess:
            continue


@pytest.mark.chaos
def test_whatever_is_killed_the_caches_come_out_the_same(
    undisturbed: Prepared, folder: Path, prepare: Callable[..., Prepared], options: list[str], tmp_path: Path
) -> None:
    """First the whole command; then, of the one that goes on, a decoder and an actor of each pool."""
    cache = tmp_path / "cache"
    command = ["prepare", folder, f"--cache={cache}", *options]
    with started(*command) as first:
        until(lambda: names(cache, "frames"), first)
    known = len(names(cache, "frames"))

    with started(*command) as second:
        for kind, title in (("frames", "import serve"), ("frames", "DecodeStage"), ("features", "EmbedStage")):
            made = len(names(cache, kind))
            until(lambda kind=kind, made=made: len(names(cache, kind)) > made, second)
            until(lambda title=title: list(workers(second, title)), second)[0].kill()
        assert second.wait(1500) == 0

    result = prepare(cache, folder)
    assert known < result.counts()["cached"] == undisturbed.counts()["done"] - 1
    everything, entries = contents(undisturbed.cache), contents(cache)
    assert entries.items() <= everything.items()
    assert len(entries) == len(everything) - 2, "all but the long video's frames and features"


def test_what_a_killed_writer_left_is_removed_and_a_living_ones_is_not(
    undisturbed: Prepared, prepare: Callable[..., Prepared]
) -> None:
    entry = undisturbed.cache / names(undisturbed.cache, "frames")[0]
    dead, alive = (entry.with_name(f".{entry.name}.{pid}.0123.tmp") for pid in (1, 2))
    for left in (dead, alive):
        left.write_bytes(b"half a video")
    os.utime(dead, (time.time() - ABANDONED - 60,) * 2)
    prepare(undisturbed.cache, next(iter(undisturbed.videos.values()))["path"])
    assert not dead.exists()
    assert alive.exists()
    alive.unlink()


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def altered(content: bytes) -> bytes:
    """Other bits in the middle of the file, where the data lie."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


def renamed(content: bytes) -> bytes:
    """Other bits where Arrow says what lies where."""
    return content.replace(b"checksum", b"chucksum")


DAMAGE = {
    "plain.mp4": ("frames", cut),
    "av1.mp4": ("frames", lambda content: b""),
    "hevc.mp4": ("frames", altered),
    "vp9.webm": ("frames", renamed),
    "stream.ts": ("features", cut),
    "uneven.mp4": ("features", altered),
    "flash.flv": ("features", renamed),
}


def test_verify_makes_anew_what_is_damaged_and_nothing_else(
    undisturbed: Prepared, folder: Path, prepare: Callable[..., Prepared], tmp_path: Path
) -> None:
    cache = Path(shutil.copytree(undisturbed.cache, tmp_path / "cache"))
    keys = {}
    for name, (kind, harm) in DAMAGE.items():
        video = FrameCache(cache, 1, 60).find(folder / name)
        assert video is not None
        keys[name] = video.key
        (entry,) = (cache / kind).rglob(f"{video.key}.arrow")
        entry.write_bytes(harm(entry.read_bytes()))
    before = times(cache)

    repaired = prepare(cache, folder, "--verify")
    assert repaired.done.returncode == 0, repaired.done.stderr
    assert contents(cache) == contents(undisturbed.cache)
    assert {name for name, row in repaired.videos.items() if row["status"] == "done"} == DAMAGE.keys()
    anew = {Path(entry).stem for entry, changed in times(cache).items() if changed != before[entry]}
    assert anew == set(keys.values())

    clean = prepare(cache, folder, "--verify")
    assert clean.counts().keys() == {"cached", "quarantined"}
    assert "preparing" not in clean.done.stdout
