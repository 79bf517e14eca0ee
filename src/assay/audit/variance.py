"""How much of what ratings differ by lies between annotators, and how much within one who rates again."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from assay.audit.statistics import group_index
from assay.settings import InputError


class VarianceComponents(NamedTuple):
    """Variances in squared units of the ratings: of annotators' levels, and of one annotator around that level.

    `between` is unbiased, so it may be below 0 where annotators hardly differ.
    """

    between: float
    within: float
    num_annotators: int
    degrees_of_freedom: int  # that `within` rests on


def variance_components(ratings: ArrayLike, annotators: ArrayLike, items: ArrayLike) -> VarianceComponents:
    """Of ratings [n] = worth of the item + level u_a of the annotator + noise, u_a and noise random, items fixed.

    Any number of ratings for each annotator and item, 0 included. Two sums of squares are set equal to what they are
    expected to be: what is left when items and annotators are fitted, and what annotators explain beyond items. When
    all cells have equally many ratings these are the classical mean squares of a two-way table. `annotators` and
    `items` [n] are names or numbers. Raises InputError where annotators cannot be told from items.

    Source: Searle, Casella & McCulloch 1992, "Variance Components", sec. 5.5 (Henderson's method III).
    """
    y = np.asarray(ratings, float)
    item, num_items = group_index(items)
    annotator, num_annotators = group_index(annotators)
    if not len(y) == len(item) == len(annotator):
        raise InputError(f"variance_components: {len(y)} ratings, {len(annotator)} annotators and {len(item)} items")
    counts = np.bincount(item, minlength=num_items)
    cells = np.zeros((num_items, num_annotators))
    np.add.at(cells, (item, annotator), 1)
    y = y - (np.bincount(item, y, num_items) / counts)[item]  # items out
    cross = np.diag(cells.sum(0)) - cells.T @ (cells / counts[:, None])  # of the annotators' columns, items out
    sums = np.bincount(annotator, y, num_annotators)
    levels, _, rank, _ = np.linalg.lstsq(cross, sums, rcond=1e-9)
    free = len(y) - num_items - int(rank)
    if rank == 0 or free < 1:
        raise InputError(
            f"variance_components: {len(y)} ratings of {num_items} items by {num_annotators} annotators do not tell "
            f"annotators from items and noise; let several annotators rate the same items"
        )
    explained = float(levels @ sums)
    within = (float(y @ y) - explained) / free
    between = (explained - int(rank) * within) / float(np.trace(cross))
    return VarianceComponents(between, within, num_annotators, free)
