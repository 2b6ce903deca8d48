"""The frame cache decodes once, shares by content, appears whole and reads only what it is asked for."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from services import frames as module
from services.errors import DecoderLost, UserError, VideoError
from services.frames import FrameCache
from services.schema import Video
from services.visual import read_visual, resize, visual_input
from tests.full_disk import full_disk

TOKENS = 8


@pytest.fixture
def cache(tmp_path):
    cache = FrameCache(tmp_path / "cache", TOKENS, 60)
    yield cache
    cache.close()


def write_half_and_die(path: Path, *_: object) -> None:
    """In the place of `write_frames`: its process does not survive it."""
    path.write_bytes(b"half a video")
    os.kill(os.getpid(), signal.SIGKILL)


def write_half_and_hang(path: Path, *_: object) -> None:
    """In the place of `write_frames`: it never ends."""
    path.write_bytes(b"half a video")
    signal.pause()


def files(cache: FrameCache) -> list[Path]:
    return [path for path in cache.root.rglob("*") if path.is_file() and "frames" in path.parts]


def test_prepare_and_read(cache, video, read_numbers):
    known = cache.add(video)
    assert (known.path, known.num_frames, known.height, known.width) == (str(video), 12, 56, 112)
    frames = cache.read(known.key, [7, 0, 7, 11])
    assert frames.dtype == np.uint8 and frames.shape == (4, 56, 112, 3) and frames.flags.writeable
    assert read_numbers(frames) == [700, 0, 700, 1100]
    assert cache.video(known.key) == known
    assert cache.read(known.key, []).shape == (0, 56, 112, 3)
    for index in (-1, 12):
        with pytest.raises(IndexError, match="of 12"):
            cache.read(known.key, [index])
    with pytest.raises(FileNotFoundError):
        cache.read("00" * 16, [0])


def test_the_file_is_plain_arrow(cache, video):
    known = cache.add(video)
    (path,) = files(cache)
    assert path == cache.root / "frames" / "v2" / known.key[:2] / f"{known.key}.arrow"
    table = pa.ipc.open_file(path).read_all()
    assert table.schema.field("pixels").type == pa.binary(56 * 112 * 3)
    assert table.column("second").to_pylist() == pytest.approx(range(12), abs=1e-3)
    metadata = {b"height": b"56", b"width": b"112", b"encoding": b"raw", b"path": str(video).encode()}
    assert table.schema.metadata == metadata


def test_one_decode_a_content(cache, video, tmp_path, monkeypatch):
    known = cache.add(video)
    copy = Path(shutil.copy(video, tmp_path / "copy.mp4"))
    again = cache.add(copy)
    assert (again.key, again.path, cache.decodes) == (known.key, str(copy), 1)
    monkeypatch.setattr(module, "file_digest", lambda *_: pytest.fail("hashed again"))
    other = FrameCache(cache.root, TOKENS, 60)
    assert other.add(video) == known and other.decodes == 0


def test_reading_a_prepared_cache_needs_no_write(video, read_numbers):
    """Also not for a video at another path, or with another time of change."""
    with tempfile.TemporaryDirectory() as name:  # others may enter it, unlike pytest's folders
        folder = Path(name)
        cache = FrameCache(folder / "cache", TOKENS, 60)
        known = cache.add(shutil.copy(video, folder / "v.mp4"))
        moved = Path(shutil.copy(video, folder / "moved.mp4"))
        os.utime(folder / "v.mp4", (1, 1))
        for path in [*folder.rglob("*"), folder]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        user = os.geteuid()
        os.seteuid(user or 65534)  # to root nothing is read-only
        try:
            with pytest.raises(PermissionError):
                (cache.root / "hashes" / "file").touch()
            for path in (moved, folder / "v.mp4"):
                assert cache.find(path).key == cache.add(path).key == known.key
            assert read_numbers(cache.read(known.key, [7])) == [700]
        finally:
            os.seteuid(user)
            for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
                path.chmod(0o755)
        cache.close()


def test_a_changed_file_a_token_limit_and_a_rule_are_new_keys(cache, video, make_video, tmp_path, monkeypatch):
    path = Path(shutil.copy(video, tmp_path / "v.mp4"))
    key = cache.add(path).key
    small = FrameCache(cache.root, 2, 60)
    assert small.add(path).key != key and small.add(path).width == 56
    small.close()
    make_video(path, [0.0, 1.0])
    changed = cache.add(path)
    assert changed.key != key and changed.num_frames == 2 and cache.decodes == 2
    monkeypatch.setattr(module, "DECODE_RULE", "next")
    assert cache.add(path).key != changed.key


def test_what_cannot_be_decoded_leaves_nothing(cache, tmp_path):
    empty = tmp_path / "empty.mp4"
    empty.touch()
    garbage = tmp_path / "garbage.mp4"
    garbage.write_bytes(b"no video" * 99)
    cases = [(empty, "is empty"), (garbage, "not a readable"), (tmp_path / "none.mp4", "No such"), (tmp_path, "cannot")]
    for path, reason in cases:
        with pytest.raises(VideoError, match=reason):
            cache.add(path)
    assert files(cache) == [] and cache.decodes == 0


@pytest.mark.parametrize(
    ("write", "deadline", "reason"),
    [(write_half_and_die, 60, "decoder died .SIGKILL"), (write_half_and_hang, 1, "deadline of 1 s")],
)
def test_a_decoder_killed_midway_leaves_nothing_and_the_next_video_works(
    write, deadline, reason, cache, video, make_video, tmp_path, monkeypatch
):
    cache.add(video)
    (whole,) = files(cache)
    other = make_video(tmp_path / "other.mp4", [0.0, 1.0, 2.0])
    cache.deadline = deadline
    with monkeypatch.context() as broken, pytest.raises(DecoderLost, match=reason):
        broken.setattr(module, "write_frames", write)
        cache.add(other)
    assert files(cache) == [whole]
    assert cache.find(other) is None, "a lost decoder is no reason to quarantine"
    cache.deadline = 60
    assert cache.add(other).num_frames == 3


def test_a_full_disk_is_the_users_to_mend(cache, make_video, tmp_path):
    path = make_video(tmp_path / "v.mp4", range(20))
    with full_disk(100_000), pytest.raises(UserError, match=r"frames/v2/.*\.arrow: cannot be written"):
        cache.add(path)
    assert files(cache) == []
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(UserError, match="cannot be written"):
        FrameCache(blocked, TOKENS, 60).add(path)


def test_a_half_file_of_a_crashed_machine_is_decoded_again(cache, video, read_numbers):
    known = cache.add(video)
    (path,) = files(cache)
    path.write_bytes(path.read_bytes()[:5000])
    fresh = FrameCache(cache.root, TOKENS, 60)
    assert fresh.add(video) == known and fresh.decodes == 1
    assert read_numbers(fresh.read(known.key, [3])) == [300]
    fresh.close()


def test_many_writers(cache, video, read_numbers):
    """Processes and threads that miss together: every one reads a whole file, and one file stays."""
    script = (
        "import sys; from pathlib import Path; from services.frames import FrameCache\n"
        "cache = FrameCache(Path(sys.argv[1]), 8, 60); video = cache.add(sys.argv[2])\n"
        "assert video.num_frames == 12 and cache.read(video.key, range(12)).any(); print(video.key)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(module.__file__).parents[1])}
    command = [sys.executable, "-c", script, str(cache.root), str(video)]
    others = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        videos = list(pool.map(cache.add, [video] * 4))
    keys = {other.communicate()[0].strip() for other in others} | {known.key for known in videos}
    assert len(keys) == 1 and all(other.returncode == 0 for other in others) and cache.decodes <= 1
    assert [path.name for path in files(cache)] == [f"{keys.pop()}.arrow"]
    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(lambda i: read_numbers(cache.read(videos[0].key, [i % 12])), range(48)))
    assert numbers == [[100 * (i % 12)] for i in range(48)]


def test_a_hit_does_not_wait_for_anothers_decode(cache, video):
    known = cache.add(video)
    with cache._decoding, ThreadPoolExecutor(1) as pool:
        assert pool.submit(cache.add, video).result(timeout=300) == known


def test_reading_touches_the_chosen_frames_only(make_video, tmp_path):
    """Resident pages of the memory map after three of sixty frames, each 0.6 MB, were read."""
    cache = FrameCache(tmp_path / "cache", 256, 60)
    known = cache.add(make_video(tmp_path / "v.mp4", range(60), height=448, width=448))
    cache.close()
    (path,) = files(cache)
    frame = known.height * known.width * 3
    assert path.stat().st_size > 60 * frame
    allocated = pa.total_allocated_bytes()
    cache.read(known.key, [5, 30, 59])
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    assert any(str(path) in line for line in lines), "the file is mapped"
    resident = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))
    assert 3 * frame <= resident < 5 * frame
    assert pa.total_allocated_bytes() == allocated
    cache.close()


def test_memory_does_not_grow_with_the_video(cache, make_video, tmp_path):
    """The peak of one child: a video whose frames take more than decord may hold, after one of 3 MB."""
    cache.max_tokens = 64
    peaks = []
    for seconds in (20, 1900):
        path = make_video(tmp_path / f"{seconds}.mp4", range(seconds), height=224, width=228)
        assert cache.add(path).num_frames == seconds
        status = Path(f"/proc/{cache._process.pid}/status").read_text()
        peaks.append(int(status.split("VmHWM:")[1].split()[0]) / 1024)
    assert peaks[1] - peaks[0] < 15, peaks


def test_open_videos_are_bounded(cache, video, make_video, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "OPEN_VIDEOS", 2)
    keys = [cache.add(make_video(tmp_path / f"{n}.mp4", [0.0, 1.0 + n])).key for n in range(3)]
    assert list(cache._open_videos) == keys[1:]
    cache.video(keys[1])
    cache.read(keys[0], [0])
    assert list(cache._open_videos) == [keys[1], keys[0]]


def test_resize(read_numbers):
    frames = np.random.default_rng(0).integers(0, 256, (3, 56, 84, 3), dtype=np.uint8)
    assert resize(frames, 56, 84) is frames
    assert resize(frames, 28, 56).shape == (3, 28, 56, 3) and resize(frames[:0], 28, 28).shape == (0, 28, 28, 3)
    stripes = np.zeros((1, 56, 84, 3), np.uint8)
    stripes[:, :, ::2] = 255
    assert np.abs(resize(stripes, 28, 28)[:, :, 2:-2].astype(int) - 127).max() < 8, (
        "stripes finer than a pixel turn grey"
    )
    np.testing.assert_array_equal(resize(frames, 28, 28)[1], resize(frames[1:2], 28, 28)[0])


def test_visual_input(cache, video, read_numbers):
    known = cache.add(video)
    full = visual_input(known, [9, np.int64(2)], TOKENS)
    assert (full.video, full.frames, full.num_frames) == (known.key, (2, 9), 12)
    assert (full.height, full.width) == (known.height, known.width)
    np.testing.assert_array_equal(read_visual(cache, full), cache.read(known.key, [2, 9]))
    preview = visual_input(known, [9, 2], 2)
    assert (preview.height, preview.width) == (28, 56)
    assert read_numbers(read_visual(cache, preview)) == [200, 900]
    assert visual_input(Video("", "", 9, 336, 588), [0], 32).width == 196


def test_jpeg_frames_are_smaller_and_nearly_the_same(video, tmp_path, read_numbers):
    raw, jpeg = FrameCache(tmp_path, TOKENS, 60), FrameCache(tmp_path, TOKENS, 60, encoding="jpeg")
    one, other = raw.add(video), jpeg.add(video)
    assert one.key != other.key and jpeg.nbytes(other.key) < raw.nbytes(one.key) / 2
    pixels, near = raw.read(one.key, [2, 7]), jpeg.read(other.key, [2, 7])
    assert np.abs(pixels.astype(int) - near).mean() < 3 and read_numbers(near) == [200, 700]
    assert jpeg.damage(other.key) is None
    raw.close()
    jpeg.close()


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_an_altered_frame_is_found_and_can_be_made_anew(video, tmp_path, encoding):
    cache = FrameCache(tmp_path, TOKENS, 60, encoding=encoding)
    known = cache.add(video)
    assert cache.damage(known.key) is None
    (path,) = files(cache)
    content = bytearray(path.read_bytes())
    fifth = module._stored(cache._reader(known.key).get_batch(5)).to_pybytes()
    content[content.index(fifth) + len(fifth) // 2] ^= 1
    cache.close()
    path.write_bytes(content)
    assert cache.damage(known.key) == "frame 5 is not as it was written"
    cache.remove(known.key)
    assert cache.find(video) is None
    assert cache.add(video) == known and cache.damage(known.key) is None and cache.decodes == 2
    cache.close()


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_no_altered_byte_brings_the_reader_down(video, tmp_path, encoding):
    """Wherever it lies: in a frame, or in what Arrow says of where they are."""
    cache = FrameCache(tmp_path, TOKENS, 60, encoding=encoding)
    key = cache.add(video).key
    (path,) = files(cache)
    content, found = path.read_bytes(), []
    for at in [*range(0, 2000, 3), *range(len(content) - 2000, len(content), 3)]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :])
        cache._forget(key)
        found.append(cache.find(video) is None or cache.damage(key) is not None)
    assert sum(found) > 900
    path.write_bytes(content.replace(b"height", b"weight"))  # opens, but cannot be used
    cache._forget(key)
    assert cache.add(video).key == key and path.read_bytes() == content
    cache.close()


def test_a_quarantined_content_is_not_tried_again_unless_asked(cache, tmp_path):
    garbage = tmp_path / "garbage.mp4"
    garbage.write_bytes(b"no video" * 99)
    with pytest.raises(VideoError, match="not a readable"):
        cache.add(garbage)
    copy = Path(shutil.copy(garbage, tmp_path / "copy.mp4"))
    pid = cache._process.pid
    cache._process.close()
    for ask in (cache.add, cache.find):
        with pytest.raises(VideoError, match="copy.mp4: not a readable"):
            ask(copy)
    assert cache._process.pid is None and pid is not None
    with pytest.raises(VideoError, match="not a readable"):
        cache.add(copy, retry=True)
    assert cache._process.pid is not None
