"""What a declaration of prompts (`data/*.yaml`) may say, and the base classes of all sections."""

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

# Parameters of the tokenizer's apply_chat_template, and what it gives to every template.
_GIVEN_TO_TEMPLATES = {
    *("messages", "conversation", "conversations", "chat_template", "add_generation_prompt"),
    *("continue_final_message", "tokenize", "padding", "truncation", "max_length"),
    *("return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"),
}


# Of every integer in a recipe: what torch, numpy and vLLM hold in 32 bits somewhere.
LARGEST = 2**31 - 1
# Seconds in a year: of every time limit, as Python cannot wait for much longer ones.
YEAR_S = 365 * 24 * 3600


class Section(BaseModel):
    """A part of a recipe. Unknown keys are errors, values never change after reading, and
    nothing is converted: "3" and true are not numbers, 3.7 is not an integer. Numbers are finite,
    and integers have at most 32 bits."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _integers_are_not_endless(self) -> Self:
        for key, value in self:
            if isinstance(value, int) and abs(value) > LARGEST:
                raise ValueError(f"{key} is {value}: use a number up to {LARGEST}")
        return self


class Choice(BaseModel):
    """A registered part and its options: `balanced`, or `{name: balanced, scope: batch}`.

    The options are checked against the part's own signature by its registry.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = Field(description="under which the part is registered")

    @model_validator(mode="before")
    @classmethod
    def _a_bare_name_has_no_options(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Columns(Section):
    """Where a row keeps its parts: for each the candidates in order of preference.

    A dot reaches into a nested value (`reward_model.ground_truth`). The problem may be a chat: a
    list of role/content messages, also as JSON text, which ends with a message of the user. That
    one is the problem; those before it are shown to the model as they are (needs chat: true).
    """

    problem: list[str] = Field(
        default=["problem", "question", "prompt"], description="what is asked"
    )
    answer: list[str] = Field(
        default=["answer", "final_answer", "reward_model.ground_truth"],
        description="the reference answer",
    )
    id: list[str] = Field(
        default=["id", "unique_id", "extra_info.index"],
        description="what names the row in results; without one, its position does",
    )
    ignored: list[str] = Field(
        default=[],
        description="columns with images, sound or video that no problem needs; a row with "
        "anything in another such column is a bad row",
    )


class Filters(Section):
    """Which rows of a file or a hub are left out, and which stop the reading. Generated rows are
    not filtered.

    Scripts are told apart by their characters alone, without a model: a problem with one
    Chinese, Japanese or Korean character is `cjk`, any other is `latin`.
    """

    bad_rows: Literal["error", "skip"] = Field(
        default="error",
        description="a row that is not a JSON object, has no problem or no column with an answer, "
        "whose answer is not text, or that holds what no prompt of text can show",
    )
    empty_answer: Literal["error", "drop"] = Field(
        default="error", description="a row whose answer is there, but null, NaN or empty"
    )
    language: Literal["any", "latin", "cjk"] = Field(
        default="any", description="keep the problems in one script only"
    )
    duplicates: Literal["keep", "exact", "normalized"] = Field(
        default="exact",
        description="the first of several rows stays. exact: they have the same problem and "
        "answer; normalized: their problems are equal in lower case without white space and $",
    )
    giveaways: Literal["keep", "drop", "drop_guesses"] = Field(
        default="keep",
        description="rows that `grpo verify` was paid for without solving them. drop_guesses: "
        "also those that are right if one says a number or a choice of the problem",
    )
    giveaways_file: str | None = Field(
        default=None,
        description="the file that `grpo verify` wrote; default: "
        "runs/verify/NAME.VERIFIER.giveaways.jsonl, where there is one of them",
    )


class Decontamination(Section):
    """What `grpo data prepare` leaves out because it is in a benchmark. `grpo train` does not
    compare its rows with anything.

    A row is left out if its problem equals one of a benchmark's but for case, white space, full
    stops and the style of its formulas, if one of fewer than `ngram` words stands in it as whole
    sentences, or if it shares `ngram` words in a row with one. What stands in more than
    `set_phrase` different problems of the training set is a set phrase ("where m and n are
    relatively prime positive integers ...") and does not count, as in GPT-3 (arXiv 2005.14165,
    appendix C).
    """

    against: list[str] = Field(
        default=["eval/*.yaml"],
        description="suites (.yaml) or files of problems, * and ? allowed; []: nothing",
    )
    exact: bool = Field(default=True, description="leave out problems that are equal")
    contained: bool = Field(
        default=True,
        description="leave out problems in which a short problem of a benchmark stands whole",
    )
    ngram: int = Field(default=13, ge=0, description="words; 0: off")
    set_phrase: int = Field(default=10, ge=1, description="problems")


class Copy(Section):
    """A local file with known content: reading one of this name with another checksum or
    number of rows is an error."""

    file: str = Field(description="its name without folders")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="its checksum")
    rows: int = Field(ge=1, description="rows before any filter")
    source: str = Field(default="", description="where the file comes from")


class DataConfig(Section):
    """A declaration of prompts (`data/*.yaml`). Rows come from `path` if set, else from `task`
    (generated), else from `hub` (a Hugging Face data set)."""

    name: str = Field(description="in messages, and of the prepared file")
    path: str | None = Field(default=None, description="a local .jsonl, .json or .parquet file")
    copies: list[Copy] = Field(default=[], description="what is known of files for `path`")
    task: Choice | None = Field(
        default=None, description="a generated task, e.g. {name: arithmetic}"
    )
    hub: str | None = Field(default=None, description="a Hugging Face data set, e.g. org/name")
    revision: str | None = Field(default=None, description="a commit of it; default: the newest")
    hub_subset: str | None = Field(default=None, description="e.g. main of openai/gsm8k")
    hub_split: str = Field(default="train", description="the split that is read")
    hub_rows: int | None = Field(
        default=None, ge=1, description="rows of that split before any filter; others are an error"
    )
    columns: Columns = Columns()
    strip_prefix: str = Field(
        default="", description="removed from the start of a problem where present"
    )
    strip_suffix: str = Field(
        default="", description="removed from the end of a problem where present"
    )
    answer_after: str = Field(
        default="", description="where present, the answer is what follows the last one of these"
    )
    template: str = Field(
        default="{problem}", description="the user message; {problem} is replaced"
    )
    system: str | None = Field(default=None, description="needs chat: true")
    chat: bool = Field(
        default=False, description="wrap the message in the tokenizer's chat template"
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default={},
        description="what the chat template is given beside the messages, e.g. "
        "{enable_thinking: false}; needs chat: true",
    )
    filters: Filters = Filters()
    decontaminate: Decontamination = Decontamination()
    rows: int | None = Field(default=None, ge=1, description="use the first rows only")
    shuffle: bool = Field(default=True, description="a new order in every epoch, by seed")
    long_prompts: Literal["error", "skip"] = Field(
        default="error", description="prompts that leave no room for rollout.max_tokens"
    )

    @field_validator("chat_template_kwargs", mode="before")
    @classmethod
    def _only_what_a_template_reads(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if ours := sorted(_GIVEN_TO_TEMPLATES & value.keys()):
            raise ValueError(f"{ours[0]} is what the trainer gives to the template itself")
        for key, given in value.items():
            try:
                json.dumps(given, allow_nan=False)
            except (TypeError, ValueError):  # YAML reads 2024-07-26 as a date
                raise ValueError(f"{key} is {given!r}, a date or NaN: put it in quotes") from None
        return value

    @model_validator(mode="after")
    def _one_source(self) -> "DataConfig":
        if not (self.path or self.task or self.hub):
            raise ValueError("needs a source: one of path, task or hub")
        if "{problem}" not in self.template:
            raise ValueError(f"template {self.template!r} has no {{problem}} in it")
        if self.system is not None and not self.chat:
            raise ValueError("system needs chat: true; without a chat put the text into template")
        if self.chat_template_kwargs and not self.chat:
            raise ValueError("chat_template_kwargs needs chat: true; without a chat no template")
        return self

    def copy_at(self, path: Path) -> Copy | None:
        """What is known of a file of this name."""
        return next((copy for copy in self.copies if copy.file == path.name), None)
