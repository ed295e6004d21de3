"""Folders of this machine that a run's processes need, looked at before one of them is started."""

import os
import tempfile
from pathlib import Path

from grpo.errors import UserError
from grpo.fleet.environment import ray_address

# A socket's path is 107 bytes at most. Ray adds its folder, the session's name with the time and
# the number of the process, and the socket's own; vLLM's processes name a socket by a UUID.
_SOCKET_BYTES = 107
_OF_RAY = len("/ray/session_2026-11-27_01-22-55_123456_1234567/sockets/plasma_store")
_OF_VLLM = len("/01234567-89ab-cdef-0123-456789abcdef")


def check_places() -> None:
    """Raises UserError where Ray or vLLM could not open their sockets or write their files on this
    machine. Nothing is looked at where a cluster is joined, whose machines have folders of their
    own."""
    if ray_address() is not None:
        return
    ray_key, ray_folder = _ray_folder()
    _check_length(ray_key, ray_folder, _OF_RAY, "Ray")
    vllm_key = "VLLM_RPC_BASE_PATH" if "VLLM_RPC_BASE_PATH" in os.environ else "TMPDIR"
    vllm_folder = os.environ.get("VLLM_RPC_BASE_PATH", tempfile.gettempdir())
    _check_length(vllm_key, vllm_folder, _OF_VLLM, "vLLM")
    if (why := unwritable(Path(ray_folder))) is not None:
        raise UserError(
            f"{ray_key} is {ray_folder!r}, where Ray keeps its sockets and logs, and nothing can "
            f"be written there ({why}): name another folder, such as {ray_key}=/tmp"
        )
    if _ray_writes_a_token():
        _check_home()


def _ray_folder() -> tuple[str, str]:
    """As Ray chooses it: the variable that decides, and the folder."""
    for key in ("RAY_TMPDIR", "TMPDIR"):
        if key in os.environ:
            return key, os.environ[key]
    return "RAY_TMPDIR", "/tmp"


def _check_length(key: str, folder: str, more: int, whose: str) -> None:
    long = len(os.fsencode(folder.rstrip("/")))
    if long + more > _SOCKET_BYTES:
        short = "RAY_TMPDIR" if whose == "Ray" else key
        raise UserError(
            f"{key} is {folder!r}, {long} bytes long: the paths of {whose}'s sockets below it "
            f"would be longer than the {_SOCKET_BYTES} bytes that the system takes. Use a folder "
            f"of at most {_SOCKET_BYTES - more}, such as {short}=/tmp"
        )


def _ray_writes_a_token() -> bool:
    """Whether the Ray that a run starts will make itself a token, which it does in the home folder
    where it finds none."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return False
    return not ({"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys())


def _check_home() -> None:
    try:
        home = Path.home()
    except RuntimeError:  # no HOME, and no entry for this user
        raise UserError(
            "HOME is not set, and the user has no home folder: Ray writes into it. Set HOME to a "
            "folder that can be written to"
        ) from None
    if (home / ".ray" / "auth_token").is_file():
        return
    if (why := unwritable(home)) is not None:
        raise UserError(
            f"HOME is {str(home)!r}, and nothing can be written there ({why}): Ray keeps its token "
            "there, and other libraries their caches. Set HOME to a folder that can be written to"
        )


def unwritable(folder: Path) -> str | None:
    """Why no file can be made in a folder, or in the nearest one above that exists; None where one
    can."""
    here = folder.expanduser().absolute()
    while not here.exists() and here != here.parent:
        here = here.parent
    if not here.is_dir():
        return f"{here} is a file"
    try:
        tempfile.TemporaryFile(dir=here).close()  # os.access knows no read-only file systems
    except OSError as error:
        return f"{here}: {error.strerror}"
    return None
