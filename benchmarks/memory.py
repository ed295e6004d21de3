"""The learner's peak memory on CPU, measured, beside what `grpo plan` predicts for it.

    .venv/bin/python benchmarks/memory.py                        # small shapes, a minute
    .venv/bin/python benchmarks/memory.py --qwen3-0.6b           # half an hour, 20 GB
    .venv/bin/python benchmarks/memory.py --lora 32              # adapters of that rank alone

A real LearnerRank under ZeRO-3 (gloo, one rank) with random weights takes two optimizer steps: a
short one, after which Adam's moments are there, and the one that is measured. Peaks are what the
process had resident at most, less what it had before the learner was built (libraries).
"""

import dataclasses
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import (
    QWEN3_06B,
    Row,
    Spread,
    command,
    made_up_batch,
    made_up_recipe,
    parser,
    peak_rss,
    report,
    start_peak,
)

GIB = 1 << 30
PROMPT = 128


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """A shape (changes to Qwen3-0.6B's) and the step that is measured: `sequences` of `length`
    packed tokens each, in one micro-batch. lora_rank: of adapters of all linear layers; 0: none."""

    changes: dict[str, Any]
    sequences: int
    length: int
    checkpointing: bool
    dtype: str = "float32"
    lora_rank: int = 0

    @property
    def learner(self) -> dict[str, Any]:
        """Keys of the recipe's section."""
        return {"lora": {"rank": self.lora_rank}} if self.lora_rank else {}

    @property
    def tokens(self) -> int:
        return self.sequences * self.length

    def config(self) -> Any:
        from transformers import Qwen3Config

        return Qwen3Config(**(QWEN3_06B | self.changes))


def save_model(case: Case, folder: Path) -> None:
    """Random weights in the case's shape."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(case.config(), dtype=getattr(torch, case.dtype))
    model.save_pretrained(folder)


def batch(case: Case, sequences: int, length: int) -> Any:
    """One mini-batch of one micro-batch."""
    from grpo.batch.cut import cut

    vocabulary = int(case.config().vocab_size)
    whole = made_up_batch(vocabulary, 1, sequences, PROMPT, length - PROMPT)
    (share,) = cut(whole, 1, sequences * length)
    assert len(share) == 1, f"{len(share)} micro-batches"
    return [share]


def spec(case: Case, model: Path) -> Any:
    from grpo.learner.spec import LearnerSpec

    recipe = made_up_recipe(
        model,
        dtype=case.dtype,
        gradient_checkpointing=case.checkpointing,
        warmup_steps=0,
        **case.learner,
    )
    return LearnerSpec(str(model), recipe, "gloo", bucket_bytes=256 << 20, threads=2)


def measure(sender: Any, case: Case, model: Path) -> None:
    """In a process of its own: bytes at rest and at the peak, above the libraries, and seconds."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    from grpo.fleet.cluster import hold_port
    from grpo.learner.rank import LearnerRank

    warm_up, measured = batch(case, 2, PROMPT + 2), batch(case, case.sequences, case.length)
    before = start_peak()
    held = hold_port()
    rank = LearnerRank(spec(case, model), 0, 1, "127.0.0.1", held.getsockname()[1])
    rank.load(warm_up)
    rank.step(0, 0)
    resident = start_peak() - before
    rank.load(measured)
    started = time.perf_counter()
    rank.step(0, 1)
    seconds = time.perf_counter() - started
    facts = {"libraries": before, "resident": resident, "peak": peak_rss() - before}
    masters = rank._engine.optimizer.fp32_partitioned_groups_flat
    facts["trained"] = sum(master.numel() for master in masters)
    sender.send(facts | {"seconds": seconds})
    os._exit(0)  # gloo's threads may outlive a normal exit


def measured(case: Case) -> dict[str, float]:
    # What is freed goes back to the system at once, so that the peak is of live tensors.
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        saving = context.Process(target=save_model, args=(case, Path(folder)))
        saving.start()
        saving.join()
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=measure, args=(sender, case, Path(folder)))
        process.start()
        sender.close()
        try:
            return receiver.recv()
        except EOFError:
            process.join()
            raise RuntimeError(f"the learner died with exit code {process.exitcode}") from None
        finally:
            process.join()


def setting(case: Case) -> Any:
    """What `grpo plan` goes by."""
    from grpo.config.recipe import LearnerConfig
    from grpo.learner.flops import ModelShape
    from grpo.learner.memory import LearnerSetting

    return LearnerSetting(
        shape=ModelShape.of(case.config()),
        dtype=case.dtype,
        device="cpu",
        ranks=1,
        tokens=case.tokens,
        targets=case.tokens - PROMPT * case.sequences,
        checkpoint_every=int(case.checkpointing),
        lora=LearnerConfig(**case.learner).lora,
    )


def predicted(case: Case) -> dict[str, float]:
    """Bytes of every phase."""
    from grpo.learner.memory import phases

    found = phases(setting(case))
    return {name: sum(parts.values()) for name, parts in found.items() if name != "sync"}


SMALL = [
    Case({"num_hidden_layers": 4, "vocab_size": 8192}, 8, 256, True),
    Case({"num_hidden_layers": 4, "vocab_size": 8192}, 8, 256, False),
    Case({"num_hidden_layers": 2, "vocab_size": 32_768}, 8, 512, True),
]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--qwen3-0.6b", action="store_true", dest="whole")
    options.add_argument("--sequences", type=int, default=32, help="of 512 tokens, for Qwen3-0.6B")
    options.add_argument("--lora", type=int, default=0, metavar="RANK", help="train adapters alone")
    asked = options.parse_args()
    cases = [Case({}, asked.sequences, 512, True)] if asked.whole else SMALL
    cases = [dataclasses.replace(case, lora_rank=asked.lora) for case in cases]
    rows: list[Row] = []
    results: list[dict[str, Any]] = []
    for case in cases:
        facts, phases = measured(case), predicted(case)
        if case.lora_rank and facts["trained"] > 1.05 * setting(case).trained:
            sys.exit(f"{facts['trained']:,} parameters were trained: not the adapters alone")
        fullest = max(phases, key=lambda name: phases[name])
        off = max(facts["peak"], phases[fullest]) / min(facts["peak"], phases[fullest])
        layers, vocabulary = case.config().num_hidden_layers, case.config().vocab_size
        rows.append(
            Row(
                f"learner's peak, {layers} layers, vocabulary {vocabulary:,}, "
                f"{case.tokens:,} tokens, checkpointing {'on' if case.checkpointing else 'off'}"
                f"{f', adapters of rank {case.lora_rank}' if case.lora_rank else ''}: "
                "measured beside the formula",
                f"{facts['peak'] / GIB:.2f} GiB",
                f"{phases[fullest] / GIB:.2f} GiB ({fullest})",
                Spread(off),
                "<= 1.15",
            )
        )
        results.append({"case": dataclasses.asdict(case), "measured": facts, "predicted": phases})
    report("memory", command(), {"cases": results}, rows, asked.json)


if __name__ == "__main__":
    main()
