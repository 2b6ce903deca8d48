"""The frame cache: every video decoded once, its candidate frames kept as uint8 and read by index.

A frame file is `<root>/frames/v1/<key[:2]>/<key>.arrow`: Arrow IPC, one record batch a frame, with columns `second`
(float64, the frame's timestamp) and `pixels` (fixed-size binary, [height, width, 3]); the schema's metadata hold height,
width and the path it was first decoded from. The key is a hash of the video file's content, the decode rule and the token
limit.

Invariants: a file appears whole or not at all, whoever else writes it; reading frames touches those frames' bytes only;
equal keys mean equal pixels, so two paths to one content share a file.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from hashlib import blake2b, file_digest
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa

from services.errors import UserError, VideoError
from services.schema import Video, VisualInput
from services.video import DECODE_RULE, DecodeProcess, Frame, frame_size

OPEN_VIDEOS = 64
"""Memory maps one cache keeps open."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write to; it becomes `path` when the block ends well, and is removed when not.

    Raises UserError naming the path when the file system refuses (full, read-only, not a folder).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        if temporary.exists():
            temporary.unlink()


def write_frames(path: Path, source: str, frames: Iterator[Frame]) -> None:
    """Write `frames`, at least one and all of one size, as they come; `source` is the video's path."""
    first = next(frames)
    height, width, _ = first[1].shape
    metadata = {"height": str(height), "width": str(width), "path": source}
    types = [pa.float64(), pa.binary(first[1].nbytes)]
    schema = pa.schema(list(zip(("second", "pixels"), types, strict=True)), metadata=metadata)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for second, pixels in chain([first], frames):
            # From buffers: pa.array would import pandas, which takes longer than decoding a short video.
            buffers = (pa.py_buffer(np.float64(second)), pa.py_buffer(pixels))
            columns = [pa.Array.from_buffers(kind, 1, [None, data]) for kind, data in zip(types, buffers, strict=True)]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


class FrameCache:
    """Frames of videos under `root`, at most `max_tokens` visual tokens each; decoding one may take `deadline` seconds.

    Threads may share it. Holds a child process and memory maps: make one where it is used rather than sending it.
    """

    def __init__(self, root: Path, max_tokens: int, deadline: float) -> None:
        self.root = root
        self.max_tokens = max_tokens
        self.deadline = deadline
        self.decodes = 0
        """Videos this cache has decoded: those it did not find."""
        self._process = DecodeProcess()
        self._decoding = threading.Lock()
        self._opening = threading.Lock()
        self._open_videos: OrderedDict[str, pa.RecordBatchFileReader] = OrderedDict()

    def prepare(self, path: str | Path) -> Video:
        """The video at `path`, decoded first when the cache lacks it.

        Raises VideoError when it cannot be decoded, UserError when the cache cannot be written.
        """
        path = os.path.abspath(path)
        key = self._key(path)
        video = self._whole(key)
        if video is None:
            with self._decoding:
                video = self._whole(key) or self._decode(path, key)
        return replace(video, path=path)

    def video(self, key: str) -> Video:
        """The cached video of this key. Raises FileNotFoundError when there is none."""
        reader = self._reader(key)
        said = {name.decode(): value.decode() for name, value in reader.schema.metadata.items()}
        return Video(said["path"], key, reader.num_record_batches, int(said["height"]), int(said["width"]))

    def read(self, key: str, indices: Sequence[int]) -> np.ndarray:
        """Frames `indices` (any order, repeats allowed) as uint8 [K, H, W, 3], a copy.

        Raises FileNotFoundError when the video is not cached, IndexError for an index outside 0…T-1.
        """
        video, reader = self.video(key), self._reader(key)
        frames = np.empty((len(indices), video.height, video.width, 3), np.uint8)
        for frame, index in zip(frames, indices, strict=True):
            if not 0 <= index < video.num_frames:
                raise IndexError(f"{video.path}: frame {index} of {video.num_frames}")
            pixels = reader.get_batch(int(index)).column("pixels").buffers()[1]
            frame[:] = np.frombuffer(pixels, np.uint8).reshape(frame.shape)
        return frames

    def close(self) -> None:
        """End the decoder and forget the memory maps; a later call opens anew."""
        with self._decoding, self._opening:
            self._process.close()
            self._open_videos.clear()

    def _whole(self, key: str) -> Video | None:
        """The cached video; None when there is none, or only what a crashed machine left of it."""
        try:
            return self.video(key)
        except (FileNotFoundError, pa.ArrowInvalid):
            return None

    def _decode(self, path: str, key: str) -> Video:
        with written_whole(self._file(key)) as temporary:
            self._process.decode(path, self.max_tokens, partial(write_frames, temporary, path), self.deadline)
        self.decodes += 1
        return self.video(key)

    def _file(self, key: str) -> Path:
        return self.root / "frames" / "v1" / key[:2] / f"{key}.arrow"

    def _key(self, path: str) -> str:
        """Content address of the frames; the content's hash is remembered by path, size and time of change."""
        try:
            stat = os.stat(path)
            if stat.st_size == 0:
                raise VideoError(f"{path}: is empty")
            name = _hash(f"{path}\n{stat.st_size}\n{stat.st_mtime_ns}")
            known = self.root / "hashes" / "v1" / name[:2] / name
            if not known.exists():
                with open(path, "rb") as file:
                    content = file_digest(file, partial(blake2b, digest_size=16)).hexdigest()
                with written_whole(known) as temporary:
                    temporary.write_text(content)
        except OSError as error:
            raise VideoError(f"{path}: cannot be read ({error.strerror or error})") from error
        return _hash(f"{known.read_text()}\n{DECODE_RULE}\n{self.max_tokens}")

    def _reader(self, key: str) -> pa.RecordBatchFileReader:
        with self._opening:
            if key not in self._open_videos:
                self._open_videos[key] = pa.ipc.open_file(pa.memory_map(str(self._file(key))))
                if len(self._open_videos) > OPEN_VIDEOS:
                    self._open_videos.popitem(last=False)
            self._open_videos.move_to_end(key)
            return self._open_videos[key]


def _hash(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()


def resize(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """`frames` uint8 [K, H, W, 3] at `height` x `width`, bicubic with antialias; in integers, alike on every machine."""
    if frames.shape[1:3] == (height, width):
        return frames
    from PIL import Image

    resized = [np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)) for frame in frames]
    return np.stack(resized) if resized else np.empty((0, height, width, 3), np.uint8)


def visual_input(video: Video, frames: Iterable[int], max_tokens: int) -> VisualInput:
    """`frames` of `video`, put in time order, to be shown at no more than `max_tokens` visual tokens each."""
    height, width = frame_size(video.height, video.width, max_tokens)
    return VisualInput(video.key, tuple(sorted(int(i) for i in frames)), video.num_frames, height, width)


def read_visual(cache: FrameCache, visual: VisualInput) -> np.ndarray:
    """The pixels `visual` refers to: uint8 [K, height, width, 3]."""
    return resize(cache.read(visual.video, visual.frames), visual.height, visual.width)
