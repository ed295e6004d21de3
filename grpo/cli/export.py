"""`grpo export`: the model of a checkpoint, for use elsewhere."""

from pathlib import Path
from typing import Annotated

import typer

from grpo.cli.exit_codes import exit_codes


def export(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="a checkpoint, such as runs/mine/checkpoints/step_000050, or a run, whose newest "
            "is taken"
        ),
    ],
    out: Annotated[Path, typer.Argument(help="a folder that is new or empty")],
) -> None:
    """Write the model of a checkpoint alone, in a folder that transformers and vLLM load.

    Weights, config and tokenizer, without what only a resume needs. Adapters (learner.lora) are
    merged in. Missing files and weights that are not finite end it with exit code 2, and OUT is
    written as a whole or not at all. Nothing is started:

        grpo export runs/mine models/mine

        grpo export runs/mine/checkpoints/step_000050 models/mine_50

        vllm serve models/mine
    """
    with exit_codes("the same command starts again"):
        from grpo.console import Screen
        from grpo.store.export import export_model

        made = export_model(checkpoint, out)
        Screen().note(
            f"wrote {out}: the model after step {made.step} of {made.checkpoint} "
            f"({made.num_tensors} tensors, {made.num_bytes / 1e6:,.1f} MB)"
        )
