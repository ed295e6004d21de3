"""What a suite's plugins register counts in every process of a run."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from grpo.config.recipe import BuildConfig, Recipe
from grpo.console import Screen
from grpo.learner.build import build_model, build_tokenizer, save_pretrained
from grpo.plugins import import_plugins
from grpo.store.board import NullBoard
from grpo.store.checkpoint import RunFolder
from grpo.train import opened
from grpo.types import Verdict

SUMS = {"name": "sums", "task": {"name": "arithmetic", "rows": 3}}
PLUGIN = """
from grpo.types import Verdict
from grpo.verify import VERIFIERS

@VERIFIERS.register("of_the_suite_alone")
def of_the_suite_alone(response, answer):
    return Verdict(1.0, "", "correct")
"""


class Judged(Exception):
    pass


def test_the_runs_own_verifier_may_come_from_the_suites_plugins(tmp_path: Path, monkeypatch):
    (tmp_path / "plugin_of_the_suite.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    config = BuildConfig(
        alphabet="0123456789+=}\n", layers=1, hidden_size=32, heads=1, kv_heads=1,
        intermediate_size=32, context=32,
    )  # fmt: skip
    tokenizer = build_tokenizer(config)
    save_pretrained(build_model(config, tokenizer, seed=0), tokenizer, tmp_path / "model")
    suite = {"name": "s", "plugins": ["plugin_of_the_suite"], "max_tokens": 8, "data": SUMS}
    recipe = Recipe.model_validate(
        {
            "name": "run",
            "model": {"path": str(tmp_path / "model")},
            "data": SUMS | {"chat": False},
            "rollout": {"max_tokens": 8},
            "verifier": {"name": "of_the_suite_alone", "workers": 1},
            "eval": {"suite": suite | {"verifier": "of_the_suite_alone"}},
        }
    )
    import_plugins(recipe.plugin_names())
    given: list[Verdict] = []

    class Pool(opened.VerifierPool):
        def __enter__(self) -> Any:
            super().__enter__()
            given.extend(self.judge(["6"], "7"))
            self.close()
            raise Judged

    monkeypatch.setattr(opened, "VerifierPool", Pool)
    monkeypatch.setattr(opened, "Cluster", lambda *_: nullcontext())
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(Judged), opened.open_run(recipe, None, folder, Screen(), NullBoard):
        pass
    assert [verdict.reason for verdict in given] == ["correct"]
