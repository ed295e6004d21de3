"""What can be known of a benchmark without running it."""

from typing import Any

from grpo.config.suite import BenchmarkConfig
from grpo.data.load import describe
from grpo.data.stream import check_prompts
from grpo.errors import UserError
from grpo.eval.rows import benchmark_rows
from grpo.verify.ready import check_verifier


def check_benchmark(benchmark: BenchmarkConfig) -> str:
    """What it comes to, in words. Raises UserError for what cannot work."""
    verifier = benchmark.verifier
    check_verifier(verifier.name, verifier.options, benchmark.judge_timeout_s, "judge_timeout_s")
    rows = None if _on_the_hub(benchmark) else benchmark_rows(benchmark)
    counted = describe(benchmark.data, rows)
    return f"{counted}, {benchmark.samples} answers each"


def check_fits(benchmark: BenchmarkConfig, tokenizer: Any, max_model_len: int) -> None:
    """Raises UserError where the model's context has no room for its answers and prompts."""
    longest = longest_prompt(benchmark, max_model_len)
    if not _on_the_hub(benchmark):
        check_prompts(benchmark_rows(benchmark), benchmark.data, tokenizer, longest)


def longest_prompt(benchmark: BenchmarkConfig, max_model_len: int) -> int:
    """Tokens that its answers leave for a prompt."""
    left = max_model_len - benchmark.max_tokens
    if left < 1:
        raise UserError(
            f"benchmark {benchmark.name!r}: max_tokens {benchmark.max_tokens} leaves no room for a "
            f"prompt in the model's {max_model_len} tokens: lower it"
        )
    return left


def _on_the_hub(benchmark: BenchmarkConfig) -> bool:
    return benchmark.data.path is None and benchmark.data.task is None
