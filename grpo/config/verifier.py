"""What a recipe may say of those who judge: every key with its type, range and default."""

from typing import Any, Literal

from pydantic import Field, model_validator

from grpo.config.data import YEAR_S, Section


class ShadowConfig(Section):
    """A verifier whose verdicts are compared with those that train. A bare name such as `exact` is
    accepted too."""

    name: str = Field(description="a registered verifier")
    options: dict[str, Any] = Field(default={}, description="those that the verifier has")
    label: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9._-]+$",
        description="what metrics and rollouts call it, where two have one name; default: the name",
    )

    @model_validator(mode="before")
    @classmethod
    def _a_bare_name_has_no_options(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def shown_as(self) -> str:
        return self.label or self.name


class VerifierConfig(Section):
    """Who judges, and in how many processes. A bare name such as `math` is accepted too."""

    name: str = Field(default="math", description="a registered verifier")
    options: dict[str, Any] = Field(default={}, description="those that the verifier has")
    workers: int = Field(default=2, ge=1, description="processes")
    timeout_s: float = Field(
        default=10.0, gt=0, le=YEAR_S, description="a worker past it is killed and replaced"
    )
    on_failure: Literal["drop", "lowest"] = Field(
        default="drop",
        description="answers on which it crashes or runs out of time. drop: they take no part; "
        "lowest: they get the lowest reward",
    )
    lowest_reward: float | None = Field(
        default=None,
        description="that the verifier can give; default: 0, or what a sibling has that has less",
    )
    shadows: list[ShadowConfig] = Field(
        default=[],
        description="judge the same answers, each in as many processes, without effect on the "
        "training; metrics say where they disagree",
    )

    @model_validator(mode="before")
    @classmethod
    def _a_bare_name_has_no_options(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _shadows_are_told_apart(self) -> "VerifierConfig":
        names = [shadow.shown_as for shadow in self.shadows]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"two shadows are called {twice[0]!r}: give one of them a label, such as "
                f"{{name: ..., label: {twice[0]}_2}}"
            )
        return self
