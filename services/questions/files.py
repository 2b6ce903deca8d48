"""Rows of a file, whatever its form: parquet, a JSON list, or JSON lines.

Rows are counted from 1; of JSON lines, a row is a line of the file, and blank ones are passed over. A row that is no
object is given as the `WrongRow` it is; a file that cannot be read at all is a UserError. Text whose UTF-8 is broken costs
no other cell: parquet's is given as its bytes, and in JSON each wrong byte becomes half of a surrogate pair.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from services.errors import UserError
from services.questions.rows import Row, WrongRow

SUFFIXES = (".parquet", ".jsonl", ".json")


def check(path: Path) -> None:
    """Raises UserError for a file that is not there, or of a kind that is not read."""
    if not path.is_file():
        raise UserError(f"{path}: no such questions file")
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: unknown kind of questions file {path.suffix!r}; valid: {', '.join(SUFFIXES)}")


def first_row(path: Path) -> Row | None:
    """The first row that is an object; None when there is none."""
    return next((row for _, row in rows(path, None, batch_size=1) if isinstance(row, dict)), None)


def rows(path: Path, columns: Collection[str] | None, batch_size: int = 65536) -> Iterator[tuple[int, Row | WrongRow]]:
    """Number and content of every row; of parquet, only `columns` (None: all), `batch_size` rows at a time."""
    if path.suffix == ".parquet":
        yield from _parquet(path, columns, batch_size)
    elif path.suffix == ".json" and _first_byte(path) == b"[":
        yield from _json_list(path)
    else:
        yield from _json_lines(path)


def _parquet(path: Path, columns: Collection[str] | None, batch_size: int) -> Iterator[tuple[int, Row]]:
    try:
        with path.open("rb") as opened:  # pyarrow opens only names that are UTF-8
            file = pq.ParquetFile(opened)
            known = None if columns is None else [name for name in file.schema_arrow.names if name in columns]
            batches = file.iter_batches(batch_size, columns=known)
            yield from enumerate((row for batch in batches for row in _batch(batch)), start=1)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: of a column's name
        raise UserError(f"{path}: not a readable parquet file ({error})") from error


def _batch(batch: pa.RecordBatch) -> list[Row]:
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError):  # a cell that Python's types cannot say: cell by cell
        cells = {name: map(_cell, batch.column(name)) for name in batch.schema.names}
        return [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]


def _cell(cell: pa.Scalar) -> Any:
    """Its value; the bytes of text that is not UTF-8, also within lists and objects; else the cell as it is."""
    try:
        return cell.as_py()
    except (ValueError, OverflowError):
        if isinstance(cell, pa.StructScalar):
            return {name: _cell(value) for name, value in cell.items()}
        if isinstance(cell, pa.ListScalar | pa.LargeListScalar):
            return [_cell(value) for value in cell.values]
        if isinstance(cell, pa.DictionaryScalar):
            return _cell(cell.dictionary[cell.index.as_py()])
        if isinstance(cell, pa.StringScalar | pa.LargeStringScalar):
            return cell.as_buffer().to_pybytes()
        return cell


def _json_list(path: Path) -> Iterator[tuple[int, Row | WrongRow]]:
    try:
        values = _parsed(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    yield from ((number, _object(value)) for number, value in enumerate(values, start=1))


def _json_lines(path: Path) -> Iterator[tuple[int, Row | WrongRow]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield number, _object(_parsed(line))
                except (ValueError, RecursionError) as error:
                    yield number, WrongRow(f"not JSON ({error}); valid: one object a line")


def _parsed(content: bytes) -> Any:
    return json.loads(content.decode(json.detect_encoding(content), "surrogateescape"))


def _object(value: object) -> Row | WrongRow:
    if isinstance(value, dict):
        return value
    return WrongRow(f"{type(value).__name__} instead of an object with the fields")


def _first_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
