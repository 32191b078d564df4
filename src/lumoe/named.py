"""A user's own function, named `module:function` on the command line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
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
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise UserError(f"{name}: cannot import '{module}' ({error})") from None
    if not callable(found):
        raise UserError(f"{name}: '{module}' has no {what} '{attribute}'")
    return found  # type: ignore[no-any-return]
