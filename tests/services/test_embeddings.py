"""A small random CLIP in open_clip's own folder format: loading, preprocessing, keys, and the feature cache."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cluster.toyworld import MODELS
from services.clip import ClipEncoder, control_tokens
from services.embeddings import FeatureCache, similarity
from services.errors import UserError

MODEL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 28, "layers": 1, "width": 32, "head_width": 16, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
PREPROCESS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "interpolation": "bicubic", "resize_mode": "shortest"}


def make_model(folder: Path, seed: int = 0, **preprocess) -> Path:
    folder.mkdir()
    config = {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS | preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(seed)
    weights = {name: tensor.contiguous() for name, tensor in open_clip.CLIP(**MODEL).state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("clip") / "model")


def load(model, dtype="float32", resize="squash", **options) -> ClipEncoder:
    return ClipEncoder(str(model), "", dtype, resize, "cpu", **options)


@pytest.fixture(scope="module")
def frames():
    """Smooth pictures, as photographs are: noise would be all rounding."""
    noise = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(n).resize((112, 56), Image.Resampling.BICUBIC)) for n in noise])


def test_cropped_frames_are_what_open_clip_itself_makes_of_them(folder, frames):
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    with torch.no_grad():
        images = torch.stack([preprocess(Image.fromarray(frame)) for frame in frames])
        expected = model.eval().encode_image(images, normalize=True).numpy()
    features = load(folder, resize="crop").encode_frames(frames)
    assert features.dtype == np.float16 and features.shape == (5, 32)
    np.testing.assert_allclose(features, expected, atol=5e-3)
    assert np.abs(load(folder).encode_frames(frames) - expected).max() > 0.02, "squashing is another picture"


def test_squashing_sees_the_whole_frame(folder, frames):
    changed = frames.copy()
    changed[:, :, :14] = 255 - changed[:, :, :14]
    for resize, differs in (("squash", True), ("crop", False)):
        encoder = load(folder, resize=resize)
        assert (np.abs(encoder.encode_frames(frames) - encoder.encode_frames(changed)).max() > 0.01) == differs


def test_texts_are_what_open_clip_itself_makes_of_them(folder):
    texts = ["a red square", "two dogs", "word " * 200]
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    with torch.no_grad():
        expected = model.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(texts), normalize=True).numpy()
    encoder = load(folder)
    features = encoder.encode_texts(texts)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    assert encoder.logit_scale == pytest.approx(1 / 0.07, rel=1e-3)


@pytest.mark.parametrize("tokenizer", ["open_clip's own", "of Hugging Face"])
def test_what_follows_a_control_token_in_a_text_is_read(folder, tokenizer):
    encoder = load(folder if tokenizer == "open_clip's own" else MODELS / "clip")
    for token in control_tokens(encoder._tokenizer):
        for spelled in (token, token.upper(), token.replace("<", "&lt;"), token.replace("<", "&amp;amp;lt;")):
            blue, green = encoder.encode_texts([f"a red star {spelled} {colour}" for colour in ("blue", "green")])
            assert np.abs(blue - green).max() > 1e-3, spelled


def test_batches_and_odd_sizes_change_nothing(folder, frames):
    whole, split = load(folder).encode_frames(frames), load(folder, batch_size=2).encode_frames(frames)
    np.testing.assert_allclose(whole, split, atol=2e-3)
    for height, width in ((28, 28), (28, 280), (300, 31), (5, 5)):
        for resize in ("squash", "crop"):
            odd = load(folder, resize=resize).encode_frames(np.zeros((1, height, width, 3), np.uint8))
            assert np.linalg.norm(odd.astype(np.float32)) == pytest.approx(1, abs=2e-3)


def test_bfloat16_is_near_float32(folder, frames):
    exact, rough = load(folder), load(folder, dtype="bfloat16")
    both = similarity(rough.encode_frames(frames), exact.encode_frames(frames))
    assert np.diag(both).min() > 0.998
    assert np.diag(similarity(rough.encode_texts(["a", "b"]), exact.encode_texts(["a", "b"]))).min() > 0.998


def test_the_key_is_all_that_features_depend_on(folder, tmp_path):
    same = make_model(tmp_path / "same")
    keys = [
        load(folder).key,
        load(folder, resize="crop").key,
        load(folder, dtype="bfloat16").key,
        load(make_model(tmp_path / "other", seed=1)).key,
        load(make_model(tmp_path / "mean", mean=[0.5, 0.5, 0.5])).key,
    ]
    assert len(set(keys)) == 5
    assert load(same).key == load(f"local-dir:{same}", batch_size=2).key == keys[0]


def test_a_model_that_cannot_be_loaded(folder, tmp_path, monkeypatch):
    bare = tmp_path / "bare"
    bare.mkdir()
    with pytest.raises(UserError, match=r"bare: .*no open_clip_config.json"):
        load(bare)
    (bare / "open_clip_config.json").write_text((folder / "open_clip_config.json").read_text())
    with pytest.raises(UserError, match="bare: no weights"):
        load(bare)
    (bare / "open_clip_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="bare.*cannot be loaded"):
        load(bare)
    with pytest.raises(UserError, match="gone: no such folder"):
        load(f"local-dir:{tmp_path}/gone")
    with pytest.raises(UserError, match="close to it: .*ViT-L-14-quickgelu"):
        load("ViT-L-14-quickgel")
    with pytest.raises(UserError, match="neither a file nor a tag of ViT-L-14-quickgelu .*openai"):
        ClipEncoder("ViT-L-14-quickgelu", "openia", "float32", "squash", "cpu")


def test_similarity_is_the_cosine():
    texts = np.array([[3.0, 0.0], [1.0, 1.0]], np.float32)
    frames = np.array([[0.5, 0.0], [0.0, 2.0], [0.0, 0.0]], np.float16)
    cosines = similarity(texts, frames)
    assert cosines.dtype == np.float32
    np.testing.assert_allclose(cosines, [[1, 0, 0], [0.5**0.5, 0.5**0.5, 0]], atol=1e-6)


def test_features_are_kept(tmp_path, monkeypatch):
    cache = FeatureCache(tmp_path, "model")
    features = np.random.default_rng(0).normal(size=(600, 32)).astype(np.float32)
    assert cache.get("abcd") is None
    cache.put("abcd", features)
    kept = FeatureCache(tmp_path, "model").get("abcd")
    assert kept.dtype == np.float16 and not kept.flags.writeable
    np.testing.assert_array_equal(kept, features.astype(np.float16))
    assert FeatureCache(tmp_path, "other").get("abcd") is None
    cache.put("abcd", features[:1])
    assert len(cache.get("abcd")) == 1 and len(kept) == 600, "who has the old file mapped keeps it"
    (path,) = (file for file in tmp_path.rglob("*") if file.is_file())
    path.write_bytes(path.read_bytes()[:100])
    assert cache.get("abcd") is None, "a torn file is a miss"
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match=r"ef01\.arrow: cannot be written .No space"):
        cache.put("ef01", features)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]


def test_no_altered_byte_of_features_goes_unseen(tmp_path):
    cache, features = FeatureCache(tmp_path, "model"), np.random.default_rng(0).normal(size=(5, 32)).astype(np.float16)
    cache.put("abcd", features)
    (path,) = (file for file in tmp_path.rglob("*") if file.is_file())
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :])
        if cache.damage("abcd") is None and (found := cache.get("abcd")) is not None:
            np.testing.assert_array_equal(found, features)
