"""Registration with TorchGeo and timm as soon as they are there.

Importing either takes seconds: `import torchgeo_explora` must not do it for those who
need neither. Where they are imported already, registration is at once.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def register() -> None:
    """Register models and weights now or when their hosts are imported."""
    when_imported('timm', _with_timm)
    when_imported('torchgeo.models.api', _with_torchgeo)


def when_imported(name: str, action: Callable[[], None]) -> None:
    """Call *action* once after module *name* is imported, or now if it is."""
    if name in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _Watch(name, action))


class _Watch(MetaPathFinder):
    """Finds nothing itself; adds an action to the import of one module."""

    def __init__(self, name: str, action: Callable[[], None]) -> None:
        self.name = name
        self.action = action

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            # Others ask for the spec only to know whether the module is installed.
            sys.meta_path.insert(0, self)
        if spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_act(module: ModuleType) -> None:
            execute(module)
            sys.meta_path.remove(self)
            self.action()

        loader.exec_module = execute_and_act
        return spec


def _with_timm() -> None:
    from torchgeo_explora.models.zoo.architectures import register_with_timm

    register_with_timm()


def _with_torchgeo() -> None:
    from torchgeo_explora.models.zoo.architectures import register_with_torchgeo

    register_with_torchgeo()
