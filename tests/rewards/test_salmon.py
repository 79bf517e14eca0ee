"""Labels that follow from principles, in a world where answers have eight attributes and the judge is biased."""

import itertools
import json
from collections import Counter
from dataclasses import replace
from random import Random

import pytest
import torch
from scipy.stats import chisquare

from assay.records import Comparison, Rollout, reply, user_prompt
from assay.rewards.principles import (
    Principle,
    PrincipleSampler,
    SymbolicReward,
    find,
    instructed,
    read_principles,
    symbolic,
)
from assay.rewards.rules import fill_rewards, load
from assay.rewards.salmon import DISCLAIMER, Aggregation, Rule, build_preferences, debiased, scaled, truncated_geometric
from assay.settings import InputError

NAMES = ("brief", "kind", "true", "clear", "calm", "warm", "exact", "open")
PRINCIPLES = tuple(Principle(name=n, text=f"Be {n}.", negation=f"Do not be {n}.") for n in NAMES)
CLEAN = Aggregation(passes=1, flip=0.0, rule_flip=0.0)


def comparisons(num):
    return [
        Comparison(prompt=user_prompt(f"Question {i}?"), responses=(reply(f"First {i}."), reply(f"Second {i}.")))
        for i in range(num)
    ]


def told_first(made):
    """Whether the clean label says that the first response of the original pair wins, read from the words."""
    chosen = made.chosen[0].content
    return chosen.startswith("First")


def clean_first(made):
    """The same of the clean label: it speaks of the responses as they stand."""
    return made.meta["clean"] == made.responses[0][0].content.startswith("First")


def opinions(*rows):
    """Both orders of the judge agree."""
    return torch.tensor(rows, dtype=torch.float64)[..., None].expand(-1, -1, 2)


def world(num=2000, *, bias=0.0, noise=0.3, seed=0):
    """Attribute gaps [N, 8] and a judge's log-odds for both orders [N, 8, 2]."""
    generator = torch.Generator().manual_seed(seed)
    gaps = torch.randn(num, 8, generator=generator)
    shown = torch.stack([gaps + bias, gaps - bias], -1)
    return gaps, shown + noise * torch.randn(shown.shape, generator=generator)


def test_the_strongest_opinion_decides_and_a_negation_turns_it():
    pairs = comparisons(40)
    strengths = opinions(*[[1.0, -3.0] if i % 2 else [-1.0, 3.0] for i in range(40)])
    for made in build_preferences(pairs, strengths, PRINCIPLES[:2], CLEAN, rng=Random(0)):
        place = int(made.prompt.messages[0].content.split()[1].rstrip("?"))
        row = dict(zip(("brief", "kind"), (1.0, -3.0) if place % 2 else (-1.0, 3.0), strict=True))
        signed = [row[n] * s for n, s in zip(made.meta["principles"], made.meta["signs"], strict=True)]
        # both principles vary by the same factor over pairs: 1 and 3 of standard deviation 1 and 3, variance 1 and 9
        scaled = [v / (1.0 if abs(v) == 1 else 9.0) for v in signed]
        assert told_first(made) == (max(scaled, key=abs) > 0)


def test_orders_that_disagree_say_nothing():
    assert debiased(torch.tensor([[[1.0, -0.5], [1.0, 0.5]]])).tolist() == [[0.0, 0.75]]
    pairs = comparisons(5)
    against = torch.tensor([[1.0, -1.0]]).expand(5, 1, 2)
    assert build_preferences(pairs, against, PRINCIPLES[:1], CLEAN, rng=Random(0)) == []


def test_negating_every_principle_turns_every_clean_label():
    _, judged = world(300)
    always = Aggregation(passes=1, flip=0.0, negate=1.0)
    never = Aggregation(passes=1, flip=0.0, negate=0.0)
    pairs = comparisons(300)
    turned = build_preferences(pairs, judged, PRINCIPLES, always, rng=Random(3))
    plain = build_preferences(pairs, judged, PRINCIPLES, never, rng=Random(3))
    assert len(turned) == len(plain) > 200
    for a, b in zip(turned, plain, strict=True):
        assert a.meta["principles"] == b.meta["principles"] and a.meta["clean"] == 1 - b.meta["clean"]


def test_asking_in_both_orders_takes_the_bias_out():
    """A judge that leans to the first by two standard deviations of what it judges."""
    gaps, judged = world(4000, bias=2.0)
    one = Aggregation(passes=1, flip=0.0, negate=0.0, geometric=1.0)
    right = {}
    for name, asked in (("both", judged), ("one order", judged[..., :1].expand(-1, -1, 2))):
        made = build_preferences(comparisons(4000), asked, PRINCIPLES, one, rng=Random(1))
        places = [int(m.prompt.messages[0].content.split()[1].rstrip("?")) for m in made]
        truth = [gaps[i, NAMES.index(m.meta["principles"][0])] > 0 for i, m in zip(places, made, strict=True)]
        right[name] = sum(bool(t) == clean_first(m) for t, m in zip(truth, made, strict=True)) / len(made)
    assert right["both"] >= right["one order"] + 0.05


def test_how_many_principles_a_label_has():
    rng = Random(0)
    drawn = [truncated_geometric(0.2, 8, rng) for _ in range(8000)]
    shares = [0.8**k for k in range(8)]
    expected = [8000 * share / sum(shares) for share in shares]
    assert chisquare([drawn.count(k) for k in range(1, 9)], expected).pvalue > 0.01


def test_planted_errors_come_as_often_as_told():
    _, judged = world(3000)
    rule = Rule("first", lambda prompt, response: response[0].content.startswith("First"))
    for rules, rate in (((), 0.1), ((rule,), 0.25)):
        made = build_preferences(
            comparisons(3000), judged, PRINCIPLES, Aggregation(passes=1), rules=rules, rng=Random(2)
        )
        wrong = sum(m.preference != m.meta["clean"] for m in made)
        assert abs(wrong - rate * len(made)) < 3 * (rate * (1 - rate) * len(made)) ** 0.5


def test_the_same_seed_gives_the_same_bytes():
    _, judged = world(100)
    texts = [
        json.dumps([m.to_json() for m in build_preferences(comparisons(100), judged, PRINCIPLES, rng=Random(7))])
        for _ in range(2)
    ]
    assert texts[0] == texts[1]


def test_an_answer_that_calls_itself_a_language_model_loses_half_of_the_time():
    pairs = [
        Comparison(prompt=user_prompt(f"{i}?"), responses=(reply(f"As an AI language model, {i}."), reply(f"Yes {i}.")))
        for i in range(2000)
    ]
    made = build_preferences(
        pairs, opinions(*[[5.0], [4.0]] * 1000), PRINCIPLES[:1], CLEAN, rules=(DISCLAIMER,), rng=Random(0)
    )
    ruled = [m for m in made if m.meta["by_rule"]]
    assert 900 < len(ruled) < 1100 and all(m.chosen[0].content.startswith("Yes") for m in ruled)


def test_what_is_said_of_the_first_turns_with_the_order():
    """The judge is for the first of every pair, and so was who labelled it before."""
    pairs = [replace(p, preference=0.75, meta={"imported_preference": 0.75}) for p in comparisons(40)]
    always = Aggregation(passes=1, flip=0.0, negate=0.0)
    made = build_preferences(pairs, opinions(*[[1.0 + i] for i in range(40)]), PRINCIPLES[:1], always, rng=Random(0))
    firsts = [m.responses[0][0].content.startswith("First") for m in made]
    assert len(made) == 40 and len(set(firsts)) == 2
    for first, one in zip(firsts, made, strict=True):
        assert one.preference == one.meta["clean"] == first
        assert one.meta["imported_preference"] == (0.75 if first else 0.25)


def test_labels_of_one_pair_have_ids_of_their_own_that_stay():
    _, judged = world(50)
    made, again = (
        build_preferences(comparisons(50), judged[:, :2], PRINCIPLES[:2], Aggregation(passes=8), rng=Random(4))
        for _ in range(2)
    )
    ids = [m.id for m in made]
    assert len({replace(m, id="").id for m in made}) < len(set(ids)) == len(made)
    assert ids == [m.id for m in again]


def test_what_spoke_of_the_old_label_is_gone():
    old = {"margin": 2.0, "shown_first": "chosen", "week": 3}
    pairs = [replace(p, meta=old) for p in comparisons(3)]
    for made in build_preferences(pairs, opinions([1.0], [2.0], [3.0]), PRINCIPLES[:1], CLEAN, rng=Random(0)):
        assert made.meta["week"] == 3 and not {"margin", "shown_first"} & made.meta.keys()


def test_a_principle_that_says_the_same_of_all_is_an_opinion():
    alike = torch.full((3, 1), 0.1, dtype=torch.float64)
    assert scaled(alike, "var").tolist() == alike.tolist()
    assert scaled(torch.zeros(3, 1), "std").tolist() == [[0.0]] * 3
    assert len(build_preferences(comparisons(1), opinions([2.0]), PRINCIPLES[:1], CLEAN, rng=Random(0))) == 1


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"passes": 0}, "aggregation.passes must be at least 1; got 0"),
        ({"most": 0}, "aggregation.most must be at least 1; got 0"),
        ({"geometric": 0.0}, r"aggregation.geometric must lie in \(0, 1\]; got 0.0"),
        ({"flip": 1.5}, r"aggregation.flip is a probability in \[0, 1\]; got 1.5"),
        ({"rule_flip": -0.1}, "aggregation.rule_flip is a probability"),
        ({"negate": float("nan")}, "aggregation.negate is a probability"),
    ],
)
def test_constants_out_of_range_are_refused(wrong, told):
    with pytest.raises(InputError, match=told):
        Aggregation(**wrong)


def test_responses_carry_their_rules():
    *_, message = instructed(reply("Yes."), find(PRINCIPLES, ["kind", "not:brief"]))
    assert message.role == "user" and message.content.endswith("- Be kind.\n- Do not be brief.")


def test_plain_text_is_told_nothing():
    with pytest.raises(InputError, match="this answer is plain text: use messages"):
        instructed(reply("Yes.", plain=True), find(PRINCIPLES, ["kind"]))


def test_an_unknown_principle_names_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'brief'"):
        find(PRINCIPLES, ["brif"])


def test_the_sampler_follows_weights_and_boosts():
    weighed = tuple(replace(p, weight=w) for p, w in zip(PRINCIPLES[:3], (1.0, 2.0, 5.0), strict=True))
    drawn = PrincipleSampler(principles=weighed, num=2, fixed=((PRINCIPLES[4], -1),))
    rng, orders = Random(0), Counter()
    for _ in range(4000):
        told = drawn.sample("general", rng)
        assert len(told) == 3 and told[-1] == (PRINCIPLES[4], -1)
        orders[tuple(principle.weight for principle, _ in told[:2])] += 1
    for first, second in itertools.permutations((1.0, 2.0, 5.0), 2):  # the second among what the first left
        share = first / 8 * second / (8 - first)
        assert abs(orders[first, second] - 4000 * share) < 4 * (4000 * share * (1 - share)) ** 0.5
    special = Principle(name="maths", text="Compute.", negation="Guess.", tags=("reasoning",))
    boosted = PrincipleSampler(principles=(*PRINCIPLES, special), boosts={"reasoning": 128})
    hits = sum(any(p.name == "maths" for p, _ in boosted.sample("reasoning", rng)) for _ in range(1000))
    misses = sum(any(p.name == "maths" for p, _ in boosted.sample("general", rng)) for _ in range(1000))
    assert hits > 950 and misses < 500


def test_the_symbolic_reward_is_the_published_formula():
    found = symbolic([512, 4000, 512, 512], [True, True, True, False], ["general", None, "reasoning", ""])
    assert found == pytest.approx([2.5, 4.0, -1.0, -3.5])  # the second: 5 * 0.8
    assert SymbolicReward(bonus=1.0)([512], [True]) == [0.5]
    rule = load("assay.rewards.principles:symbolic")
    prompt = user_prompt("Compute.", meta={"kind": "reasoning"})
    answer = Rollout(prompt=prompt, response=reply("12"), stop="length", ids=tuple(range(512)))
    assert fill_rewards(rule, [answer])[0].reward == pytest.approx(-7.0)
    with pytest.raises(InputError, match="needs 'num_tokens'"):
        rule(["Compute."], ["12"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"text": "Be kind.", "negation": "Do not."}\n', "principle 1: its name is missing"),
        ('{"name": "kind", "text": "Be kind."}\n', "principle 1: its negation is missing"),
        ('{"name": "kind", "text": "a", "negation": "b", "wieght": 2}\n', "Did you mean 'weight'"),
        ('{"name": "a", "text": "a", "negation": "b"}\n' * 2, "two principles are called 'a'"),
        ("{oops\n", "not readable"),
        ("", "a list of principles is needed"),
        ('{"name": "a", "text": "a", "negation": "b", "tags": "reasoning"}', "tags must be a list of words; got 'reas"),
        ('{"name": "a", "text": "a", "negation": "b", "tags": 3}', "tags must be a list of words; got 3"),
        ('{"name": "a", "text": "a", "negation": "b", "weight": Infinity}', "weight must be a positive number"),
    ],
)
def test_principles_that_cannot_be_used(tmp_path, text, told):
    path = tmp_path / "principles.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=told):
        read_principles(path)


def test_principles_are_read_from_yaml_too(tmp_path):
    path = tmp_path / "principles.yaml"
    path.write_text("- name: kind\n  text: Be kind.\n  negation: Be rude.\n  weight: 2\n  tags: [tone]\n")
    (found,) = read_principles(path)
    assert found.weight == 2 and found.tags == ("tone",) and found.say(-1) == "Be rude."
