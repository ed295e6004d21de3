"""What a model's files say of it: its configuration, its tokenizer, the code that it brings.

transformers asks at the terminal whether a model's code may be run unless it is told; so it is told
each time.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from grpo.errors import UserError

_MOST = 400  # characters of a library's words
# Files of a model that may name code (under auto_map).
_NAME_CODE = ("config.json", "tokenizer_config.json", "processor_config.json")


def read_config(model: str, trust: bool = False) -> Any:
    """The configuration of a model. `trust`: its own code may be run, here and below. Raises
    UserError where it cannot be read, or needs code that is not trusted."""
    with _reading("config.json", model):
        return AutoConfig.from_pretrained(model, trust_remote_code=trust)


def load_tokenizer(model: str, trust: bool = False) -> Any:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with _reading("tokenizer", model):
        return AutoTokenizer.from_pretrained(model, trust_remote_code=trust)


def without_memory(config: Any, trust: bool = False, attention: str | None = None) -> Any:
    """A model of this configuration with names and shapes alone. `attention`: a name that
    transformers knows, which the model must take; None for any."""
    chosen = {} if attention is None else {"attn_implementation": attention}
    with _reading("model", config.name_or_path), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust, **chosen)


@contextmanager
def _reading(what: str, model: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of transformers, of a tokenizer in Rust, of the model's own code
        raise unreadable(model, what, error) from error


def context_length(model: str, trust: bool = False) -> int:
    """The most tokens that prompt and answer together may have."""
    text: Any = read_config(model, trust).get_text_config()
    try:
        return int(text.max_position_embeddings)
    except AttributeError:
        raise UserError(
            f"{model}/config.json says no max_position_embeddings, so that nothing is known of the "
            "model's context: add the number there"
        ) from None


def buffers_to_load(model: str, trust: bool = False) -> list[str]:
    """What a checkpoint holds beside parameters, by name: routing biases of some mixtures of
    experts, say. The learner does not train it, and a weight update does not bring it."""
    whole = without_memory(read_config(model, trust), trust)
    return sorted(
        set(whole.state_dict()) - {n for n, _ in whole.named_parameters(remove_duplicate=False)}
    )


def code_of(model: str | Path) -> list[str]:
    """The Python files that the folder's own declarations name, in alphabetical order."""
    found: set[str] = set()
    for path in [Path(model) / name for name in _NAME_CODE]:
        try:
            said: Any = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # missing, or whoever needs it says that it cannot be read
        classes = said.get("auto_map") if isinstance(said, dict) else None
        for named in classes.values() if isinstance(classes, dict) else ():
            for one in named if isinstance(named, list) else [named]:
                if isinstance(one, str) and "." in one:
                    found.add(_file_of(one))
    return sorted(found)


def _file_of(reference: str) -> str:
    """`modeling_x.Model` -> modeling_x.py; with `owner/name--` before it, of that repository."""
    repository, dashes, inside = reference.rpartition("--")
    file = inside.rpartition(".")[0].replace(".", "/") + ".py"
    return f"{file} of {repository}" if dashes else file


def unreadable(model: str, what: str, error: Exception) -> UserError:
    """What transformers refuses, and what to do about it."""
    code = code_of(model)
    if "trust_remote_code" in str(error):
        named = f" ({', '.join(code)})" if code else ""
        return UserError(
            f"the model {model} brings code of its own{named}, which loading it would run. Read "
            "it, then allow it with model.trust_remote_code=true (--trust-remote-code of `grpo "
            "eval`); or use a model whose architecture transformers has"
        )
    ran = f"; of its own code were run {', '.join(code)}" if code else ""
    return UserError(
        f"the {what} of {model} cannot be read ({type(error).__name__}: {in_short(error)}){ran}. "
        "Fetch the model again, or install a version of transformers that knows it"
    )


def in_short(error: BaseException) -> str:
    """A library's words in one line, the end left out where they are many."""
    words = " ".join(str(error).split())
    return words if len(words) <= _MOST else f"{words[:_MOST]} ..."
