import tracemalloc
from collections import Counter
from itertools import product
from math import ceil

import numpy as np
import pytest

from vitcls.data.sampling import Draw, InOrder, SharedEvenly, TrainSampler
from vitcls.errors import UserError

PROCESSES = (1, 2, 3, 4, 7)


def shares(rows: int, batch_size: int, processes: int) -> list[list[list[int]]]:
    """The batches of every rank."""
    return [list(SharedEvenly(rows, batch_size, processes, rank)) for rank in range(processes)]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8, 64, 1000])
@pytest.mark.parametrize("processes", PROCESSES)
def test_over_all_processes_every_row_comes_exactly_once(processes, batch_size):
    for rows in range(processes, 70):
        taken = [row for rank in shares(rows, batch_size, processes) for batch in rank for row in batch]
        assert sorted(taken) == list(range(rows))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8, 64, 1000])
@pytest.mark.parametrize("processes", PROCESSES)
def test_every_process_has_the_same_number_of_batches_and_says_so(processes, batch_size):
    for rows in range(processes, 70):
        counts = {len(batches) for batches in shares(rows, batch_size, processes)}
        told = {len(SharedEvenly(rows, batch_size, processes, rank)) for rank in range(processes)}
        assert len(counts) == 1
        assert told == counts


CASES = [
    (rows, batch_size, processes)
    for rows, batch_size, processes in product(range(1, 70), [1, 2, 3, 5, 8, 64, 1000], PROCESSES)
    if rows >= processes
]


def test_batches_are_never_empty_never_too_large_and_differ_by_one_at_most():
    for rows, batch_size, processes in CASES:
        for batches in shares(rows, batch_size, processes):
            sizes = [len(batch) for batch in batches]
            assert min(sizes) >= 1, (rows, batch_size, processes)
            fits = ceil(ceil(rows / processes) / batch_size) <= rows // processes
            assert max(sizes) <= batch_size + (not fits), (rows, batch_size, processes)
            assert max(sizes) - min(sizes) <= 1, (rows, batch_size, processes)


def test_no_process_has_more_batches_than_its_rows_need():
    for rows, batch_size, processes in CASES:
        needed = min(ceil(ceil(rows / processes) / batch_size), rows // processes)
        assert {len(batches) for batches in shares(rows, batch_size, processes)} == {needed}


@pytest.mark.parametrize("processes", PROCESSES)
def test_the_shares_of_two_processes_differ_by_one_row_at_most(processes):
    for rows in range(processes, 70):
        sizes = [sum(map(len, batches)) for batches in shares(rows, 4, processes)]
        assert max(sizes) - min(sizes) <= 1


def test_a_single_process_takes_the_rows_in_order():
    assert [row for batch in SharedEvenly(23, 5, 1, 0) for row in batch] == list(range(23))


def test_it_can_be_iterated_again():
    shared = SharedEvenly(23, 5, 2, 1)
    assert list(shared) == list(shared)


def test_rows_are_plain_ints_that_a_table_can_be_indexed_with():
    assert all(type(row) is int for batch in SharedEvenly(9, 4, 2, 0) for row in batch)


@pytest.mark.parametrize(("rows", "processes"), [(0, 1), (1, 2), (3, 4), (7, 8)])
def test_fewer_rows_than_processes_are_refused(rows, processes):
    with pytest.raises(UserError, match=rf"^{rows} images .* {processes} processes.*--trainer\.devices"):
        SharedEvenly(rows, 4, processes, 0)


def drawn(class_ids: list[int], processes: int = 1, epoch: int = 0, **arguments) -> list[list[Draw]]:
    """The draws of every rank in one epoch."""
    taken = []
    for rank in range(processes):
        sampler = TrainSampler(np.array(class_ids), seed=3, processes=processes, rank=rank, **arguments)
        sampler.set_epoch(epoch)
        taken.append(list(sampler))
        assert len(sampler) == len(taken[-1])
    return taken


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("processes", PROCESSES)
def test_an_epoch_draws_every_image_equally_often(processes, repeats):
    ranks = drawn([0] * 29, processes, repeats=repeats)
    assert len({len(rank) for rank in ranks}) == 1
    times = Counter(draw.position for rank in ranks for draw in rank)
    assert set(times) == set(range(29))
    assert sum(times.values()) == -(-29 * repeats // processes) * processes
    assert set(times.values()) <= {repeats, repeats + 1}


def test_processes_share_the_order_of_one():
    alone = drawn([0] * 30)[0]
    assert [draw for pair in zip(*drawn([0] * 30, 2), strict=True) for draw in pair] == alone


def test_no_two_draws_have_the_same_seed():
    seeds = [draw.seed for epoch in range(5) for draw in drawn([0] * 50, epoch=epoch, repeats=2)[0]]
    assert len(set(seeds)) == len(seeds)


def test_balanced_draws_give_rare_classes_their_share():
    classes = [0] * 900 + [1] * 90 + [2] * 10
    times = Counter(classes[draw.position] for draw in drawn(classes, repeats=3, balanced=True)[0])
    assert sum(times.values()) == 3000
    for count in times.values():
        assert count == pytest.approx(1000, abs=100)


def test_the_draws_of_an_epoch_are_made_one_by_one():
    """As lists, they would be 72 bytes a row beside the arrays' 16."""
    rows = 200_000
    sampler = TrainSampler(np.zeros(rows, np.int64), seed=0)
    tracemalloc.start()
    draws = iter(sampler)
    first = next(draws)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (type(first.position), type(first.seed)) == (int, int)
    assert held < 40 * rows


@pytest.mark.parametrize("processes", PROCESSES)
def test_in_order_every_row_that_is_not_done_comes_exactly_once(processes):
    for rows in range(processes, 30):
        for many in {0, 1, rows // 2, rows - 1, rows}:
            done = np.sort(np.random.default_rng(rows).permutation(rows)[:many])
            own = [list(InOrder(rows, done, processes, rank)) for rank in range(processes)]
            assert [len(InOrder(rows, done, processes, rank)) for rank in range(processes)] == list(map(len, own))
            assert all(taken == sorted(taken) and taken for taken in own)  # no process has nothing to do
            taken = Counter(row for rows_of_one in own for row in rows_of_one)
            again = set(taken) & set(done.tolist())
            assert set(taken) - again == set(range(rows)) - set(done.tolist())
            assert set(taken.values()) == {1}
            assert len(again) == max(0, processes - (rows - many))


def test_in_order_is_without_done_rows_what_it_is_with_none():
    for rank in range(3):
        assert (
            list(InOrder(10, None, 3, rank))
            == list(InOrder(10, np.empty(0, np.int64), 3, rank))
            == list(range(rank, 10, 3))
        )


def test_in_order_of_fewer_rows_than_processes_is_refused():
    with pytest.raises(UserError, match="2 images cannot be shared among 3 processes"):
        InOrder(2, None, 3, 0)
