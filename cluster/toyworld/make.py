"""The toy world as a run's data and models: made once, in a process of its own, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from actors.config import PromptConfig
from cluster import toyworld
from cluster.config import Config
from cluster.toyworld import ToyWorld, make_toy_world, toy_world
from cluster.toyworld.config import ToyWorldConfig
from services.errors import UserError
from services.writing import writing


def make_world(config: Config) -> ToyWorld:
    """The config's toy world, made unless it is there."""
    assert config.toyworld is not None
    root = config.data.cache.absolute()
    world = toy_world(config.toyworld, root)
    return world if world.root.is_dir() else _apart(_make, config.toyworld, root)


def train_models(config: Config, folder: Path) -> None:
    """Write a CLIP and an MLLM for toy worlds into `folder`, from the world's seed.

    Raises UserError for prompts other than the default ones, which are what the MLLM learns to answer.
    """
    assert config.toyworld is not None
    for name in ("options_in_query_turn", "max_queries"):
        if (value := getattr(config.prompts, name)) != PromptConfig.model_fields[name].default:
            raise UserError(f"prompts.{name}: {value}, but toy models learn the default prompts; leave it out")
    _apart(_train, folder, config.toyworld.seed)


def _apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Called in a child process: neither pixels nor training stay in this one."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=_end_with_parent) as child:
        return child.submit(function, *arguments).result()


def _end_with_parent() -> None:
    """A child whose parent was killed does not work on."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _make(config: ToyWorldConfig, root: Path) -> ToyWorld:
    with _progress() as progress:
        return make_toy_world(config, root, progress)


def _train(folder: Path, seed: int) -> None:
    from cluster.toyworld.recipe import train_models

    with _progress() as progress, writing(folder):
        train_models(folder, seed, progress)


@contextmanager
def _progress() -> Iterator[toyworld.Progress]:
    """A bar for each part."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # ours is enough
    columns = (
        TextColumn("toy world:"), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:  # what was made goes to stdout
        tasks: dict[str, TaskID] = {}

        def progress(part: str, done: int, total: int) -> None:
            if part not in tasks:
                tasks[part] = bar.add_task(part, total=total)
            bar.update(tasks[part], completed=done)

        yield progress
