"""What a recipe may say: every key with its type, range and default.

The pydantic models below are the reference; `grpo.config.load` turns a YAML file, what it extends
and the `key=value` overrides of the command line into one of them.
"""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from grpo.config.data import YEAR_S, Choice, DataConfig, Section
from grpo.config.engine import refused
from grpo.config.health import HealthConfig
from grpo.config.lasting import CheckpointConfig, DiskConfig, HealConfig, StopConfig
from grpo.config.lora import LoraConfig
from grpo.config.model import BuildConfig as BuildConfig
from grpo.config.model import ModelConfig
from grpo.config.suite import SuiteConfig
from grpo.config.verifier import VerifierConfig


class RolloutConfig(Section):
    """How answers are sampled, and by which engines."""

    prompts: int = Field(default=128, ge=1, description="prompts per step")
    # The seeds of two groups are 65,536 apart.
    group_size: int = Field(default=16, le=65536, description="answers per prompt")
    max_tokens: int = Field(default=8192, ge=1, description="longest answer")
    # Below 0.01 vLLM takes 0.01, the learner would not; above 2 vLLM refuses every request.
    temperature: float = Field(
        default=1.0, ge=0.01, le=2, description="the learner divides by it, too"
    )
    top_p: float = Field(default=1.0, gt=0, le=1, description="nucleus sampling; 1: off")
    top_k: int = Field(default=0, ge=0, description="0: off")
    engines: int = Field(default=1, ge=1, description="vLLM replicas")
    tensor_parallel: int = Field(default=1, ge=1, description="devices per replica")
    max_model_len: int | None = Field(
        default=None, ge=1, description="prompt plus answer; default: the model's"
    )
    engine: dict[str, Any] = Field(
        default={}, description="passed to vLLM's AsyncEngineArgs as they are"
    )
    timeout_s: float = Field(
        default=3600, gt=0, le=YEAR_S, description="longest wait for any one group"
    )

    @model_validator(mode="after")
    def _groups_and_engines_can_work(self) -> "RolloutConfig":
        if self.group_size < 2:
            raise ValueError(
                f"group_size is {self.group_size}; advantages compare siblings: use >= 2"
            )
        if why := refused(self.engine):
            raise ValueError(f"engine sets {why}")
        return self


class FlatGroups(Section):
    """Groups whose rewards are all equal carry no gradient. `replace` samples fresh prompts for
    them (DAPO), `drop` leaves them out, `keep` leaves them in the denominators (GRPO)."""

    mode: Literal["replace", "drop", "keep"] = Field(default="replace", description="as above")
    max_rounds: int = Field(
        default=10, ge=1, description="replace: at most this many times rollout.prompts in a step"
    )


class OverlongConfig(Section):
    """How long answers are treated. The punishment is DAPO's: nothing up to `buffer` tokens before
    rollout.max_tokens, then linearly down to -penalty at the limit."""

    buffer: int = Field(default=0, ge=0, description="tokens; 0: no punishment")
    penalty: float = Field(default=1.0, ge=0, le=1e6, description="the largest punishment")
    mask_truncated: bool = Field(
        default=False, description="answers cut at the limit count in the group, not in the loss"
    )


class DifficultyConfig(Section):
    """HA-DW: groups are weighted by their difficulty relative to the run's history."""

    kind: Literal["hard", "kalman"] = Field(default="hard", description="how the anchor moves")
    window: int = Field(default=10, ge=1, description="steps of history")
    scale: float | None = Field(
        default=None, gt=0, description="the paper's lambda; default: 1.3, 1 for exact_debias"
    )
    eta: float = Field(default=10.0, ge=0, description="kalman: gain per deviation of the anchor")
    eta_min: float = Field(default=0.05, ge=0, le=1, description="kalman: 0 can freeze the anchor")
    includes_current: bool = Field(
        default=False, description="the anchor after this step's accuracy, as the authors' code"
    )
    mode: Literal["ha_dw", "exact_debias"] = Field(
        default="ha_dw", description="exact_debias is ours, not the paper's"
    )
    strength: float = Field(
        default=2.0, ge=0, description="exact_debias: answers that the anchor counts for"
    )
    reward_low: float = Field(default=0.0, description="the reward that counts as accuracy 0")
    reward_high: float = Field(default=1.0, description="the reward that counts as accuracy 1")

    @model_validator(mode="after")
    def _rewards_have_a_range(self) -> "DifficultyConfig":
        if self.reward_low >= self.reward_high:
            raise ValueError(
                f"reward_low is {self.reward_low}, reward_high {self.reward_high}: must be larger"
            )
        return self

    def anchor_options(self) -> dict[str, Any]:
        """What `grpo.algo.difficulty.DifficultyAnchor` takes of it."""
        return self.model_dump(exclude={"reward_low", "reward_high"})


class RegularizationConfig(Section):
    """Terms of the loss that do not depend on the advantage, aggregated by a rule of their own."""

    kl: float = Field(default=0.0, ge=0, description="times KL(policy || starting model); 0: off")
    kl_estimator: Literal["k1", "k2", "k3"] = Field(
        default="k3", description="x = log(policy / start): x, x²/2, or exp(-x) - 1 + x"
    )
    entropy: float = Field(default=0.0, description="times the entropy, added to the objective")
    aggregate: Choice = Field(default=Choice(name="token_mean"), description="their weights")


class LearnerConfig(Section):
    """The optimizer, and how a step is cut into what fits into memory."""

    ranks: int = Field(default=1, ge=1, description="DeepSpeed ZeRO-3 ranks")
    optimizer: Literal["adamw", "sgd"] = Field(
        default="adamw", description="sgd: without momentum, no optimizer state"
    )
    lr: float = Field(default=1e-6, gt=0, description="learning rate after the warm-up")
    warmup_steps: int = Field(default=10, ge=0, description="optimizer steps of linear warm-up")
    lr_decay: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="linear, cosine: down to 0 at the last optimizer step"
    )
    weight_decay: float = Field(default=0.1, ge=0, description="of the optimizer; 0: off")
    # Not strict: YAML has lists only.
    betas: tuple[float, float] = Field(
        default=(0.9, 0.999), strict=False, description="of adamw, each from 0 to below 1"
    )
    eps: float = Field(default=1e-8, gt=0, description="of adamw")
    grad_clip: float = Field(default=1.0, ge=0, description="0: off")
    micro_batch_tokens: int = Field(
        default=16384, ge=1, description="packed tokens per forward pass"
    )
    shared_prefix: bool | Literal["auto"] = Field(
        default="auto",
        description="siblings in one micro-batch share one copy of their prompt where that is "
        "cheaper: the same step, sooner; auto: on CPUs, where it has been measured",
    )
    offload_optimizer: bool = Field(default=False, description="its state in host memory")
    offload_weights: bool = Field(
        default=False,
        description="on shared GPUs the learner's weights, too, rest in host memory while the "
        "engines sample: room for a larger KV cache",
    )
    lora: LoraConfig | None = Field(
        default=None, description="train adapters in place of all weights: a fraction of the memory"
    )
    timeout_s: float = Field(
        default=3600, gt=0, le=YEAR_S, description="longest wait for a learner call"
    )

    @field_validator("betas")
    @classmethod
    def _betas_are_below_1(cls, betas: tuple[float, float]) -> tuple[float, float]:
        for beta in betas:
            if not 0 <= beta < 1:
                raise ValueError(f"{beta:g} is no decay of a mean: use numbers from 0 to below 1")
        return betas


class ScheduleConfig(Section):
    """How many steps, and what one step does with its batch."""

    steps: int = Field(default=500, ge=1, description="rollout steps of the whole run")
    minibatches: int = Field(
        default=1, ge=1, description="optimizer steps that share one pass over a batch"
    )
    passes: int = Field(default=1, ge=1, description="passes over each batch")
    max_staleness: int = Field(
        default=0,
        ge=0,
        description="steps that sampling may run ahead of the learner; a step learns from no token "
        "that weights older by more than this many updates have sampled. 0: exactly on-policy",
    )


class CanaryConfig(Section):
    """At the start and after a sync, engines and learner score one prompt, at temperature 1; where
    they differ, the run stops."""

    every: int = Field(default=1, ge=0, description="steps between checks; 0: at the start alone")
    tolerance: float | None = Field(
        default=None,
        gt=0,
        description="nats: of the furthest token in float32 (default 1e-3), of the mean in "
        "bfloat16 (default 0.1; the 90th percentile may be three times as much)",
    )


class SyncConfig(Section):
    """How new weights reach the engines."""

    transport: Literal["auto", "shm", "gloo", "nccl", "ipc"] = Field(
        default="auto",
        description="auto: shm on one CPU host, gloo on several (with RAY_ADDRESS set), nccl on "
        "GPUs, ipc where engines and learner share them",
    )
    bucket_mib: int = Field(default=256, ge=1, description="size of one transfer; two exist")
    timeout_s: float = Field(default=300, gt=0, le=YEAR_S, description="for one whole update")
    canary: CanaryConfig = CanaryConfig()


class EvalConfig(Section):
    """Evaluations by the run's own engines."""

    suite: SuiteConfig | None = Field(
        default=None, description="a suite's file or name, or a suite in full; default: none is run"
    )
    at_start: bool = Field(default=True, description="before the first step")
    at_end: bool = Field(default=True, description="after the last step")
    every: int = Field(default=0, ge=0, description="steps; 0: only at start and end")


class LoggingConfig(Section):
    """What is printed, kept and shown elsewhere."""

    samples_every: int = Field(
        default=10, ge=0, description="steps; 0: never print prompts and answers"
    )
    samples: int = Field(default=2, ge=1, description="how many of them")
    rollouts: bool = Field(default=True, description="keep every rollout as parquet")
    wandb: Literal["auto", "online", "offline", "off"] = Field(
        default="auto", description="auto: online with an API key and a server, else offline"
    )
    wandb_project: str = Field(default="grpo", description="the project there")


class Recipe(Section):
    """A whole training run."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="also the folder under `output`")
    output: str = Field(default="runs", description="the folder that run folders are made in")
    seed: int = Field(default=0, ge=0, description="of prompts, sampling and a model built anew")
    plugins: list[str] = Field(default=[], description="modules that register parts of your own")
    placement: Literal["auto", "colocated", "disaggregated"] = Field(
        default="auto",
        description="colocated: engines and learner take turns on shared GPUs; auto: only where "
        "there are too few for both",
    )
    model: ModelConfig
    data: DataConfig
    rollout: RolloutConfig = RolloutConfig()
    verifier: VerifierConfig = VerifierConfig()
    advantage: Choice = Field(default=Choice(name="group_norm"), description="of each answer")
    aggregate: Choice = Field(default=Choice(name="balanced"), description="a weight per answer")
    surrogate: Choice = Field(default=Choice(name="ppo_clip"), description="objective per token")
    correction: Choice = Field(
        default=Choice(name="auto"),
        description="of sampler against learner; auto: none on-policy in float32, else "
        "truncated_token",
    )
    flat_groups: FlatGroups = FlatGroups()
    overlong: OverlongConfig = OverlongConfig()
    difficulty: DifficultyConfig | None = Field(default=None, description="HA-DW; default: off")
    regularization: RegularizationConfig = RegularizationConfig()
    learner: LearnerConfig = LearnerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    sync: SyncConfig = SyncConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    stop: StopConfig = StopConfig()
    heal: HealConfig = HealConfig()
    health: HealthConfig = HealthConfig()
    disk: DiskConfig = DiskConfig()
    eval: EvalConfig = EvalConfig()
    logging: LoggingConfig = LoggingConfig()

    @model_validator(mode="before")
    @classmethod
    def _options_alone_are_those_of_the_default(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        named = dict(value)
        for key in ("advantage", "aggregate", "surrogate", "correction"):
            part = value.get(key)
            if isinstance(part, dict) and "name" not in part:
                named[key] = {"name": cls.model_fields[key].default.name, **part}
        return named

    @model_validator(mode="after")
    def _minibatches_hold_whole_groups(self) -> "Recipe":
        if self.rollout.prompts < self.schedule.minibatches:
            raise ValueError(
                f"schedule.minibatches is {self.schedule.minibatches} but rollout.prompts is only "
                f"{self.rollout.prompts}: a mini-batch holds whole groups"
            )
        return self

    @model_validator(mode="after")
    def _shared_gpus_take_turns(self) -> "Recipe":
        if self.placement == "colocated" and self.schedule.max_staleness > 0:
            raise ValueError(
                f"schedule.max_staleness is {self.schedule.max_staleness}, but with placement "
                "colocated the engines sleep while the learner works: set max_staleness 0, or "
                "placement disaggregated"
            )
        if self.placement == "disaggregated" and self.learner.offload_weights:
            raise ValueError(
                "learner.offload_weights makes room on GPUs that engines and learner share, and "
                "with placement disaggregated they share none: leave it out, or set placement "
                "colocated"
            )
        return self

    @model_validator(mode="after")
    def _what_is_cut_off_cannot_be_corrected(self) -> "Recipe":
        if self.correction_name() != "none" and (self.rollout.top_p < 1 or self.rollout.top_k > 0):
            raise ValueError(
                f"correction {self.correction_name()} needs the sampler's full distribution, but "
                f"rollout.top_p is {self.rollout.top_p} and top_k {self.rollout.top_k}: set "
                "top_p 1 and top_k 0, or correction: none"
            )
        return self

    @model_validator(mode="after")
    def _the_buffer_fits_into_an_answer(self) -> "Recipe":
        if self.overlong.buffer > self.rollout.max_tokens:
            raise ValueError(
                f"overlong.buffer is {self.overlong.buffer}, longer than rollout.max_tokens "
                f"({self.rollout.max_tokens}): lower it"
            )
        return self

    def plugin_names(self) -> list[str]:
        """The modules that the recipe and its suite name, each once."""
        of_suite = self.eval.suite.plugins if self.eval.suite else []
        return list(dict.fromkeys([*self.plugins, *of_suite]))

    def correction_name(self) -> str:
        """The correction in force: `auto` decided."""
        if self.correction.name != "auto":
            return self.correction.name
        exact = self.model.dtype == "float32" and self.schedule.max_staleness == 0
        return "none" if exact else "truncated_token"
