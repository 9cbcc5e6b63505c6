"""The same picture more than once: the same file, or the same picture re-encoded, resized or mirrored."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vitcls.check.reading import Facts

# Measured on 300 photos that were shrunk to 0.6 and saved as JPEG of quality 60: at most 6 bits and 5.8
# levels away from the original. Different photos of that set: 10 bits or 10 levels and more.
MOST_BITS = 8
MOST_LEVELS = 8.0
LEAST_CONTRAST = 4.0  # levels; of flatter pictures a hash is noise
_ROWS = 512  # compared at once


def same_pictures(facts: Facts) -> list[list[int]]:
    """Positions that show the same picture, exactly or nearly, in groups of two or more."""
    leader = list(range(len(facts)))

    def find(position: int) -> int:
        while leader[position] != position:
            position = leader[position]
        return position

    links = [(int(group[0]), int(other)) for group in exact_groups(facts) for other in group[1:]]
    links += near_pairs(facts)
    for one, other in links:
        first, second = sorted((find(one), find(other)))
        leader[second] = first
    groups: dict[int, list[int]] = {}
    for position in sorted({place for link in links for place in link}):
        groups.setdefault(find(position), []).append(position)
    return list(groups.values())


def exact_groups(facts: Facts) -> list[NDArray[np.int64]]:
    """Positions of files with the same content: arrays of two or more, ascending."""
    whole = np.flatnonzero(~facts["bad"])
    _, inverse = np.unique(facts["digest"][whole].view("S16"), return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    groups = np.split(whole[order], np.flatnonzero(np.diff(inverse[order])) + 1)
    return [group for group in groups if len(group) > 1]


def near_pairs(facts: Facts) -> list[tuple[int, int]]:
    """Pairs of positions that show the same picture in different files; of equal files the first counts.

    Two pictures are compared where their mean levels are close enough for it, so that the work grows
    with the square of the images at one brightness only.
    """
    candidates = _first_of_each(facts)
    thumbs = facts["thumb"][candidates].astype(np.int16)
    contrast = thumbs.reshape(len(thumbs), -1).std(axis=1) if len(thumbs) else np.empty(0)
    candidates, thumbs = candidates[contrast >= LEAST_CONTRAST], thumbs[contrast >= LEAST_CONTRAST]
    levels = thumbs.reshape(len(thumbs), -1).mean(axis=1) if len(thumbs) else np.empty(0)
    order = np.argsort(levels, kind="stable")
    hashes, mirrored = facts["hash"][candidates[order]], facts["mirrored"][candidates[order]]
    thumbs = thumbs[order]
    found = []
    for one, other in _close_hashes(levels[order], hashes, mirrored):
        straight = np.abs(thumbs[one] - thumbs[other]).mean()
        turned = np.abs(thumbs[one][:, ::-1] - thumbs[other]).mean()
        if min(straight, turned) <= MOST_LEVELS:
            found.append((int(candidates[order[one]]), int(candidates[order[other]])))
    return sorted((min(pair), max(pair)) for pair in found)


def _first_of_each(facts: Facts) -> NDArray[np.int64]:
    whole = np.flatnonzero(~facts["bad"])
    _, first = np.unique(facts["digest"][whole].view("S16"), return_index=True)
    return whole[np.sort(first)]


def _close_hashes(
    levels: NDArray[np.float64], hashes: NDArray[np.uint64], mirrored: NDArray[np.uint64]
) -> Iterator[tuple[int, int]]:
    """Pairs, in the order of their levels, whose hashes differ in few bits, straight or mirrored."""
    ends = np.searchsorted(levels, levels + MOST_LEVELS, side="right")
    for start in range(0, len(levels), _ROWS):
        stop = min(start + _ROWS, len(levels))
        others = hashes[start : ends[stop - 1]]
        bits = np.minimum(
            np.bitwise_count(hashes[start:stop, None] ^ others), np.bitwise_count(mirrored[start:stop, None] ^ others)
        )
        for one, other in np.argwhere(bits <= MOST_BITS):
            if other > one:
                yield start + int(one), start + int(other)
