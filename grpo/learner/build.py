"""Builds a small Qwen3 with random weights and a tokenizer to match, for demos and tests."""

import re
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

from grpo.config.model import BuildConfig

PAD, END, UNKNOWN = "<pad>", "<end>", "<unk>"
# A chat is its messages one after the other, each on lines of its own.
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


def build_tokenizer(config: BuildConfig) -> PreTrainedTokenizerFast:
    """One token per character of the alphabet and per piece; anything else is `<unk>`."""
    words = [PAD, END, UNKNOWN, *dict.fromkeys([*config.pieces, *config.alphabet])]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN)
    )
    longest_first = sorted(config.pieces, key=len, reverse=True)
    pattern = "|".join([*map(re.escape, longest_first), r"[\s\S]"])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_max_length=config.context,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    config: BuildConfig, tokenizer: PreTrainedTokenizerFast, seed: int
) -> Qwen3ForCausalLM:
    """A Qwen3 of the given shape with random weights (float32)."""
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(model_config(config, tokenizer))


def model_config(config: BuildConfig, tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    """Of the model that `build_model` makes, without its weights."""
    ids = tokenizer.get_vocab()
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.context,
        tie_word_embeddings=config.tie_embeddings,
        bos_token_id=None,
        eos_token_id=ids[END],
        pad_token_id=ids[PAD],
    )


def save_pretrained(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    """Writes a folder that transformers and vLLM load."""
    disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
