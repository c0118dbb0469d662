"""Libraries that only some exports need."""

import importlib.util


def require(*modules: str) -> None:
    """Raise ModuleNotFoundError, with what to install, unless *modules* are there."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f'this export needs {", ".join(missing)}: pip install'
            " 'torchgeo-explora[export]'"
        )
