"""Iterative stratification: a share of the rows in which every one of several labels keeps its proportion."""

import numpy as np
from numpy.typing import NDArray


def iterative_sample(targets: NDArray[np.bool_], count: int, seed: int) -> NDArray[np.int64]:
    """Choose `count` positions so that each label keeps its share (Sechidis et al. 2011, section 3).

    The rows are dealt to two parts, the share and the rest, the rarest label's first; a row goes to the
    part that still lacks most of that label, of equals to the one that lacks most rows. A part that is
    full takes no more, which the paper does not ask for: so the count is exact.

    Args:
        targets: (N, K) which of the labels each row has.
        count: how many, 0..N.
        seed: of the choice; the same seed gives the same rows.

    Returns:
        (count,) positions, ascending.
    """
    random = np.random.default_rng(seed)
    rows = len(targets)
    lacks = np.array([count, rows - count])  # rows, of the share and of the rest
    lacks_of = np.outer(lacks / max(1, rows), targets.sum(axis=0))  # (2, K) rows with each label
    shared, free = np.zeros(rows, dtype=np.bool_), np.ones(rows, dtype=np.bool_)
    left = targets.sum(axis=0)
    while left.any():
        label = np.argmin(np.where(left > 0, left, rows + 1))
        members = random.permutation(np.flatnonzero(free & targets[:, label]))
        for row in members:
            part = np.lexsort((random.random(2), lacks, lacks_of[:, label], lacks > 0))[-1]
            lacks[part] -= 1
            lacks_of[part] -= targets[row]
            shared[row] = part == 0
        free[members] = False
        left -= targets[members].sum(axis=0)
    unlabelled = random.permutation(np.flatnonzero(free))
    shared[unlabelled[: lacks[0]]] = True
    return np.flatnonzero(shared)
