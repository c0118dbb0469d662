"""When and where an image was taken, under the same keys in every data set."""

import math
from datetime import UTC, datetime

import torch
from torch import Tensor

#: Year 0 of `year`, which is then a whole number from 0 for every satellite.
FIRST_YEAR = 1970


def time_metadata(timestamp: str) -> dict[str, Tensor]:
    """Return `year` (since 1970), `month` (0 to 11) and `hour` (0 to 23, UTC).

    All are 0-d long, and -1 if the time is not known.

    Args:
        timestamp: ISO time, or only a year; '' if unknown. A time without a zone is
            taken as UTC.
    """
    try:
        time = datetime.fromisoformat(timestamp)
    except ValueError:
        year = int(timestamp) if timestamp.isdecimal() else FIRST_YEAR - 1
        codes = (year - FIRST_YEAR, -1, -1)
    else:
        time = time.astimezone(UTC) if time.tzinfo else time
        codes = (time.year - FIRST_YEAR, time.month - 1, time.hour)
    names = ('year', 'month', 'hour')
    return {name: torch.tensor(code) for name, code in zip(names, codes, strict=True)}


def place_metadata(
    longitude: float = math.nan, latitude: float = math.nan
) -> dict[str, Tensor]:
    """Return `longitude` and `latitude` in degrees, 0-d float32, NaN if unknown."""
    return {
        'longitude': torch.tensor(longitude, dtype=torch.float32),
        'latitude': torch.tensor(latitude, dtype=torch.float32),
    }


def place_of(text: str) -> tuple[float, float]:
    """Return longitude and latitude of a text such as '10.001 50.002', NaN for ''."""
    longitude, latitude = map(float, text.split()) if text else (math.nan, math.nan)
    return longitude, latitude
