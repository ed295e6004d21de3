"""Which vLLM engine a rollout worker runs, and under which environment."""

import os
from dataclasses import dataclass
from typing import Any

import torch

# KV cache on CPU is taken from main memory; vLLM would otherwise ask for most of the machine.
CPU_KV_CACHE_BYTES = 1 << 30
# Small blocks let the siblings of a short prompt share its cache (the CPU default is 128).
CPU_BLOCK_SIZE = 32
# A step of vLLM costs much beside what each of its tokens does; its default for a CPU is 128.
CPU_MAX_SEQUENCES = 512
# Set in every process of an engine that we start: vLLM may be at work here for others, too.
OURS = "GRPO_ENGINE"


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What a rollout worker needs to start its engine. `extra` goes to AsyncEngineArgs as it is."""

    model: str
    dtype: str
    seed: int
    max_model_len: int | None
    tensor_parallel: int
    transfer_backend: str
    extra: dict[str, Any]
    trust_remote_code: bool = False


def on_gpu() -> bool:
    return torch.cuda.is_available()


def engine_environment(threads: int | None = None, tensor_parallel: int = 1) -> dict[str, str]:
    """Environment variables of a rollout worker process, set before vLLM is imported. `threads`
    are for an engine on CPU: as many as it computes with, one for each core by default."""
    variables = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "VLLM_CONFIGURE_LOGGING": "1",
        "TOKENIZERS_PARALLELISM": "false",
        OURS: "1",
    }
    if on_gpu():
        # CUDA IPC handles cross vLLM's own process boundary as pickles.
        variables["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    elif tensor_parallel > 1:
        # vLLM's own binding would take every core; so the number is said to each worker.
        variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind" if threads else "auto"
        if threads:
            variables["OMP_NUM_THREADS"] = str(max(1, threads // tensor_parallel))
    else:
        # The engine's core computes itself. With vLLM's usual worker process behind it, it keeps a
        # core busy asking whether a step is done: a quarter more tokens/s without, on two cores.
        variables |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(threads or len(os.sched_getaffinity(0))),
            # A thread that waits for another leaves its core to the requests' bookkeeping.
            "OMP_WAIT_POLICY": "PASSIVE",
        }
    return variables


def engine_arguments(spec: EngineSpec) -> dict[str, Any]:
    """Keyword arguments for vLLM's AsyncEngineArgs."""
    arguments: dict[str, Any] = {
        "model": spec.model,
        "dtype": spec.dtype,
        "trust_remote_code": spec.trust_remote_code,
        "seed": spec.seed,
        "max_model_len": spec.max_model_len,
        "tensor_parallel_size": spec.tensor_parallel,
        # Left to choose, vLLM would start Ray actors of its own on the GPUs that this worker holds.
        "distributed_executor_backend": "uni" if spec.tensor_parallel == 1 else "mp",
        # Logprobs of the distribution that was sampled from, temperature included.
        "logprobs_mode": "processed_logprobs",
        # Token ids go in and out; the worker detokenises outside the engine.
        "skip_tokenizer_init": True,
        # The model's own top_p and top_k must not leak into sampling.
        "generation_config": "vllm",
        "enable_log_requests": False,
        "disable_log_stats": True,
        "weight_transfer_config": {"backend": spec.transfer_backend},
    }
    if on_gpu():
        arguments |= {
            "enable_sleep_mode": spec.transfer_backend == "ipc",
            # float32 logits, as the learner computes them.
            "hf_overrides": {"head_dtype": "float32"},
        }
    else:
        arguments |= {
            "enforce_eager": True,
            "max_num_seqs": CPU_MAX_SEQUENCES,
            "kv_cache_memory_bytes": CPU_KV_CACHE_BYTES,
            "block_size": CPU_BLOCK_SIZE,
            # Half a prompt would be sampled from and the draw taken back, which torch's generator
            # for CPU cannot do: with seeded requests the engine dies.
            "enable_chunked_prefill": False,
        }
    return arguments | spec.extra
