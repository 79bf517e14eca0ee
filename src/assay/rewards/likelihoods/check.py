"""Is a likelihood's gradient right? Autograd against finite differences, on random feedback of its kind.

Source: central differences, e.g. Nocedal & Wright 2006, "Numerical Optimization", sec. 8.1.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from assay.batch import ModelOutput, Term, TokenBatch, Trunks
from assay.rewards.likelihoods.base import Likelihood
from assay.settings import InputError
from assay.shapes import PairFloat, RowFloat, RowInt, TokenFloat, TokenLevels

STEP = 1e-5  # errors of 1e-10 by the step, and as much by rounding
TOKENS = 3  # of each made-up response
SIZES: Mapping[str, tuple[int, ...]] = {
    "comparisons": (2,) * 6,
    "rankings": (4, 2, 3, 3),
    "ratings": (1,) * 6,
    "steps": (1,) * 6,
    "spans": (1,) * 6,
}
REDUCTIONS: Mapping[str, tuple[str, ...]] = {
    "comparisons": ("pair", "response"),
    "rankings": ("ranking", "response"),
    "ratings": ("response", "sequence", "token"),
    "steps": ("token", "sequence"),
    "spans": ("token", "sequence"),
}
NEEDED: Mapping[str, str] = {"rankings": "rank", "ratings": "rating"}
"""Kind of feedback -> how many answers each judgement has; the reductions it can have; the column it must declare."""


def check_gradient(likelihood: Likelihood, *, seed: int = 0, tolerance: float = 1e-6) -> float:
    """The largest error of the gradient, as a share of the largest gradient; 1e-9 is usual for a right one.

    The loss is differentiated by rewards (or outputs) [B] and by every number that is learned by its gradient, where
    these start, in fp64.
    Preferences are hard, tied and between, margins absent, ratings on the likelihood's scale (`low` to `high`, else
    0 to 1), other declared columns random.

    Raises InputError for an error above `tolerance`, naming the entry and both values, and for a loss that is not
    finite, not of the shape that its reduction asks for, or not in the type of the rewards.
    """
    name = type(likelihood).__name__
    term = _the_term(likelihood, name)
    generator = torch.Generator().manual_seed(seed)
    batch = _feedback(likelihood, name, generator)
    rows, num = batch.num_rows, likelihood.num_outputs
    shapes = {"rewards": (rows,), "outputs": (rows, num), "token_outputs": (rows, TOKENS, num)}
    read = [column for column in term.reads if column in shapes]
    numbers = {column: torch.randn(shapes[column], generator=generator, dtype=torch.float64) for column in read}
    learned = {key: value.detach().clone().double() for key, value in likelihood.learned.items()}
    numbers |= {} if likelihood.learns_between else learned  # what is learned in another way has no gradient

    def total() -> Tensor:
        columns: dict[str, Any] = {column: numbers[column] for column in read}
        return _values(term, ModelOutput(parameters=learned, **columns), batch, name).sum()

    return _compare(numbers, by_autograd(total, numbers), by_differences(total, numbers), tolerance, name)


def by_autograd(total: Callable[[], Tensor], numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of `total` by each of these tensors; 0 by one that no gradient flows to."""
    for value in numbers.values():
        value.requires_grad_()
    loss = total()
    if not loss.requires_grad:
        return {key: torch.zeros_like(value) for key, value in numbers.items()}
    found = torch.autograd.grad(loss, list(numbers.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(numbers, found, strict=True))


@torch.no_grad()
def by_differences(total: Callable[[], Tensor], numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As `by_autograd`, from the loss alone: [f(x + h) - f(x - h)] / 2h, one entry after another."""
    found = {key: torch.zeros_like(value) for key, value in numbers.items()}
    for key, value in numbers.items():
        flat = value.view(-1)
        for place in range(flat.numel()):
            start = flat[place].item()
            flat[place] = start + STEP
            above = total()
            flat[place] = start - STEP
            found[key].view(-1)[place] = (above - total()) / (2 * STEP)
            flat[place] = start
    return found


def _compare(
    numbers: Mapping[str, Tensor],
    gradient: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    tolerance: float,
    name: str,
) -> float:
    """The worst error among all entries; InputError if it is too large, or there is nothing to compare."""
    entries = [_entry(key, place) for key, value in numbers.items() for place in _places(value)]
    ours, theirs = (torch.cat([values[key].flatten() for key in numbers]) for values in (gradient, expected))
    largest = torch.cat([ours, theirs]).abs().max()
    if largest == 0:
        raise InputError(f"{name}.loss depends on none of {', '.join(numbers)}: nothing could be learned by it")
    errors = (ours - theirs).abs() / largest
    worst = int(errors.argmax())  # a NaN counts as the largest
    if not errors[worst] <= tolerance:
        raise InputError(
            f"{name}.loss: the gradient of {entries[worst]} is {ours[worst]:.6g}, but by finite differences "
            f"{theirs[worst]:.6g}: look for a detach, an in-place change or a backward of its own"
        )
    return float(errors[worst])


def _places(value: Tensor) -> list[tuple[int, ...]]:
    return [tuple(place) for place in torch.ones(value.shape).nonzero().tolist()]


def _entry(key: str, place: tuple[int, ...]) -> str:
    return f"{key}[{', '.join(map(str, place))}]" if place else key


def _the_term(likelihood: Likelihood, name: str) -> Term:
    """What is trained, if this file can make feedback for it."""
    if likelihood.data not in SIZES:
        raise InputError(f"{name}.data: {likelihood.data!r} cannot be checked; known are {', '.join(SIZES)}")
    if NEEDED.get(likelihood.data, "") not in ("", *likelihood.columns):
        raise InputError(f"{name}.columns must declare {NEEDED[likelihood.data]!r}, in which {likelihood.data} come")
    (term,) = likelihood.losses()
    if term.reduction not in REDUCTIONS[likelihood.data]:
        known = " or ".join(map(repr, REDUCTIONS[likelihood.data]))
        raise InputError(f"{name}.reduction: {likelihood.data} are reduced by {known}; got {term.reduction!r}")
    if unknown := set(term.reads) - {"rewards", "outputs", "token_outputs", "parameters"}:
        raise InputError(
            f"{name}.reads: {min(unknown)!r} cannot be checked; known are 'rewards', 'outputs' and 'token_outputs'"
        )
    return term


def _values(term: Term, out: ModelOutput, batch: TokenBatch, name: str) -> Tensor:
    """The unreduced loss; InputError unless it and its metrics are as the loop that trains expects them."""
    found = term.fn(out, batch)
    if not (isinstance(found, tuple) and len(found) == 2):
        raise InputError(f"{name}.loss must return the values and a dictionary of metrics; got {type(found).__name__}")
    values, metrics = found
    judged = int(batch.ranking.max()) + 1 if term.reduction == "ranking" else batch.num_rows
    shape = (judged // 2 if term.reduction == "pair" else judged,)
    if term.reduction in ("token", "sequence"):
        shape = (judged, TOKENS)
    for what, value in {"loss": values, **{f"metric {key!r}": metric for key, metric in metrics.items()}}.items():
        if tuple(value.shape) != shape:
            raise InputError(
                f"{name}.loss: the {what} must have the shape {shape}, one value for each {term.reduction}; "
                f"got {tuple(value.shape)}"
            )
    if values.dtype != torch.float64:
        raise InputError(f"{name}.loss: rewards in float64 gave a loss in {values.dtype}; keep the type that comes in")
    if not values.isfinite().all():
        place = tuple(values.isfinite().logical_not().nonzero()[0].tolist())
        shown = ", ".join(map(str, place))
        raise InputError(f"{name}.loss: value {shown} is {values[place].item()} on ordinary rewards and feedback")
    return values


def _feedback(likelihood: Likelihood, name: str, generator: torch.Generator) -> TokenBatch:
    """Judgements of the likelihood's kind, with the columns that it declares and the usual ones."""
    sizes = torch.tensor(SIZES[likelihood.data])
    judgement = torch.arange(len(sizes)).repeat_interleave(sizes)
    columns: dict[str, Any] = {"key": torch.randint(2**48, sizes.shape, generator=generator)[judgement]}
    if likelihood.data == "comparisons":
        columns["preference"] = 0.5 + torch.rand(len(sizes), generator=generator, dtype=torch.float64) / 2
        columns["preference"][:2] = torch.tensor([1.0, 0.5])
    if likelihood.data == "rankings":
        columns["ranking"] = judgement
        columns["rank"] = torch.cat([torch.arange(int(size)) for size in sizes])
        columns["rank"][-1] -= 1  # a tie
    if likelihood.data == "ratings":
        columns["rating"] = _ratings(likelihood, len(sizes), generator)
    for column, kind in likelihood.columns.items():
        if column not in columns:
            values = _column(likelihood, name, column, kind, len(sizes), generator)
            columns[column] = values if kind is PairFloat else values[judgement]
    ones = torch.ones(len(judgement), TOKENS, dtype=torch.long)
    return TokenBatch(
        declared=likelihood.columns,
        prompts=Trunks(tuple(torch.ones(len(sizes), 1, dtype=torch.long))),
        ids=ones,
        mask=ones.bool(),
        lengths=ones.sum(1),
        group=judgement,
        **columns,
    )


def _ratings(likelihood: Likelihood, num: int, generator: torch.Generator) -> Tensor:
    """[num] on a scale of whole numbers, both ends among them, or from 0 to 1."""
    one: Any = getattr(likelihood, "inner", likelihood)
    if hasattr(one, "low") and hasattr(one, "high"):
        return torch.linspace(one.low, one.high, num, dtype=torch.float64).round()
    return torch.rand(num, generator=generator, dtype=torch.float64)


def _column(likelihood: Likelihood, name: str, column: str, kind: Any, num: int, generator: torch.Generator) -> Tensor:
    """[num] values of a column that the likelihood declares, one for each judgement."""
    if kind is RowInt:
        return torch.randint(likelihood.num_outputs if column == "objective" else 2, (num,), generator=generator)
    if kind in (RowFloat, PairFloat):
        return torch.rand(num, generator=generator, dtype=torch.float64)
    if kind in (TokenFloat, TokenLevels):
        shape = (num, TOKENS) if kind is TokenFloat else (num, TOKENS, likelihood.num_outputs)
        return torch.rand(shape, generator=generator, dtype=torch.float64)
    known = "RowInt, RowFloat, PairFloat, TokenFloat and TokenLevels"
    raise InputError(f"{name}.columns: {column!r} cannot be made up; known are {known}")
