"""What MkDocs adds to the pages of docs/: the generated reference, and files of the root."""

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# MkDocs takes its path away again after this import, so everything of ours is imported here.
sys.path[:0] = [str(HERE), str(ROOT)]

keys = importlib.import_module("keys")
parts = importlib.import_module("parts")
cli = importlib.import_module("grpo.cli.commands")  # the package's own `main` is the function

FROM_ROOT = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
REPOSITORY_FILE = re.compile(r"\]\((?!https?://|#|mailto:)(?P<to>[^)]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path, text in generated().items():
        files.append(File.generated(config, path, content=text))
    return files


def generated() -> dict[str, str]:
    """path within docs/ -> Markdown."""
    pages = {f"reference/{name}.md": keys.page(name) for name in keys.PAGES}
    pages["reference/parts.md"] = parts.page()
    pages["reference/cli.md"] = command_line()
    for name in FROM_ROOT:
        if (ROOT / name).is_file():
            pages[name.lower()] = from_root((ROOT / name).read_text(encoding="utf-8"))
    return pages


def command_line() -> str:
    """`--help` of every command, by typer's own writer of documentation."""
    import typer
    from typer.cli import get_docs_for_click

    command = typer.main.get_command(cli.app)
    _say_in_full(command)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="grpo")
    return text.replace("# `grpo`", "# Command line", 1)


def _say_in_full(group: Any) -> None:
    """In lists of commands the first sentence of each, which would be cut at 45 characters."""
    for command in group.commands.values():
        command.short_help = " ".join((command.help or "").split(".\n")[0].split("\n\n")[0].split())
        if isinstance(command, type(group)):
            _say_in_full(command)


def from_root(text: str) -> str:
    """Its links to docs/ become links between pages; those to other files become their names."""
    return REPOSITORY_FILE.sub(_link, text)


def _link(match: re.Match[str]) -> str:
    to = match["to"]
    path = to.partition("#")[0]
    if path.startswith("docs/"):
        return f"]({to.removeprefix('docs/')})"
    if path in FROM_ROOT:
        return f"]({to.lower()})"
    return "](index.md)" if path == "README.md" else f"](index.md)<!-- {path} -->"
