"""The toy world as a run's data and models: made once, in a process of its own, with a progress bar."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from actors.prompts import answer_messages, query_messages
from cluster.config import Config
from services.config import ToyWorldConfig
from services.toyworld import ToyWorld, make_toy_world


def make_world(config: Config) -> ToyWorld:
    """The config's toy world. It is made in a child process: neither pixels nor its training stay in this one."""
    assert config.toyworld is not None
    query_prompt = partial(
        query_messages, show_options=config.prompts.options_in_query_turn, max_queries=config.prompts.max_queries
    )
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as child:
        return child.submit(_make, config.toyworld, config.data.cache.absolute(), query_prompt).result()


def _make(config: ToyWorldConfig, root: Path, query_prompt: partial[list[dict[str, object]]]) -> ToyWorld:
    from transformers.utils import logging

    logging.disable_progress_bar()  # ours is enough
    columns = (TextColumn("toy world:"), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns) as bar:
        tasks: dict[str, TaskID] = {}

        def progress(part: str, done: int, total: int) -> None:
            if part not in tasks:
                tasks[part] = bar.add_task(part, total=total)
            bar.update(tasks[part], completed=done)

        return make_toy_world(config, root, query_prompt, answer_messages, progress=progress)
