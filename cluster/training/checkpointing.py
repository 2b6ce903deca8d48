"""Checkpoints of a run: written beside its next steps, one at a time, and gone on from.

Invariants: the run is held up for the copy alone; a checkpoint holds the end of one step, networks, optimizers and state alike;
a disk that refuses one is named and costs that checkpoint, except the last one of a run, whose loss is an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from pathlib import Path

from rich.console import Console

from cluster.config import TrainConfig
from cluster.training.fleet import Fleet
from cluster.training.learners import Learners, publish
from cluster.training.run_state import RunState, read_state
from services.checkpoint_bucket import CheckpointBucket
from services.checkpoints import checkpoint_folder, checkpoints, seal, steps_to_keep
from services.errors import UserError


class Checkpoints:
    """The checkpoints of the run in `run_dir`."""

    def __init__(self, learners: Learners, config: TrainConfig, run_dir: Path, console: Console, step: int) -> None:
        """`step`: the one that the run goes on from, 0 when it starts."""
        self._learners, self._config, self._run_dir, self._console = learners.present, config, run_dir, console
        self._writing: asyncio.Task[None] | None = None
        self.newest = step
        """The step of the newest one that is whole or being written."""

    async def begin(self, state: RunState) -> None:
        """Copy networks and optimizers as they are, which is the end of the step of `state`; they are written while training
        goes on. Comes after what was begun before is done."""
        with contextlib.suppress(UserError):  # which was said
            await self.finish()
        nbytes = sum(await asyncio.gather(*[learner.snapshot() for learner in self._learners]))
        before, self.newest = self.newest, state.step
        self._writing = asyncio.create_task(self._write(state, nbytes, before))

    async def finish(self) -> None:
        """Wait for the last one. Raises UserError when it could not be written."""
        if self._writing:
            await self._writing

    async def abandon(self) -> None:
        """Wait for the last one, however it ends."""
        if self._writing:
            await asyncio.wait({self._writing})
            self._writing.exception()  # which nobody else asks for

    async def _write(self, state: RunState, nbytes: int, before: int) -> None:
        try:
            with checkpoint_folder(self._run_dir, state.step, nbytes) as partial:
                writes = [learner.write(str(partial)) for learner in self._learners]
                # All of them end before the folder of one that was refused is removed.
                for refused in filter(None, await asyncio.gather(*writes, return_exceptions=True)):
                    raise refused
                state.write(partial)
                await asyncio.to_thread(seal, partial)
            await asyncio.to_thread(self._settle, state.step)
        except UserError as error:
            self.newest = before
            self._console.print(f"the checkpoint of step {state.step} failed: {error}", soft_wrap=True, markup=False)
            raise

    def _settle(self, step: int) -> None:
        """Put the checkpoint of `step` into the bucket, if there is one, and remove those that are not to be kept."""
        known = checkpoints(self._run_dir)
        accuracies = {step: read_state(folder).accuracy for step, folder in known.items()}
        keep = steps_to_keep(accuracies, self._config.keep_last, self._config.keep_best)
        if self._config.checkpoint_bucket:
            bucket = CheckpointBucket(self._config.checkpoint_bucket, self._run_dir)
            bucket.put(known[step])
            bucket.keep(keep)
        for old in known.keys() - keep:
            shutil.rmtree(known[old])


async def restore(actors: Fleet, learners: Learners, checkpoint: Path | None, state: RunState) -> None:
    """Both learners become what they were at that checkpoint, or stay as they were loaded without one, and whoever acts with
    their weights gets these."""
    if checkpoint:
        await asyncio.gather(
            *[learner.restore(str(checkpoint), state.versions[learner.network]) for learner in learners.present]
        )
    await publish(learners, actors)
