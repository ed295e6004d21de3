"""What a vLLM engine takes of each of its GPUs, and how many sequences its cache holds.

Read in vLLM 0.32 and 0.33, not measured on a GPU: at its start an engine takes a share of the card
(`gpu_memory_utilization`), of which the cache gets what weights and a forward pass of its largest
batch leave. What CUDA and NCCL hold, and the CUDA graphs, come on top.
"""

from dataclasses import dataclass

from grpo.config.recipe import Recipe
from grpo.learner.flops import ModelShape
from grpo.learner.memory import FLOAT32, ITEMSIZE

# What vLLM takes for AsyncLLM unless `rollout.engine` sets max_num_batched_tokens or max_num_seqs.
_BATCHED_TOKENS = 2048
MOST_SEQUENCES = 128


@dataclass(frozen=True, slots=True)
class EngineMemory:
    """Of one GPU of an engine, in bytes.

    activations: the peak of its largest forward pass. module: the largest that a weight update
    makes anew. token: keys and values of one token. longest: tokens of a longest sequence.
    most: sequences that vLLM runs at once, whatever the cache holds.
    """

    weights: float
    activations: float
    module: float
    token: float
    longest: int
    most: int

    @property
    def sequence(self) -> float:
        return self.token * self.longest

    def cache(self, share_bytes: float, fixed: float | None = None) -> float:
        """What is left for keys and values of the engine's share; or what the recipe says."""
        return max(0.0, share_bytes - self.weights - self.activations) if fixed is None else fixed

    def sequences(self, cache: float) -> float:
        """Longest sequences that a cache of so many bytes holds at once."""
        return cache / self.sequence


def engine_memory(recipe: Recipe, shape: ModelShape) -> EngineMemory:
    rollout, e = recipe.rollout, ITEMSIZE[recipe.model.dtype]
    parallel = rollout.tensor_parallel
    tokens = int(rollout.engine.get("max_num_batched_tokens", _BATCHED_TOKENS))
    sequences = int(rollout.engine.get("max_num_seqs", MOST_SEQUENCES))
    # The residual stream and a layer's input are whole on every GPU; of the MLP's gate, branch and
    # product each has its part. Logits, logprobs and the draw are three times V in float32.
    widths = 2 * shape.hidden + max(3 * shape.intermediate, 2 * shape.query) / parallel
    activations = e * tokens * widths + 3 * FLOAT32 * sequences * shape.vocab
    return EngineMemory(
        weights=e * shape.parameters / parallel,
        activations=activations,
        # The head, or gate and up, which are one matrix there, beside both as they arrived.
        module=e * max(shape.head_matmul, 4 * shape.hidden * shape.intermediate) / parallel,
        token=kv_bytes_per_token(recipe, shape) / parallel,
        # A run gives vLLM the model's whole context where the recipe says nothing, and vLLM wants
        # room for all of it.
        longest=rollout.max_model_len or shape.context or rollout.max_tokens,
        most=sequences,
    )


def kv_bytes_per_token(recipe: Recipe, shape: ModelShape) -> float:
    """Keys and values of all layers, over all GPUs of an engine. Of fewer key heads than GPUs each
    GPU has a copy."""
    itemsize = ITEMSIZE[recipe.model.dtype]
    if str(recipe.rollout.engine.get("kv_cache_dtype", "auto")).startswith("fp8"):
        itemsize = 1
    heads = max(shape.kv_heads, recipe.rollout.tensor_parallel)
    return 2 * shape.layers * heads * shape.head_dim * itemsize
