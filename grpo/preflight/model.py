"""The starting model, looked at before anything is started: whatever would end the run later on."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from grpo.config.recipe import Recipe
from grpo.data.stream import check_prompts
from grpo.errors import UserError
from grpo.eval.check import check_fits
from grpo.fleet.placement import check_heads, length_within, model_length
from grpo.learner import attention
from grpo.learner.base_model import at_hand, check_model_folder, is_whole, looks_local
from grpo.learner.build import build_tokenizer
from grpo.learner.export import write_model
from grpo.learner.model_files import (
    code_of,
    in_short,
    load_tokenizer,
    read_config,
    without_memory,
)
from grpo.learner.policy import attention_implementation
from grpo.learner.weight_files import check_weights
from grpo.rollout.stops import stop_tokens
from grpo.types import Row

Fact = tuple[str, str]

# What the learner calls of a model, see `grpo.learner.policy.Policy`.
_PARTS = ("model", "lm_head")


@dataclass(frozen=True, slots=True)
class Model:
    """What is known of a run's model; tokenizer and max_model_len (tokens of prompt and answer
    together) are None for one that is still on the hub."""

    facts: list[Fact]
    tokenizer: Any = None
    max_model_len: int | None = None


def check_model(recipe: Recipe) -> Model:
    """What the recipe's model comes to. Raises UserError for what cannot work. One that is still
    on the hub is looked at by `examine` once it is here."""
    path, build = recipe.model.path, recipe.model.build
    if path is None:
        assert build is not None
        said = ("model", f"built: {build.layers} layers of {build.hidden_size}")
        return Model([said], build_tokenizer(build), length_within(recipe, build.context))
    folder = at_hand(path)
    if folder is None or not (looks_local(path) or is_whole(folder)):
        return Model([("model", f"{path} (from the Hugging Face hub, looked at once it is here)")])
    if not looks_local(path):
        return examine(recipe, str(folder), f"{path} (in the Hugging Face cache)")
    if not folder.is_dir():
        raise UserError(f"model.path {path!r}: no such folder")
    check_model_folder(folder)
    return examine(recipe, str(folder), path)


def examine(recipe: Recipe, folder: str, shown: str) -> Model:
    """Of a folder: that its files can be read and agree, that the learner knows its parts, that its
    end tokens are known, and that a checkpoint of it can be exported."""
    trust = recipe.model.trust_remote_code
    config = read_config(folder, trust)
    length = model_length(recipe, folder)
    check_heads(recipe, folder)
    model = _in_the_learner(config, folder, trust)
    weights = check_weights(Path(folder), bool(config.get_text_config().tie_word_embeddings))
    tokenizer = load_tokenizer(folder, trust)
    stop_tokens(folder, tokenizer.eos_token_id)
    _try_export(model, folder, trust)
    facts = [("model", shown), ("weights", weights)]
    if trust and (code := code_of(folder)):
        facts.append(("code of the model that runs", ", ".join(code)))
    return Model(facts, tokenizer, length)


def check_lengths(
    recipe: Recipe, rows: Sequence[Row] | None, tokenizer: Any, max_model_len: int
) -> None:
    """Raises UserError where a prompt, of the data or of a benchmark, does not fit into the model's
    context beside an answer: it would end the run once it is dealt. `rows`: those of the data."""
    if rows is not None:
        longest = max_model_len - recipe.rollout.max_tokens
        check_prompts(rows, recipe.data, tokenizer, longest)
    for benchmark in recipe.eval.suite.benchmarks if recipe.eval.suite else []:
        check_fits(benchmark, tokenizer, max_model_len)


def _in_the_learner(config: Any, folder: str, trust: bool) -> Any:
    """The model without its weights. Raises UserError for one that the learner cannot call."""
    implementation = attention_implementation()
    attention.register(implementation)
    model = without_memory(config, trust, implementation)
    parts = dict(model.named_children())
    if lacking := [name for name in _PARTS if name not in parts]:
        raise UserError(
            f"the model {folder} is a {type(model).__name__}, made of {', '.join(parts)}: the "
            f"learner calls {' and '.join(_PARTS)}, and it has no {lacking[0]}. Use an "
            "architecture such as Llama, Qwen2 or Qwen3"
        )
    return model


def _try_export(model: Any, folder: str, trust: bool) -> None:
    """What a checkpoint writes for others, without the weights, into a folder that goes again."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with TemporaryDirectory(prefix="grpo-check-") as trial:
        try:
            write_model(model, {}, folder, Path(trial), trust)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"the model {folder} can be loaded, but transformers would not save it again, so "
                f"that the first checkpoint would fail ({type(error).__name__}: "
                f"{in_short(error)}). Correct its config.json or its tokenizer's files"
            ) from error
