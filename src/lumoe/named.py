"""A user's own function, named `module:function` on the command line."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lumoe.errors import UserError


def named_function(name: str, what: str) -> Callable[..., Any]:
    """Return the function that `name` ("module:function") means; the current folder is searched too.

    Args:
        what: what it is to the user, for the message.

    Raises:
        UserError: the module cannot be imported or has no such function.
    """
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    with users_code(f"{name}: cannot import '{module}'"):
        found = getattr(importlib.import_module(module), attribute, None)
    if not callable(found):
        raise UserError(f"{name}: '{module}' has no {what} '{attribute}'")
    return found  # type: ignore[no-any-return]


@contextmanager
def users_code(where: str) -> Iterator[None]:
    """Run code of the user's: what it raises becomes one sentence with the place in that code.

    Raises:
        UserError: it raised something.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said = next(iter(str(error).splitlines()), "without a message")
        raise UserError(f"{where}: {type(error).__name__}{_place(error)} ({said})") from None


def _place(error: Exception) -> str:
    """Return the last line of the user's own files that `error` came through, or nothing."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" in line {error.lineno} of {error.filename}"
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(Path(frame.filename))]
    return f" in line {own[-1].lineno} of {own[-1].filename}" if own else ""


def _is_own(file: Path) -> bool:
    installed = {"site-packages", "dist-packages"} & {*file.parts}
    return file.is_relative_to(Path.cwd()) and not installed and not file.is_relative_to(Path(__file__).parent)
