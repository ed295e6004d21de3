"""What can be known of a benchmark without running it."""

from grpo.config.suite import BenchmarkConfig
from grpo.data.load import describe
from grpo.eval.rows import benchmark_rows
from grpo.verify.ready import check_verifier


def check_benchmark(benchmark: BenchmarkConfig) -> str:
    """What it comes to, in words. Raises UserError for what cannot work."""
    verifier = benchmark.verifier
    check_verifier(verifier.name, verifier.options, benchmark.judge_timeout_s, "judge_timeout_s")
    on_the_hub = benchmark.data.path is None and benchmark.data.task is None
    rows = None if on_the_hub else benchmark_rows(benchmark)
    counted = describe(benchmark.data, rows)
    return f"{counted}, {benchmark.samples} answers each"
