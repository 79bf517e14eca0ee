"""Offline data: every item once an epoch, in orders that a seed fixes and that go on where they stopped."""

import pytest
import torch

from assay.train.batches import Offline, Shuffled


def drawn(source: Shuffled, num: int) -> list[list[int]]:
    return [source.next() for _ in range(num)]


def flat(batches: list[list[int]]) -> list[int]:
    return [item for batch in batches for item in batch]


def test_an_epoch_holds_every_item_once_and_the_next_has_another_order():
    source = Shuffled(range(6), 2, seed=0)
    first, second = flat(drawn(source, 3)), flat(drawn(source, 3))
    assert sorted(first) == sorted(second) == list(range(6))
    assert first != second


def test_a_batch_over_the_boundary_is_filled_from_the_next_epoch():
    source = Shuffled(range(5), 3, seed=1)
    items = flat(drawn(source, 5))
    assert len(items) == 15
    assert [sorted(items[i : i + 5]) for i in (0, 5, 10)] == [list(range(5))] * 3


def test_a_batch_larger_than_the_data_goes_round():
    assert sorted(Shuffled(range(2), 5, seed=0).next()) in ([0, 0, 0, 1, 1], [0, 0, 1, 1, 1])


@pytest.mark.parametrize("after", range(7))
def test_it_goes_on_where_it_stopped(after):
    whole = drawn(Shuffled(range(7), 3, seed=4), 10)
    first = Shuffled(range(7), 3, seed=4)
    drawn(first, after)
    second = Shuffled(range(7), 3, seed=4)
    second.drawn = first.drawn
    assert drawn(second, 10 - after) == whole[after:]


def test_seeds_differ_and_repeat():
    orders = {seed: tuple(Shuffled(range(20), 20, seed=seed).next()) for seed in (0, 100, 200)}
    assert len(set(orders.values())) == 3
    torch.rand(3)  # the order depends on the seed alone
    assert tuple(Shuffled(range(20), 20, seed=100).next()) == orders[100]


def test_nothing_to_train_on_is_an_error():
    with pytest.raises(ValueError, match="nothing to train on"):
        Shuffled([], 2, seed=0)


def test_streams_keep_their_own_places():
    def streams():
        return Offline({name: (Shuffled(range(num), 2, seed=0), list) for name, num in (("main", 4), ("sft", 3))})

    whole = streams()
    expected = [whole.next() for _ in range(6)]
    assert len({tuple(batch["sft"]) for batch in expected}) > 1
    first, second = streams(), streams()
    for _ in range(4):
        first.next()
    assert first.state_dict() == {"main": 8, "sft": 8}
    second.load_state_dict(first.state_dict())
    assert [second.next() for _ in range(2)] == expected[4:]
