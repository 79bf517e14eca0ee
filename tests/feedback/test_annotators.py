import math
from collections.abc import Sequence

import pytest
from scipy.stats import binomtest

from assay.feedback import SimulatedAnnotator, read_comparisons, write_records
from assay.records import Prompt, Response, reply, text_of, user_prompt
from assay.settings import InputError


def number_in(prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[float]:
    """R* is the number that the answer ends with."""
    return [float(text_of(response).split()[-1]) for response in responses]


def items(better: float, worse: float, count: int) -> list[tuple[Prompt, Response, Response]]:
    return [
        (user_prompt(f"Question {number}"), reply(f"answer {better}"), reply(f"answer {worse}"))
        for number in range(count)
    ]


def share(annotator: SimulatedAnnotator, pairs: list[tuple[Prompt, Response, Response]]) -> int:
    return sum(int(label.preference) for label in annotator.label(pairs))


@pytest.mark.parametrize(
    ("difference", "temperature", "mistake", "probability"),
    [
        (math.log(3), 1.0, 0.0, 0.75),
        (-math.log(3), 1.0, 0.0, 0.25),
        (math.log(9), 2.0, 0.0, 0.75),
        (math.log(3), 1.0, 0.1, 0.7),  # 0.9 * 0.75 + 0.1 * 0.25
        (0.0, 1.0, 0.0, 0.5),
        (0.0, 0.0, 0.0, 0.5),
        (1e-9, 0.0, 0.0, 1.0),
        (-5.0, 0.0, 0.2, 0.2),
        (800.0, 1.0, 0.0, 1.0),
    ],
)
def test_probability_and_empirical_rate(
    difference: float, temperature: float, mistake: float, probability: float
) -> None:
    annotator = SimulatedAnnotator(oracle=number_in, temperature=temperature, mistake=mistake)
    pairs = items(1.0 + difference, 1.0, 3000)
    assert annotator.probability(pairs[:1]) == [pytest.approx(probability)]
    interval = binomtest(share(annotator, pairs), len(pairs)).proportion_ci(confidence_level=0.999)
    assert interval.low <= probability <= interval.high


def test_labels_depend_on_neither_order_batch_nor_side() -> None:
    annotator = SimulatedAnnotator(oracle=number_in, temperature=2.0, seed=3)
    pairs = items(2.0, 1.0, 200)
    together = annotator.label(pairs)
    assert annotator.label(pairs[::-1])[::-1] == together
    assert tuple(annotator.label([pair])[0] for pair in pairs) == together
    sides = annotator.label([(prompt, second, first) for prompt, first, second in pairs])
    assert [label.chosen for label in sides] == [label.chosen for label in together]
    assert 0 < sum(label.preference for label in together) < 200


def test_another_seed_name_or_objective_is_another_draw() -> None:
    pairs = items(1.0, 1.5, 200)
    first = SimulatedAnnotator(oracle=number_in)
    others = [
        SimulatedAnnotator(oracle=number_in, seed=1),
        SimulatedAnnotator(oracle=number_in, name="second"),
        SimulatedAnnotator(oracle=number_in, objective="safe"),
    ]
    labels = [label.preference for label in first.label(pairs)]
    for other in others:
        agree = sum(a == b.preference for a, b in zip(labels, other.label(pairs), strict=True))
        assert 60 < agree < 160  # independent draws of the same probability, 0.38: 0.53 agree


def test_more_noise_only_changes_what_the_draw_says() -> None:
    """One uniform draw per pair: the set won by the better answer grows as the temperature falls."""
    pairs = items(2.0, 1.0, 500)
    won = [
        {
            label.prompt.id
            for label in SimulatedAnnotator(oracle=number_in, temperature=t).label(pairs)
            if label.preference
        }
        for t in (4.0, 1.0, 0.25)
    ]
    assert len(won[0]) < len(won[1]) < len(won[2])


def test_labels_are_comparisons_that_can_be_written(tmp_path) -> None:
    annotator = SimulatedAnnotator(oracle=number_in, temperature=0, name="ann", objective="helpful")
    (label,) = annotator.label([(user_prompt("Q"), reply("a 1"), reply("b 2"))])
    assert (label.preference, label.chosen, label.annotator, label.objective) == (0.0, reply("b 2"), "ann", "helpful")
    assert label.meta == {"oracle_rewards": [1.0, 2.0]}
    assert read_comparisons(write_records(tmp_path / "a.jsonl", [label])).records == (label,)


def test_wrong_settings_and_oracles() -> None:
    for wrong in ({"temperature": -1}, {"temperature": math.nan}, {"mistake": 0.6}, {"mistake": -0.1}):
        with pytest.raises(InputError):
            SimulatedAnnotator(oracle=number_in, **wrong)
    for oracle in (lambda prompts, responses: [1.0], lambda prompts, responses: [math.nan] * len(responses)):
        with pytest.raises(InputError, match="2 finite rewards"):
            SimulatedAnnotator(oracle=oracle).label(items(1, 2, 1))
