"""Reading measurements: a CSV row becomes a ``Row``, or an error that names file, line and column.

The columns are those of a published table: what ran where (source, model, params_b, hardware, n_devices, tp, pp,
precision, engine, version), the load (batch_or_concurrency, input_len, output_len), what was measured (metric, value,
unit) and a note. Sources say part of what matters only in the note (attention data parallelism, expert parallelism,
disaggregation, latency limits): ``Row`` reads that too.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenmill.core.errors import ConfigError

COLUMNS = (
    "source", "model", "params_b", "hardware", "n_devices", "tp", "pp", "precision", "engine", "version",
    "batch_or_concurrency", "input_len", "output_len", "metric", "value", "unit", "note",
)  # fmt: skip

_AGG = re.compile(r"attn_dp=(\d+), moe_tp=(\d+), moe_ep=(\d+)")
_DISAGG = re.compile(r"P: (\d+)x\(tp(\d+),dp(\d+),ep(\d+)\) D: (\d+)x\(tp(\d+),dp(\d+),ep(\d+)\)")
_MEASURED = re.compile(r"measured (\d{4}-\d{2})")
_LIMITS = re.compile(r"p99 TTFT<=(\d+) TPOT<=(\d+)ms")


@dataclass(frozen=True, slots=True)
class Pool:
    """Workers of one kind: how many, and the parallel layout of each. 0 workers: the row does not say."""

    workers: int
    tp: int
    dp: int
    ep: int


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement, as written. ``load`` is a batch size, a concurrency or a word (``max``, ``offline`` …)."""

    index: int
    line: int
    source: str
    model: str
    hardware: str
    devices: int | None
    tp: int | None
    pp: int | None
    precision: str
    engine: str
    version: str
    load: str
    input_len: float | None
    output_len: float | None
    metric: str
    value: float
    unit: str
    note: str

    @property
    def batch(self) -> float | None:
        """``load`` as a number, if it is one."""
        try:
            value = float(self.load)
        except ValueError:
            return None
        return value if math.isfinite(value) else None

    @property
    def group(self) -> tuple[str, ...]:
        """Rows of one group are calibrated on, or reported on, together."""
        return (self.model, self.hardware, str(self.tp), str(self.pp), self.engine, self.version)

    @property
    def release(self) -> str:
        """The engine's version; where the row has none, the month in which it was measured."""
        if self.version.lower() not in ("", "nan"):
            return self.version
        found = _MEASURED.search(self.note)
        return found[1] if found else ""

    @property
    def campaign(self) -> str:
        """Whose series of measurements it belongs to, as the note shows: its first word after the layout."""
        if "attn_dp" not in self.note and "P: " not in self.note:
            return ""
        part = self.note.split(";")[2 if self.note.startswith(("agg", "disagg")) else 1].strip()
        return re.split(r"[=:/]", part)[0]

    @property
    def flagged(self) -> bool:
        """Whoever collected the row doubts it, and says so in the note."""
        return "FLAG" in self.note

    @property
    def attention_dp(self) -> int:
        found = _AGG.search(self.note)
        return int(found[1]) if found else 1

    @property
    def expert_parallel(self) -> tuple[int, int] | None:
        """(moe_tp, moe_ep), where the note gives them."""
        found = _AGG.search(self.note)
        return (int(found[2]), int(found[3])) if found else None

    @property
    def pools(self) -> tuple[Pool, Pool] | None:
        """Prefill and decode workers of a disaggregated deployment."""
        found = _DISAGG.search(self.note)
        if not found:
            return None
        numbers = [int(text) for text in found.groups()]
        return Pool(*numbers[:4]), Pool(*numbers[4:])

    @property
    def limits_s(self) -> tuple[float, float] | None:
        """(TTFT, TPOT) that 99 % of requests must keep, in seconds."""
        found = _LIMITS.search(self.note)
        return (int(found[1]) / 1e3, int(found[2]) / 1e3) if found else None


def read_rows(path: Path, first: int = 0) -> Iterator[Row]:
    """The rows of a file, numbered from ``first``. ``ConfigError`` names file, line and column of what is wrong."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            missing = [column for column in COLUMNS if column not in header]
            if missing:
                raise ConfigError(f"{path}: line 1: missing column {', '.join(missing)}")
            places = [header.index(column) for column in COLUMNS]
            for index, cells in enumerate(reader, first):
                if len(cells) != len(header):
                    raise ConfigError(
                        f"{path}: line {reader.line_num}: {len(cells)} cells where the header has {len(header)}"
                    )
                yield _row(path, reader.line_num, index, dict(zip(COLUMNS, (cells[i] for i in places), strict=True)))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from error
    except csv.Error as error:
        raise ConfigError(f"{path}: line {reader.line_num}: not CSV: {error}; a header and rows are wanted") from error


def _row(path: Path, line: int, index: int, cells: dict[str, str]) -> Row:
    def fail(column: str, problem: str) -> ConfigError:
        return ConfigError(f"{path}: line {line}: column {column}: {problem}")

    def number(column: str) -> float | None:
        text = cells[column].strip()
        if text in ("", "nan", "NaN"):
            return None
        try:
            value = float(text)
        except ValueError:
            raise fail(column, f"{text!r} is not a number") from None
        if not math.isfinite(value) or value < 0:
            raise fail(column, f"{text!r} is not a finite number of at least 0")
        return value

    def count(column: str) -> int | None:
        value = number(column)
        if value is None:
            return None
        if value != int(value) or value < 1:
            raise fail(column, f"{cells[column]!r} is not a whole number of at least 1")
        return int(value)

    value = number("value")
    if value is None or value == 0:
        raise fail("value", f"{cells['value']!r} is not a positive number")
    for column in ("model", "hardware", "metric", "unit"):
        if not cells[column].strip():
            raise fail(column, "empty")
    text = {column: cells[column].strip() for column in COLUMNS}
    return Row(
        index, line, text["source"], text["model"], text["hardware"], count("n_devices"), count("tp"), count("pp"),
        text["precision"], text["engine"], text["version"], text["batch_or_concurrency"], number("input_len"),
        number("output_len"), text["metric"], value, text["unit"], text["note"],
    )  # fmt: skip
