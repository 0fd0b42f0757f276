"""A table of captions -> its rows: CSV or TSV with a header, JSON lines, or Parquet."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from navit_clip.errors import DataError

Row = dict[str, Any]


def read_rows(table: Path) -> Iterator[Row]:
    """The rows of a table, by its extension, each from column name to value.

    Raises:
        DataError: it is not there, has no known extension, or a row of it cannot be read; says which.
    """
    readers = {".csv": _csv, ".tsv": _csv, ".jsonl": _json_lines, ".parquet": _parquet}
    if table.suffix.lower() not in readers:
        raise DataError(f"{table}: expected a table called {', '.join(readers)}")
    try:
        yield from readers[table.suffix.lower()](table)
    except OSError as error:
        raise DataError(f"{table}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{table}: not UTF-8: {error}") from error


def _csv(table: Path) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    delimiter = "\t" if table.suffix.lower() == ".tsv" else ","
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(
                        f"{table}, line {reader.line_num}: expected {len(reader.fieldnames or ())} columns"
                    )
                yield row
        except csv.Error as error:
            raise DataError(f"{table}, line {reader.line_num}: {error}") from error


def _json_lines(table: Path) -> Iterator[Row]:
    with table.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{table}, line {number}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise DataError(f"{table}, line {number}: expected an object, found {type(row).__name__}")
            yield row


def _parquet(table: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DataError(f"{table}: Parquet needs pyarrow: pip install 'navit-clip[parquet]'") from None
    try:
        with parquet.ParquetFile(table) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except ArrowException as error:
        raise DataError(f"{table}: not readable as Parquet: {error}") from error
