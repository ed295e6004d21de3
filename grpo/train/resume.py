"""Which checkpoint a run resumes from; its folder is made ready for the steps after it."""

from pathlib import Path
from typing import Any

from grpo.config.load import resolved
from grpo.config.recipe import Recipe
from grpo.console import Screen
from grpo.errors import UserError
from grpo.store.checkpoint import RunFolder, TrainState
from grpo.store.facts import facts
from grpo.store.log import read_metrics
from grpo.store.origin import branch_of, file_of, forget, record, recorded
from grpo.train.fork import named_checkpoint


def eval_path(folder: RunFolder, step: int) -> Path:
    return folder.evaluations / f"step_{step:06d}.json"


def knows_evaluation(folder: RunFolder, step: int) -> bool:
    """Whether what an evaluation found after this step is on the disk, in the metrics, too."""
    return eval_path(folder, step).exists() and any(
        line["step"] == step and any(key.startswith("eval/") for key in line)
        for line in read_metrics(folder.metrics)
    )


def starting_point(recipe: Recipe, folder: RunFolder, screen: Screen, resume: str) -> Path | None:
    """The checkpoint to go on from; prepares the folder for what follows it. Nothing is deleted:
    what later steps had written moves aside."""
    wanted = resolved(recipe)
    if folder.recipe.exists():
        _check_recipe(recipe, wanted, folder, screen, resume)
    if resume != "never":
        for damaged, why in folder.damaged_checkpoints().items():
            screen.warn(f"{damaged} is damaged ({why}): the run does not go on from it")
    is_named = False
    if resume == "never":
        checkpoint = None
    elif resume == "auto" or _has_gone_on_from(resume, folder, screen):
        checkpoint = _newest(recipe, folder, screen)
    else:
        checkpoint, is_named = named_checkpoint(resume, recipe, folder, screen), True
    folder.begin(wanted, facts())
    aside = go_back_to(checkpoint, folder, screen)
    if is_named:
        record(folder, resume)
    if checkpoint is None:
        forget(folder)
        if aside is not None:
            screen.warn(
                f"{folder.path} has no checkpoint that can be read, so the run starts again at "
                "step 0"
            )
    return checkpoint


def _has_gone_on_from(directory: str, folder: RunFolder, screen: Screen) -> bool:
    """Whether the run was told so before, and is somewhere on the way from there: the same command
    once more."""
    origin, own = recorded(folder), folder.latest_checkpoint()
    if origin is None or not origin.is_named(directory, folder):
        return False
    branch = branch_of(folder)
    if branch is not None and not branch.led_to(own):
        return branch.is_there
    if own is not None and TrainState.load(own).step > origin.named.step:
        screen.note(
            f"the run has gone on from {directory} before, and goes on from {own} now; to go back "
            f"there once more, delete {file_of(folder)}"
        )
    return own is not None


def _newest(recipe: Recipe, folder: RunFolder, screen: Screen) -> Path | None:
    """Of the folder; or the one that its history branched off from, where it has none since."""
    own, branch = folder.latest_checkpoint(), branch_of(folder)
    if branch is None or branch.led_to(own):
        return own
    if not branch.is_there:
        raise UserError(
            f"{folder.path} was begun from {branch.checkpoint} (step {branch.step}), which is "
            "gone, and has no checkpoint since. Bring it back, or name another one with --resume "
            f"DIR; to start at step 0, delete {file_of(folder)}"
        )
    return named_checkpoint(str(branch.checkpoint), recipe, folder, screen)


def go_back_to(checkpoint: Path | None, folder: RunFolder, screen: Screen) -> Path | None:
    """Moves aside what the folder has of later steps; None: of all steps. Where to, if anything."""
    step = 0 if checkpoint is None else TrainState.load(checkpoint).step
    aside = folder.rewind(step)
    if aside is not None:
        screen.note(
            f"the steps after {step} are taken again; what they had written is in {aside}, which "
            "you may delete"
        )
    return aside


def _check_recipe(
    recipe: Recipe, wanted: dict[str, Any], folder: RunFolder, screen: Screen, resume: str
) -> None:
    """Raises UserError where the folder's run is another one."""
    if resume == "never":
        raise UserError(
            f"{folder.path} holds a run already and --resume never was given: choose another "
            "name=NAME, or delete the folder"
        )
    if conflicts := folder.recipe_conflicts(wanted):
        raise UserError(
            f"{folder.path} was made by another recipe; differing keys:\n  "
            + "\n  ".join(conflicts)
            + "\nChoose another name=NAME, or set the keys back"
        )
    stored = folder.stored_recipe()["schedule"]
    steps, decay = stored["steps"], recipe.learner.lr_decay
    if decay != "constant" and steps != recipe.schedule.steps:
        screen.warn(
            f"schedule.steps was {steps}, now {recipe.schedule.steps}: from here on the {decay} "
            "decay of the learning rate ends at the new number"
        )
    was, now = stored["max_staleness"], recipe.schedule.max_staleness
    if was != now:
        screen.warn(
            f"schedule.max_staleness was {was}, now {now}: from here on sampling runs up to {now} "
            f"steps ahead of the learner (correction: {recipe.correction_name()}), and the steps "
            "are not those that the run would have taken as it was begun"
        )
