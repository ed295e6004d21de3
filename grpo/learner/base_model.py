"""Gets the model that a run starts from into a local folder: found, downloaded or built."""

import json
import logging
import random
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from grpo.config.data import Choice, DataConfig
from grpo.config.model import BuildConfig, WarmStart
from grpo.config.recipe import Recipe
from grpo.console import Screen
from grpo.data import load_rows, render
from grpo.errors import UserError
from grpo.learner.build import build_model, build_tokenizer, save_pretrained
from grpo.learner.warmstart import Example, sample, warm_start
from grpo.verify import VERIFIERS

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
BUILT = "built.json"  # written last, so a folder that has it is whole


def check_model_folder(folder: Path) -> None:
    """Raises UserError naming what a model folder lacks."""
    lacking = []
    if not (folder / "config.json").is_file():
        lacking.append("config.json")
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        lacking.append(f"tokenizer ({', '.join(_TOKENIZER_FILES)})")
    if not any(any(folder.glob(pattern)) for pattern in _WEIGHT_FILES):
        lacking.append(f"weights ({', '.join(_WEIGHT_FILES)})")
    if lacking:
        raise UserError(
            f"model folder {folder} has no {' and no '.join(lacking)}: point model.path at a "
            "folder that save_pretrained wrote for both model and tokenizer"
        )


def looks_local(path: str) -> bool:
    """A Hugging Face name is `name` or `owner/name`; anything else names a folder."""
    return Path(path).exists() or path.startswith(("/", ".", "~")) or path.count("/") > 1


def local_model(path: str) -> str:
    """A folder with the model: `path` itself, or the downloaded Hugging Face repository."""
    if looks_local(path):
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise UserError(f"model.path {path!r}: no such folder")
        check_model_folder(folder)
        return str(folder.resolve())
    try:
        return snapshot_download(path)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"model.path {path!r} is no local folder and could not be downloaded from the "
            f"Hugging Face hub ({type(error).__name__}): check the name and the network, or give "
            "the path of a local copy"
        ) from error


def context_length(model: str) -> int:
    """The most tokens that prompt and answer together may have."""
    config: Any = AutoConfig.from_pretrained(model)
    return int(config.max_position_embeddings)


def without_memory(config: Any) -> Any:
    """A model of this configuration with names and shapes alone."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def buffers_to_load(model: str) -> list[str]:
    """What a checkpoint holds beside parameters, by name: routing biases of some mixtures of
    experts, say. The learner does not train it, and a weight update does not bring it."""
    whole = without_memory(AutoConfig.from_pretrained(model))
    return sorted(
        set(whole.state_dict()) - {n for n, _ in whole.named_parameters(remove_duplicate=False)}
    )


def prepare_model(recipe: Recipe, folder: Path, screen: Screen) -> str:
    """The local folder of the starting model; builds it into `folder` where the recipe says so and
    it is not there yet."""
    if recipe.model.path is not None:
        return local_model(recipe.model.path)
    assert recipe.model.build is not None
    if not (folder / BUILT).exists():
        _build(recipe.model.build, recipe, folder, screen)
    return str(folder.resolve())


def load_tokenizer(model: str) -> Any:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    return AutoTokenizer.from_pretrained(model)


def _build(config: BuildConfig, recipe: Recipe, folder: Path, screen: Screen) -> None:
    tokenizer = build_tokenizer(config)
    model = build_model(config, tokenizer, recipe.seed)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    screen.note(f"built a Qwen3 of {millions:.2f} M parameters, {config.layers} layers")
    facts: dict[str, Any] = {"parameters_m": millions, "seed": recipe.seed}
    if config.warm_start is not None:
        accuracy = _warm_start(model, tokenizer, config.warm_start, recipe, screen)
        facts["warm_start_accuracy"] = accuracy
    save_pretrained(model, tokenizer, folder)
    (folder / BUILT).write_text(json.dumps(facts))


def _warm_start(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    config: WarmStart,
    recipe: Recipe,
    screen: Screen,
) -> float:
    """Trains on the training rows' solutions; measures on rows of the held-out split."""
    examples = _examples(config.data, tokenizer)
    held_out = load_rows(_held_out(config.data, config.held_out))
    prompts = [render(row, config.data, tokenizer) for row in held_out]

    def accuracy() -> float:
        answers = sample(model, tokenizer, prompts, config.max_tokens)
        # Plain comparison: no answer of a model this young can keep it waiting.
        judge = VERIFIERS["exact"]
        right = [
            judge(text, row.answer).reward for text, row in zip(answers, held_out, strict=True)
        ]
        return sum(right) / len(right)

    def report(step: int, loss: float, reached: float) -> None:
        screen.note(f"warm start, step {step}: loss {loss:.3f}, held-out accuracy {reached:.2f}")

    return warm_start(model, examples, accuracy, config, recipe.seed, report)


def _examples(data: DataConfig, tokenizer: PreTrainedTokenizerFast) -> list[Example]:
    rows = [row for row in load_rows(data) if row.solution]
    if not rows:
        raise UserError(
            f"model.build.warm_start.data {data.name!r} has no worked solutions: use a generated "
            "task, or start from a trained model with model.path"
        )
    end: Any = [tokenizer.eos_token_id]
    return [
        (list(render(row, data, tokenizer)), _bare(row.solution, tokenizer) + end)
        for row in random.Random(0).sample(rows, len(rows))
    ]


def _bare(text: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Without a begin token: what goes on in the middle of a sequence."""
    ids: Any = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def _held_out(data: DataConfig, rows: int) -> DataConfig:
    assert data.task is not None, "rows with solutions come from a task"
    options = data.task.options | {"split": "heldout", "rows": rows}
    return data.model_copy(update={"task": Choice(name=data.task.name, **options)})
