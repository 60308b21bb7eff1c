"""Modules that can be called: `hvdtrain.train` is a module, and `hvdtrain.train(cfg)` trains."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        """What `hvdtrain.api.functions` has under this module's name."""
        functions = import_module("hvdtrain.api.functions")
        return getattr(functions, self.__name__.rpartition(".")[2])(*args, **options)


def make_callable(module: str) -> None:
    """Let the module of this name be called like the function of the same name in the Python API.

    A name of the package must mean the same before and after a module of that name is imported.
    """
    sys.modules[module].__class__ = _Callable
