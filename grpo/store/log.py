"""A run's numbers and answers on disk: metrics.jsonl, rollouts as parquet."""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from grpo.store.files import read_json_lines, replacing
from grpo.types import ScoredGroup

_SHADOW = pa.struct([("name", pa.string()), ("reward", pa.float64()), ("reason", pa.string())])
_ROLLOUT_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("serial", pa.int64()),
        ("row_id", pa.string()),
        ("index", pa.int32()),
        ("problem", pa.string()),
        ("answer", pa.string()),
        ("response", pa.string()),
        ("reward", pa.float64()),
        ("penalty", pa.float64()),
        ("parsed", pa.string()),
        ("reason", pa.string()),
        ("advantage", pa.float64()),
        ("length", pa.int32()),
        ("finish_reason", pa.string()),
        ("policy_version_min", pa.int64()),
        ("policy_version_max", pa.int64()),
        ("shadows", pa.list_(_SHADOW)),
    ]
)


class MetricsLog:
    """metrics.jsonl: one line a step, on the disk when `log` returns."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _cut_half_line(path)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """nan and infinities, which JSON does not know, become null. Where the disk has no room for
        the whole line, nothing of it stays: OSError."""
        numbers = {name: _json_number(value) for name, value in metrics.items()}
        line = json.dumps({"step": step, "time": time.time(), **numbers}, allow_nan=False)
        left = (line + "\n").encode()
        with open(self.path, "ab", buffering=0) as file:
            whole = os.fstat(file.fileno()).st_size
            try:
                while left:  # on a disk that is nearly full a write takes what fits, without a word
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), whole)
                raise


def _json_number(value: float) -> float | int | None:
    if isinstance(value, int):
        return value
    number = float(value)  # numpy's and torch's scalars too
    return number if math.isfinite(number) else None


def _cut_half_line(path: Path) -> None:
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a metrics.jsonl in order; [] where there is none; a half last line is left
    out."""
    return read_json_lines(path)


def write_rollouts(folder: Path, step: int, groups: Sequence[ScoredGroup]) -> Path:
    """Every response of a step, one row each, as step_000042.parquet; lengths in tokens.
    `shadows`: one entry for each shadow verifier that judged the response in time."""
    rows: list[dict[str, Any]] = []
    for scored in groups:
        prompt = scored.group.prompt
        advantages_known = [c and bool(scored.advantages) for c in scored.counted]
        for index, response in enumerate(scored.group.responses):
            verdict = scored.verdicts[index]
            versions = [span.version for span in response.versions]
            rows.append(
                {
                    "step": step,
                    "serial": prompt.serial,
                    "row_id": _utf8(prompt.row.id),
                    "index": index,
                    "problem": _utf8(prompt.row.problem),
                    "answer": _utf8(prompt.row.answer),
                    "response": _utf8(response.text),
                    "reward": verdict.reward,
                    "penalty": scored.penalties[index] if scored.penalties else 0.0,
                    "parsed": _utf8(verdict.parsed),
                    "reason": _utf8(verdict.reason),
                    "advantage": scored.advantages[index] if advantages_known[index] else None,
                    "length": len(response.token_ids),
                    "finish_reason": response.finish_reason,
                    "policy_version_min": min(versions, default=None),
                    "policy_version_max": max(versions, default=None),
                    "shadows": [
                        {"name": name, "reward": said.reward, "reason": _utf8(said.reason)}
                        for name, said in (scored.shadows[index] if scored.shadows else {}).items()
                    ],
                }
            )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:06d}.parquet"
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=_ROLLOUT_SCHEMA), temporary)
    return path


def _utf8(text: str) -> str:
    # Arrow refuses lone surrogates, and a strange answer must not end a run.
    return text.encode("utf-8", "replace").decode("utf-8")
