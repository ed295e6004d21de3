"""What a step leaves behind to be read: numbers, metrics.jsonl, rollouts as parquet, wandb."""

import json
import math
import netrc
import os
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from grpo.algo.shaping import is_flat
from grpo.checkpoint import read_json_lines, replacing
from grpo.config.recipe import LoggingConfig
from grpo.errors import UserError
from grpo.types import ScoredGroup

# Nats a token between the weights that sampled and those that learn: with more the demo unlearns
# (docs/speed.md), with a fifth of it, it learns as on-policy.
FAR_POLICY = 0.03
ON_THE_MEAN = 1e-9  # a reward this close to its group's mean is neither above nor below

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
    ]
)


def short_reason(reason: str) -> str:
    """`verifier crashed: KeyError` counts as `verifier crashed`."""
    return reason.split(":", 1)[0].strip()


def group_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Rewards, lengths (tokens) and verdicts of a step's responses; {} without groups.

    Rewards are the verdicts' own; what shaping took is reward/penalty. Standard deviations divide
    by N. A flat group counts as all right where its reward is positive, as all wrong otherwise.
    length/positive_minus_negative compares answers above and below their own group's mean reward;
    nan where no group has both.
    """
    if not groups:
        return {}
    rewards_N = np.array([reward for group in groups for reward in group.accuracies], dtype=float)
    responses = [response for group in groups for response in group.group.responses]
    lengths_N = np.array([len(response.token_ids) for response in responses], dtype=float)
    reasons = Counter(
        short_reason(verdict.reason) for group in groups for verdict in group.verdicts
    )
    flat = [group.accuracies[0] for group in groups if is_flat(group.accuracies)]
    metrics = {
        "reward/mean": rewards_N.mean(),
        "reward/std": rewards_N.std(),
        "length/mean": lengths_N.mean(),
        "length/cv": lengths_N.std() / lengths_N.mean() if lengths_N.any() else math.nan,
        "length/max": lengths_N.max(),
        "length/positive_minus_negative": _positive_minus_negative(groups),
        "truncated/share": np.mean([r.finish_reason == "length" for r in responses]),
        "no_answer/share": reasons["no answer"] / len(responses),
        "groups/flat_share": len(flat) / len(groups),
        "groups/all_right_share": sum(reward > 0 for reward in flat) / len(groups),
        "groups/all_wrong_share": sum(reward <= 0 for reward in flat) / len(groups),
    }
    penalties = [penalty for group in groups for penalty in group.penalties]
    if penalties:
        metrics["reward/penalty"] = np.mean(penalties)
    for reason in sorted(reasons.keys()):
        metrics[f"verdict/{reason}/share"] = reasons[reason] / len(responses)
    return {name: float(value) for name, value in metrics.items()}


def staleness_metrics(used: Sequence[ScoredGroup], version: int) -> dict[str, float]:
    """How many weight updates lie between the tokens' weights and those that learn from them,
    which are `version`; {} without tokens. A token counts once whatever its weight."""
    responses = [response for group in used for response in group.group.responses]
    spans = [span for response in responses for span in response.versions if span.end > span.start]
    if not spans:
        return {}
    tokens = sum(span.end - span.start for span in spans)
    total = sum((version - span.version) * (span.end - span.start) for span in spans)
    return {
        "staleness/mean": total / tokens,
        "staleness/max": float(version - min(span.version for span in spans)),
    }


def drift_warning(step: int, metrics: Mapping[str, float]) -> str | None:
    """What to tell the user where stale answers come from too different a policy."""
    if not metrics.get("staleness/max") or metrics.get("mismatch/kl", 0.0) <= FAR_POLICY:
        return None
    return (
        f"step {step}: the weights that sampled are {metrics['mismatch/kl']:.2g} nats a token from "
        f"those that learn (mismatch/kl); above {FAR_POLICY} stale answers can mislead more than "
        "they teach. Lower learner.lr, or set schedule.max_staleness=0"
    )


def _positive_minus_negative(groups: Sequence[ScoredGroup]) -> float:
    above: list[int] = []
    below: list[int] = []
    for group in groups:
        if is_flat(group.accuracies):
            continue  # its rewards sit beside their mean by rounding alone
        mean = math.fsum(group.accuracies) / len(group.accuracies)
        for response, reward in zip(group.group.responses, group.accuracies, strict=True):
            if abs(reward - mean) > ON_THE_MEAN:
                (above if reward > mean else below).append(len(response.token_ids))
    if not above or not below:
        return math.nan
    return sum(above) / len(above) - sum(below) / len(below)


class MetricsLog:
    """metrics.jsonl: one line a step, on the disk when `log` returns."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _cut_half_line(path)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """nan and infinities, which JSON does not know, become null."""
        numbers = {name: _json_number(value) for name, value in metrics.items()}
        line = json.dumps({"step": step, "time": time.time(), **numbers}, allow_nan=False)
        with open(self.path, "ab", buffering=0) as file:
            file.write((line + "\n").encode())
            os.fsync(file.fileno())


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
    """Every response of a step, one row each, as step_000042.parquet; lengths in tokens."""
    rows: list[dict[str, Any]] = []
    for scored in groups:
        prompt = scored.group.prompt
        for index, response in enumerate(scored.group.responses):
            verdict = scored.verdicts[index]
            versions = [span.version for span in response.versions]
            rows.append(
                {
                    "step": step,
                    "serial": prompt.serial,
                    "row_id": _utf8(prompt.row_id),
                    "index": index,
                    "problem": _utf8(prompt.problem),
                    "answer": _utf8(prompt.answer),
                    "response": _utf8(response.text),
                    "reward": verdict.reward,
                    "penalty": scored.penalties[index] if scored.penalties else 0.0,
                    "parsed": _utf8(verdict.parsed),
                    "reason": _utf8(verdict.reason),
                    "advantage": scored.advantages[index] if scored.advantages else None,
                    "length": len(response.token_ids),
                    "finish_reason": response.finish_reason,
                    "policy_version_min": min(versions, default=None),
                    "policy_version_max": max(versions, default=None),
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


class NullBoard:
    """No board: takes everything, shows nothing."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def finish(self) -> None:
        pass


class WandbBoard:
    """One wandb run, its files under `folder`/wandb. A resume goes on with the same run."""

    def __init__(
        self,
        mode: Literal["online", "offline"],
        project: str,
        name: str,
        config: dict[str, Any],
        folder: Path,
    ):
        import wandb

        self.mode = mode
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            mode=mode,
            project=project,
            name=name,
            id=_board_id(folder / ".wandb_id"),
            resume="allow" if mode == "online" else None,  # offline, `wandb sync` joins by the id
            config=config,
            dir=folder,
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self) -> None:
        self._run.finish()


def _board_id(path: Path) -> str:
    if not path.exists():
        with replacing(path) as temporary:
            temporary.write_text(uuid.uuid4().hex[:12])
    return path.read_text().strip()


def _has_wandb_key() -> bool:
    """Whether WANDB_API_KEY or a netrc entry holds a key, the two places `wandb login` leaves one.

    wandb's own question changes from version to version and prints a warning in the newest.
    """
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    for file in (os.environ.get("NETRC", "~/.netrc"), "~/_netrc"):
        try:
            if netrc.netrc(Path(file).expanduser()).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue  # not there, or not for us to mend
    return False


def open_board(
    logging: LoggingConfig, name: str, config: dict[str, Any], folder: Path
) -> WandbBoard | NullBoard:
    """The board that `logging.wandb` asks for. auto: online where there is an API key and wandb's
    server answers, else offline."""
    if logging.wandb == "off":
        return NullBoard()
    import wandb

    mode = logging.wandb
    if mode == "auto":
        mode = "online" if _has_wandb_key() else "offline"
    mode = cast(Literal["online", "offline"], mode)
    try:
        return WandbBoard(mode, logging.wandb_project, name, config, folder)
    except wandb.Error as error:
        if mode == "online" and logging.wandb == "auto":
            return WandbBoard("offline", logging.wandb_project, name, config, folder)
        raise UserError(
            f"logging.wandb is {logging.wandb!r} but wandb does not start ({error}): "
            "log in with `wandb login`, or use logging.wandb=offline or off"
        ) from error
