"""One call of an actor, awaited with a deadline: of the method that is passed, so that a reader can follow it.

Pools and groups (`actors/pool.py`, `learners/group.py`) let a type checker compare arguments and result with the method's.

Invariants: a call ends in its result, in an error that was meant for a person as it was raised (`UserError`, `VideoError`,
`TrainingError`, an OSError that names its file), in a TrainingError that names the actor, the call, the cause and the
actor's log (`ActorLost` when the actor died, `Overdue` past the deadline), or, for a fault of ours, in the remote traceback
with these as a note. The actor is told of a call that nobody waits for any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

import ray
import torch
from ray.actor import ActorHandle

from services.errors import ActorLost, Overdue, TrainingError, UserError, VideoError

FOR_A_PERSON = (UserError, VideoError, TrainingError)
CIRCUMSTANCES = (TimeoutError, ConnectionError, MemoryError, torch.OutOfMemoryError, ray.exceptions.RayError)
"""Errors that a machine or a neighbour causes, whose type and message say enough without a traceback."""


Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Actor = TypeVar("Actor")
Method = Callable[Concatenate[Actor, Parameters], Result]
"""A method of an actor's class, as `EmbedderActor.similarity`: it goes over the wire, and into errors, by its name."""
AsyncMethod = Method[Actor, Parameters, Coroutine[Any, Any, Result]]
"""An async one; its caller too gets the result."""
Call = Callable[[ActorHandle, str, float], Awaitable[Any]]
"""`call` or `run` with all but actor, name and deadline."""


async def call(
    actor: ActorHandle, name: str, deadline: float, method: Callable[..., Any], /, *arguments: Any, **named: Any
) -> Any:
    """The result of the actor's `method`, within `deadline` seconds. `name`: what the actor is called in errors."""
    reference: Any = getattr(actor, method.__name__).remote(*arguments, **named)
    return await _result(actor, f"{name}: {method.__name__}", reference, deadline)


async def run(
    actor: ActorHandle, name: str, deadline: float, function: Callable[..., Any], /, *arguments: Any, **named: Any
) -> Any:
    """The result of `function(actor's object, *arguments)`, run in the actor's process; else as `call`."""
    reference: Any = actor.__ray_call__.remote(function, *arguments, **named)
    return await _result(actor, f"{name}: {function.__name__}", reference, deadline)


async def _result(actor: ActorHandle, where: str, reference: Any, deadline: float) -> Any:
    try:
        return await asyncio.wait_for(reference, deadline)
    except asyncio.CancelledError:
        _abandon(reference)
        raise
    except ray.exceptions.RayTaskError as error:  # before TimeoutError: the actor's own arrives as both
        cause = raised(error)
        if isinstance(cause, FOR_A_PERSON) or (isinstance(cause, OSError) and cause.filename is not None):
            raise cause from None
        if isinstance(cause, CIRCUMSTANCES):
            raise TrainingError(f"{where}: {type(cause).__name__}: {cause}; {log_of(actor)}") from None
        error.add_note(f"{where}; {log_of(actor)}")
        raise
    except ray.exceptions.RayActorError as error:
        raise ActorLost(f"{where}: the actor died: {said(error)}; {log_of(actor)}") from None
    except ray.exceptions.RayError as error:
        raise TrainingError(f"{where}: {type(error).__name__}: {error}; {log_of(actor)}") from None
    except TimeoutError:
        _abandon(reference)
        raise Overdue(f"{where} was not done within {deadline:g} s; {log_of(actor)}") from None


def _abandon(reference: Any) -> None:
    """Tell the actor that nobody waits for the call any more, unless the cluster itself has been stopped."""
    if ray.is_initialized():
        ray.cancel(reference)


def said(error: ray.exceptions.RayActorError) -> str:
    """What Ray says about the end of an actor, without what it supposes."""
    return str(error).rpartition("\n")[2].partition(" Some common causes")[0]


def raised(error: BaseException) -> BaseException:
    """What was raised where the error began: the innermost of the task errors that Ray wrapped around it."""
    while isinstance(error, ray.exceptions.RayTaskError) and error.cause is not None:
        error = error.cause
    return error


def log_of(actor: ActorHandle) -> str:
    """The place of the actor's log: file and node."""
    known = ray._private.state.actors(actor._actor_id.hex())
    node: Any = ray._private.worker.global_worker.node
    log = f"{node.get_logs_dir_path()}/worker-*-{known['Pid']}.err"
    return f"its log is {log} on {known['Address']['IPAddress']}"
