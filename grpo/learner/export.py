"""A policy on disk as others load it: weights, configuration, tokenizer."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.utils.logging import disable_progress_bar

from grpo.learner.model_files import load_tokenizer

_GENERATION = "generation_config.json"


def write_model(
    model: Any, weights: Mapping[str, torch.Tensor], source: str, folder: Path, trust: bool = False
) -> None:
    """Makes `folder` one that transformers and vLLM load. `source`: the folder that the model was
    loaded from; how it generates and its tokenizer come from there."""
    disable_progress_bar()
    generation = Path(source) / _GENERATION
    if generation.is_file():
        # As it is: training changes nothing of it, and many published ones (a temperature without
        # do_sample) are read by everybody and written by transformers for nobody.
        model.generation_config = GenerationConfig()
    model.save_pretrained(folder, state_dict=dict(weights))
    if generation.is_file():
        shutil.copyfile(generation, folder / _GENERATION)
    load_tokenizer(source, trust).save_pretrained(folder)
