"""The samples of an evaluation: what each is keyed by, what is kept of it, and the file of predictions that they become.

Invariants: two samples have one key if and only if all that decides their reply is the same: the question, the content of its
video, the budget and size of the frames, the prompt, the MLLM, and the selector with its weights or code and its CLIP. A sample
is on disk as soon as it is known, so that a killed command loses none; the predictions are written whole, in the order of
cells and questions, whatever the order in which the samples came.
"""

from __future__ import annotations

import fcntl
import inspect
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from actors.prompts import answer_messages, query_messages
from cluster.config import Config
from cluster.evaluation.setting import Cell, Selector, Setting
from learners.networks import architecture
from services import jsonl
from services.content_hash import folder_hash
from services.errors import UserError
from services.schema import Question, Video, label
from services.scoring import Prediction, question_hash, request
from services.selection import RULES, choose
from services.storage import written_whole
from services.writing import writing

FILE, PREDICTIONS, LOCK = "samples.jsonl", "predictions.jsonl", "evaluation.lock"
_ANY = Question("id", "video", "question", ("one", "two"), "A")
"""Stands for any question where a prompt is hashed."""


@dataclass(frozen=True)
class Sample:
    """What became of one question in one cell."""

    key: str
    frames: Sequence[int] = ()
    visual_tokens: int = 0
    queries: Sequence[str] = ()
    reply: str | None = None
    reason: str = ""
    """Why it could not be asked."""


def _hash(*parts: Any, size: int = 8) -> str:
    said = json.dumps(parts, ensure_ascii=False, sort_keys=True)
    return blake2b(said.encode("utf-8", "surrogatepass"), digest_size=size).hexdigest()


class Keys:
    """The hashes of a setting, and the key of each of its samples."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        config, root = setting.config, setting.config.data.cache
        self.model = _hash(_model_hash(config.policy.model, root), config.policy.dtype)
        asked = answer_messages(
            _ANY, (0.0,), (), config.frames.shown_as, request(setting.benchmark, setting.prompt, _ANY)
        )
        shown = (config.frames.tokens_per_frame, config.frames.shown_as, config.prompts.subtitles)
        self.prompt = _hash(asked, shown, config.rollout.answer_tokens)
        self.selectors = {
            cell.selector.name: selector_hash(cell.selector, config, self.model) for cell in setting.cells
        }

    def of(self, question: Question, cell: Cell, video: Video) -> str:
        """The key of the sample, if the question can be asked."""
        frames, asks = cell.config.frames, cell.selector.asks == "queries"
        spoken = question.subtitles if self._setting.config.prompts.subtitles else None
        return _hash(
            self._setting.benchmark,
            question.id,
            question_hash(question),
            video.key,
            [cell.budget, frames.tokens_per_frame, frames.num_previews if asks else 0],
            [self.prompt, spoken and blake2b(Path(spoken).read_bytes()).hexdigest(), question.subtitle_offset],
            [self.model, cell.selector.name, self.selectors[cell.selector.name]],
            size=16,
        )

    def refused(self, key: str) -> str:
        """The key under which it is kept that a sample does not fit the engine, of which only that engine can be sure."""
        return _hash(key, self._setting.config.rollout.max_model_len, size=16)


def _model_hash(model: str, cache: Path) -> str:
    """The content of a folder; of a hub's model its name, which does not say its revision."""
    return folder_hash(Path(model), cache) if Path(model).is_dir() else model


def selector_hash(selector: Selector, config: Config, mllm: str) -> str:
    """Hash of all that decides what a selector chooses from given previews of a given video."""
    if selector.file:
        return selector.file.hash
    cache, embedder = config.data.cache, config.embedder
    clip = [_model_hash(embedder.model, cache), *embedder.key_parameters()]
    asked: Any = None
    if selector.asks == "queries":
        prompts = config.prompts
        messages = query_messages(_ANY, show_options=prompts.options_in_query_turn, max_queries=prompts.max_queries)
        asked = [mllm, messages, prompts.ask_clip, config.frames.preview_tokens_per_frame, config.rollout.query_tokens]
    if selector.learns:
        checkpoint, sampler = config.sampler.checkpoint, config.sampler
        weights = folder_hash(checkpoint, cache) if checkpoint else ["untrained", config.train.seed]
        return _hash(architecture(selector.kind, sampler), weights, clip, asked)
    return _hash(selector.kind, _rule_code(selector.kind), clip, asked)


def _rule_code(kind: str) -> list[Any]:
    """The settings of a rule, and the code of its module and of those of its folder that it takes functions from."""
    rule: Any = RULES[kind]
    function, settings = (rule.func, rule.keywords) if isinstance(rule, partial) else (rule, {})
    module = sys.modules[function.__module__]
    names = {str(getattr(value, "__module__", "")) for value in vars(module).values()} | {module.__name__}
    used = sorted(name for name in names if name == module.__name__ or name.startswith(choose.__module__))
    return [settings, *(inspect.getsource(sys.modules[name]) for name in used), inspect.getsource(choose)]


class Samples:
    """The samples that are known, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._path, self.predictions = folder / FILE, folder / PREDICTIONS
        self._known = {row["key"]: Sample(**row) for row in jsonl.read(self._path)}

    @property
    def count(self) -> int:
        """Samples that are known, of whatever setting."""
        return len(self._known)

    def find(self, *keys: str) -> Sample | None:
        """The sample under the first of the keys that has one."""
        return next((self._known[key] for key in keys if key in self._known), None)

    def add(self, sample: Sample) -> None:
        """Keep a sample, on the operating system's side when this returns."""
        jsonl.append(self._path, [asdict(sample)])
        self._known[sample.key] = sample

    def write(self, rows: Sequence[Prediction]) -> None:
        """Write the file of predictions, whole or not at all."""
        with written_whole(self.predictions) as temporary:
            lines = (json.dumps(row.model_dump(), ensure_ascii=False) + "\n" for row in rows)
            temporary.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")


@contextmanager
def samples_in(folder: Path) -> Iterator[Samples]:
    """The samples in `folder`, which is made if it is not there, held for this process alone while the block lasts.

    Raises UserError when another evaluation writes there now, or it cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--out={folder}: another evaluation writes there now; name another folder") from None
        yield Samples(folder)


def prediction(setting: Setting, keys: Keys, question: Question, cell: Cell, sample: Sample) -> Prediction:
    """The row of a sample in the file of predictions."""
    return Prediction(
        benchmark=setting.benchmark,
        question_id=question.id,
        question_hash=question_hash(question),
        video=setting.below_videos(question.video),
        types=list(question.group),
        num_options=len(question.options),
        label=label(question),
        selector=cell.selector.name,
        selector_hash=keys.selectors[cell.selector.name],
        budget=cell.budget,
        frames=list(sample.frames),
        visual_tokens=sample.visual_tokens,
        queries=list(sample.queries),
        prompt=setting.prompt,
        prompt_hash=keys.prompt,
        model=_model_name(Path(setting.config.policy.model)),
        model_hash=keys.model,
        reply=sample.reply,
        reason=sample.reason,
        key=sample.key,
    )


def _model_name(model: Path) -> str:
    """`RUN/step-N` for the MLLM of a checkpoint, else the last part of its path or name."""
    return f"{model.parts[-4]}/{model.parts[-2]}" if model.match("*/checkpoints/step-*/policy") else model.name


def settled(
    setting: Setting,
    keys: Keys,
    questions: Sequence[Question],
    videos: Mapping[str, Video],
    reasons: Mapping[str, str],
    samples: Samples,
) -> list[Prediction]:
    """Rows of all samples, which must be known, in the order of cells and of questions. `reasons`: by the id of questions that
    cannot be asked whatever the engine."""
    rows = []
    for cell in setting.cells:
        for question in questions:
            if question.id in reasons:
                sample: Sample | None = Sample(_hash(question.id, reasons[question.id]), reason=reasons[question.id])
            else:
                key = keys.of(question, cell, videos[question.video])
                sample = samples.find(key, keys.refused(key))
            assert sample is not None, f"{question.id} was not asked"
            rows.append(prediction(setting, keys, question, cell, sample))
    return rows
