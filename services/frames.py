"""The frame cache: every video decoded once, its candidate frames kept as uint8 and read by index.

A frame file is `<root>/frames/v2/<key[:2]>/<key>.arrow`: Arrow IPC, one record batch a frame, with columns `second`
(float64, the frame's timestamp), `checksum` (CRC-32 of the others) and `pixels` ([height, width, 3] raw in a fixed-size binary,
or a JPEG); the schema's metadata hold height, width, encoding and the path it was first decoded from, the last batch's the
notes on the video, one a line, if there are any. The key is a hash of the video file's content, the decode rule, the token
limit and the encoding. `<root>/quarantine/v1/` holds the reason for each
content that cannot be decoded.

Invariants: a file appears whole or not at all, whoever else writes it; reading frames touches those frames' bytes only;
equal keys mean equal pixels, so two paths to one content share a file.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from hashlib import blake2b, file_digest
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zlib import crc32

import numpy as np
import pyarrow as pa

from services.candidates import DECODE_RULE, Candidates
from services.decode_process import DecodeProcess
from services.errors import DecoderLost, VideoError
from services.schema import Video
from services.storage import UNREADABLE, Storage, remember

if TYPE_CHECKING:
    from services.config import DataConfig, FramesConfig

Encoding = Literal["raw", "jpeg"]
JPEG_QUALITY = 95
"""With full colour resolution: about a sixth of the raw bytes on photographs."""
OPEN_VIDEOS = 64
"""Memory maps one cache keeps open."""


def write_frames(path: Path, source: str, encoding: Encoding, frames: Candidates) -> None:
    """Write `frames`, at least one and all of one size, as they come, and their notes; `source` is the video's path."""
    first = next(frames)
    height, width, _ = first[1].shape
    metadata = {"height": str(height), "width": str(width), "encoding": encoding, "path": os.fsencode(source)}
    pixel_type = pa.binary(first[1].nbytes) if encoding == "raw" else pa.binary()
    fields = {"second": pa.float64(), "checksum": pa.uint32(), "pixels": pixel_type}
    schema = pa.schema(list(fields.items()), metadata=metadata)
    with pa.OSFile(os.fsencode(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        batch = None
        for second, pixels in chain([first], frames):
            if batch is not None:
                writer.write_batch(batch)
            data = np.ascontiguousarray(pixels) if encoding == "raw" else np.frombuffer(_to_jpeg(pixels), np.uint8)
            # From buffers: pa.array would import pandas, which takes longer than decoding a short video.
            checksum = np.uint32(_checksum(second, data))
            columns = [
                pa.Array.from_buffers(fields["second"], 1, [None, pa.py_buffer(np.float64(second))]),
                pa.Array.from_buffers(fields["checksum"], 1, [None, pa.py_buffer(checksum)]),
                pa.Array.from_buffers(pixel_type, 1, [None, *_offsets(encoding, data), pa.py_buffer(data)]),
            ]
            batch = pa.RecordBatch.from_arrays(columns, schema=schema)
        writer.write_batch(batch, {"notes": "\n".join(sorted(frames.notes))} if frames.notes else None)


def _offsets(encoding: Encoding, data: np.ndarray) -> list[pa.Buffer]:
    """The places where a value of variable length begins and ends."""
    return [] if encoding == "raw" else [pa.py_buffer(np.array([0, data.nbytes], np.int32))]


def _to_jpeg(pixels: np.ndarray) -> bytes:
    from PIL import Image

    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return file.getvalue()


def _from_jpeg(data: Any) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(BytesIO(data)))


class FrameCache:
    """Frames of videos under `root`, at most `max_tokens` visual tokens each; decoding one may take `deadline` seconds.

    Threads may share it. Holds a child process and memory maps: make one where it is used rather than sending it.
    """

    def __init__(
        self, root: Path, max_tokens: int, deadline: float, encoding: Encoding = "raw", bucket: str = ""
    ) -> None:
        self.root, self.max_tokens, self.deadline, self.encoding = root, max_tokens, deadline, encoding
        self.decodes = 0
        """Videos this cache has decoded: those it did not find."""
        self._storage = Storage(root, bucket)
        self._process = DecodeProcess()
        self._decoding = threading.Lock()
        self._opening = threading.Lock()
        self._open_videos: OrderedDict[str, pa.RecordBatchFileReader] = OrderedDict()

    @classmethod
    def of(cls, data: DataConfig, frames: FramesConfig) -> FrameCache:
        """The cache that a run's config asks for."""
        return cls(data.cache, frames.tokens_per_frame, data.decode_deadline, frames.encoding, data.bucket)

    def add(self, path: str | Path, retry: bool = False) -> Video:
        """The video at `path`, decoded first when the cache lacks it.

        Raises VideoError when it cannot be decoded, at once when that is known of its content already (`retry` tries anew);
        UserError when the cache cannot be written.
        """
        path = os.path.abspath(path)
        key = self._key(path)
        video = self._whole(key)
        if video is None:
            if not retry and (reason := self._quarantined(key)):
                raise VideoError(f"{path}: {reason}")
            with self._decoding:
                video = self._whole(key) or self._decode(path, key)
        return replace(video, path=path)

    def find(self, path: str | Path) -> Video | None:
        """The video at `path` as it is cached; None when it is not. Decodes nothing.

        Raises VideoError when it cannot be read or is known to be undecodable.
        """
        key = self._key(path := os.path.abspath(path))
        video = self._whole(key)
        if video is None and (reason := self._quarantined(key)):
            raise VideoError(f"{path}: {reason}")
        return video and replace(video, path=path)

    def damage(self, key: str) -> str | None:
        """What is wrong with the cached frames of this key: a frame whose bytes changed; None when all are as written."""
        reader = self._reader(key)
        for index in range(reader.num_record_batches):
            try:
                batch = reader.get_batch(index)
                batch.validate(full=True)  # or what it says of its buffers may lead beyond them
                found = _checksum(batch.column("second")[0].as_py(), _stored(batch))
                if found != batch.column("checksum")[0].as_py():
                    return f"frame {index} is not as it was written"
            except UNREADABLE as error:
                return f"frame {index} cannot be read ({error})"
        return None

    def remove(self, key: str) -> None:
        """Forget the cached frames of this key."""
        self._forget(key)
        self._storage.remove(_name(key))

    def nbytes(self, key: str) -> int:
        """Bytes of the file of this key."""
        return self._storage.find(_name(key)).stat().st_size

    def notes(self, key: str) -> list[str]:
        """What is to be known about the cached video of this key: see `services.candidates.Candidates`."""
        reader = self._reader(key)
        _, metadata = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1)
        return metadata[b"notes"].decode().split("\n") if metadata else []

    def video(self, key: str) -> Video:
        """The cached video of this key. Raises FileNotFoundError when there is none."""
        reader = self._reader(key)
        said = {name.decode(): os.fsdecode(value) for name, value in reader.schema.metadata.items()}
        return Video(said["path"], key, reader.num_record_batches, int(said["height"]), int(said["width"]))

    def read(self, key: str, indices: Sequence[int]) -> np.ndarray:
        """Frames `indices` (any order, repeats allowed) as uint8 [K, H, W, 3], a copy.

        Raises FileNotFoundError when the video is not cached, IndexError for an index outside 0…T-1.
        """
        video, reader = self.video(key), self._reader(key)
        raw = reader.schema.metadata[b"encoding"] == b"raw"
        frames = np.empty((len(indices), video.height, video.width, 3), np.uint8)
        for frame, index in zip(frames, indices, strict=True):
            if not 0 <= index < video.num_frames:
                raise IndexError(f"{video.path}: frame {index} of {video.num_frames}")
            data = _stored(reader.get_batch(int(index)))
            frame[:] = np.frombuffer(data, np.uint8).reshape(frame.shape) if raw else _from_jpeg(data)
        return frames

    def close(self) -> None:
        """End the decoder and forget the memory maps; a later call opens anew."""
        with self._decoding, self._opening:
            self._process.close()
            self._open_videos.clear()

    def _whole(self, key: str) -> Video | None:
        """The cached video; None when there is none, or only something damaged."""
        try:
            return self.video(key)
        except UNREADABLE:
            return None

    def _decode(self, path: str, key: str) -> Video:
        with self._storage.write(_name(key)) as temporary:
            write = partial(write_frames, temporary, path, self.encoding)
            try:
                self._process.decode(path, self.max_tokens, write, self.deadline)
            except DecoderLost:
                raise
            except VideoError as error:
                with self._storage.write(_quarantine_name(key)) as record:
                    record.write_text(str(error).removeprefix(f"{path}: "), errors="backslashreplace")
                raise
        self.decodes += 1
        self._forget(key)  # what was there before, and damaged
        return self.video(key)

    def _forget(self, key: str) -> None:
        """Let go of the memory map of this key's file."""
        with self._opening:
            self._open_videos.pop(key, None)

    def _quarantined(self, key: str) -> str | None:
        """Why this content cannot be decoded; None when it was never found so."""
        try:
            return self._storage.find(_quarantine_name(key)).read_text()
        except FileNotFoundError:
            return None

    def _key(self, path: str) -> str:
        """Content address of the frames."""
        try:
            stat = os.stat(path)
            if stat.st_size == 0:
                raise VideoError(f"{path}: is empty")
            content = self._content(path, stat)
        except OSError as error:
            raise VideoError(f"{path}: cannot be read ({error.strerror or error})") from error
        return _hash(f"{content}\n{DECODE_RULE}\n{self.max_tokens}\n{self.encoding}")

    def _content(self, path: str, stat: os.stat_result) -> str:
        """The content's hash, remembered by path, size and time of change where the cache can be written."""
        name = _hash(f"{path}\n{stat.st_size}\n{stat.st_mtime_ns}")
        known = self.root / "hashes" / "v1" / name[:2] / name
        if known.exists():
            return known.read_text()
        with open(path, "rb") as file:
            content = file_digest(file, partial(blake2b, digest_size=16)).hexdigest()
        remember(known, content)
        return content

    def _reader(self, key: str) -> pa.RecordBatchFileReader:
        with self._opening:
            if key not in self._open_videos:
                self._open_videos[key] = pa.ipc.open_file(pa.memory_map(os.fsencode(self._storage.find(_name(key)))))
                if len(self._open_videos) > OPEN_VIDEOS:
                    self._open_videos.popitem(last=False)
            self._open_videos.move_to_end(key)
            return self._open_videos[key]


def _name(key: str) -> str:
    return f"frames/v2/{key[:2]}/{key}.arrow"


def _quarantine_name(key: str) -> str:
    return f"quarantine/v1/{key[:2]}/{key}.txt"


def _checksum(second: float, pixels: Any) -> int:
    return crc32(pixels, crc32(np.float64(second).tobytes()))


def _stored(batch: pa.RecordBatch) -> Any:
    """The bytes of its one frame, mapped, not read."""
    return batch.column("pixels")[0].as_buffer()


def _hash(text: str) -> str:
    return blake2b(os.fsencode(text), digest_size=16).hexdigest()
