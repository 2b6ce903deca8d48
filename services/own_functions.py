"""A user's own function, named in the config as `path/to/file.py:function`.

Invariants: a file runs once in a process; whatever is wrong with it is said with the field, the file and the line.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from services.errors import UserError

OWN_FUNCTION = r".+\.py:\w+"
"""What names a user's own function."""

_own_files: set[str] = set()
"""The files that were loaded, as tracebacks name them."""


def own_function(field: str, reference: str, arguments: tuple[str, ...]) -> Callable[..., Any]:
    """The function that the config's `field` names by `reference`, which matches OWN_FUNCTION; relative files start here.

    Raises UserError for a file that is not there or fails, and a function that is missing or cannot take `arguments`.
    """
    file, _, name = reference.rpartition(":")
    module = _load(field, file)
    function = vars(module).get(name)
    if not callable(function):
        its = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == file]
        raise UserError(f"{field}: {file} has no function {name}; what it has: {', '.join(its)}")
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        raise UserError(f"{field}: {reference} must take {', '.join(arguments)}: {error}") from None
    return function


def absolute(name: str) -> str:
    """A user's own function, named so that any process finds it; any other name as it is."""
    if not re.fullmatch(OWN_FUNCTION, name):
        return name
    file, _, function = name.rpartition(":")
    return f"{Path(file).absolute()}:{function}"


@cache
def _load(field: str, file: str) -> ModuleType:
    """The module in a file, under the file's name: dataclasses look their module up."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"{field}: {file}: no such file, from {Path.cwd()}")
    spec = importlib.util.spec_from_file_location(file, path)
    assert spec is not None and spec.loader is not None and spec.origin is not None, "the config asks for .py"
    _own_files.add(spec.origin)
    sys.modules[file] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{field}: {file} cannot be loaded: {describe(error)}") from error
    return module


def describe(error: Exception) -> str:
    """Kind and message of an error, and the last line of a user's file that it came through, or else the one that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    place = ([frame for frame in frames if frame.filename in _own_files] or frames)[-1]
    return f"{type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
