"""Embedding beside its floor: cached frames to cached CLIP features, against `encode_image` over tensors in memory.

    python -m benchmarks.embedding --clip ViT-B-32 --frames 64 --rounds 5

Both run one model on the same threads, in turns, in float32 and in bfloat16: what bfloat16 wins here is what
`embedder.dtype: auto` decides by. The weights are random, the frames a moving test picture's at the answer turn's size.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import open_clip
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from actors.config import EmbedderConfig
from actors.embedder import EmbedderActor
from benchmarks.video import make_clip, repeat, seconds_of
from services.config import DataConfig, FramesConfig
from services.embeddings import FeatureCache, known_key

HEIGHT, WIDTH = 720, 1280
WEIGHTS = "open_clip_model.safetensors"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--clip", default="ViT-B-32", help="an architecture that open_clip knows; its weights are random"
    )
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    threads = os.cpu_count() or 1
    ways: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_clip(root / "clip.mp4", "libx264", HEIGHT, WIDTH)
        repeat(root / "clip.mp4", root / "video.mp4", options.frames)
        random_weights(options.clip, root / "model")
        data, frames = DataConfig(cache=root / "cache"), FramesConfig()
        for dtype in ("float32", "bfloat16"):
            config = EmbedderConfig(
                dtype=dtype, threads=threads, batch_size=options.batch, num_gpus=int(DEVICE == "cuda")
            )
            embedder = EmbedderActor(str(root / "model"), config, data, frames)
            embedder.ready()
            video = embedder.decode_and_embed(str(root / "video.mp4")).key
            features = known_key(data.cache, str(root / "model"), config.key_parameters())
            assert features
            ways[f"{dtype}: encode_image over tensors in memory"] = bare_loop(root / "model", dtype, options)
            ways[f"{dtype}: cached frames to cached features"] = partial(
                _anew, embedder, FeatureCache(data.cache, features), video
            )
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):  # loading and preparing have warmed up
            for name, way in ways.items():
                seconds[name].append(seconds_of(way))
    title = f"{options.frames} frames, {options.clip}, {DEVICE}, {threads} threads, {options.rounds} rounds"
    table = Table("way", "frames/s", "times the line above", title=title)
    above = None
    for name, times in seconds.items():
        pairs = zip(times, above or times, strict=True)
        ratio = statistics.median(own / other for own, other in pairs)
        table.add_row(name, f"{options.frames / statistics.median(times):.1f}", f"{ratio:.2f}" if above else "")
        above = None if above else times
    Console().print(table)


def random_weights(name: str, folder: Path) -> None:
    """An open_clip folder of the architecture `name`."""
    folder.mkdir()
    model = open_clip.create_model(name)
    config = {
        "model_cfg": open_clip.get_model_config(name),
        "preprocess_cfg": open_clip.get_model_preprocess_cfg(model),
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / WEIGHTS)


def bare_loop(model: Path, dtype: str, options: argparse.Namespace) -> Callable[[], object]:
    """The floor: batches that are preprocessed already, through the image tower."""
    precision = {"float32": "fp32", "bfloat16": "bf16"}[dtype]
    clip = open_clip.create_model(f"local-dir:{model}", precision=precision, device=DEVICE).eval()
    side = open_clip.get_model_preprocess_cfg(clip)["size"]
    side = side if isinstance(side, int) else side[0]
    number = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    pixels = torch.randn(options.frames, 3, side, side, dtype=number, device=DEVICE)

    @torch.inference_mode()
    def loop() -> torch.Tensor:
        return torch.cat([clip.encode_image(batch, normalize=True) for batch in pixels.split(options.batch)]).cpu()

    loop()
    return loop


def _anew(embedder: EmbedderActor, features: FeatureCache, video: str) -> None:
    features.remove(video)
    embedder.embed(video)


if __name__ == "__main__":
    main()
