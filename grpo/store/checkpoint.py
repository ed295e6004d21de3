"""What a run keeps on disk, written so that a kill at any moment leaves a state to resume from.

One rule everywhere: write under a hidden name, fsync, rename. A name without a dot is whole.
"""

import fcntl
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from grpo.config.recipe import Recipe
from grpo.errors import DiskFull, UserError
from grpo.store.disk import is_full
from grpo.store.files import fsync_path, read_json_lines, replacing
from grpo.store.whole import damage, write_sizes

# Keys that leave the run's arithmetic alone, or only say how far it goes: a resume may change them.
HARMLESS_KEYS = (
    "checkpoint",
    "disk",
    "eval",
    "heal",
    "health",
    "learner.micro_batch_tokens",
    "learner.offload_optimizer",
    "learner.offload_weights",
    "learner.ranks",
    "learner.shared_prefix",
    "learner.timeout_s",
    "logging",
    "model.checkpoint_every",
    "model.gradient_checkpointing",
    "output",
    "placement",
    "rollout.engine",
    "rollout.engines",
    "rollout.tensor_parallel",
    "rollout.timeout_s",
    "schedule.steps",
    "stop",
    "sync",
    "verifier.shadows",
    "verifier.timeout_s",
    "verifier.workers",
)
# Keys that change what later steps compute, and that a resume may change all the same: the run says
# so (`grpo.train.resume`).
TOLD_KEYS = ("schedule.max_staleness",)
STATE_FILE = "state.json"
# In a state's `extra`: optimizer steps in a row, up to it, whose gradients were not finite.
SKIPPED = "skipped_in_a_row"
# Likewise: the run ended with it since it had collapsed.
COLLAPSED = "collapsed"
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class TrainState:
    """Where the driver stands after `step`; whatever has to be JSON to survive.

    `cursor` is the data's place, `extra` holds the state of parts (anchor, RNG, in flight).
    Tuples come back as lists.
    """

    step: int
    policy_version: int
    cursor: dict[str, Any]
    tokens_seen: int
    extra: dict[str, Any]

    @property
    def is_healthy(self) -> bool:
        """Whether a run that has gone wrong may go back to it. Weights that are not finite are not
        saved at all."""
        return self.extra.get(SKIPPED, 0) == 0 and not self.extra.get(COLLAPSED, False)

    def save(self, folder: Path) -> None:
        """Call it last: a checkpoint counts as complete once this file is there."""
        with replacing(folder / STATE_FILE) as temporary:
            temporary.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "TrainState":
        path = folder / STATE_FILE
        mend = "The checkpoint is not complete: resume from another one with --resume DIR"
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{folder} holds no {STATE_FILE}. {mend}") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}). {mend}") from None
        kinds = {"step": int, "policy_version": int, "cursor": dict, "tokens_seen": int}
        kinds["extra"] = dict
        if not isinstance(stored, dict) or stored.keys() != kinds.keys():
            raise UserError(f"{path} should hold exactly {', '.join(kinds)}. {mend}")
        for key, kind in kinds.items():
            if not isinstance(stored[key], kind):
                raise UserError(f"{path}: {key} is {stored[key]!r}, not {kind.__name__}. {mend}")
        return cls(**stored)


class RunFolder:
    """The folder of one run. Only the holder of `lock()` may write into it."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.rollouts = self.path / "rollouts"
        self.evaluations = self.path / "eval"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.rollbacks = self.path / "rollbacks"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps every other run out of this folder; the kernel frees it when the process dies."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "a+b", buffering=0) as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                holder = handle.read().decode(errors="replace").strip() or "another process"
                raise UserError(
                    f"{self.path} is in use by {holder}: wait for it to end, "
                    "or give this run another name with name=OTHER"
                ) from None
            # A forked child shares the lock; one that outlives a killed driver would keep it.
            os.register_at_fork(after_in_child=handle.close)
            handle.truncate(0)
            handle.write(f"pid {os.getpid()} on {socket.gethostname()}\n".encode())
            yield

    def begin(self, resolved: dict[str, Any], facts: dict[str, Any]) -> None:
        """Writes the resolved recipe, and under `made_with` what it is run with."""
        self.path.mkdir(parents=True, exist_ok=True)
        content = _plain({**resolved, "made_with": facts})
        with replacing(self.recipe) as temporary:
            text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
            temporary.write_text(text, encoding="utf-8")

    def stored_recipe(self) -> dict[str, Any]:
        """The resolved recipe of the run as it was begun; {} where nothing was stored yet."""
        if not self.recipe.exists():
            return {}
        try:
            stored = yaml.safe_load(self.recipe.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise UserError(f"{self.recipe} is damaged ({error}): use another name=") from None
        if not isinstance(stored, dict):
            raise UserError(f"{self.recipe} is damaged (no mapping): use another name=")
        stored.pop("made_with", None)
        return _with_defaults(stored)

    def recipe_conflicts(self, resolved: dict[str, Any]) -> list[str]:
        """Lines `key: was X, now Y` for what may not change between a run and its resume.

        [] where nothing was stored yet.
        """
        stored = self.stored_recipe()
        if not stored:
            return []
        was, now = _flatten(stored), _flatten(_plain(resolved))
        return [
            f"{key}: was {_shown(was, key)}, now {_shown(now, key)}"
            for key in sorted(was.keys() | now.keys())
            if _shown(was, key) != _shown(now, key) and not _may_change(key)
        ]

    @contextmanager
    def write_checkpoint(
        self, step: int, keep: int, protected: Collection[int] = ()
    ) -> Iterator[Path]:
        """Yields a folder to fill, TrainState.save last; it becomes checkpoints/step_NNNNNN and
        `latest` when the block ends, and vanishes when the block raises. Of the steps up to this
        one, `keep` stay, and those that are `protected`. Raises DiskFull."""
        assert keep >= 1, f"keep is {keep}"
        name = f"step_{step:06d}"
        writing = self.checkpoints / f".writing_{name}"
        try:
            self._sweep()
            writing.mkdir(parents=True)
            yield writing
            self._publish(writing, name)
        except BaseException as error:
            full = self.checkpoints.exists() and is_full(error, self.checkpoints)
            written_bytes = _size_bytes(writing)
            shutil.rmtree(writing, ignore_errors=True)
            if full:
                raise self._disk_full_error(name, written_bytes, error) from error
            raise
        older = [(n, path) for n, path in self._steps() if n < step and _is_complete(path)]
        for number, path in older[: max(0, len(older) - (keep - 1))]:
            if number not in protected:
                self._discard(path)

    def checkpoint_steps(self) -> list[int]:
        """The steps that have a complete checkpoint, in order."""
        return [number for number, path in self._steps() if _is_complete(path)]

    def latest_checkpoint(self) -> Path | None:
        """Where `latest` points if that is complete, else the highest complete step; changes
        nothing, so it is safe beside a running trainer."""
        latest = self.checkpoints / "latest"
        if latest.is_symlink():
            target = self.checkpoints / os.readlink(latest)
            if _is_complete(target):
                return target
        # `.replaced_` is the only copy for the moment between two renames, see _publish.
        for _, path in reversed(self._steps(prefixes=(".replaced_", ""))):
            if _is_complete(path):
                return path
        return None

    def damaged_checkpoints(self) -> dict[Path, str]:
        """Those that no run can go on from, and why."""
        return {path: why for _, path in self._steps() if (why := _harm(path))}

    def latest_healthy(self, step: int) -> Path | None:
        """The highest complete step up to `step` from which a run that has gone wrong may go on."""
        for number, path in reversed(self._steps()):
            if number <= step and _is_complete(path) and TrainState.load(path).is_healthy:
                return path
        return None

    def rewind(self, step: int) -> Path | None:
        """The folder becomes what it was after `step`. What later steps wrote moves into a new
        folder below set_aside/, which is returned; None where there was nothing later.

        `latest` moves to this step where a checkpoint of it exists: a crash right after a resume
        from an earlier checkpoint must not resume from the abandoned later one.
        """
        if _is_complete(self.checkpoints / f"step_{step:06d}"):
            self._point_latest_to(f"step_{step:06d}")
        later = [
            path
            for folder in (self.rollouts, self.evaluations, self.checkpoints)
            for pattern in ("step_*", ".replaced_step_*")
            for path in folder.glob(pattern)
            if (number := re.search(r"step_(\d+)", path.name)) and int(number[1]) > step
        ]
        rows = read_json_lines(self.metrics) if self.metrics.exists() else []
        if not later and all(row["step"] <= step for row in rows):
            if rows:
                self._write_metrics(self.metrics, rows)  # without a half-written last line
            return None
        aside = self._new_aside(step)
        self._write_metrics(aside / self.metrics.name, [row for row in rows if row["step"] > step])
        for path in later:
            target = aside / path.relative_to(self.path)
            target.parent.mkdir(exist_ok=True)
            shutil.move(path, target)  # a folder of a run may be a link to another disk
        self._write_metrics(self.metrics, [row for row in rows if row["step"] <= step])
        return aside

    def _new_aside(self, step: int) -> Path:
        """An empty folder, named by the time and by the step that the run goes back to."""
        named = f"{time.strftime('%Y-%m-%dT%H%M%S')}_after_step_{step:06d}"
        folder, again = self.path / "set_aside" / named, 1
        while folder.exists():
            again += 1
            folder = folder.with_name(f"{named}_{again}")
        folder.mkdir(parents=True)
        return folder

    @staticmethod
    def _write_metrics(path: Path, rows: list[dict[str, Any]]) -> None:
        with replacing(path) as temporary:
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            temporary.write_text(lines, encoding="utf-8")

    def _steps(self, prefixes: tuple[str, ...] = ("",)) -> list[tuple[int, Path]]:
        found: list[tuple[int, Path]] = []
        for prefix in prefixes:
            for path in self.checkpoints.glob(f"{prefix}step_*"):
                number = re.fullmatch(re.escape(prefix) + r"step_(\d+)", path.name)
                if number and path.is_dir():
                    found.append((int(number[1]), path))
        return sorted(found, key=lambda pair: pair[0])  # stable: a whole name wins over .replaced_

    def _sweep(self) -> None:
        """Clears what a killed process left."""
        for pattern in (".writing_*", ".trash_*"):
            for path in self.checkpoints.glob(pattern):
                shutil.rmtree(path)
        for path in self.checkpoints.glob(".replaced_*"):
            original = path.with_name(path.name.removeprefix(".replaced_"))
            if original.exists():
                shutil.rmtree(path)
            else:
                path.rename(original)

    def _publish(self, writing: Path, name: str) -> None:
        write_sizes(writing)
        for folder, _, files in os.walk(writing):
            for file in files:
                fsync_path(Path(folder) / file)
            fsync_path(Path(folder))
        final = self.checkpoints / name
        replaced = self.checkpoints / f".replaced_{name}"
        if final.exists():
            final.rename(replaced)
        writing.rename(final)
        fsync_path(self.checkpoints)
        self._point_latest_to(name)
        if replaced.exists():
            shutil.rmtree(replaced)

    def _point_latest_to(self, name: str) -> None:
        temporary = self.checkpoints / ".latest.tmp"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(name)
        os.replace(temporary, self.checkpoints / "latest")
        fsync_path(self.checkpoints)

    def _discard(self, path: Path) -> None:
        # Renamed first: a half-deleted folder that still has its state.json would look complete.
        trash = path.with_name(f".trash_{path.name}")
        path.rename(trash)
        shutil.rmtree(trash)

    def _disk_full_error(self, name: str, written_bytes: int, error: BaseException) -> DiskFull:
        free_mib = shutil.disk_usage(self.checkpoints).free / _MIB
        last_good = self.latest_checkpoint()
        go_on = (
            f"The last good checkpoint is {last_good}: run the same command again and it goes on "
            "from there."
            if last_good
            else "There is no earlier checkpoint: the same command starts again from step 0."
        )
        return DiskFull(
            f"checkpoint {name}: the disk of {self.checkpoints} is full, over quota or read-only "
            f"({error}). {written_bytes / _MIB:.1f} MiB were written and removed again, "
            f"{free_mib:.1f} MiB are free now. Make room (checkpoint.keep=1 keeps fewer, "
            f"output=DIR puts runs on another disk). {go_on}"
        )


def run_folder(recipe: Recipe) -> Path:
    return Path(recipe.output) / recipe.name


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """The same after a trip through JSON: tuples become lists, as they come back from YAML."""
    return json.loads(json.dumps(value, default=str))


def _with_defaults(stored: dict[str, Any]) -> dict[str, Any]:
    """Keys that are younger than the run have their defaults in it, not "not set"."""
    try:
        return Recipe.model_validate(stored).model_dump(mode="json")
    except ValidationError:
        return stored  # a key has gone since: the comparison names it


def _flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, dict):
            flat |= _flatten(inner, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = inner
    return flat


def _shown(flat: dict[str, Any], key: str) -> str:
    return repr(flat[key]) if key in flat else "not set"


def _may_change(key: str) -> bool:
    return any(key == known or key.startswith(f"{known}.") for known in HARMLESS_KEYS + TOLD_KEYS)


def _is_complete(folder: Path) -> bool:
    return not _harm(folder)


def _harm(folder: Path) -> str:
    """What keeps a checkpoint from being resumed from; empty where nothing does."""
    try:
        TrainState.load(folder)
    except UserError:
        return f"{STATE_FILE} cannot be read"
    return damage(folder)


def _size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
