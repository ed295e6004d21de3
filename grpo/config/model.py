"""What a recipe may say of the model that a run starts from."""

from typing import Literal

from pydantic import Field, model_validator

from grpo.config.data import DataConfig, Section


class WarmStart(Section):
    """Supervised training on worked solutions of a generated task, stopped early on purpose."""

    data: DataConfig = Field(description="a generated task, whose rows have worked solutions")
    until_accuracy: float = Field(default=0.33, gt=0, lt=1, description="held out; then it stops")
    max_steps: int = Field(default=1000, ge=1, description="not there by then: the run fails")
    check_every: int = Field(default=10, ge=1, description="steps between measurements")
    lr: float = Field(default=2e-3, gt=0, description="constant rate of AdamW")
    batch_size: int = Field(default=128, ge=1, description="worked solutions per step")
    max_tokens: int = Field(default=96, ge=1, description="longest answer when measuring")
    held_out: int = Field(default=128, ge=1, description="prompts that the accuracy is measured on")


class BuildConfig(Section):
    """A small Qwen3 built on the spot, with a tokenizer of single characters and a few pieces."""

    hidden_size: int = Field(default=128, ge=32, description="width of the residual stream")
    layers: int = Field(default=4, ge=1, description="decoder layers")
    heads: int = Field(default=4, ge=1, description="attention heads")
    kv_heads: int = Field(default=4, ge=1, description="heads of keys and values")
    head_dim: int = Field(
        default=32, ge=2, description="vLLM on CPU takes 32, 64, 80, 96, 112, 128, ..."
    )
    intermediate_size: int = Field(default=512, ge=32, description="width of the MLP")
    context: int = Field(default=512, ge=32, description="longest prompt plus answer, in tokens")
    tie_embeddings: bool = Field(default=True, description="the head is the embedding's matrix")
    alphabet: str = Field(description="every character that a prompt or an answer may hold")
    pieces: list[str] = Field(
        default=[r"\boxed{"], description="longer strings that are one token each"
    )
    warm_start: WarmStart | None = None

    @model_validator(mode="after")
    def _heads_can_be_divided(self) -> "BuildConfig":
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads is {self.heads} and kv_heads {self.kv_heads}: each head of keys and values "
                "serves as many heads, so kv_heads must divide heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}: positions turn pairs, use an even one")
        return self


class ModelConfig(Section):
    """The starting model: `path` if set, else the one that `build` describes."""

    path: str | None = Field(default=None, description="a folder or a Hugging Face name")
    build: BuildConfig | None = None
    trust_remote_code: bool = Field(
        default=False,
        description="run the Python files that the model's folder or repository brings, here and "
        "in every worker; `grpo check` names them",
    )
    dtype: Literal["bfloat16", "float32"] = Field(
        default="bfloat16", description="of the engines' and the learner's forward passes"
    )
    gradient_checkpointing: bool = Field(
        default=True, description="recompute activations in backward: less memory, more work"
    )
    checkpoint_every: int = Field(
        default=1, ge=1, description="with gradient_checkpointing: of every n-th layer"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelConfig":
        if self.path is None and self.build is None:
            raise ValueError("needs an origin: path, or build for a small new model")
        return self

    @model_validator(mode="after")
    def _checkpoint_every_needs_gradient_checkpointing(self) -> "ModelConfig":
        if self.checkpoint_every > 1 and not self.gradient_checkpointing:
            raise ValueError(
                f"checkpoint_every is {self.checkpoint_every}, but gradient_checkpointing is "
                "false: set it true, or leave checkpoint_every out"
            )
        return self
