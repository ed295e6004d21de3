"""What a recipe may say of low-rank adapters."""

from pydantic import Field, field_validator

from grpo.config.data import Section


class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2021): the base model stays frozen, what is trained is small."""

    rank: int = Field(default=32, ge=1, le=1024, description="r, the adapters' inner width")
    alpha: float = Field(
        default=64, gt=0, allow_inf_nan=False, description="the update is scaled by alpha / rank"
    )
    # Not strict: YAML has lists only.
    targets: tuple[str, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        strict=False,
        min_length=1,
        description="names of the linear layers that get one",
    )

    @field_validator("targets")
    @classmethod
    def _each_layer_once(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        for target in targets:
            if not target:
                raise ValueError("an empty name is no layer's: name linear layers such as q_proj")
            if targets.count(target) > 1:
                raise ValueError(f"{target!r} is there twice: name each layer once")
        return targets
