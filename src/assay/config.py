"""What each verb of the command line can be told. Defaults, then a YAML file, then `--dotted.flags`."""

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_origin

from assay.algorithms import ALGORITHMS
from assay.audit.gate import GateSettings
from assay.engine.catalog import DEFAULT_MODEL
from assay.engine.load import DType, LoRASettings
from assay.engine.samples import SamplingSettings
from assay.rewards.apart import FaultSettings
from assay.rewards.ids import IDS
from assay.rewards.instructed import PrincipleSettings
from assay.rewards.likelihoods import LIKELIHOODS
from assay.rewards.likelihoods.comparisons import BradleyTerry
from assay.rewards.opening import RuleName
from assay.rewards.salmon import Aggregation
from assay.rewards.ser import SER
from assay.settings import InputError, Settings, nearest
from assay.train.loop import CheckpointSettings, OptimiserSettings
from assay.train.stopping import StopSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings(Settings):
    """Feedback, prompts or text to read: a file, a dataset folder or a hub id."""

    path: str = ""
    split: str | None = None
    on_bad: Literal["error", "skip"] = "error"  # rows that cannot be used: refuse the file, or drop and count them
    too_long: Literal["error", "skip"] = "error"  # conversations longer than the model's context
    limit: int | None = None  # at most this many records
    objectives: tuple[str, ...] = ()  # columns with a judgement each, where rows have several


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig(Settings):
    """assay reward: feedback -> a reward model that plain transformers loads."""

    run: str = ""  # the run directory
    model: str = DEFAULT_MODEL  # what it starts from: a name, a folder or a hub id
    data: DataSettings = field(default_factory=DataSettings)
    held_out: int | float = 0.1  # prompts kept for testing: a number, or a share
    likelihood: Any = field(default_factory=BradleyTerry)  # the chosen likelihood's own fields
    heads: int = 1  # opinions on one body, each on a bootstrap of the feedback; more than 1 is an ensemble
    adapters: int = 1  # opinions as low-rank adapters of one body, each on a bootstrap of its own; needs lora.rank
    prior: float = 0.0  # precision of a Gaussian prior around the weights that training starts from: MAP, not ML
    language_coef: float = 0.0  # weight of the chosen answers' language-model loss beside the reward's
    ids: IDS = field(default_factory=IDS)  # labels that move with the model
    validation: int | float = 0  # prompts kept to choose the epoch of least loss; 0: the last epoch is what is saved
    labelled: float = 1.0  # share of the prompts whose labels are used; the others' pairs the model labels itself
    unlabelled: DataSettings = field(default_factory=DataSettings)  # further pairs that the model labels itself
    ser: SER = field(default_factory=SER)  # how it does
    epochs: float = 1.0
    batch_size: int = 8  # judgements per optimiser step
    max_tokens: int | None = None  # a stricter limit than the model's context
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    lora: LoRASettings = field(default_factory=LoRASettings)
    checkpoints: CheckpointSettings = field(default_factory=CheckpointSettings)
    token_budget: int = 4096  # tokens computed at once; changes memory and speed, never the result
    dtype: DType = "auto"
    seed: int = 0
    verify: bool = True  # prove that plain transformers gives the saved model's rewards


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplesSettings(Settings):
    """Answers sampled to see which ones a reward would pick."""

    prompts: DataSettings = field(default_factory=DataSettings)  # no path: none are sampled
    model: str = DEFAULT_MODEL
    num_prompts: int = 64
    num_answers: int = 16
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    oracle: str = ""  # "text", "length", or file.py:function: the truth, where it is known


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardUse(Settings):
    """Which reward a verb uses, and how it is read."""

    reward: str = ""  # a model, several separated by commas, or implicit:POLICY:REFERENCE; default: the run's
    reward_rule: RuleName = ""  # how the opinions of several models or heads become one; default: as the model says
    reward_penalty: float = 1.0  # of rules "cautious" and "soft": how much uncertainty costs
    reward_weights: tuple[float, ...] = ()  # of the objectives of a model that has several; default: all alike
    principles: PrincipleSettings = field(default_factory=PrincipleSettings)  # what an instructable model is told
    token_budget: int = 8192  # tokens computed at once; changes memory and speed, never the result
    dtype: DType = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditConfig(RewardUse):
    """assay audit: a reward model and held-out comparisons -> findings and a verdict."""

    run: str = ""
    data: DataSettings = field(default_factory=DataSettings)  # default: what the run held out
    samples: SamplesSettings = field(default_factory=SamplesSettings)
    gate: GateSettings = field(default_factory=GateSettings)
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticSettings(Settings):
    """The critic of the algorithms that have one."""

    kind: Literal["separate", "shared", "adapter"] = "separate"  # a model, a head on the policy's body, or an adapter
    start: str = ""  # of a separate one: "policy", "reward" or any model; default: in ppo_max reward, else policy
    lr: float = 0.0  # 0: the policy's
    alone: int | None = None  # steps that it is trained before the policy's first; default: in ppo_max 16, else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceSettings(Settings):
    """Whether the reference stays the policy at step 0 or follows."""

    every: int = 0  # optimiser steps from one move to the next; 0: it stays
    share: float = 1.0  # of the way to the policy that a move goes


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseSettings(Settings):
    """How tokens are paid each for itself: by a model with numbers at tokens, or "implicit:POLICY:REFERENCE"."""

    kind: Literal["", "rewards", "attributions", "potentials"] = ""  # paid as they are; shares of the reward; shaping
    model: str = ""  # default: the reward model


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyConfig(RewardUse):
    """assay policy: prompts and a reward, or feedback alone -> a policy."""

    run: str = ""
    model: str = DEFAULT_MODEL
    data: DataSettings = field(default_factory=DataSettings)  # prompts, comparisons or demonstrations
    streams: dict[str, DataSettings] = field(default_factory=dict)  # further sources, by stream
    algorithm: Any = None  # set to the chosen algorithm's own fields by `config_class`
    rules: tuple[str, ...] = ()  # programmatic rewards beside it, as weight*file.py:function
    judge: str = ""  # a language model (name, folder, hub id, http address) that compares answers two by two
    criterion: str = ""  # one sentence: what the judge goes by; default: helpful, true and harmless
    environment: str = ""  # file.py:Class that answers the policy: conversations of several turns
    max_turns: int = 4  # of the policy's in a conversation
    faults: FaultSettings = field(default_factory=FaultSettings)  # what is done about rules that fail or hang
    reward_weight: float = 1.0  # of the reward model in the sum
    dense: DenseSettings = field(default_factory=DenseSettings)
    cut_answers: Literal["keep", "penalty", "mask"] = "keep"  # of answers that ended by length: paid less, or not read
    cut_penalty: float = 1.0  # what is taken from the reward of such an answer under "penalty"
    num_answers: int = 4  # per prompt
    batch_size: int = 16  # prompts (or pairs, or demonstrations) of a batch
    steps: int = 0  # optimiser steps of the policy, several a batch under num_epochs; 0: as `epochs` says
    epochs: float = 1.0  # passes over the data
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    critic: CriticSettings = field(default_factory=CriticSettings)
    reference: ReferenceSettings = field(default_factory=ReferenceSettings)
    oracle: str = ""  # "text", "length", reward:FOLDER or file.py:function: watched on held-out prompts
    watch: DataSettings = field(default_factory=DataSettings)  # the held-out prompts it is tracked on
    watch_every: int = 10  # steps from one look at the oracle to the next
    stop: StopSettings = field(default_factory=StopSettings)  # limits that end the run before its last step
    ignore_gate: bool = False  # optimise against a reward that failed its audit, or has none
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    lora: LoRASettings = field(default_factory=LoRASettings)
    checkpoints: CheckpointSettings = field(default_factory=CheckpointSettings)
    token_budget: int = 4096  # tokens computed at once; changes memory and speed, never the result
    max_tokens: int | None = None  # of a conversation in feedback, stricter than the model's context
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig(RewardUse):
    """assay evaluate: a policy against its base on held-out prompts."""

    run: str = ""
    base: str = ""  # default: what the run's policy started from
    policy: str = ""  # default: the run's
    prompts: DataSettings = field(default_factory=DataSettings)
    num_prompts: int = 200
    oracle: str = ""  # what judges: "text", "length" or file.py:function; default: the reward model
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    text: DataSettings = field(default_factory=DataSettings)  # plain text whose likelihood before and after is compared
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectConfig(Settings):
    """assay collect: prompts -> pairs of answers -> labels by a simulated annotator or a judge; or an import."""

    run: str = ""
    prompts: DataSettings = field(default_factory=DataSettings)
    feedback: DataSettings = field(default_factory=DataSettings)  # import comparisons in any of the field's formats
    model: str = DEFAULT_MODEL
    num_prompts: int | None = None
    num_answers: int = 2  # per prompt; judged two by two, in the order they were sampled
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    oracle: str = "text"  # what the annotator wants
    judge: str = ""  # labels instead: a language model (name, folder, hub id), http://host/v1#model or openai:model
    criterion: str = ""  # one sentence: what the judge goes by; default: helpful, true and harmless
    principles: str = ""  # a file of principles: the judge is asked by each, and labels are given under drawn sets
    aggregation: Aggregation = field(default_factory=Aggregation)  # how its opinions become those labels
    temperature: float = 1.0  # of the annotator: how noisy the labels are
    token_budget: int = 8192
    dtype: DType = "auto"
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreConfig(RewardUse):
    """assay score: a reward model's numbers for conversations in a file."""

    data: DataSettings = field(default_factory=DataSettings)
    out: str = ""  # a .jsonl file; default: the terminal


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyConfig(Settings):
    """assay verify: does plain transformers give a saved reward model's rewards?"""

    reward: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AverageConfig(Settings):
    """assay average: several reward models of one start -> one whose weights are their mean."""

    reward: str = ""  # the models, separated by commas
    weights: tuple[float, ...] = ()  # their shares; default: even
    out: str = ""  # a folder for the model


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig(Settings):
    """assay report: a run directory -> one offline HTML file."""

    run: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelsConfig(Settings):
    """assay models: what is at hand, and where it came from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig(Settings):
    """assay demo: the whole line on the embedded default model."""

    run: str = ""  # default: runs/demo, or runs/demo-bad
    bad: bool = False  # plant a reward that loves length, to see the gate refuse it
    seed: int = 0


CONFIGS: dict[str, type] = {
    "collect": CollectConfig,
    "reward": RewardConfig,
    "score": ScoreConfig,
    "verify": VerifyConfig,
    "average": AverageConfig,
    "audit": AuditConfig,
    "policy": PolicyConfig,
    "evaluate": EvaluateConfig,
    "report": ReportConfig,
    "demo": DemoConfig,
    "models": ModelsConfig,
}

DEFAULT_ALGORITHM = "rloo"
CHOICES: Mapping[str, tuple[str, Mapping[str, type], str]] = {
    "policy": ("algorithm", ALGORITHMS, DEFAULT_ALGORITHM),
    "reward": ("likelihood", LIKELIHOODS, "bradley_terry"),
}
"""Verb -> the setting whose fields depend on a name, what can be named, and what is chosen otherwise."""


def config_class(verb: str, name: str | None = None) -> type:
    """The dataclass of a verb, with the fields of the algorithm or likelihood of that name."""
    base = CONFIGS[verb]
    if verb not in CHOICES:
        return base
    setting, known, usual = CHOICES[verb]
    chosen = named(setting, known, name or usual)
    fields = [(setting, chosen, field(default_factory=chosen))]
    # where the base's source lies: `--help` tells the comments there
    place = {name: vars(base)[name] for name in ("__module__", "__firstlineno__") if name in vars(base)}
    return dataclasses.make_dataclass(base.__name__, fields, bases=(base,), frozen=True, kw_only=True, namespace=place)


def named(setting: str, known: Mapping[str, type], name: str) -> type:
    """By name, or a user's own as file.py:Class."""
    if not isinstance(name, str):
        raise InputError(f"{setting}.name must be text; got {name!r}")
    if name in known:
        return known[name]
    if ":" in name:
        from assay.rewards.rules import load_object

        found: type = load_object(name, setting)
        if inspect.isabstract(found):
            lacking = ", ".join(sorted(found.__abstractmethods__))  # pyright: ignore[reportAttributeAccessIssue]
            raise InputError(f"{setting}.name: {name} has no {lacking}: a {setting} of your own needs it")
        if get_origin(getattr(found, "__annotations__", {}).get("name")) is Literal:
            raise InputError(f"{setting}.name: declare `name: str` in {name}: it must be able to hold this place")
        return found
    raise InputError(f"{setting}.name: {name!r} is not one of {', '.join(known)}.{nearest(name, known)}")
