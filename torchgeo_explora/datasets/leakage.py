"""Places that occur in more than one split."""

import warnings
from collections.abc import Iterable


def warn_of_shared_places(places: dict[str, Iterable[str]], what: str) -> int:
    """Warn if splits share places: what is learnt in one is then tested in the other.

    Args:
        places: A name for the place of each sample, '' if unknown, by split.
        what: The data set in words.

    Returns:
        Number of places in more than one split.
    """
    sets = {split: set(names) - {''} for split, names in places.items()}
    shared: set[str] = set()
    pairs = []
    for number, split in enumerate(sets):
        for other in list(sets)[number + 1 :]:
            both = sets[split] & sets[other]
            shared |= both
            if both:
                pairs.append(f'{len(both)} in both {split!r} and {other!r}')
    if shared:
        warnings.warn(
            f'{what} has the same places in several splits ({"; ".join(pairs)}), such'
            f' as {min(shared)}: scores there are not those of new places',
            stacklevel=2,
        )
    return len(shared)
