"""What a batch of rollouts is cut into: whole groups, each once an epoch, with all that is known of their rows."""

from types import SimpleNamespace

import pytest
import torch

from assay.algorithms.xpo import XPO
from assay.batch import TokenBatch, Trunks
from assay.engine.checkpoint import load_checkpoint, save_checkpoint
from assay.shapes import RowFloat, TokenFloat
from assay.train.buffer import Buffer

DECLARED = {"home": RowFloat, "marks": TokenFloat}


def length_of(number):
    return 1 + number * 7 % 5


def batch_of(sizes, start=0, **columns):
    """Groups of these sizes; rows are numbered from `start`, and every column tells the row that it belongs to.

    A group's name is its first row's number: its prompt says it, and so does the declared column `home`.
    """
    ends = torch.tensor(sizes).cumsum(0)
    number = start + torch.arange(int(ends[-1]))
    names = start + ends - torch.tensor(sizes)
    group = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    lengths = length_of(number)
    width = int(lengths.max())
    mask = torch.arange(width) < lengths[:, None]
    told = number[:, None] * 10 + torch.arange(width)
    return TokenBatch(
        declared=DECLARED,
        prompts=Trunks(tuple(torch.full((int(name) % 3,), int(name)) for name in names)),
        ids=torch.where(mask, told, 0),
        mask=mask,
        lengths=lengths,
        group=group,
        rewards=number.float(),
        advantages=torch.where(mask, told / 8, 0.0),
        allowed=torch.where(mask[..., None], (told[..., None] * 3 + torch.arange(3)) % 251, 0).to(torch.uint8),
        home=names[group].float(),
        marks=torch.where(mask, -told.float(), 0.0),
        **columns,
    )


def rows_of(batch):
    """The numbers of a batch's rows, once all that they carry was seen to be theirs."""
    numbers = [int(number) for number in batch.rewards]
    assert batch.ids.shape[1] == max(map(length_of, numbers))
    for row, number in enumerate(numbers):
        size, home = length_of(number), int(batch.home[row])
        told = number * 10 + torch.arange(size)
        assert batch.lengths[row] == size and batch.mask[row].tolist() == [
            i < size for i in range(len(batch.mask[row]))
        ]
        assert batch.ids[row, :size].tolist() == told.tolist() == (-batch.marks[row, :size]).tolist()
        assert (8 * batch.advantages[row, :size]).tolist() == told.tolist()
        assert batch.allowed[row, :size].tolist() == ((told[:, None] * 3 + torch.arange(3)) % 251).tolist()
        assert batch.prompts.ids[int(batch.group[row])].tolist() == [home] * (home % 3)
    if "preference" in batch:
        assert batch.preference.tolist() == [number / 64 for number in numbers[0::2]]
    return numbers


def same(one, other):
    """Whether two batches hold the same, in the same types."""
    first, second = dict(one.columns), dict(other.columns)
    trunks, others = first.pop("prompts"), second.pop("prompts")
    return (
        first.keys() == second.keys()
        and trunks.parent == others.parent
        and all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(trunks.ids, others.ids, strict=True))
        and all(torch.equal(a, second[name]) and a.dtype == second[name].dtype for name, a in first.items())
    )


def buffer(num_epochs=1, num_minibatches=1, replay="latest"):
    return Buffer(SimpleNamespace(num_epochs=num_epochs, num_minibatches=num_minibatches, replay=replay))


def emptied(place):
    """All parts to come."""
    found = []
    while not place.empty:
        found.append(place.next())
    return found


def main_of(parts):
    return [part["main"] for part in parts]


@pytest.mark.parametrize("num_minibatches", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("sizes", [(2,) * 6, (1, 4, 2, 3, 1, 2)], ids=str)
def test_every_row_is_seen_once_an_epoch(num_minibatches, sizes):
    """In whole groups, each with its rows side by side and in their order."""
    place, batch = buffer(3, num_minibatches), batch_of(sizes)
    assert place.empty
    place.fill({"main": batch})
    parts = [rows_of(part) for part in main_of(emptied(place))]
    assert len(parts) == 3 * num_minibatches
    groups = [tuple(r for r in range(sum(sizes)) if int(batch.group[r]) == g) for g in range(6)]
    for epoch in range(3):
        seen, counts = [], []
        for part in parts[epoch * num_minibatches : (epoch + 1) * num_minibatches]:
            first = len(seen)
            while part:
                (group,) = [g for g in groups if g[0] == part[0]]
                assert tuple(part[: len(group)]) == group
                seen.append(group)
                part = part[len(group) :]
            counts.append(len(seen) - first)
        assert sorted(seen) == groups
        assert max(counts) - min(counts) <= 1


def test_rows_of_a_group_that_lie_apart_come_together():
    batch = batch_of((3, 2, 2))
    place = buffer(num_minibatches=3)
    place.fill({"main": batch.select(torch.tensor([3, 0, 5, 1, 4, 6, 2]))})
    assert sorted(rows_of(part) for part in main_of(emptied(place))) == [[0, 1, 2], [3, 4], [5, 6]]


def test_pair_columns_go_with_their_rows():
    sizes = (2, 4, 2, 6, 2)
    batch = batch_of(sizes, preference=torch.arange(0, 16, 2) / 64)
    place = buffer(4, 3)
    place.fill({"main": batch})
    parts = main_of(emptied(place))
    assert sorted(row for part in parts for row in rows_of(part)) == sorted([*range(16)] * 4)
    assert all("preference" in part for part in parts)


def test_orders_are_the_seeds():
    """Each epoch has an order of its own, and the same seed the same ones."""

    def orders(seed):
        torch.manual_seed(seed)
        place = buffer(3, 8)
        place.fill({"main": batch_of((1,) * 8)})
        rows = [rows_of(part)[0] for part in main_of(emptied(place))]
        return [tuple(rows[i : i + 8]) for i in (0, 8, 16)]

    assert len(set(orders(0) + orders(1))) == 6
    assert orders(0) == orders(0)


def test_one_update_hands_back_the_batch_itself():
    """Methods with one step a batch compute what they did before there was a buffer: no random number is spent."""
    place, batch, text = buffer(), batch_of((2, 3, 1)), batch_of((1, 1), start=20)
    before = torch.get_rng_state()
    for _ in range(2):
        place.fill({"main": batch, "text": text})
        part = place.next()
        assert part["main"] is batch and part["text"] is text and place.empty
    assert torch.equal(torch.get_rng_state(), before)
    place = buffer(num_epochs=2)
    place.fill({"main": batch})
    assert not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("num_epochs", "num_minibatches"), [(2, 2), (1, 3), (7, 1)])
@pytest.mark.parametrize("replay", ["latest", "cumulative"])
def test_other_streams_are_cut_into_as_many_parts(num_epochs, num_minibatches, replay):
    """In their own order, each row once, in parts as even as can be."""
    place = buffer(num_epochs, num_minibatches, replay)
    for start in (20, 40):
        place.fill({"main": batch_of((2,) * 4), "text": batch_of((1,) * 7, start=start)})
        parts = [rows_of(part["text"]) for part in emptied(place)]
        assert len(parts) == num_epochs * num_minibatches
        assert [row for part in parts for row in part] == list(range(start, start + 7))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_replay_draws_from_all_groups_so_far():
    """As many as the newest batch has, none twice in an epoch, and none left out for good."""
    batches = [batch_of((2,) * 4), batch_of((2,) * 6, start=30), batch_of((2,) * 3, start=60)]
    place, drawn = buffer(20, 2, "cumulative"), []
    for known, batch in enumerate(batches, start=1):
        place.fill({"main": batch})
        parts = [rows_of(part) for part in main_of(emptied(place))]
        assert len(parts) == 40
        epochs = [parts[i] + parts[i + 1] for i in range(0, 40, 2)]
        assert all(len(set(rows)) == len(rows) == batch.num_rows for rows in epochs)
        drawn.append({row for rows in epochs for row in rows})
        assert drawn[-1] == {int(number) for each in batches[:known] for number in each.rewards}
    # of 13 groups an epoch sees 3: without replay all would be the newest
    assert len(drawn[-1]) == 26


def test_replay_with_one_update_starts_with_the_batch_itself():
    place, first, second = buffer(replay="cumulative"), batch_of((1,) * 12), batch_of((1,) * 12, start=30)
    place.fill({"main": first})
    assert place.next()["main"] is first
    place.fill({"main": second})
    rows = rows_of(place.next()["main"])
    assert len(set(rows)) == 12 and min(rows) < 12 and max(rows) >= 30


def test_what_is_the_newest_batchs_is_so_in_all_that_is_replayed():
    """XPO's alpha: once the schedule says 0, no older comparison is trained with what held when it was asked."""
    place = Buffer(XPO(alpha=(0.5, 0.0), alpha_batches=1))
    for alpha, start in ((0.5, 0), (0.0, 30)):
        batch = batch_of((2,) * 6, start=start)
        place.fill({"main": batch.fill(declared={"alpha": RowFloat}, alpha=torch.full((12,), alpha))})
        part = place.next()["main"]
        assert set(part.alpha.tolist()) == {alpha}
    assert min(rows_of(part)) < 12 and max(rows_of(part)) >= 30


def test_without_replay_older_batches_are_forgotten():
    place = buffer(2, 2)
    place.fill({"main": batch_of((2,) * 4)})
    emptied(place)
    place.fill({"main": batch_of((2,) * 4, start=30)})
    assert min(row for part in main_of(emptied(place)) for row in rows_of(part)) == 30


def from_files(place, folder):
    """A fresh buffer with the state of this one, which went through a checkpoint's files."""
    state = place.state_dict()
    tensors = {"rng": torch.get_rng_state()} | {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    save_checkpoint(folder, 1, tensors, {"state": {k: v for k, v in state.items() if k not in tensors}})
    found = load_checkpoint(folder)
    torch.rand(5)
    torch.set_rng_state(found.tensors.pop("rng"))
    again = buffer(place.num_epochs, place.num_parts, "cumulative" if place.cumulative else "latest")
    again.load_state_dict({**found.state["state"], **found.tensors})
    return again


@pytest.mark.parametrize("replay", ["latest", "cumulative"])
@pytest.mark.parametrize("after", range(9))
def test_it_goes_on_where_it_stopped(replay, after, tmp_path):
    """In the middle of a batch, at its end, in the next one: to the bit what an uninterrupted one hands out."""

    def parts(stop_after=None):
        torch.manual_seed(3)
        place, found = buffer(2, 2, replay), []
        for start in (0, 30):
            pairs = torch.arange(start, start + 10, 2) / 64
            text = batch_of((1,) * 5, start=start + 20)
            place.fill({"main": batch_of((2, 4, 2, 2), start=start, preference=pairs), "text": text})
            while not place.empty:
                if len(found) == stop_after:
                    place = from_files(place, tmp_path)
                found.append(place.next())
            if len(found) == stop_after:
                place = from_files(place, tmp_path)
        return found

    whole, cut = parts(), parts(after)
    assert len(whole) == len(cut) == 8
    for one, other in zip(whole, cut, strict=True):
        assert one.keys() == other.keys() == {"main", "text"}
        assert all(same(batch, other[name]) for name, batch in one.items())
        assert rows_of(other["main"]) and rows_of(other["text"])  # what was declared is still read


def test_a_state_holds_what_is_still_needed():
    """Nothing between batches; the batch that is being used; all of them where they are replayed."""
    place = buffer(2, 2)
    assert place.state_dict() == {}
    place.fill({"main": batch_of((2,) * 4), "text": batch_of((1,) * 5)})
    assert {"order", "main.ids", "main.prompts.ids", "main.allowed", "main.marks", "text.ids"} <= set(
        place.state_dict()
    )
    emptied(place)
    assert place.state_dict() == {}
    place = buffer(2, 2, "cumulative")
    place.fill({"main": batch_of((2,) * 4), "text": batch_of((1,) * 5)})
    emptied(place)
    kept = place.state_dict()
    assert "main.ids" in kept and "order" not in kept and not any(name.startswith("text.") for name in kept)


def under_a_rubric(sizes, **columns):
    """The same batch with one more trunk, which all prompts hang from."""
    batch = batch_of(sizes, **columns)
    trunks = Trunks((torch.tensor([7, 8, 9]), *batch.prompts.ids), (-1, *[0] * len(sizes)))
    return batch.fill(prompts=trunks, group=batch.group + 1)


def test_trunks_of_trunks_are_kept(tmp_path):
    """A rubric goes with the prompts that hang from it: into parts, through files and when batches are joined."""
    batch = under_a_rubric((2, 2, 3))
    place = buffer(2)
    place.fill({"main": batch})
    place.next()
    again = from_files(place, tmp_path)
    (part,) = main_of(emptied(again))
    assert sorted(rows_of(part)) == list(range(7)) and part.prompts.parent == (-1, 0, 0, 0)
    both = TokenBatch.cat([batch, under_a_rubric((1, 1), start=20)])
    assert both.prompts.parent == (-1, 0, 0, 0, -1, 4, 4)
    assert [both.prompts.ids[both.prompts.root(int(g))].tolist() for g in both.group] == [[7, 8, 9]] * 9
    assert rows_of(both) == [*range(7), 20, 21]


def test_a_rubric_is_no_group():
    """Three prompts in three parts are one each, whatever they hang from; a part without rows trains on nothing."""
    for seed in range(10):
        torch.manual_seed(seed)
        place = buffer(num_minibatches=3)
        place.fill({"main": under_a_rubric((2, 2, 2))})
        assert [part.num_rows for part in main_of(emptied(place))] == [2, 2, 2]


def test_no_part_is_empty():
    """Dynamic sampling may find fewer groups than a batch should have, and than it is cut into."""
    place = buffer(num_minibatches=4)
    place.fill({"main": batch_of((2, 2))})
    assert all(part.num_rows for part in main_of(emptied(place)))


def test_joined_batches_come_apart_again():
    """Batches of different widths: selecting a batch's rows gives back that batch, its padding and its trunks too."""
    batches = [
        batch_of(sizes, start, preference=torch.arange(start, start + sum(sizes), 2) / 64, ranking=torch.tensor(ranks))
        for sizes, start, ranks in (
            ((2,), 0, [0, 0]),
            ((2, 4), 4, [0, 0, 1, 1, 1, 1]),
            ((2,), 10, [0, 1]),
            ((4, 2), 30, [0, 0, 1, 1, 2, 2]),
        )
    ]
    assert len({batch.ids.shape[1] for batch in batches}) > 1 and batches[0].ids.shape[1] < batches[1].ids.shape[1]
    whole = TokenBatch.cat(batches)
    assert rows_of(whole) == [int(number) for batch in batches for number in batch.rewards]
    assert whole.ranking.tolist() == [0, 0, 1, 1, 2, 2, 2, 2, 3, 4, 5, 5, 6, 6, 7, 7]
    assert whole.group.tolist() == [0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 4, 4, 4, 4, 5, 5]
    start = 0
    for batch in batches:
        rows = torch.arange(start, start + batch.num_rows)
        assert same(whole.select(rows), batch)
        start += batch.num_rows
    padding = ~(torch.arange(whole.ids.shape[1]) < whole.lengths[:, None])
    assert padding.any() and not whole.mask[padding].any()
    assert all((column[padding] == 0).all() for column in (whole.ids, whole.advantages, whole.allowed, whole.marks))


def test_one_batch_joined_is_itself():
    batch = batch_of((2, 3, 1))
    assert same(TokenBatch.cat([batch]), batch)
