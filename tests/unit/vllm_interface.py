"""What our code uses of vLLM, and what a vLLM has: both read out of sources, nothing is imported.

A use is written as one would write it down: `temperature` is read or set, `pause(mode=)` is called
with that keyword, `generate(prompt, params)` with arguments in these places. An empty name is the
class or function itself: `(max_tokens=)`.
"""

import ast
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What comes out of an attribute or a call of vLLM's, where our code goes on with it.
COMES_OUT = {
    "vllm.v1.engine.async_llm.AsyncLLM.from_engine_args": "vllm.v1.engine.async_llm.AsyncLLM",
    "vllm.v1.engine.async_llm.AsyncLLM.generate": "vllm.outputs.RequestOutput",
    "vllm.v1.engine.async_llm.AsyncLLM.output_processor": (
        "vllm.v1.engine.output_processor.OutputProcessor"
    ),
    "vllm.v1.engine.output_processor.OutputProcessor.request_states": (
        "vllm.v1.engine.output_processor.RequestState"
    ),
    "vllm.v1.engine.output_processor.RequestState.detokenizer": (
        "vllm.v1.engine.detokenizer.IncrementalDetokenizer"
    ),
    "vllm.outputs.RequestOutput.outputs": "vllm.outputs.CompletionOutput",
    "vllm.outputs.RequestOutput.prompt_logprobs": "vllm.logprobs.Logprob",
    "vllm.outputs.CompletionOutput.logprobs": "vllm.logprobs.FlatLogprobs",
    "vllm.outputs.CompletionOutput.weight_versions": "vllm.outputs.WeightVersionSpan",
    "vllm.distributed.weight_transfer.nccl_common.trainer_init": (
        "vllm.distributed.device_communicators.pynccl.PyNcclCommunicator"
    ),
    "vllm.model_executor.model_loader.reload.layerwise.get_layerwise_info": (
        "vllm.model_executor.model_loader.reload.types.LayerReloadingInfo"
    ),
}
_PASSED_THROUGH = {"list", "enumerate", "sorted", "tuple"}
_OF_DICTIONARIES = {"values"}  # what a dictionary that holds a symbol has, and not the symbol


@dataclass
class Use:
    """Of one member: how many arguments it is given by place (None: it is not called), and which by
    name."""

    positional: int | None = None
    keywords: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Signature:
    """places: arguments that may be given by place; words: by name only; star: any number more by
    place; stars: any more by name."""

    places: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    star: bool = False
    stars: bool = False

    def names(self, count: int) -> list[str]:
        """Of the first arguments; "*" is one of any number, "?" one too many."""
        beyond = max(0, count - len(self.places))
        return [*self.places[:count], *["*" if self.star else "?"] * beyond]

    def takes(self, places: list[str], words: set[str]) -> bool:
        known = words <= {*self.places, *self.words} or self.stars
        return known and "?" not in places and self.names(len(places)) == places


Uses = dict[str, dict[str, Use]]  # by symbol, then by member
Members = dict[str, Signature | None]  # None: not a function


class _Reader(ast.NodeVisitor):
    """Follows vLLM's names through one of our files: what is imported, annotated and assigned."""

    def __init__(self, uses: Uses):
        self.uses = uses
        self.known: dict[str, str] = {}  # an expression of ours as text, vLLM's symbol

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if (node.module or "").split(".")[0] == "vllm":
            for alias in node.names:
                self.known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                self._use(f"{node.module}.{alias.name}", "")

    def visit_Import(self, node: ast.Import) -> None:
        assert not any(alias.name.split(".")[0] == "vllm" for alias in node.names), (
            "import names from vLLM, so that each can be found: from vllm.x import y"
        )

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        before = dict(self.known)
        self.generic_visit(node)
        kept = {text: symbol for text, symbol in self.known.items() if text.startswith("self.")}
        self.known = before | kept

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_arg(self, node: ast.arg) -> None:
        self._learn(ast.Name(node.arg), node.annotation)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._learn(node.target, node.annotation)
        if self._symbol(node.target) is None:
            self._learn(node.target, node.value)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._learn(target, node.value)
        self.generic_visit(node)

    def visit_For(self, node: ast.For | ast.AsyncFor | ast.comprehension) -> None:
        self._learn(node.target, node.iter)
        self.generic_visit(node)

    visit_AsyncFor = visit_For
    visit_comprehension = visit_For

    def visit_GeneratorExp(self, node: ast.GeneratorExp | ast.ListComp) -> None:
        for part in node.generators:  # they stand behind what uses their variables
            self.visit(part)
        self.visit(node.elt)

    visit_ListComp = visit_GeneratorExp

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """A subclass: what it overrides, and what it takes of its base."""
        bases = [base.value if isinstance(base, ast.Subscript) else base for base in node.bases]
        for base in filter(None, map(self._symbol, bases)):
            own = {name.attr for name in _selfs(node, ast.Store)}
            for part in node.body:
                if isinstance(part, ast.FunctionDef):
                    own.add(part.name)
                    if not part.name.startswith("_"):
                        self._use(base, part.name, len(part.args.args) - 1)
                elif isinstance(part, ast.Assign):
                    for target in part.targets:
                        self._use(base, ast.unparse(target))
            for name in _selfs(node, ast.Load):
                if name.attr not in own:
                    self._use(base, name.attr)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        keywords = {word.arg for word in node.keywords if word.arg is not None}
        function, positional = node.func, len(node.args)
        if isinstance(function, ast.Attribute) and (owner := self._owner(function)):
            self._use(owner, function.attr, positional, keywords)
        elif isinstance(function, ast.Name) and (symbol := self._symbol(function)):
            self._use(symbol, "", positional, keywords)
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if owner := self._owner(node):
            self._use(owner, node.attr)
        self.generic_visit(node)

    def _owner(self, node: ast.Attribute) -> str | None:
        """vLLM's symbol that an attribute is read of."""
        return None if node.attr in _OF_DICTIONARIES else self._symbol(node.value)

    def _use(
        self,
        symbol: str,
        member: str,
        positional: int | None = None,
        keywords: set[str] | None = None,
    ) -> None:
        use = self.uses[symbol].setdefault(member, Use())
        if positional is not None:
            use.positional = max(use.positional or 0, positional)
        use.keywords |= keywords or set()

    def _learn(self, target: ast.expr, value: ast.expr | None) -> None:
        if isinstance(target, ast.Tuple) and _called(value) == "zip":
            assert isinstance(value, ast.Call)
            for part, argument in zip(target.elts, value.args, strict=False):  # may be zip(*x)
                self._learn(part, argument)
        elif symbol := self._symbol(value):
            self.known[ast.unparse(target)] = symbol

    def _symbol(self, node: ast.expr | None) -> str | None:
        """vLLM's symbol that an expression is, is one of, or holds."""
        if node is None:
            return None
        if (text := ast.unparse(node)) in self.known:
            return self.known[text]
        match node:
            case ast.Await() | ast.Subscript():
                return self._symbol(node.value)
            case ast.BoolOp():
                return self._symbol(node.values[0])
            case ast.BinOp():  # X | None
                return self._symbol(node.left)
            case ast.Call(func=ast.Attribute(attr=name)) if name in _OF_DICTIONARIES:
                return self._symbol(node.func.value)
            case ast.Attribute():
                owner = self._symbol(node.value)
                return COMES_OUT.get(f"{owner}.{node.attr}")
            case ast.Call():
                if _called(node) in _PASSED_THROUGH and node.args:
                    return self._symbol(node.args[0])
                symbol = self._symbol(node.func)
                return COMES_OUT.get(symbol, symbol) if symbol else None
        return None


def _selfs(node: ast.AST, context: type[ast.expr_context]) -> list[ast.Attribute]:
    return [
        each
        for each in ast.walk(node)
        if isinstance(each, ast.Attribute)
        and isinstance(each.ctx, context)
        and isinstance(each.value, ast.Name)
        and each.value.id == "self"
    ]


def _called(node: ast.expr | None) -> str:
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def used_in(*sources: str) -> Uses:
    """What these files use of vLLM."""
    uses: Uses = defaultdict(dict)
    for source in sources:
        reader, tree = _Reader(uses), ast.parse(source)
        for _ in range(2):  # a method may stand before the one that assigns self.engine
            reader.visit(tree)
    return uses


def written(uses: Uses, vllm: Path) -> dict[str, list[str]]:
    """As the list has it; arguments in places by the names that they have in this vLLM."""
    return {
        symbol: [
            text
            for member, use in sorted(uses[symbol].items())
            if (text := _line(member, use, (members(vllm, symbol) or {}).get(member)))
        ]
        for symbol in sorted(uses)
    }


def _line(member: str, use: Use, signature: Signature | None) -> str:
    if use.positional is None and not use.keywords:
        return member
    places = (signature or Signature()).names(use.positional or 0)
    return f"{member}({', '.join([*places, *(f'{word}=' for word in sorted(use.keywords))])})"


# --- what a vLLM has ---


def missing(vllm: Path, listed: dict[str, list[str]]) -> list[str]:
    """What the vLLM in this folder lacks of a list."""
    found: list[str] = []
    for symbol, lines in listed.items():
        has = members(vllm, symbol)
        if has is None:
            found.append(symbol)
            continue
        for line in lines:
            member, _, arguments = line.removesuffix(")").partition("(")
            names = arguments.split(", ") if arguments else []
            places = [name for name in names if not name.endswith("=")]
            words = {name[:-1] for name in names if name.endswith("=")}
            signature = has.get(member) or Signature()
            if member not in has or not signature.takes(places, words):
                found.append(f"{symbol}: {line}")
    return found


@cache
def _tree(vllm: Path, module: str) -> ast.Module | None:
    base = vllm.parent.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return ast.parse(path.read_text())
    return None


def _definition(vllm: Path, symbol: str) -> tuple[str, ast.stmt] | None:
    """(module, statement) that makes this name, through any number of imports."""
    module, _, name = symbol.rpartition(".")
    tree = _tree(vllm, module)
    for node in ast.walk(tree) if tree else ():
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef() if node.name == name:
                return module, node
            case ast.AnnAssign(target=ast.Name(id=target), value=ast.Dict()) if target == name:
                return module, node
            case ast.ImportFrom() if name in {alias.asname or alias.name for alias in node.names}:
                return _definition(vllm, f"{_absolute(vllm, module, node)}.{name}")
    return None


def _absolute(vllm: Path, module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = vllm.parent.joinpath(*module.split("."), "__init__.py").is_file()
    above = module.split(".")[: len(module.split(".")) - node.level + package]
    return ".".join([*above, *([node.module] if node.module else [])])


def members(vllm: Path, symbol: str) -> Members | None:
    """Each member, "" for the symbol itself; None where the vLLM in this folder has no such."""
    found = _definition(vllm, symbol)
    if found is None:
        return None
    module, node = found
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return {"": _signature(node)}
    if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict):
        keys = [key.value for key in node.value.keys if isinstance(key, ast.Constant)]
        return dict.fromkeys(["", *map(str, keys)])
    assert isinstance(node, ast.ClassDef)
    return _of_class(vllm, module, node)


def _of_class(vllm: Path, module: str, node: ast.ClassDef) -> Members:
    has: Members = {"": Signature()}
    for base in node.bases:
        name = base.value if isinstance(base, ast.Subscript) else base
        if isinstance(name, ast.Name):
            has |= members(vllm, f"{module}.{name.id}") or {}
    made = has[""] or Signature()
    fields: list[str] = []
    for part in node.body:
        match part:
            case ast.AnnAssign(target=ast.Name(id=name)):
                fields.append(name)
                has[name] = None
            case ast.Assign(targets=[ast.Name(id=name)]):
                has[name] = None
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                has[part.name] = _signature(part, of_method=True)
    has |= {each.attr: None for each in _selfs(node, ast.Store) if each.attr not in has}
    has[""] = has.get("__init__") or Signature((*made.places, *fields))
    return has


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef, of_method: bool = False) -> Signature:
    arguments = node.args
    places = [each.arg for each in (*arguments.posonlyargs, *arguments.args)]
    if of_method and "staticmethod" not in map(ast.unparse, node.decorator_list):
        places = places[1:]
    return Signature(
        tuple(places),
        tuple(each.arg for each in arguments.kwonlyargs),
        arguments.vararg is not None,
        arguments.kwarg is not None,
    )
