"""TRL's side of trl_step.py, run by the Python of TRL's own environment.

    PYTHONPATH=. TRL_ENVIRONMENT/bin/python benchmarks/trl_rival.py SETTINGS.json

SETTINGS.json is what trl_step.py writes: the model folder, the prompts in order, the numbers of the
recipe and the socket over which it says whose turn it is. Every generation batch waits for a
message, and is answered with what it took once its last optimizer step is done.
"""

import json
import os
import sys
import time
from importlib.metadata import version
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from grpo.verify import VERIFIERS


class Turns(TrainerCallback):
    """Holds training back until the other side has had its turn."""

    def __init__(self, line: Any, judge: "Judge", steps_of_a_batch: int) -> None:
        self._line = line
        self._judge = judge
        self._steps = steps_of_a_batch
        self._began = 0.0

    def on_step_begin(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        if state.global_step % self._steps == 0:  # the next call samples
            self._line.recv()
            self._began = time.perf_counter()

    def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        if state.global_step % self._steps == 0:
            self._line.send(self._judge.last | {"seconds": time.perf_counter() - self._began})


class Judge:
    """The trainer's verifier as a reward function, which also keeps what it last saw."""

    __name__ = "judge"  # TRL logs a reward function under its name

    def __init__(self, verifier: str) -> None:
        self._verifier = VERIFIERS[verifier]
        self.last: dict[str, float] = {}

    def __call__(
        self, prompts: Any, completions: Any, completion_ids: Any, answer: Any, **_: Any
    ) -> list[float]:
        started = time.perf_counter()
        rewards = [
            self._verifier(text, gold).reward
            for text, gold in zip(completions, answer, strict=True)
        ]
        self.last = {
            "reward": sum(rewards) / len(rewards),
            "length": sum(map(len, completion_ids)) / len(completion_ids),
            "verify_s": time.perf_counter() - started,
        }
        return rewards


def configuration(settings: dict[str, Any]) -> GRPOConfig:
    """The recipe's numbers under TRL's names. Both sides take `minibatches` optimizer steps for
    every generation batch, at the same rate, with the same clipping, without KL."""
    groups, siblings, minibatches = (
        settings[key] for key in ("prompts", "group_size", "minibatches")
    )
    step_samples = groups * siblings // minibatches
    return GRPOConfig(
        output_dir=settings["out"],
        use_cpu=True,
        bf16=False,
        seed=settings["seed"],
        per_device_train_batch_size=settings["per_device"],
        gradient_accumulation_steps=step_samples // settings["per_device"],
        generation_batch_size=groups * siblings,
        num_generations=siblings,
        max_completion_length=settings["max_tokens"],
        temperature=1.0,
        max_steps=settings["steps"] * minibatches,
        learning_rate=settings["lr"],
        lr_scheduler_type="linear",
        warmup_steps=settings["warmup_steps"],
        weight_decay=settings["weight_decay"],
        adam_beta1=settings["betas"][0],
        adam_beta2=settings["betas"][1],
        adam_epsilon=settings["eps"],
        max_grad_norm=settings["grad_clip"],
        epsilon=settings["clip_low"],
        epsilon_high=settings["clip_high"],
        beta=0.0,
        loss_type="dapo",
        scale_rewards="group",
        gradient_checkpointing=False,
        shuffle_dataset=False,
        use_transformers_continuous_batching=settings["continuous_batching"],
        logging_steps=10**6,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def main(settings: dict[str, Any]) -> None:
    torch.set_num_threads(settings["threads"])
    rows = [json.loads(line) for line in Path(settings["data"]).read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    for row in rows[:64]:
        ids = tokenizer(row["prompt"]).input_ids
        assert ids == row["token_ids"], f"{row['prompt']!r}: {ids}, not {row['token_ids']}"
    judge = Judge(settings["verifier"])
    line = Client(settings["socket"])
    trainer = GRPOTrainer(
        model=settings["model"],
        reward_funcs=judge,
        args=configuration(settings),
        train_dataset=Dataset.from_list(
            [{"prompt": row["prompt"], "answer": row["answer"]} for row in rows]
        ),
        processing_class=tokenizer,
        callbacks=[Turns(line, judge, settings["minibatches"])],
    )
    packages = ("trl", "torch", "transformers", "accelerate", "datasets")
    line.send({name: version(name) for name in packages})
    trainer.train()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
