"""An evaluation from its rows to its files, with answers from a script in place of vLLM."""

import errno
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast
from unittest.mock import Mock

import numpy as np
import pytest

from grpo.config.data import Choice
from grpo.config.recipe import BuildConfig, Recipe, VerifierConfig
from grpo.config.suite import SuiteConfig
from grpo.console import Screen
from grpo.errors import Interrupted, UserError
from grpo.eval import run as evaluate
from grpo.eval import store
from grpo.eval.result import load
from grpo.eval.run import Bench, EngineOptions, VerifierPools, run_suite, weights_identity
from grpo.eval.store import Answered, judged_by, read_answers
from grpo.learner.build import build_model, build_tokenizer, save_pretrained
from grpo.learner.model_files import load_tokenizer
from grpo.rollout.outlook import SoFar
from grpo.rollout.sampling import Sampling
from grpo.store.checkpoint import RunFolder
from grpo.store.disk import PatientDisk
from grpo.store.log import read_metrics
from grpo.train.run import _summary
from grpo.train.trainer import Progress, Trainer
from grpo.types import Group, Prompt, Response, Verdict, VersionSpan
from grpo.verify import VERIFIERS
from grpo.verify.fingerprint import fingerprint
from tests.unit.made_parts import opened

PROBLEMS = [("2+2", "4", "even"), ("2+3", "5", "odd"), ("3+3", "6", "even"), ("3+4", "7", "odd")]


class Letters:
    """A tokenizer of characters."""

    chat_template = None
    added_tokens_decoder: Mapping[int, object] = MappingProxyType({})
    input_ids: list[int]

    def __call__(self, text: str, add_special_tokens: bool) -> "Letters":
        made = Letters()
        made.input_ids = [ord(letter) for letter in text]
        return made

    def decode(self, token_ids: list[int]) -> str:
        return "".join(map(chr, token_ids))


class Script:
    """Answers the way `answer` says, and remembers what it was asked. Obeys `stop` as the real
    pool does; dies after `most` groups."""

    def __init__(self, answer: Callable[[Prompt, int], str], most: int = 10**9):
        self.answer, self.most = answer, most
        self.asked: list[str] = []
        self.seeds: dict[str, int] = {}

    def sample(
        self,
        prompts: Sequence[Prompt],
        count: int,
        sampling: Sampling,
        seed_of: Callable[[Prompt], int],
        stop: Callable[[], bool] = lambda: False,
        *,
        watch: Callable[[SoFar], None] = lambda so_far: None,
    ) -> Iterator[Group]:
        for prompt in reversed(prompts):  # groups come in the order in which they finish
            if stop():
                return
            if len(self.asked) == self.most:
                raise RuntimeError("the engine died")
            self.asked.append(prompt.row.problem)
            self.seeds[prompt.row.problem] = seed_of(prompt)
            yield Group(prompt, tuple(response(self.answer(prompt, i)) for i in range(count)))


def response(text: str) -> Response:
    length = len(text)
    return Response(
        np.zeros(length, np.int32),
        np.zeros(length, np.float32),
        "length" if text == "cut" else "stop",
        (VersionSpan(0, 0, length),),
        text,
    )


class Workbench:
    """What stays the same while an evaluation is repeated."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.judged: list[tuple[str, str]] = []
        self.facts: list[dict[str, object]] = []
        self.stopped = False
        data = folder / "sums.jsonl"
        data.write_text(
            "".join(
                json.dumps({"id": f"p{n}", "problem": p, "answer": a, "kind": kind}) + "\n"
                for n, (p, a, kind) in enumerate(PROBLEMS)
            )
        )
        self.settings = {
            "name": "sums",
            "data": {"name": "sums", "path": str(data)},
            "samples": 2,
            "max_tokens": 8,
            "verifier": "exact",
            "by": ["kind"],
        }

    def submit(self, text: str, answer: str, **facts: object) -> Future[Verdict]:
        self.judged.append((text, answer))
        self.facts.append(facts)
        future: Future[Verdict] = Future()
        future.set_result(VERIFIERS["exact"](text, answer, marked="preferred"))
        return future

    def run(
        self,
        script: Script,
        model: str | None = "weights",
        write: store.Write = store.write_once,
        **changes: object,
    ):
        suite = SuiteConfig.model_validate(self.settings | changes)
        verifier = VerifierConfig(name="exact")
        bench = Bench(
            rollouts=lambda: script,
            tokenizer=Letters(),
            max_model_len=32,
            verifiers=VerifierPools(1, (), (verifier, self)),
            screen=Screen(),
            out=self.folder / "result.json",
            stop=lambda: self.stopped,
            model=None if model is None else {"files": model},
            write=write,
        )
        return run_suite(suite, bench)


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def first_right(prompt: Prompt, index: int) -> str:
    """The first answer is right, the second is cut off."""
    return prompt.row.answer if index == 0 else "cut"


def test_a_benchmark_by_hand(bench: Workbench) -> None:
    (result,) = bench.run(Script(first_right))
    assert result.num_problems == 4
    values = {name: score.value for name, score in result.scores.items()}
    assert values == {"avg@2": 0.5, "pass@1": 0.5, "pass@2": 1.0, "best@2": 1.0, "maj@2": 1.0}
    assert result.length_mean == 2.0  # one letter, three letters
    assert result.truncated_share == 0.5
    assert result.no_answer_share == 0.0
    assert result.reasons == {"correct": 4, "wrong": 4}
    assert {label: part.num_problems for label, part in result.parts["kind"].items()} == {
        "even": 2,
        "odd": 2,
    }


def test_every_answer_is_kept_beside_the_result(bench: Workbench, tmp_path: Path) -> None:
    (result,) = bench.run(Script(first_right))
    groups, facts = read_answers(tmp_path / result.answers)
    assert [g.problem for g in groups] == [problem for problem, _, _ in PROBLEMS]
    assert [g.responses for g in groups] == [(answer, "cut") for _, answer, _ in PROBLEMS]
    assert [v.reward for v in groups[3].verdicts] == [1.0, 0.0]
    assert groups[1].labels == {"kind": "odd"}
    rules = fingerprint("exact")
    assert facts["judged"] == {
        "verifier": "exact",
        "options": {},
        "timeout_s": 10.0,
        "rules": rules,
    }


def test_answers_to_a_prompt_that_opens_the_thinking_are_judged_and_kept_so(
    bench: Workbench, tmp_path: Path
) -> None:
    data = bench.settings["data"]
    bench.run(Script(first_right), data=data | {"template": "{problem}</think>"})
    assert [facts["thinking"] for facts in bench.facts] == [False] * 8
    bench.facts.clear()
    (result,) = bench.run(Script(first_right), data=data | {"template": "{problem}<think>\n"})
    assert [facts["thinking"] for facts in bench.facts] == [True] * 8
    groups, _ = read_answers(tmp_path / result.answers)
    assert [group.thinking for group in groups] == [True] * 4


def test_parts_have_their_own_scores(bench: Workbench) -> None:
    script = Script(lambda prompt, _: prompt.row.answer if prompt.row.answer in ("4", "6") else "0")
    (result,) = bench.run(script)
    kinds = result.parts["kind"]
    assert (kinds["even"].average.value, kinds["odd"].average.value) == (1.0, 0.0)
    assert kinds["even"].average.name == "avg@2"


def test_an_engine_that_dies_costs_no_finished_group(bench: Workbench) -> None:
    first = Script(first_right, most=3)
    with pytest.raises(RuntimeError, match="the engine died"):
        bench.run(first)
    assert first.asked == ["3+4", "3+3", "2+3"]
    second = Script(first_right)
    (result,) = bench.run(second)
    assert second.asked == ["2+2"]
    assert result.scores == bench.run(Script(first_right, most=0))[0].scores
    assert result.num_problems == 4


def test_an_interrupted_evaluation_goes_on_and_judges_nothing_twice(bench: Workbench) -> None:
    def answer(prompt: Prompt, index: int) -> str:
        bench.stopped = prompt.row.problem == "2+3"
        return first_right(prompt, index)

    assert bench.run(Script(answer)) == []
    bench.stopped = False
    second = Script(first_right)
    (resumed,) = bench.run(second)
    assert second.asked == ["2+2"]
    assert len(bench.judged) == 8
    whole = Script(first_right)
    (fresh,) = bench.run(whole, model="other weights")
    assert resumed.scores == fresh.scores
    assert second.seeds["2+2"] == whole.seeds["2+2"]  # what it draws does not depend on the day


def test_a_finished_evaluation_samples_nothing_and_needs_no_engine(bench: Workbench) -> None:
    (first,) = bench.run(Script(first_right))
    (second,) = bench.run(Script(first_right, most=0))
    assert first == second
    assert len(bench.judged) == 8


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "other"},
        {"samples": 3},
        {"temperature": 0.5},
        {"max_tokens": 9},
        {"top_p": 0.9},
        {"data": {"template": "{problem}="}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_whatever_changes_the_answers_samples_them_again(bench: Workbench, changes) -> None:
    bench.run(Script(first_right))
    if "data" in changes:
        changes = {"data": bench.settings["data"] | changes["data"]}
    script = Script(first_right)
    bench.run(script, **changes)
    assert len(script.asked) == 4
    # The answers of the first are still there, for the next time.
    assert bench.run(Script(first_right, most=0))[0].num_problems == 4


def test_a_corrected_reference_is_judged_again_without_sampling(bench: Workbench) -> None:
    bench.run(Script(first_right))
    data = Path(bench.settings["data"]["path"])
    data.write_text(data.read_text().replace('"answer": "7"', '"answer": "cut"'))
    bench.judged.clear()
    (result,) = bench.run(Script(first_right, most=0))
    assert bench.judged == [("7", "cut"), ("cut", "cut")]
    assert result.average.value == 0.5


def test_weights_that_nobody_vouches_for_are_sampled_every_time(bench: Workbench) -> None:
    for _ in range(2):
        script = Script(first_right)
        (result,) = bench.run(script, model=None)
        assert len(script.asked) == 4
    assert result.answers == "result.answers/sums.parquet"


def test_an_answer_that_leaves_no_room_for_the_prompt_is_refused(bench: Workbench) -> None:
    with pytest.raises(UserError, match="max_tokens 32 leaves no room"):
        bench.run(Script(first_right), max_tokens=32)


def test_weights_are_told_apart_by_their_files(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"1")
    first = weights_identity(str(tmp_path), EngineOptions())
    assert weights_identity(str(tmp_path), EngineOptions()) == first
    assert weights_identity(str(tmp_path), EngineOptions("bfloat16")) != first
    weights.write_bytes(b"12")
    assert weights_identity(str(tmp_path), EngineOptions()) != first


def test_weights_that_an_engine_computes_with_in_another_way_are_others(tmp_path: Path) -> None:
    plain = weights_identity(str(tmp_path), EngineOptions())
    rounded = EngineOptions(extra={"quantization": "fp8"})
    assert weights_identity(str(tmp_path), rounded) == plain | {"engine": {"quantization": "fp8"}}


def test_a_shorter_context_of_the_engine_is_the_one_that_answers_must_fit() -> None:
    assert EngineOptions().max_model_len(131072) == 131072
    assert EngineOptions(extra={"max_model_len": 4096}).max_model_len(131072) == 4096
    for wrong in (131073, 0, "4k", None, True):
        with pytest.raises(UserError, match=r"expected a number of tokens up to .* 131072"):
            EngineOptions(extra={"max_model_len": wrong}).max_model_len(131072)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"dtype": "bfloat16"}, r"--engine sets dtype \(to 'bfloat16'\): set --dtype instead"),
        ({"tensor_parallel_size": 2}, "set --tensor-parallel instead"),
        ({"logprobs_mode": "raw_logits"}, "it cannot be changed, leave it out"),
    ],
)
def test_an_engine_option_that_has_a_name_of_its_own_is_refused_with_it(
    bench: Workbench, tmp_path: Path, extra: dict[str, Any], said: str
) -> None:
    suite = SuiteConfig.model_validate(bench.settings)
    with pytest.raises(UserError, match=said):
        evaluate.evaluate_model(
            str(tmp_path), suite, EngineOptions(extra=extra), tmp_path / "out.json", Screen()
        )


def test_verdicts_of_another_deadline_are_others() -> None:
    """More time may turn a timeout into a verdict."""
    short, long = (judged_by(Choice(name="exact"), seconds) for seconds in (5.0, 60.0))
    assert (short["timeout_s"], long["timeout_s"]) == (5.0, 60.0)
    assert short | {"timeout_s": 60.0} == long


def test_verdicts_of_other_rules_are_given_anew_on_the_same_answers(
    bench: Workbench, monkeypatch, capsys
) -> None:
    bench.run(Script(first_right))
    judged = len(bench.judged)
    bench.run(again := Script(first_right))
    assert (len(again.asked), len(bench.judged)) == (0, judged)
    monkeypatch.setattr("grpo.eval.store.fingerprint", lambda name: "rules of tomorrow")
    bench.run(again)
    assert (len(again.asked), len(bench.judged)) == (0, 2 * judged)
    assert "was judged by other rules; its answers are judged again" in capsys.readouterr().err


def test_prompts_that_are_all_too_long_are_named_with_their_length(bench: Workbench) -> None:
    data = bench.settings["data"] | {"long_prompts": "skip"}
    with pytest.raises(UserError) as raised:
        bench.run(Script(first_right), max_tokens=30, data=data)
    assert "all 4 prompts are too long: the shortest has 3 tokens" in str(raised.value)
    assert "max_tokens leaves 2 of the model's context" in str(raised.value)


@pytest.mark.parametrize(("timeout_s", "running"), [(10.0, True), (2.0, False)])
def test_the_deadline_of_a_benchmark_is_its_own(
    monkeypatch, timeout_s: float, running: bool
) -> None:
    """A running pool judges for those alone that ask for its verifier and its deadline."""
    started: list[float] = []

    @contextmanager
    def pool(name: str, options: dict[str, Any], *, timeout_s: float, **_: Any) -> Iterator[str]:
        started.append(timeout_s)
        yield "a new pool"

    monkeypatch.setattr("grpo.eval.rows.VerifierPool", pool)
    config, of_the_run = VerifierConfig(name="exact", timeout_s=10.0), cast(Any, "the run's pool")
    pools = VerifierPools(1, (), (config, of_the_run))
    with pools.pool(Choice(name="exact"), timeout_s) as found:
        assert found == ("the run's pool" if running else "a new pool")
    assert started == ([] if running else [timeout_s])


@pytest.mark.parametrize(
    ("gpus", "options", "count"),
    [
        (None, EngineOptions(), 1),
        (None, EngineOptions(engines=2), 2),
        (8, EngineOptions(), 8),
        (8, EngineOptions(tensor_parallel=4), 2),
        (8, EngineOptions(engines=3, tensor_parallel=2), 3),
    ],
)
def test_as_many_engines_as_fit_the_gpus(monkeypatch, gpus, options, count) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("grpo.fleet.placement.gpus_here", lambda: gpus)
    assert options.count() == count


@pytest.mark.parametrize(
    ("options", "needed"),
    [(EngineOptions(engines=2, tensor_parallel=2), 4), (EngineOptions(tensor_parallel=4), 4)],
)
def test_more_gpus_than_there_are_is_the_users_mistake(monkeypatch, options, needed) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("grpo.fleet.placement.gpus_here", lambda: 2)
    with pytest.raises(UserError, match=f"need {needed} GPUs, .* and there are 2: lower one"):
        options.count()


@pytest.mark.parametrize(
    ("here", "cluster", "said"),
    [
        (None, (0, 8), "this machine has none"),
        (8, (0, 0), "the Ray cluster counts none"),
    ],
)
def test_gpus_on_one_side_alone_are_refused_as_a_run_refuses_them(
    monkeypatch, here, cluster, said
) -> None:
    """Engines on the CPU of a machine beside eight GPUs are nothing that anyone wants."""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr("grpo.fleet.placement.gpus_here", lambda: here)
    monkeypatch.setattr("grpo.fleet.nodes.gpus_at", lambda address: cluster)
    for options in (EngineOptions(), EngineOptions(engines=2)):
        with pytest.raises(UserError, match=said):
            options.count()


def test_a_line_of_progress_counts_answers_before_the_first_group_has_finished(
    bench: Workbench, monkeypatch, capsys
) -> None:
    """Four problems with two answers each; a whole group is one of one token and one of three."""
    monkeypatch.setattr("grpo.progress.PLAIN_PROGRESS_EVERY_S", 0.0)

    class Slow(Script):
        def sample(self, *args: Any, **options: Any) -> Iterator[Group]:
            watch = options["watch"]
            watch(SoFar(1, 5))
            assert "eval sums: 1/8 answers (12%), 5 tokens" in capsys.readouterr().out
            for group in super().sample(*args, **options):
                yield group
                watch(SoFar(0, 2))
                if len(self.asked) == 1:
                    assert "eval sums: 2/8 answers (25%), 6 tokens" in capsys.readouterr().out

    bench.run(Slow(first_right))


def test_answers_that_exist_already_count_from_the_beginning(
    bench: Workbench, monkeypatch, capsys
) -> None:
    with pytest.raises(RuntimeError):
        bench.run(Script(first_right, most=3))
    monkeypatch.setattr("grpo.progress.PLAIN_PROGRESS_EVERY_S", 0.0)

    class Watched(Script):
        def sample(self, *args: Any, **options: Any) -> Iterator[Group]:
            options["watch"](SoFar(1, 3))
            assert "eval sums: 7/8 answers (88%), 15 tokens" in capsys.readouterr().out
            yield from super().sample(*args, **options)

    bench.run(Watched(first_right))


# --- within a run ---


def trainer(bench: Workbench, script: Script, step: int) -> Trainer:
    recipe = Recipe.model_validate(
        {
            "name": "run",
            "output": str(bench.folder),
            "model": {"path": "org/model"},
            "data": bench.settings["data"],
            "verifier": {"name": "exact"},
            "eval": {"suite": bench.settings},
        }
    )
    folder, stand_in, unused = RunFolder(bench.folder / "run"), cast(Any, script), cast(Any, None)
    folder.path.mkdir(exist_ok=True)
    collector, verifier, stop = Mock(), cast(Any, bench), cast(Any, lambda: bench.stopped)
    parts = opened(
        folder.path,
        unused,
        tokenizer=Letters(),
        verifier=verifier,
        shadows=unused,
        rollouts=stand_in,
        collector=collector,
    )
    made = Trainer(recipe, folder, Screen(), stop, parts)
    made.progress = Progress(step)
    return made


def right_up_to(count: int) -> Callable[[Prompt, int], str]:
    return lambda prompt, index: prompt.row.answer if prompt.serial < count else "0"


def test_a_run_tracks_its_peak_and_its_last_accuracy(bench: Workbench, capsys) -> None:
    for step, right in ((0, 1), (10, 3), (20, 2)):
        run = trainer(bench, Script(right_up_to(right)), step)
        run.evaluate(True)
    logged = [
        (row["step"], row["eval/sums/avg"], row["eval/sums/peak"], row["eval/sums/peak_best"])
        for row in read_metrics(run.folder.metrics)
    ]
    assert logged == [(0, 0.25, 0.25, 0.25), (10, 0.75, 0.75, 0.75), (20, 0.5, 0.75, 0.75)]
    capsys.readouterr()
    _summary(run.folder, run.screen)
    avg = next(line for line in capsys.readouterr().out.splitlines() if "avg@2" in line)
    assert [word for word in avg.split() if word[0] in "01"] == [
        *("0.250", "0.000", "0.750)"),
        *("0.750", "0.250", "1.000)", "10"),
        *("0.500", "0.000", "1.000)"),
    ]


def test_a_step_is_evaluated_once_and_keeps_its_answers(bench: Workbench) -> None:
    run = trainer(bench, Script(first_right), 10)
    run.evaluate(False)
    assert not (run.folder.path / "eval").exists()
    run.evaluate(True)
    run.evaluate(True)
    assert len(run.parts.rollouts.asked) == 4
    (result,) = load(run.folder.path / "eval" / "step_000010.json")
    groups, _ = read_answers(run.folder.path / "eval" / result.answers)
    assert len(groups) == 4


def test_an_interrupted_evaluation_of_a_run_leaves_no_result(bench: Workbench) -> None:
    run = trainer(bench, Script(first_right), 10)
    bench.stopped = True
    with pytest.raises(Interrupted):
        run.evaluate(True)
    assert evaluate.history(run.folder.path / "eval") == {}


def test_a_disk_that_is_full_while_answers_are_written_is_waited_for(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    well, left = store.write_answers, [True, False, True, False]  # the parts, and all of them

    def write(path: Path, groups: Iterable[Answered], facts: dict[str, object]) -> None:
        if left.pop(0):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        well(path, groups, facts)

    monkeypatch.setattr(store, "write_answers", write)
    disk = PatientDisk(0.001, Screen(), lambda: False)
    (result,) = bench.run(Script(first_right), write=disk.write)
    assert result.num_problems == 4 and left == []


# --- on a saved model ---


def test_a_model_whose_answers_are_all_there_is_scored_without_an_engine(
    bench: Workbench, tmp_path: Path
) -> None:
    config = BuildConfig(
        alphabet="0123456789+=}\n", layers=1, hidden_size=32, heads=1, kv_heads=1,
        intermediate_size=32, context=32,
    )  # fmt: skip
    tokenizer, folder = build_tokenizer(config), tmp_path / "model"
    save_pretrained(build_model(config, tokenizer, seed=0), tokenizer, folder)
    out = tmp_path / "scores.json"
    suite = SuiteConfig.model_validate(bench.settings)
    script = Script(first_right)
    sampled = run_suite(
        suite,
        Bench(
            rollouts=lambda: script,
            tokenizer=load_tokenizer(str(folder)),
            max_model_len=32,
            verifiers=VerifierPools(1, (), (VerifierConfig(name="exact"), bench)),
            screen=Screen(),
            out=out,
            model=weights_identity(str(folder), EngineOptions()),
        ),
    )
    assert len(script.asked) == 4
    assert evaluate.evaluate_model(str(folder), suite, EngineOptions(), out, Screen()) == sampled
    assert load(out) == sampled
    assert not (tmp_path / "logs").exists()  # where an engine would have written
