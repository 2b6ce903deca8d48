"""Caches shared through a bucket: a real S3 server on this machine, and pyarrow's own client."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from services.embeddings import FeatureCache
from services.errors import UserError, VideoError
from services.frames import FrameCache
from services.storage import Storage

TOKENS = 8


def test_what_one_machine_makes_another_fetches_once(bucket: str, tmp_path: Path, video: Path) -> None:
    made, fetched = (FrameCache(tmp_path / name, TOKENS, 60, bucket=bucket) for name in ("one", "two"))
    known = made.add(video)
    np.testing.assert_array_equal(fetched.read(fetched.add(video).key, [3]), made.read(known.key, [3]))
    assert (made.decodes, fetched.decodes) == (1, 0)
    features = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float16)
    FeatureCache(tmp_path / "one", "clip", bucket).put(known.key, features)
    found = FeatureCache(tmp_path / "two", "clip", bucket).get(known.key)
    assert found is not None
    np.testing.assert_array_equal(found, features)
    assert FeatureCache(tmp_path / "two", "other", bucket).get(known.key) is None
    made.close()
    fetched.close()


def test_a_quarantine_is_shared_and_a_removal_too(bucket: str, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.mp4"
    garbage.write_bytes(b"no video" * 99)
    one, two = (FrameCache(tmp_path / name, TOKENS, 60, bucket=bucket) for name in ("one", "two"))
    with pytest.raises(VideoError, match="not a readable video"):
        one.add(garbage)
    with pytest.raises(VideoError, match="not a readable video"):
        two.find(garbage)
    storage, other = Storage(tmp_path / "one", bucket), Storage(tmp_path / "two", bucket)
    with storage.write("a/file") as temporary:
        temporary.write_text("x")
    assert other.find("a/file").read_text() == "x"
    other.remove("a/file")
    for each in (other, Storage(tmp_path / "three", bucket)):
        with pytest.raises(FileNotFoundError):
            each.find("a/file")
    one.close()


def test_a_bucket_that_does_not_answer_is_named(tmp_path: Path) -> None:
    address = "s3://caches/x?endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1"
    with pytest.raises(UserError, match=r"data.bucket: s3://caches/x"):
        Storage(tmp_path, address).find("anything")
    with pytest.raises(UserError, match="data.bucket: nonsense"):
        Storage(tmp_path, "nonsense").find("anything")
