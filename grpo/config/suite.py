"""What an evaluation suite may say: every key with its type, range and default."""

from datetime import date
from typing import Any

from pydantic import Field, field_validator, model_validator

from grpo.config.data import YEAR_S, Choice, DataConfig, Section


class DateWindow(Section):
    """Only the rows dated from `start` to `end`, both days included, e.g. 2024-08-01."""

    column: str = Field(description="that holds the row's date")
    # Not strict: dates in YAML, strings in a stored recipe.
    start: date = Field(default=date.min, strict=False, description="the first day")
    end: date = Field(default=date.max, strict=False, description="the last day")

    @model_validator(mode="after")
    def _starts_before_it_ends(self) -> "DateWindow":
        if self.start > self.end:
            raise ValueError(f"start {self.start} is after end {self.end}")
        return self


class BenchmarkConfig(Section):
    """One benchmark of an evaluation suite."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9._-]+$", description="also the name of its answers' file"
    )
    data: DataConfig
    samples: int = Field(default=8, ge=1, description="answers per problem (k of avg@k)")
    temperature: float = Field(
        default=1.0, ge=0, le=2, description="0: the likeliest token always; else from 0.01 on"
    )
    top_p: float = Field(default=1.0, gt=0, le=1, description="nucleus sampling; 1: off")
    max_tokens: int = Field(default=8192, ge=1, description="longest answer")
    verifier: Choice = Field(default=Choice(name="math"), description="who judges the answers")
    judge_timeout_s: float = Field(default=10.0, gt=0, le=YEAR_S, description="for one answer")
    by: list[str] = Field(default=[], description="columns that the score is broken down by")
    window: DateWindow | None = None
    reference: dict[str, list[str]] = Field(
        default={},
        description="where set, the reference is a JSON object: its keys, and for each the columns "
        "that may hold its value, in order of preference",
    )
    starter: str | None = Field(
        default=None, description="a column with code to complete, shown after the problem"
    )

    @field_validator("temperature")
    @classmethod
    def _vllm_takes_the_temperature_as_it_is(cls, temperature: float) -> float:
        if 0 < temperature < 0.01:
            raise ValueError(f"{temperature:g} would be 0.01 in vLLM: use 0, or 0.01 at least")
        return temperature


class SuiteConfig(Section):
    """`eval/*.yaml`: benchmarks that are run together. A single benchmark is a suite as well."""

    name: str = Field(description="of the result's file")
    plugins: list[str] = Field(default=[], description="modules that register verifiers")
    benchmarks: list[BenchmarkConfig] = Field(min_length=1, description="run in this order")

    @model_validator(mode="before")
    @classmethod
    def _one_benchmark_is_a_suite(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "data" not in value or "benchmarks" in value:
            return value
        alone = {key: part for key, part in value.items() if key != "plugins"}
        shared = {key: value[key] for key in ("name", "plugins") if key in value}
        return shared | {"benchmarks": [alone]}

    @model_validator(mode="after")
    def _names_are_distinct(self) -> "SuiteConfig":
        names = [benchmark.name for benchmark in self.benchmarks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two benchmarks are named {twice[0]!r}: rename one of them")
        return self
