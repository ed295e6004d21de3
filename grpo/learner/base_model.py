"""Gets the model that a run starts from into a local folder: found, downloaded or built."""

import json
import random
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from transformers import PreTrainedTokenizerFast

from grpo.config.data import Choice, DataConfig
from grpo.config.model import BuildConfig, WarmStart
from grpo.config.recipe import Recipe
from grpo.console import Screen
from grpo.data import load_rows, render
from grpo.errors import UserError
from grpo.learner.build import build_model, build_tokenizer, save_pretrained
from grpo.learner.model_files import in_short
from grpo.learner.warmstart import Example, sample, warm_start
from grpo.learner.weight_files import listed_files
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


def is_whole(folder: Path) -> bool:
    """Whether everything is there: what somebody asked the hub's cache for may be a part."""
    try:
        check_model_folder(folder)
    except UserError:
        return False
    return all((folder / file).exists() for file in listed_files(folder))


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
        raise _not_downloaded(path, error) from error


def _not_downloaded(path: str, error: Exception) -> UserError:
    """The hub's own words say what only it knows: that a licence must be accepted, a token is
    missing, a name is another's."""
    mend = "Check the name and the network, or give the path of a local copy"
    if isinstance(error, GatedRepoError):
        mend = (
            f"Accept its terms at https://huggingface.co/{path}, then log in with `hf auth login` "
            "or set HF_TOKEN"
        )
    said = in_short(error)
    if (cause := error.__cause__) is not None and in_short(cause) not in said:
        said = f"{said} {in_short(cause)}"
    return UserError(
        f"model.path {path!r} is no local folder and could not be downloaded from the Hugging Face "
        f"hub. {mend}. The hub says ({type(error).__name__}): {said}"
    )


def at_hand(path: str) -> Path | None:
    """The model's folder without the network: a local one, or what the Hugging Face cache has of
    it; None where nothing is here."""
    if looks_local(path):
        return Path(path).expanduser()
    try:
        cached = try_to_load_from_cache(path, "config.json")
    except HFValidationError as error:
        raise _not_downloaded(path, error) from error
    return Path(cached).parent if isinstance(cached, str) else None


def prepare_model(recipe: Recipe, folder: Path, screen: Screen) -> str:
    """The local folder of the starting model; builds it into `folder` where the recipe says so and
    it is not there yet."""
    if recipe.model.path is not None:
        return local_model(recipe.model.path)
    assert recipe.model.build is not None
    if not (folder / BUILT).exists():
        _build(recipe.model.build, recipe, folder, screen)
    return str(folder.resolve())


def _build(config: BuildConfig, recipe: Recipe, folder: Path, screen: Screen) -> None:
    tokenizer = build_tokenizer(config)
    model = build_model(config, tokenizer, recipe.seed)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    screen.note(f"built a Qwen3 of {millions:.2f} M parameters, {config.layers} layers")
    facts: dict[str, Any] = {"parameters_m": millions, "seed": recipe.seed}
    if config.warm_start is not None:
        with screen.waiting("warm start of the new model"):
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
