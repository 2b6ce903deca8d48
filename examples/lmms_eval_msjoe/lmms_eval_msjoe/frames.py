"""Qwen2.5-VL in lmms-eval, shown the frames that a file of `msjoe frames --form jsonl` lists, in place of uniform ones.

Invariant: what the file lists for a question is what is shown. The harness's cache knows a reply by the task's row and the
model's arguments, not by the frames; so the hash of the file must be one of the arguments, and a file of another content is
refused.
"""

from __future__ import annotations

import json
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import decord
import numpy as np
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.models.simple.qwen2_5_vl import Qwen2_5_VL
from lmms_eval.protocol import ChatMessages
from PIL import Image
from qwen_vl_utils import process_vision_info

ID_FIELDS = ("question_id", "id", "uid")
"""Fields of a task's row that may hold the question's id; the first that is there does."""
EPSILON = 0.005
"""Seconds by which a frame's timestamp may be rounded."""
GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


class MsjoeFrames(Qwen2_5_VL):
    """Args: `frames`, the file; `budget`, K; `selector`, `file-` and the hash of the file's content, which is said when it is
    not right; the others are those of the harness's `qwen2_5_vl`.

    Raises ValueError for a file, or a list in it, that cannot be taken.
    """

    is_simple = False

    def __init__(self, frames: str, budget: int, selector: str, **others: Any) -> None:
        content = Path(frames).read_bytes()
        if selector != (right := f"file-{blake2b(content, digest_size=8).hexdigest()}"):
            raise ValueError(
                f"selector={selector}: {frames} is selector={right}; pass that, by which replies are cached"
            )
        rows = [json.loads(line) for line in content.splitlines()]
        self._budget = int(budget)
        self._listed = {row["question_id"]: row["seconds"] for row in rows if row.get("budget") in (None, self._budget)}
        super().__init__(**others)

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """The replies, one after the other."""
        return [GenerationResult(self._reply(*request.args)) for request in requests]

    def _reply(self, _: str, doc_to_messages: Any, settings: dict[str, Any], doc_id: int, task: str, split: str) -> str:
        """The reply to one question; an empty one to a question that the file says could not be asked."""
        doc = self.task_dict[task][split][doc_id]
        name = str(next(doc[field] for field in ID_FIELDS if field in doc))
        if name not in self._listed:
            raise ValueError(f"question {name}: the file lists no frames for it at budget={self._budget}")
        if self._listed[name] is None:
            return ""
        messages = ChatMessages(messages=doc_to_messages(doc)).to_hf_messages()
        videos = [part for message in messages for part in message["content"] if part["type"] == "video"]
        if len(videos) != 1:
            raise ValueError(f"question {name}: is about {len(videos)} videos instead of one")
        self._show(videos[0], name)
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        _, shown, _ = process_vision_info([messages], return_video_kwargs=True, return_video_metadata=True)
        pixels, metadata = zip(*shown, strict=True)
        inputs = self.processor(text=[text], videos=list(pixels), video_metadata=list(metadata), return_tensors="pt")
        sampling = {} if settings.get("temperature") else GREEDY
        known = {
            key: settings[key] for key in ("max_new_tokens", "temperature", "top_p", "num_beams") if key in settings
        }
        generated = self.model.generate(**inputs.to(self.model.device), **(known | sampling))
        return self.tokenizer.decode(generated[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)

    def _show(self, video: dict[str, Any], name: str) -> None:
        """Put the listed frames in the place of the video's path; they count as spread evenly over its seconds."""
        reader, starts, length = _opened(video["video"])
        seconds = sorted(self._listed[name])
        if not min(self._budget, max(1, int(length))) <= len(seconds) <= self._budget or seconds[-1] >= length + 1:
            raise ValueError(
                f"question {name}: {seconds} are not {self._budget} frames of {video['video']} ({length:.1f} s)"
            )
        numbers = np.searchsorted(starts, np.array(seconds) + EPSILON, side="right") - 1
        frames = reader.get_batch(numbers).asnumpy()
        video["video"] = [Image.fromarray(frame) for frame in frames]
        video |= {"sample_fps": len(frames) / length, "min_pixels": self.min_pixels, "max_pixels": self.max_pixels}


@lru_cache(8)
def _opened(path: str) -> tuple[decord.VideoReader, np.ndarray, float]:
    """A video, the second at which each of its frames begins, and its length in seconds."""
    reader = decord.VideoReader(path)
    times = reader.get_frame_timestamp(range(len(reader)))
    return reader, times[:, 0] - times[0, 0], float(times[-1, 1] - times[0, 0])
