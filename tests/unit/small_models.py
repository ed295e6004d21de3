"""Small models on disk, for tests that look at files."""

import json
from pathlib import Path
from typing import Any

from grpo.config.model import BuildConfig
from grpo.learner.build import build_model, build_tokenizer, save_pretrained

CODE = {
    "configuration_mine.py": """
from transformers import Qwen3Config


class MineConfig(Qwen3Config):
    model_type = "mine"
""",
    "modeling_mine.py": """
from transformers import Qwen3ForCausalLM, Qwen3Model

from .configuration_mine import MineConfig


class MineModel(Qwen3Model):
    config_class = MineConfig


class MineForCausalLM(Qwen3ForCausalLM):
    config_class = MineConfig
""",
}


def small_model(folder: Path, tied: bool = True) -> Path:
    config = BuildConfig(
        alphabet="0123456789+= \n",
        layers=1,
        hidden_size=32,
        heads=1,
        kv_heads=1,
        intermediate_size=32,
        context=64,
        tie_embeddings=tied,
    )
    tokenizer = build_tokenizer(config)
    save_pretrained(build_model(config, tokenizer, seed=1), tokenizer, folder)
    return folder


def model_with_code(folder: Path) -> Path:
    """The same, but of an architecture that only its own files know."""
    small_model(folder)
    bring_code(folder)
    return folder


def bring_code(folder: Path) -> None:
    for name, text in CODE.items():
        (folder / name).write_text(text)
    changed(
        folder / "config.json",
        model_type="mine",
        architectures=["MineForCausalLM"],
        auto_map={
            "AutoConfig": "configuration_mine.MineConfig",
            "AutoModel": "modeling_mine.MineModel",
            "AutoModelForCausalLM": "modeling_mine.MineForCausalLM",
        },
    )


def changed(path: Path, **keys: Any) -> None:
    """A JSON file with other values; None takes a key out."""
    said = json.loads(path.read_text()) if path.is_file() else {}
    merged = {key: value for key, value in {**said, **keys}.items() if value is not None}
    path.write_text(json.dumps(merged))
