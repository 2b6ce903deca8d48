"""Choose the frames of a video that a sentence is about, and save them as pictures. No Ray, no training.

    python examples/choose_frames.py VIDEO "a red square" [FOLDER]

The CLIP is the toy world's; for real videos name one of open_clip's, such as `ViT-L-14-quickgelu` with weights `openai`.
"""

import sys
from pathlib import Path

from PIL import Image

from cluster.toyworld import MODELS
from services.clip import ClipEncoder
from services.config import DataConfig, FramesConfig
from services.embeddings import similarity
from services.frames import FrameCache
from services.selection import choose

path, sentence = sys.argv[1:3]
folder = Path(sys.argv[3]) if len(sys.argv) > 3 else Path(".")

cache = FrameCache.of(DataConfig(), FramesConfig(tokens_per_frame=64))
video = cache.add(path)  # decoded once: one frame per second
frames = cache.read(video.key, range(video.num_frames))

clip = ClipEncoder(str(MODELS / "clip"), pretrained="", dtype="float32", resize="squash", device="cpu")
cosines = similarity(clip.encode_texts([sentence]), clip.encode_frames(frames))  # [1, T]

folder.mkdir(parents=True, exist_ok=True)
for second in choose("topk", cosines, 4):
    picture = folder / f"{second:05d}.png"
    Image.fromarray(frames[second]).save(picture)
    print(f"{picture}  cosine {cosines[0, second]:.3f}")
cache.close()
