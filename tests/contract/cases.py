"""Every case by its name: what fits, and faults that must be found with the words that say so."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Case:
    """`kind`: a transport, or the GPUs ("shared", "separate") on which the order of a whole update
    is held. `parameters`: a list of `tests.contract.weights`. `ranks`: the learner's. `mutation`: a
    fault."""

    kind: str
    parameters: str = "model"
    bucket_bytes: int = 16384
    dtype: str = "bfloat16"
    ranks: int = 1
    engines: int = 1
    tensor_parallel: int = 1
    updates: int = 2
    mutation: str = ""

    @property
    def name(self) -> str:
        if self.mutation:
            return f"{self.kind}: {self.mutation}"
        if self.kind in ("shared", "separate"):
            return f"order on {self.kind} GPUs"
        sides = f"{self.ranks} to {self.engines}x{self.tensor_parallel}"
        return f"{self.kind} {self.parameters} {self.dtype} in {self.bucket_bytes}, {sides}"


FITS = [
    *(Case("nccl", bucket_bytes=b, ranks=2, engines=2) for b in (1 << 20, 40000, 16384, 256)),
    *(Case("nccl", bucket_bytes=b) for b in (8192, 2048)),
    *(Case("nccl", dtype=dtype, bucket_bytes=20000) for dtype in ("float32", "float16")),
    Case("nccl", engines=2, tensor_parallel=2, bucket_bytes=20000),
    Case("nccl", ranks=3, engines=1, tensor_parallel=3, updates=3),
    *(Case("nccl", "odd", bucket_bytes=b) for b in (64, 1000)),
    Case("nccl", "large", bucket_bytes=8192, engines=2),
    *(
        Case("nccl", f"random {seed}", bucket_bytes=b)
        for seed, b in enumerate((64, 500, 2000, 4000, 10000))
    ),
    *(Case("ipc", bucket_bytes=b) for b in (1 << 20, 40000, 16384, 2048)),
    *(Case("ipc", which, bucket_bytes=8192) for which in ("odd", "large", "random 5")),
    Case("ipc", dtype="float32", bucket_bytes=20000),
    *(Case("ipc", ranks=2, engines=2, bucket_bytes=b) for b in (16384, 2048)),
    Case("ipc", "large", ranks=2, tensor_parallel=2, bucket_bytes=8192),
    Case("shared", ranks=2, engines=2, updates=3),
    Case("separate", ranks=1, engines=2, updates=3),
]

_NCCL = Case("nccl", ranks=2, engines=2)
_IPC = Case("ipc")
_SHARED = Case("shared", ranks=2, engines=2)
_SEPARATE = Case("separate", ranks=1, engines=2)


_SIZES = r"broadcast \d+: rank \d has \d+ bytes, rank \d \d+"
# A case, its fault, and what the failure says, as a regular expression.
_FAULTS: list[tuple[Case, str, str]] = [
    (_NCCL, "reuses a buffer that has not left", r"update 0, engine 0, rank 0: p\d+.* differs in"),
    (_NCCL, "returns before the last chunk has left", r"update 0.*: p\d+.* differs in"),
    (_NCCL, "cuts chunks of twice the size", _SIZES),
    (_NCCL, "cuts chunks of half the size", _SIZES),
    (_NCCL, "does not send a tensor", _SIZES),
    (_NCCL, "does not send the last chunk", r"waits for broadcast \d+, rank 0 ended after \d+"),
    (_NCCL, "does not tell of a tensor", _SIZES),
    (_NCCL, "does not tell of the last tensor", _SIZES + "|rank 0 waits for broadcast"),
    (_NCCL, "tells of two tensors in exchange", r"p\d+.* differs in \d+ of \d+ bytes"),
    (_NCCL, "tells of another dtype", r"p\d+.* is torch.float16 .* instead of torch.bfloat16"),
    (_NCCL, "ranks one too high", "rank 3 is outside of a group of 3|taken twice"),
    (_NCCL, "ranks one too low", "rank [01] is taken twice in a group of 3"),
    (_IPC, "refills before the engines have copied", r"GPU 0: p\d+.* differs in"),
    (_IPC, "exports what is not written yet", r"update 1, GPU 0: p\d+.* differs in"),
    (_IPC, "does not send the last chunk", r"GPU 0: p\d+.* did not arrive"),
    (_IPC, "tells of another dtype", r"p\d+.* is torch.float16 .* instead of torch.bfloat16"),
    (
        Case("ipc", "large", ranks=2, engines=2, bucket_bytes=8192),
        "ranks do not wait for each other",
        r"GPU 1: p\d+.* differs in",
    ),
    (_SHARED, "the cache wakes with the weights", r"GPU \d is full: .*staging"),
    (_SHARED, "the engines do not wake for the weights", "weights were written while they sleep"),
    (_SHARED, "the engines do not sleep", r"GPU \d is full: "),
    (_SHARED, "the learner does not make room", r"GPU \d is full: "),
    (_SHARED, "the weights leave before they are sent", "works without learner's weights"),
    (_SHARED, "the learner keeps what it gathered", r"GPU \d is full: "),
    (_SHARED, "the learner takes nothing back", "works without learner's states"),
    (_SHARED, "the cache does not wake", "sampled while kv_cache sleeps"),
    (_SHARED, "the cache wakes first", "weights were written while they sleep"),
    (_SHARED, "the cache wakes twice", "vLLM does nothing and warns: Executor is not sleeping"),
    (_SHARED, "an update is not finished", "sampled during a weight update"),
    (_SEPARATE, "the engines do not pause", "sampled during a weight update"),
    (_SEPARATE, "the engines resume too early", "sampled during a weight update"),
    (_SEPARATE, "an update is not started", "start_weight_update must be called before"),
]
FAULTS = [(replace(case, mutation=mutation), words) for case, mutation, words in _FAULTS]
