"""All learner ranks as one."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo.fleet.cluster import Worker, gather
from grpo.learner.shards import num_deepspeed_ranks
from grpo.learner.usage import usage_metrics
from grpo.types import MicroBatch

_log = logging.getLogger(__name__)

# Sums over tokens, logged as means. Parts that are switched off report none.
_MEANS = {
    "entropy_sum": "learn/entropy",
    "kl_sum": "learn/kl_old_new",
    "kl_reference_sum": "learn/kl_reference",
    "clip_low_sum": "learn/clip_low_share",
    "clip_high_sum": "learn/clip_high_share",
    "mismatch_sum": "mismatch/mean_abs",
    "mismatch_kl_sum": "mismatch/kl",
    "correction_sum": "mismatch/correction",
}


class Learner:
    """Calls every rank in step; ZeRO-3 is collective, so no rank is ever called alone."""

    def __init__(self, workers: Sequence[Worker], timeout_s: float):
        self.workers = list(workers)
        self._timeout_s = timeout_s

    def load(self, minibatches: Sequence[Sequence[Sequence[MicroBatch]]]) -> None:
        """`minibatches[k][rank]`: the micro-batches of mini-batch k for each rank."""
        self._each("load", [(list(share),) for share in zip(*minibatches, strict=True)])

    def remember_logprobs(self) -> None:
        self.everywhere("remember_logprobs")

    def step(self, index: int, number: int) -> dict[str, float]:
        """One optimizer step. Returns metrics under their logged names."""
        ranks: list[dict[str, float]] = self.everywhere("step", index, number)
        tokens = sum(rank["tokens"] for rank in ranks)
        means = {
            name: sum(rank[key] for rank in ranks) / tokens
            for key, name in _MEANS.items()
            if key in ranks[0]
        }
        return means | {
            "learn/pg_loss": sum(rank["pg_loss_sum"] for rank in ranks),
            "learn/loss": sum(rank["loss_sum"] for rank in ranks),
            "learn/grad_norm": ranks[0]["grad_norm"],
            "learn/lr": ranks[0]["lr"],
            "learn/skipped": ranks[0]["skipped"],
            **usage_metrics(ranks),
        }

    def parts_of_loss(self, index: int) -> dict[int, float]:
        """What each sequence of mini-batch `index`, by its number in it, added to the policy's loss
        in the step that was just taken on it, or skipped."""
        shares: list[dict[int, float]] = self.everywhere("parts_of_loss", index)
        return {row: part for share in shares for row, part in share.items()}

    def answers_within(self, seconds: float) -> None:
        """Raises WorkerFault unless every rank is alive and has nothing else to do."""
        gather([worker.call("num_weight_bytes") for worker in self.workers], seconds)

    def num_not_finite(self) -> int:
        """How many of the weights that train are nan or infinite."""
        return sum(self.everywhere("num_not_finite"))

    def score(self, token_ids: list[int]) -> list[float]:
        return self.everywhere("score", token_ids)[0]

    def save(self, folder: Path) -> None:
        """Writes zero/, to resume from, and hf/, which transformers and vLLM load; where adapters
        train also adapter/, which peft loads. Raises WorkerFault as soon as one rank cannot write
        its part: no other waits for it."""
        folder = folder.resolve()  # ranks on other machines have a working directory of their own
        self.everywhere("save", folder / "zero")
        self.everywhere("export", folder / "hf")
        self.everywhere("export_adapter", folder / "adapter")

    def restore(self, folder: Path) -> None:
        """From a checkpoint of any number of ranks. Raises UserError where it does not fit."""
        folder = folder.resolve() / "zero"
        self.everywhere("restore", folder)
        if num_deepspeed_ranks(folder):
            _log.info(
                "%s is in an older form: it was read with as many ranks as wrote it; the next "
                "checkpoint can be read with any number",
                folder,
            )

    def everywhere(self, method: str, *args: Any) -> list[Any]:
        return self._each(method, [args] * len(self.workers))

    def _each(self, method: str, args: Sequence[tuple[Any, ...]]) -> list[Any]:
        calls = [w.call(method, *a) for w, a in zip(self.workers, args, strict=True)]
        return gather(calls, self._timeout_s, "learner.timeout_s")
