"""What a recipe may say of a run that lasts: checkpoints, stops, faults that it mends itself."""

from pydantic import Field

from grpo.config.data import YEAR_S, Section


class KeepBestConfig(Section):
    """Checkpoints at which an evaluation found a metric best. They stay beside the newest ones."""

    metric: str = Field(description="of eval.suite, such as eval/NAME/avg or eval/NAME/best")
    k: int = Field(default=1, ge=1, description="how many stay")


class CheckpointConfig(Section):
    """When a run's state is saved; the last step always is."""

    every: int = Field(default=50, ge=1, description="steps")
    every_minutes: float = Field(
        default=60,
        ge=0,
        le=YEAR_S / 60,
        description="and after the first step that ends so long after the last"
        " checkpoint; 0: by steps alone",
    )
    keep: int = Field(default=2, ge=1, description="older ones are deleted")
    keep_best: KeepBestConfig | None = Field(
        default=None, description="these stay, too, however old; default: none"
    )


class StopConfig(Section):
    """What a run that is told to stop (Ctrl-C, SIGTERM) may take."""

    grace_s: float = Field(
        default=60,
        gt=0,
        le=YEAR_S,
        description="from the signal on; what is not finished and saved by then "
        "is given up. Less than the scheduler waits before it kills",
    )


class HealConfig(Section):
    """Workers that die are started again, and the run goes on in the same command."""

    max_restarts: int = Field(default=3, ge=0, description="of one command; 0: a fault ends it")
    backoff_s: float = Field(
        default=5,
        ge=0,
        le=YEAR_S,
        description="wait before the first; twice as long before each further one",
    )


class DiskConfig(Section):
    """A disk that is full, over quota or read-only while a run writes."""

    wait_minutes: float = Field(
        default=30,
        ge=0,
        le=YEAR_S / 60,
        description="tried again every minute for so long; 0: the run ends",
    )
