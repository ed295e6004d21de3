"""A run's metrics on wandb, where the recipe wants them there."""

import netrc
import os
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from grpo.config.recipe import LoggingConfig
from grpo.errors import UserError
from grpo.store.files import replacing


class NullBoard:
    """No board: takes everything, shows nothing."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def finish(self) -> None:
        pass


class WandbBoard:
    """One wandb run, its files under `folder`/wandb. A resumed run continues the same one. When it
    fails, it says so once by `warn` and shows nothing more: the run goes on."""

    def __init__(
        self,
        mode: Literal["online", "offline"],
        project: str,
        name: str,
        config: dict[str, Any],
        folder: Path,
        warn: Callable[[str], None],
    ):
        import wandb

        self.mode = mode
        self._warn = warn
        self._is_lost = False
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            mode=mode,
            project=project,
            name=name,
            id=_board_id(folder / ".wandb_id"),
            resume="allow" if mode == "online" else None,  # offline, `wandb sync` joins by the id
            config=config,
            dir=folder,
            settings=wandb.Settings(silent=True, console="off"),
        )
        # Its own step only ever rises: what a run takes again would be dropped.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._tell(lambda: self._run.log({**metrics, "step": step}))

    def finish(self) -> None:
        self._tell(self._run.finish)

    def _tell(self, what: Callable[[], None]) -> None:
        if self._is_lost:
            return
        try:
            what()
        except Exception as error:  # whatever it is: an onlooker is no reason to end a run
            self._is_lost = True
            self._warn(
                f"wandb fails ({type(error).__name__}: {error}) and gets nothing more in this "
                "command; metrics.jsonl has everything"
            )
            _forget_wandb()


Board = NullBoard | WandbBoard


def _forget_wandb() -> None:
    """Else it would print a traceback when Python ends."""
    import wandb

    with suppress(Exception):  # it fails as it did before, once and for all
        wandb.teardown()


def _board_id(path: Path) -> str:
    if not path.exists():
        with replacing(path) as temporary:
            temporary.write_text(uuid.uuid4().hex[:12])
    return path.read_text().strip()


def _has_wandb_key() -> bool:
    """Whether WANDB_API_KEY or a netrc entry holds a key, where `wandb login` leaves one.

    wandb's own function for this changes from version to version, and the newest warns.
    """
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    for file in (os.environ.get("NETRC", "~/.netrc"), "~/_netrc"):
        try:
            if netrc.netrc(Path(file).expanduser()).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue  # not there, or not for us to mend
    return False


def open_board(
    logging: LoggingConfig,
    name: str,
    config: dict[str, Any],
    folder: Path,
    warn: Callable[[str], None],
) -> Board:
    """The board that `logging.wandb` asks for. auto: online where there is an API key and wandb's
    server answers, else offline, and none where that fails, too. Raises UserError where the one
    that was asked for does not start."""
    if logging.wandb == "off":
        return NullBoard()
    modes: list[Any] = [logging.wandb]
    if logging.wandb == "auto":
        modes = ["online", "offline"] if _has_wandb_key() else ["offline"]
    failure = ""
    for mode in modes:
        try:
            return WandbBoard(mode, logging.wandb_project, name, config, folder, warn)
        except Exception as error:  # wandb's own are of a dozen kinds
            failure = f"{type(error).__name__}: {error}"
    if logging.wandb != "auto":
        raise UserError(
            f"logging.wandb is {logging.wandb!r} but wandb does not start ({failure}): log in with "
            "`wandb login`, or use logging.wandb=offline or off"
        )
    warn(f"wandb does not start ({failure}): it gets nothing; metrics.jsonl has everything")
    return NullBoard()
