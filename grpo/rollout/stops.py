"""The tokens that end an answer, as a model's folder names them."""

import json
from pathlib import Path
from typing import Any

from grpo.errors import UserError

_MEND = "Put the file back as the model's makers published it, or write the token ids into it"


def stop_tokens(model: str, eos_token_id: int | None) -> list[int]:
    """The tokenizer's end token, and those of the model's generation_config.json; of config.json
    where that one names none. Raises UserError for a file that cannot be read, or says no ids."""
    folder = Path(model)
    named = _end_tokens(folder / "generation_config.json") or _end_tokens(folder / "config.json")
    return sorted({*([] if eos_token_id is None else [eos_token_id]), *named})


def _end_tokens(path: Path) -> list[int]:
    if not path.is_file():
        return []
    try:
        said: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}). {_MEND}") from None
    if not isinstance(said, dict):
        raise UserError(f"{path} holds no JSON object. {_MEND}")
    inner = said.get("text_config")  # of a model that sees images, too
    found = said.get("eos_token_id")
    if found is None and isinstance(inner, dict):
        found = inner.get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    for one in ids:
        if type(one) is not int or one < 0:
            raise UserError(
                f"{path}: eos_token_id is {found!r}, not a token id or a list of them. {_MEND}"
            )
    return ids
