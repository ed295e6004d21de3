"""The head beside log_softmax over whole logits and beside TRL's chunked head: time, peak memory.

    .venv/bin/python benchmarks/head.py [--json FILE] [--bfloat16] [--tokens T] [--rounds N]

TRL is that of the environment which trl_step.py makes; without it the rows beside TRL are left out.
On a CPU its Triton kernels do not run: what is measured is the torch fallback of the same
`ChunkedLogProbFunction`, with TRL's own chunks of 4,096 by 32,768.

One run is logprobs of T = 4,096 tokens over V = 151,936 entries, H = 1,024, and the gradients of
their weighted sum in the hidden states and the weight; ours and TRL give entropies as well, the
plain side does not. Every run has a process of its own, which tells its seconds, the seconds that
its threads computed (on a machine with other work the steadier figure) and the memory it added to
its inputs at its peak; the sides take turns. All must give the same numbers. Logits have a
deviation of 3. In bfloat16 all products are float32 ones, which a CPU without such units does far
faster, and TRL's side is left out. Where there is a GPU it is used (not run yet).
"""

import importlib
import math
import multiprocessing
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from common import Row, Spread, command, parser, peak_rss, report, start_peak
from torch import Tensor

from grpo.learner.head_kernels import tiled

VOCABULARY, HIDDEN, TEMPERATURE = 151_936, 1_024, 1.0
CUDA = torch.cuda.is_available()
MIB = 1 << 20


class Run(NamedTuple):
    seconds: float
    cpu_seconds: float
    peak: int
    logprob: float
    norm_hidden: float
    norm_weight: float


def naive(hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor) -> Tensor:
    logits_TV = hidden_TH.float() @ weight_VH.T.float()
    return F.log_softmax(logits_TV, -1).gather(1, targets_T[:, None])[:, 0]


def ours(hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor) -> Tensor:
    return tiled(hidden_TH, weight_VH, targets_T, TEMPERATURE, True)[0]


def trl(hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor) -> Tensor:
    """TRL's (1.16). Its tiles have the inputs' precision: bfloat16 logits are rounded before they
    are summed."""
    function = importlib.import_module("trl.kernels").ChunkedLogProbFunction
    inputs = (hidden_TH, weight_VH, None, targets_T)
    return function.apply(*inputs, TEMPERATURE, 32768, None, 1.0, ("entropy",))[0]


SIDES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "naive": naive,
    "ours": ours,
    "TRL": trl,
}
AIMS = {"time": "<= 1.3", "CPU time": "", "peak memory": "<= 0.125"}


def run(side: str, tokens: int, dtype: torch.dtype) -> Run:
    """In the process of its own."""
    torch.manual_seed(0)
    device = "cuda" if CUDA else "cpu"
    hidden_TH = torch.randn(tokens, HIDDEN).to(device, dtype).requires_grad_()
    weight_VH = torch.randn(VOCABULARY, HIDDEN).mul_(3 / math.sqrt(HIDDEN)).to(device, dtype)
    weight_VH.requires_grad_()
    targets_T = torch.randint(0, VOCABULARY, (tokens,)).to(device)
    slopes_T = torch.randn(tokens).to(device)
    SIDES[side](hidden_TH[:8], weight_VH[:64], targets_T[:8] % 64).sum().backward()  # imports
    hidden_TH.grad = weight_VH.grad = None
    start_peak()
    before = torch.cuda.memory_allocated() if CUDA else peak_rss()
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    started, cpu_started = time.perf_counter(), time.process_time()
    logprobs_T = SIDES[side](hidden_TH, weight_VH, targets_T)
    (logprobs_T * slopes_T).sum().backward()
    if CUDA:
        torch.cuda.synchronize()
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu_started
    peak = torch.cuda.max_memory_allocated() if CUDA else peak_rss()
    assert hidden_TH.grad is not None and weight_VH.grad is not None
    norms = [float(grad.float().norm()) for grad in (hidden_TH.grad, weight_VH.grad)]
    return Run(seconds, cpu, peak - before, float(logprobs_T.detach().mean()), *norms)


def measured(
    sides: list[str], tokens: int, dtype: torch.dtype, rounds: int
) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = {side: [] for side in sides}
    context = multiprocessing.get_context("spawn")
    for number in range(rounds):
        for side in sides if number % 2 == 0 else sides[::-1]:
            with context.Pool(1) as pool:
                done = pool.apply(run, (side, tokens, dtype))
            runs[side].append(done)
            print(f"{dtype} {side}: {done}", file=sys.stderr, flush=True)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for side in sides:
        for mine, exact in zip(runs[side][0][3:], runs["naive"][0][3:], strict=True):
            assert math.isclose(mine, exact, rel_tol=tolerance), f"{side}: {mine} is not {exact}"
    return runs


def rows(dtype: torch.dtype, runs: dict[str, list[Run]]) -> list[Row]:
    """Time and peak memory beside each rival."""
    found: list[Row] = []
    for rival in [side for side in runs if side != "ours"]:
        for what, aim in AIMS.items():
            mine, theirs = ([figure(one, what) for one in runs[side]] for side in ("ours", rival))
            ratio = Spread.of([a / b for a, b in zip(mine, theirs, strict=True)])
            texts = [shown(Spread.of(figures).median, what) for figures in (mine, theirs)]
            name = f"head in {str(dtype).removeprefix('torch.')} beside {rival}, {what}"
            claimed = aim if (rival, dtype) == ("naive", torch.float32) else ""
            found.append(Row(name, *texts, ratio, claimed))
    return found


def figure(one: Run, what: str) -> float:
    return {"time": one.seconds, "CPU time": one.cpu_seconds, "peak memory": one.peak}[what]


def shown(value: float, what: str) -> str:
    return f"{value / MIB:,.0f} MiB" if what == "peak memory" else f"{value:.1f} s"


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--tokens", type=int, default=4096)
    arguments.add_argument("--rounds", type=int, default=1, help="of float32; bfloat16 takes one")
    arguments.add_argument("--bfloat16", action="store_true", help="measure it as well")
    arguments.add_argument("--environment", type=Path, default=Path(".bench/trl"), help="of TRL")
    chosen = arguments.parse_args()
    # Behind our own packages: only what we lack is taken from there.
    sys.path += map(str, chosen.environment.resolve().glob("lib/python*/site-packages"))
    sides = [side for side in SIDES if side != "TRL" or find_spec("trl")]
    taken = {torch.float32: measured(sides, chosen.tokens, torch.float32, chosen.rounds)}
    if chosen.bfloat16:
        taken[torch.bfloat16] = measured(["naive", "ours"], chosen.tokens, torch.bfloat16, 1)
    results: dict[str, Any] = {
        "tokens": chosen.tokens,
        "vocabulary": VOCABULARY,
        "hidden": HIDDEN,
        "runs": {
            str(dtype): {side: [one._asdict() for one in done] for side, done in runs.items()}
            for dtype, runs in taken.items()
        },
    }
    table = [row for dtype, runs in taken.items() for row in rows(dtype, runs)]
    report("head", command(), results, table, chosen.json)


if __name__ == "__main__":
    main()
