"""Question files with odd cells: rows of every form, random parts of which are replaced by what does not belong there, as
JSON, JSON lines or parquet, give questions that can be written and read again, or a reason; never a traceback or a hang."""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from services.errors import UserError
from services.questions import read_questions, scan_questions, write_questions
from tests.services.question_files import DATA, rows_of

TRAINING = [
    {"id": str(number), "video": "v.mp4", "question": "What?", "options": ["red", "blue", "3"], "answer": "ABC"[number],
     "pass_rate": 0.5, "pass_rate_samples": 8, "pass_rate_model": "m", "data_source": "d", "group": ["g"],
     "subtitles": "s.srt", "subtitle_offset": 1.5, "moments": [[[1.0, 2.5], [7.0, 9.0]], [[3.0, 3.0]]],
     "wanted_queries": ["a cat"]}
    for number in range(3)
]  # fmt: skip
SOURCES = {path.name: rows_of(path.name)[:4] for path in sorted(DATA.glob("*.json*"))} | {"training.jsonl": TRAINING}
"""Rows of every form."""
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 2**40, 10**30, 10**400, 0.5, 1.0, float("nan"), float("inf"), 1e300, "", " ", "\n", "A",
    "B.", "3", "\ud83d", "\udce9", "x\0y", "<answer></answer>", "\\boxed{}", "What?\nA. x\nC. y", "（A）x （B）y", "**A" * 99,
    "(A)" * 999, "*" * 5000, "/" * 5000, "file://", "file://%", "a" * 5000, "..", "~", "\u202e\x1b[2J", [], [[]], [None], [1],
    ["A. x"], ["x", "x"], ["\ud83d", ""], ["x"] * 27, {}, {"video": None}, {"": ""}, {"role": "user"}, [{}], [{"text": 1}],
    [{"role": "user", "content": [{"text": ["x"]}, 7]}], b"", b"caf\xe9", b"\0",
)  # fmt: skip
"""Cells of no form: numbers, text, bytes, nested and empty."""


SLOWEST = 20.0
"""Seconds after which a file of four rows hangs."""


def fuzz_questions(folder: Path) -> Callable[[np.random.Generator], str]:
    """A function that plays one round: what becomes of one file; begins with `FAULT` when it is neither questions nor a
    reason."""
    return partial(_play, folder)


def _play(folder: Path, rng: np.random.Generator) -> str:
    name, rows = list(SOURCES.items())[rng.integers(len(SOURCES))]
    rows = copy.deepcopy(rows)
    for _ in range(rng.integers(1, 5)):
        _spoil(rows[rng.integers(len(rows))], rng)
    suffix = ("json", "jsonl", "parquet")[rng.integers(3)]
    path = _WRITERS[suffix](folder / f"x.{suffix}", rows, rng)
    start = time.monotonic()
    try:
        outcome = f"{name}: {_read(path)}"
    except UserError as error:
        printable = re.search("[\n\ud800-\udfff]", str(error)) is None
        outcome = f"{name}: a reason" if printable else f"FAULT {name}.{suffix}: {error!r}"
    except Exception as error:
        outcome = f"FAULT {name}.{suffix}: {error!r}"
    return f"FAULT {name}.{suffix}: hangs" if time.monotonic() - start > SLOWEST else outcome


def _read(path: Path) -> str:
    """Read it strictly and not, and write what was read, which must be read again as it was."""
    found = scan_questions(path)
    for refused in found.refused:
        str(refused).encode()
    questions = read_questions(path)
    if questions != list(found.questions):
        raise ValueError("read_questions and scan_questions differ")
    for suffix in ("jsonl", "parquet"):
        again = path.with_name(f"again.{suffix}")
        write_questions(questions, again)
        if read_questions(again) != questions:
            raise ValueError(f"written as {suffix}, they are others")
    return "questions"


def _spoil(row: Any, rng: np.random.Generator) -> None:
    """Replace, take out or nest one part of a row, however deep."""
    places = list(_places(row))
    holder, key = places[rng.integers(len(places))]
    odd = copy.deepcopy(ODD[rng.integers(len(ODD))])
    match rng.integers(6):
        case 0:
            del holder[key]
        case 1:
            holder[key] = [holder[key], odd]
        case 2 if isinstance(holder[key], str) and isinstance(odd, str):
            holder[key] += odd
        case _:
            holder[key] = odd


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every holder and key within a value."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def _json(path: Path, rows: list[Any], rng: np.random.Generator) -> Path:
    """JSON, or JSON lines; bytes in it are Latin-1, and one time in eight a byte is another."""
    ascii = bool(rng.integers(2))
    said = [json.dumps(row, ensure_ascii=ascii, default=lambda raw: raw.decode("latin-1")) for row in rows]
    content = "[" + ",".join(said) + "]" if path.suffix == ".json" else "\n".join(said)
    written = bytearray(content.encode("latin-1" if rng.integers(4) == 0 else "utf-8", "backslashreplace"))
    if rng.integers(8) == 0:
        written[rng.integers(len(written))] = rng.integers(256)
    path.write_bytes(written)
    return path


def _parquet(path: Path, rows: list[Any], rng: np.random.Generator) -> Path:
    """Parquet, of the columns whose cells go together; text is sometimes broken in the file."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {}
    for name in names:
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
            pq.write_table(
                pa.table({name: columns[name]}), pa.BufferOutputStream()
            )  # parquet refuses some of Arrow's types
        except (pa.ArrowException, ValueError, OverflowError, TypeError):
            texts = [None if row.get(name) is None else repr(row[name]) for row in rows]
            columns[name] = pa.array(texts)
    pq.write_table(pa.table(columns), path, compression="none", use_dictionary=False, write_statistics=False)
    if rng.integers(2):
        content = path.read_bytes()
        path.write_bytes(content.replace((b"re", b"A.", b"mp4", b"at")[rng.integers(4)][:2], b"\xe9\xff", 3))
    return path


_WRITERS: dict[str, Callable[[Path, list[Any], np.random.Generator], Path]] = {
    "json": _json,
    "jsonl": _json,
    "parquet": _parquet,
}
