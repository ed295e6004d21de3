"""The sizes of a recipe's model, wherever its config.json is to be had.

`models/` has those of the models that the recipes of the package name, so that a plan needs no
network: OWNER--NAME.json, the facts of the published config.json that matter for sizes.
"""

from pathlib import Path

from grpo.config.recipe import Recipe
from grpo.errors import UserError
from grpo.learner.base_model import at_hand, looks_local
from grpo.learner.build import build_tokenizer, model_config
from grpo.learner.flops import ModelShape
from grpo.learner.model_files import read_config

_KNOWN = Path(__file__).parent / "models"


def known_models() -> dict[str, Path]:
    """Hugging Face name -> the file with its sizes, in alphabetical order."""
    return {file.stem.replace("--", "/"): file for file in sorted(_KNOWN.glob("*.json"))}


def model_shape(recipe: Recipe) -> tuple[ModelShape, str]:
    """The shape, and in a few words where it is from. A folder or a copy in the Hugging Face cache
    comes before the package's own file, and that before the network. Raises UserError."""
    path = recipe.model.path
    if path is None:
        build = recipe.model.build
        assert build is not None
        return ModelShape.of(model_config(build, build_tokenizer(build))), "model.build"
    folder, trust = Path(path).expanduser(), recipe.model.trust_remote_code
    if looks_local(path):
        if not (folder / "config.json").is_file():
            raise UserError(f"model.path {path!r} has no config.json: point it at a model folder")
        return ModelShape.of(read_config(str(folder), trust)), f"{folder}/config.json"
    if (cached := at_hand(path)) is not None:
        of_cache = read_config(str(cached), trust)
        return ModelShape.of(of_cache), f"{path} in the Hugging Face cache"
    known = known_models().get(path)
    if known is not None:
        return ModelShape.of(read_config(str(known))), f"{path} as the package knows it"
    return ModelShape.of(read_config(path, trust)), f"{path} on the Hugging Face hub"
