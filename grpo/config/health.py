"""What a recipe may say of a run that goes wrong: what counts as that, and what follows."""

from typing import Literal

from pydantic import Field

from grpo.config.data import Section


class HealthConfig(Section):
    """Signs that a run has collapsed, looked for after every step. A threshold that is null turns
    its sign off."""

    on_collapse: Literal["warn", "stop", "rollback"] = Field(
        default="warn",
        description="warn: once, until the sign was gone for `window` steps; stop: the run is "
        "saved and ends; "
        "rollback: it goes back to its last healthy checkpoint. Failures of the verifier are only "
        "ever warned of",
    )
    window: int = Field(default=20, ge=2, description="steps that running means are taken over")
    patience: int = Field(
        default=3,
        ge=1,
        description="steps in a row that truncated_share, entropy or mismatch_rise must be met",
    )
    reward_share: float | None = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="reward/mean: its running mean is below this share of its best one",
    )
    flat_steps: int | None = Field(
        default=5,
        ge=1,
        description="groups/flat_share: for so many steps in a row no group has anything to learn "
        "from, and not because all of them are right",
    )
    truncated_share: float | None = Field(
        default=0.98, gt=0, le=1, description="truncated/share: it is this large or larger"
    )
    entropy: float | None = Field(
        default=0.005, gt=0, description="learn/entropy: it is below, in nats per token"
    )
    mismatch_rise: float | None = Field(
        default=10.0,
        gt=1,
        description="mismatch/kl: it is above so many times its lowest running median",
    )
    mismatch_floor: float = Field(
        default=0.03, ge=0, description="and above this, in nats per token"
    )
    verifier_failures: float | None = Field(
        default=0.01,
        ge=0,
        lt=1,
        description="verdict/timeout/share, verdict/verifier crashed/share: one of them is above",
    )
    max_skipped: int = Field(
        default=3,
        ge=1,
        description="steps in a row whose gradient is not finite, before the run goes back to its "
        "last healthy checkpoint",
    )
