"""The tables of TorchGeo's weights: `python docs/weights.py` writes them."""

import inspect
from pathlib import Path

import torchgeo
import torchgeo.models
from torchvision.models._api import WeightsEnum

from torchgeo_explora.models.formats.enums import misfit, trained_on

PAGE = Path(__file__).with_name('weights.md')
HEAD = (
    '| weights | model | bands, in this order | values that become 0 to 1 |'
    ' further normalisation |'
)
# What is between these lines is made here.
START, END = '<!-- tables -->', '<!-- end of the tables -->'


def enums() -> list[type[WeightsEnum]]:
    """Return TorchGeo's enums of weights, by name."""
    members = inspect.getmembers(torchgeo.models, inspect.isclass)
    return [kind for _, kind in members if issubclass(kind, WeightsEnum) and len(kind)]


def plain_row(weights: WeightsEnum) -> str:
    """Return the row of weights that `ViT` takes."""
    found = trained_on(weights)
    ends = found.value_range or ((), ())
    spans = [f'{low:,.0f} to {high:,.0f}' for low, high in zip(*ends, strict=True)]
    values = spans[0] if len(set(spans)) == 1 else ', '.join(spans)
    mean, std = found.mean or (0.0,), found.std or (1.0,)
    further = 'nothing'
    if any(mean) or set(std) != {1.0}:
        of_bands = f'means {_span(mean)}, deviations {_span(std)}'
        further = f'by band: {of_bands}'
    bands = ', '.join(found.bands or ())
    return (
        f'| `{weights}` | `{weights.meta["model"]}` | {bands} | {values} | {further} |'
    )


def _span(values: tuple[float, ...]) -> str:
    low, high = min(values), max(values)
    return f'{low:.3g} to {high:.3g}'


def tables() -> str:
    """Return both tables for the version of TorchGeo that is installed."""
    kinds = enums()
    plain = [plain_row(w) for kind in kinds for w in kind if misfit(w) is None]
    others = {
        kind.__name__: reason for kind in kinds for w in kind if (reason := misfit(w))
    }
    rows = [f'| `{name}` | {reason} |' for name, reason in others.items()]
    return '\n'.join(
        [
            f'Of TorchGeo {torchgeo.__version__}.',
            '',
            HEAD,
            '|---|---|---|---|---|',
            *plain,
            '',
            '| enum | why `ViT` does not take it |',
            '|---|---|',
            *rows,
        ]
    )


def filled(page: str) -> str:
    """Return the page with both tables in their place."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return f'{before}{START}\n{tables()}\n{END}{after}'


if __name__ == '__main__':
    PAGE.write_text(filled(PAGE.read_text()))
