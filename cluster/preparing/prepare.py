"""`msjoe prepare`: every video decoded and embedded once, ahead of training; a second run does only what is missing.

Invariants: what is in the caches is known without Ray and without loading CLIP; decoding and embedding run in Ray Data's actor
pools, bounded and backpressured, whose dead actors are restarted; a video that cannot be read costs one line.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from actors.stages import DecodeStage, EmbedStage, outcome
from cluster.config import Config
from services.embeddings import FeatureCache, known_key
from services.errors import UserError
from services.frames import FrameCache
from services.questions import read_questions
from services.shared import probe
from services.storage import remove_abandoned
from services.writing import writing

SURVEY_THREADS = 16
QUESTION_FILES = (".parquet", ".json", ".jsonl")


@dataclass(frozen=True)
class Prepared:
    """What became of one video."""

    path: str
    status: str
    """`done` now, `cached` before, or `quarantined`."""
    reason: str
    """Why it is quarantined; empty otherwise."""
    seconds: float
    """Seconds of video: one per candidate frame."""
    frames: int
    bytes: int
    """Bytes of its frames in the cache."""
    notes: list[str]
    """What is to be known about it: its colours were converted, its container promised more than it holds."""


def find_videos(inputs: Sequence[Path], video_root: Path | None) -> list[str]:
    """Absolute paths of the videos that questions files, folders (all their files) and videos name, each once.

    Raises UserError for a path that is not there.
    """
    found: list[str] = []
    for path in inputs:
        if path.is_dir():
            found += sorted(str(file.absolute()) for file in path.rglob("*") if file.is_file())
        elif path.suffix in QUESTION_FILES:
            found += [question.video for question in read_questions(path, video_root)]
        elif path.is_file():
            found.append(str(path.absolute()))
        else:
            raise UserError(f"{path}: no such questions file, folder or video")
    return list(dict.fromkeys(found))


def prepare(config: Config, paths: Sequence[str], console: Console, verify: bool, retry: bool) -> list[Prepared]:
    """Fill the caches for `paths`, and say of each what became of it, in their order.

    `verify` reads what is cached and makes anew what is damaged; `retry` tries quarantined videos again.
    """
    start = time.perf_counter()
    remove_abandoned(config.data.cache)
    frames = FrameCache.of(config.data, config.frames)
    results: dict[str, Prepared] = {}
    with ThreadPoolExecutor(SURVEY_THREADS) as threads:
        survey = threads.map(lambda path: _survey(config, frames, path, verify), paths)
        for path, row in zip(paths, survey, strict=True):
            if row is not None and not (retry and row["status"] == "quarantined"):
                results[path] = _prepared(row, "cached")
    missing = [path for path in paths if path not in results]
    if missing:
        known, clip = len(results), f"{Path(config.embedder.model).name} in {config.embedder.dtype}"
        console.print(f"{known} of {len(paths)} videos are in the cache; preparing {len(missing)}, CLIP {clip}")
        with Progress(*_columns(), console=console) as progress:
            task = progress.add_task("", total=len(missing), frames=0)
            for row in _pipeline(config, missing, retry):
                results[row["path"]] = _prepared(row, "done")
                progress.update(task, advance=1, frames=progress.tasks[task].fields["frames"] + row["frames"])
    prepared = [results[path] for path in paths]
    console.print(_table(prepared, time.perf_counter() - start))
    return prepared


def _survey(config: Config, frames: FrameCache, path: str, verify: bool) -> dict[str, Any] | None:
    """The row of a video that is in the caches, or known to be undecodable; None when there is work to do."""

    def find() -> Any:
        video = frames.find(path)
        key = known_key(config.data.cache, config.embedder.model, config.embedder.key_parameters())
        features = key and FeatureCache(config.data.cache, key, config.data.bucket)
        if video is None or not features:
            raise _Missing
        if verify and frames.damage(video.key):
            frames.remove(video.key)
            features.remove(video.key)
            raise _Missing
        if verify and features.damage(video.key):
            features.remove(video.key)
        if features.get(video.key) is None:
            raise _Missing
        return video

    try:
        return outcome(path, find, frames)
    except _Missing:
        return None


class _Missing(Exception):
    """Not all of a video is in the caches."""


def _pipeline(config: Config, paths: Sequence[str], retry: bool) -> Iterator[dict[str, Any]]:
    """Rows as they get ready, in no order."""
    import ray

    from cluster.training.connection import COMMON_ENV, connect

    connect(config.cluster)
    try:
        with probe(config.data) as file:
            ray.data.DataContext.get_current().enable_progress_bars = False
            logging.getLogger("ray.data").setLevel(logging.ERROR)
            environment = {"env_vars": COMMON_ENV | {"OMP_NUM_THREADS": str(config.embedder.threads)}}
            embedder, decoders = config.embedder, min(config.data.decoders, len(paths))
            dataset = (
                ray.data.from_items([{"path": os.fsencode(path)} for path in paths], override_num_blocks=len(paths))
                .map_batches(
                    DecodeStage,
                    fn_constructor_args=(config.data, config.frames, retry, file),
                    compute=ray.data.ActorPoolStrategy(min_size=1, max_size=decoders),
                    batch_size=1,
                    num_cpus=config.data.decoder_cpus,
                    runtime_env=environment,
                )
                .map_batches(
                    EmbedStage,
                    fn_constructor_args=(embedder.model, embedder, config.data, config.frames, file),
                    compute=ray.data.ActorPoolStrategy(min_size=1, max_size=embedder.replicas),
                    batch_size=1,
                    num_cpus=embedder.num_cpus,
                    num_gpus=embedder.num_gpus,
                    runtime_env=environment,
                )
            )
            for row in dataset.iter_rows():
                if row["status"] == "refused":
                    raise UserError(row["reason"])
                yield row | {"path": os.fsdecode(row["path"])}
    finally:
        ray.shutdown()


def _prepared(row: dict[str, Any], status: str) -> Prepared:
    known = row["status"] if row["status"] == "quarantined" else status
    frames, notes = int(row["frames"]), str(row["notes"]).splitlines()
    return Prepared(str(row["path"]), known, str(row["reason"]), float(frames), frames, int(row["bytes"]), notes)


class _Rate(ProgressColumn):
    """Videos and frames a second."""

    def render(self, task: Task) -> Text:
        elapsed = max(task.elapsed or 0.0, 1e-9)
        return Text(f"{task.completed / elapsed:.2f} videos/s  {task.fields['frames'] / elapsed:.0f} frames/s")


def _columns() -> tuple[ProgressColumn, ...]:
    return TextColumn("preparing"), MofNCompleteColumn(), BarColumn(), _Rate(), TimeRemainingColumn()


def _table(prepared: Iterable[Prepared], elapsed: float) -> Table:
    rows = list(prepared)
    counts = Counter(row.status for row in rows)
    hours = sum(row.seconds for row in rows) / 3600
    table = Table("", "videos", title=f"{len(rows)} videos in {elapsed:.1f} s", title_justify="left", box=None)
    for status in ("done", "cached", "quarantined"):
        table.add_row(status, str(counts[status]))
    for reason, count in Counter(row.reason for row in rows if row.reason).most_common():
        table.add_row(f"  [dim]{reason}[/dim]", f"[dim]{count}[/dim]")
    for note, count in Counter(note for row in rows for note in row.notes).most_common():
        table.add_row(note, str(count))
    table.add_row("hours of video", f"{hours:.2f}")
    table.add_row("cached frames", f"{sum(row.bytes for row in rows) / 2**20:.1f} MiB")
    return table


def write_summary(path: Path, prepared: Sequence[Prepared]) -> None:
    """Every video's fate as JSON: `{"videos": [{path, status, reason, seconds, frames, bytes, notes}]}`."""
    with writing(path):
        summary = json.dumps({"videos": [asdict(row) for row in prepared]}, indent=1, ensure_ascii=False)
        path.write_text(summary, errors="backslashreplace")  # as JSON writes names that are not UTF-8
