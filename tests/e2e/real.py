"""SmolLM2-135M-Instruct for tests: real words, a chat template, a head tied to its embedding."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.real_model import FOLDER, NotFetched, fetch
from grpo.config.data import DataConfig

NAME = "smollm2-135m"
# <|im_end|>, which is the padding as well; and the full stop, which ends an answer in `widened`.
END, STOP = 2, 30
TOKENS = 49_152  # of the tokenizer
# Of the embedding in `widened`: vLLM, which wants a multiple of 64, makes 49,216 of them.
ROWS = TOKENS + 7
# A row for which there is no token, equal to the full stop's: as likely, and no end.
TWIN = TOKENS + 3

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  # its template's
TURNS: list[list[tuple[str, str]]] = [
    [("user", "Name a fruit.")],
    [("system", "You answer in one short sentence."), ("user", "Where do bees live?")],
    [("user", "What is two plus three?")],
    [("system", "You are a pirate."), ("user", "Say hello.")],
    [("user", "What colour is the sky?")],
    [("system", "Answer with one word."), ("user", "Is fire cold?")],
    [("user", "Finish: once upon a time")],
    [("system", "You are a cat."), ("user", "What do you want for dinner?")],
]


def fetched() -> Path:
    """The model's folder, made by whichever test worker comes first. Skips where it cannot be."""
    folder = Path(os.environ.get("GRPO_REAL_MODELS") or FOLDER) / NAME
    try:
        return fetch(NAME, folder)
    except NotFetched as error:
        pytest.skip(f"{NAME} is not here and cannot be fetched: {error}")


def widened(model: Path, folder: Path) -> Path:
    """The model with seven rows more in its embedding, as published ones often have, and with two
    end tokens in generation_config.json."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    (name,) = [key for key in weights if key.endswith("embed_tokens.weight")]
    rows = torch.zeros(ROWS - TOKENS, weights[name].shape[1], dtype=weights[name].dtype)
    rows[TWIN - TOKENS] = weights[name][STOP]
    weights[name] = torch.cat([weights[name], rows])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    change(folder / "config.json", vocab_size=ROWS)
    change(folder / "generation_config.json", eos_token_id=[END, STOP])
    return folder


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def chats(folder: Path) -> Path:
    """The rows as a file, each of them a list of messages."""
    path = folder / "chats.jsonl"
    lines = [
        json.dumps({"messages": [{"role": r, "content": c} for r, c in turns], "answer": "none"})
        for turns in TURNS
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def declaration(folder: Path) -> dict[str, Any]:
    return {
        "name": "chats",
        "path": str(chats(folder)),
        "columns": {"problem": ["messages"]},
        "chat": True,
    }


def data(folder: Path) -> DataConfig:
    return DataConfig.model_validate(declaration(folder) | {"shuffle": False})


def expected_text(turns: list[tuple[str, str]]) -> str:
    """What the template of the model's makers writes: a system turn of theirs where there is none,
    each turn between its two marks, and the beginning of the answer."""
    if turns[0][0] != "system":
        turns = [("system", SYSTEM), *turns]
    said = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
    return f"{said}<|im_start|>assistant\n"


def logprobs_of(model: Any, tokens: list[int]) -> list[float]:
    """Of tokens 1.. by transformers."""
    with torch.no_grad():
        every = model(torch.tensor([tokens])).logits[0].float().log_softmax(-1)
    return [float(every[i, token]) for i, token in enumerate(tokens[1:])]
