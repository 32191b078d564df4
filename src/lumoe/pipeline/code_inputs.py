"""The source files that a command can run. Snakemake does not see what a program imports, so a rule has them as inputs.

They are read off the sources (ast): nothing is imported, so it costs no more than parsing. `code("moe throughput")`
begins at the command's function. In the command line's own modules only what that function uses is followed, or an
edit of one command would run all others again; a library module counts with every import in it, lazy ones too. Modules
that do no more than register the command are no inputs. C++ sources and styles count where a module names them.
"""

from __future__ import annotations

import ast
import re
import symtable
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path

import lumoe
from lumoe.errors import UserError, nearest

Function = ast.FunctionDef | ast.AsyncFunctionDef
_INCLUDE = re.compile(rb'^\s*#\s*include\s+"([^"]+)"', re.M)
_IMPORTS_BY_NAME = {"import_module", "__import__"}
_REGISTERING = {"add_typer", "command", "registered_commands", "registered_groups"}


def code(*commands: str) -> list[str]:
    """Return the files, relative to the checkout, that `commands` ("moe throughput", as after `lumoe`) can run, sorted.

    Raises:
        UserError: there is no such command; the message names the nearest one.
    """
    sources = _installed()
    return sorted({file for command in commands for file in sources.files(command)})


@cache
def _installed() -> Sources:
    return Sources(Path(lumoe.__file__).parent)


@dataclass(frozen=True)
class Import:
    """One name that an import binds and what it is: `symbol` of `module`, or the module itself."""

    bound: str
    module: str
    symbol: str | None


class Module:
    """A parsed module of the package."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self.package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        self.source = path.read_bytes()

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree."""
        return ast.parse(self.source, str(self.path))

    @cached_property
    def functions(self) -> list[Function]:
        """The functions at the top level."""
        return [node for node in self.tree.body if isinstance(node, Function)]

    @cached_property
    def bindings(self) -> dict[str, list[ast.stmt]]:
        """The statements at the top level that bind a name, imports left out."""
        found: dict[str, list[ast.stmt]] = {}
        for node in _walk(self.tree, into_functions=False, expressions=False):
            if isinstance(node, Function | ast.ClassDef):
                found.setdefault(node.name, []).append(node)
            elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
                for name in ast.walk(node):
                    if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store):
                        found.setdefault(name.id, []).append(node)
        return found

    @cached_property
    def used(self) -> set[str]:
        """Names that the module uses for more than to register a command or a group."""
        kept = [statement for statement in self.tree.body if not _registers(statement)]
        return {node.id for statement in kept for node in ast.walk(statement) if isinstance(node, ast.Name)}

    @cached_property
    def strings(self) -> set[str]:
        """The parts, between slashes, of the strings in the module."""
        texts = [node.value for node in ast.walk(self.tree) if isinstance(node, ast.Constant)]
        return {part for text in texts if isinstance(text, str) and " " not in text for part in text.split("/")}

    def global_names(self, statement: ast.stmt) -> set[str]:
        """Return the names of the module, not of a function, that a statement at its top level uses."""
        if not isinstance(statement, Function):
            return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
        # Decorators, defaults and annotations are the module's; in the body, arguments and variables hide its names.
        outside = [*statement.decorator_list, statement.args, *filter(None, [statement.returns])]
        names = {node.id for part in outside for node in ast.walk(part) if isinstance(node, ast.Name)}
        waiting = [table for table in self._scopes.get_children() if table.get_name() == statement.name]
        while waiting:
            scope = waiting.pop()
            names |= {symbol.get_name() for symbol in scope.get_symbols() if symbol.is_global()}
            waiting += scope.get_children()
        return names

    @cached_property
    def _scopes(self) -> symtable.SymbolTable:
        return symtable.symtable(self.source.decode(), str(self.path), "exec")


class Sources:
    """The source files of a package, each parsed once, when it is reached."""

    def __init__(self, package: Path) -> None:
        self.folder = package
        self.command_line = f"{package.name}.cli"
        self._paths: dict[str, Path] = {}
        self._others: dict[str, list[Path]] = {}
        for path in package.rglob("*"):
            if path.suffix == ".py":
                parts = path.relative_to(package.parent).with_suffix("").parts
                self._paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
            elif "." in path.name and path.suffix != ".pyc" and path.is_file():
                self._others.setdefault(path.name, []).append(path)
        # Looked up again and again, by one command after another.
        self.module = cache(self._module)
        self.all_imports = cache(partial(self._imports, into_functions=True))
        self.top_imports = cache(partial(self._imports, into_functions=False))
        self.beside = cache(self._beside)
        self.commands = cache(self._commands)
        self.groups = cache(self._groups)

    def files(self, command: str) -> list[str]:
        """Return the files that `command` can run, relative to the checkout, sorted.

        Raises:
            UserError: there is no such command; the message names the nearest one.
        """
        paths = _Closure(self).files(*self.find_command(command))
        return sorted(f"src/{path.relative_to(self.folder.parent).as_posix()}" for path in paths)

    def path(self, name: str) -> Path:
        """Return the file of a module."""
        return self._paths[name]

    def is_command_line(self, name: str) -> bool:
        """Return whether a module belongs to the command line, where only what a command uses is followed."""
        return f"{name}.".startswith(f"{self.command_line}.")

    def with_packages(self, name: str) -> Iterator[str]:
        """Yield a module and the packages that it lies in, as far as they are files."""
        while name:
            if name in self._paths:
                yield name
            name = name.rpartition(".")[0]

    def named_like(self, pattern: str) -> dict[str, str]:
        """Return the modules that fit `pattern`, a star for part of a name, and what its first star stands for."""
        if "*" not in pattern:
            return {pattern: ""} if pattern in self._paths else {}
        fits = re.compile(re.escape(pattern).replace(r"\*", r"(\w+)"))
        return {name: match[1] for name in sorted(self._paths) if (match := fits.fullmatch(name))}

    def imports(self, module: Module, nodes: Iterable[ast.AST]) -> list[Import]:
        """Return what import statements, and calls of `import_module`, among `nodes` take from the package."""
        found = []
        for node in nodes:
            if isinstance(node, ast.Import):
                found += [Import(alias.asname or _top(alias.name), alias.name, None) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = module.package.split(".")[: 1 - node.level or None] if node.level else []
                base = ".".join([*above, *filter(None, [node.module])])
                for alias in node.names:
                    below = f"{base}.{alias.name}"
                    origin = (below, None) if below in self._paths else (base, alias.name)
                    found.append(Import(alias.asname or alias.name, *origin))
            elif isinstance(node, ast.Call):
                found += [Import("", name, None) for name in self.named_like(imported_by_name(node) or "")]
        return [item for item in found if item.module in self._paths]

    def find_command(self, command: str) -> tuple[str, str]:
        """Return the module and the function of a command, as the modules of the command line register it.

        Raises:
            UserError: there is none; the message names the nearest one.
        """
        group, words = self.command_line, command.split()
        for position, word in enumerate(words):
            commands, groups = self.commands(group), self.groups(group)
            if word in commands and position == len(words) - 1:
                return commands[word]
            if word not in groups:
                known = groups if position < len(words) - 1 else {**commands, **groups}
                before = " ".join(["lumoe", *words[:position]])
                raise UserError(f"`{before}` has no command '{' '.join(words[position:])}'{nearest(word, known)}")
            group = groups[word]
        for function in self.module(group).functions:
            for call in _decorators(function, "callback"):
                if any(given.arg == "invoke_without_command" for given in call.keywords):
                    return group, function.name
        raise UserError(f"`lumoe {command}` is a group; its commands: {', '.join(sorted(self.commands(group)))}")

    def _module(self, name: str) -> Module:
        return Module(name, self.path(name))

    def _imports(self, name: str, into_functions: bool) -> list[Import]:
        """Return the imports of a module: all of them, or those of its top level."""
        # A library's tree is not kept: it is read this once, and a garbage collection goes through all that is kept.
        module = self.module(name) if self.is_command_line(name) else self._module(name)
        # Statements are found without a walk through every expression.
        by_name = any(function.encode() in module.source for function in _IMPORTS_BY_NAME)
        return self.imports(module, _walk(module.tree, into_functions, expressions=by_name))

    def _beside(self, name: str) -> set[Path]:
        """Return the files other than Python that a module names, with what they include.

        It names the file and every folder that lies between, seen from its own folder or from the package.
        """
        module, found = self._module(name), set[Path]()
        for other, paths in self._others.items():
            if other.encode() in module.source:
                for path in paths:
                    roots = [root for root in (module.path.parent, self.folder) if path.is_relative_to(root)]
                    if any({*path.relative_to(root).parts} <= module.strings for root in roots):
                        _include(path, found)
        return found

    def _commands(self, group: str) -> dict[str, tuple[str, str]]:
        """Return the commands of a group: its own, and those of the modules that it imports or has below it."""
        module = self.module(group)
        names = [item.module for item in self.top_imports(group)]
        if module.package == group != self.command_line:
            names += self.named_like(f"{group}.*")
        found = self._own_commands(module)
        for name in names:
            if self.is_command_line(name) and name not in {group, *self._added(group).values()}:
                found = self._own_commands(self.module(name)) | found
        return found

    def _own_commands(self, module: Module) -> dict[str, tuple[str, str]]:
        found = {}
        for function in module.functions:
            for call in _decorators(function, "command"):
                found[_text(call, "name") or _dashed(function.name)] = (module.name, function.name)
        for node in module.tree.body:  # app.command("doctor")(doctor)
            match node:
                case ast.Expr(ast.Call(ast.Call(ast.Attribute(attr="command")) as call, [ast.Name(bound), *_])):
                    origins = {item.bound: (item.module, item.symbol or "") for item in self.top_imports(module.name)}
                    found[_text(call, "name") or _dashed(bound)] = origins.get(bound, (module.name, bound))
        return found

    def _groups(self, group: str) -> dict[str, str]:
        """Return the groups within a group: those it adds by name, and the modules of its package that have an app."""
        below = self.named_like(f"{group}.*") if self.module(group).package == group else {}
        apps = {_dashed(word): name for name, word in below.items() if "app" in self.module(name).bindings}
        return apps | self._added(group)

    def _added(self, group: str) -> dict[str, str]:
        """Return what `add_typer` adds under a name; a name that only the run knows is that of the module."""
        found: dict[str, str] = {}
        nodes = list(ast.walk(self.module(group).tree))
        modules = {item.bound: item.module for item in self.imports(self.module(group), nodes)}
        values = {_name(node.targets[0]): node.value for node in nodes if isinstance(node, ast.Assign)}
        for node in nodes:
            match node:
                case ast.Call(ast.Attribute(attr="add_typer"), [place], words) if any(
                    word.arg == "name" for word in words
                ):
                    place = values.get(_name(place), place) if isinstance(place, ast.Name) else place
                    place = place.value if isinstance(place, ast.Attribute) else place
                    text = _text(node, "name")
                    if isinstance(place, ast.Call):
                        for name, word in self.named_like(imported_by_name(place) or "").items():
                            found[text or _dashed(word)] = name
                    elif _name(place) in modules:
                        found[text or _dashed(_name(place))] = modules[_name(place)]
        return found


class _Closure:
    """What is reached from a command."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self.modules: set[str] = set()
        self.symbols: set[tuple[str, str]] = set()

    def files(self, module: str, function: str) -> set[Path]:
        """Return the files that a function of the command line can run."""
        # The program's entry runs before any command.
        for item in self.sources.all_imports(self.sources.command_line):
            if not self.sources.is_command_line(item.module):
                self._library(item.module)
        self._symbol(module, function)
        paths = {self.sources.path(name) for name in self.modules}
        return paths.union(*map(self.sources.beside, self.modules))

    def _library(self, name: str) -> None:
        """Add a module with its packages and all that it imports anywhere."""
        waiting = [name]
        while waiting:
            for new in {*self.sources.with_packages(waiting.pop())} - self.modules:
                self.modules.add(new)
                waiting += [item.module for item in self.sources.all_imports(new)]

    def _load(self, name: str) -> None:
        """Add a module of the command line with its imports at the top level, but for what it only registers."""
        if name not in self.modules:
            self.modules.add(name)
            used = self.sources.module(name).used
            for item in self.sources.top_imports(name):
                if not self.sources.is_command_line(item.module):
                    self._library(item.module)
                elif item.bound in used:
                    self._load(item.module)

    def _symbol(self, name: str, symbol: str) -> None:
        """Follow what a name of a module of the command line stands for through all that it uses."""
        if (name, symbol) in self.symbols:
            return
        self.symbols.add((name, symbol))
        self._load(name)
        module = self.sources.module(name)
        for statement in module.bindings.get(symbol, []):
            nodes = list(ast.walk(statement))
            for item in self.sources.imports(module, nodes):
                self._follow(item, nodes)
            for used in module.global_names(statement):
                self._symbol(name, used)
                for item in self.sources.top_imports(name):
                    if item.bound == used:
                        self._follow(item, nodes)

    def _follow(self, item: Import, nodes: list[ast.AST]) -> None:
        """Follow an import as far as `nodes` use it."""
        if not self.sources.is_command_line(item.module):
            self._library(item.module)
        elif item.symbol is not None:
            self._symbol(item.module, item.symbol)
        else:
            attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
            for symbol in attributes & self.sources.module(item.module).bindings.keys():
                self._symbol(item.module, symbol)
            self._load(item.module)


def imported_by_name(call: ast.Call) -> str | None:
    """Return the module that a call of `import_module` names, a star for what only the run knows; None for other calls.

    A name of which nothing is written in the call is empty.
    """
    if _name(call.func) not in _IMPORTS_BY_NAME or not call.args:
        return None
    match call.args[0]:
        case ast.Constant(value):
            return str(value)
        case ast.JoinedStr(parts):
            return "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in parts)
    return ""


def _walk(node: ast.AST, into_functions: bool = True, expressions: bool = True) -> Iterator[ast.AST]:
    """Yield a node and all below it, but for what stands there for type checkers."""
    waiting = [node]
    while waiting:
        one = waiting.pop()
        yield one
        below: Iterable[ast.AST] = ast.iter_child_nodes(one)
        if isinstance(one, ast.If) and _name(one.test) == "TYPE_CHECKING":
            below = one.orelse
        elif isinstance(one, Function) and not into_functions:
            below = one.decorator_list
        waiting += [child for child in below if expressions or not isinstance(child, ast.expr)]


def _registers(statement: ast.stmt) -> bool:
    """Return whether a statement does no more than register commands or groups."""
    if isinstance(statement, Function | ast.ClassDef | ast.Import | ast.ImportFrom):
        return False
    return any(isinstance(node, ast.Attribute) and node.attr in _REGISTERING for node in ast.walk(statement))


def _decorators(function: Function, method: str) -> list[ast.Call]:
    calls = [item for item in function.decorator_list if isinstance(item, ast.Call)]
    return [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == method]


def _name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _top(name: str) -> str:
    return name.partition(".")[0]


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _text(call: ast.Call, keyword: str) -> str | None:
    """Return the text given as `keyword`, or as the one argument."""
    for node in [*(word.value for word in call.keywords if word.arg == keyword), *call.args]:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value
    return None


def _include(path: Path, found: set[Path]) -> None:
    """Add a file and what it includes from its own folder."""
    if path not in found:
        found.add(path)
        for name in _INCLUDE.findall(path.read_bytes()):
            if (included := path.parent / name.decode()).is_file():
                _include(included, found)
