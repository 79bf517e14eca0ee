"""Rewards by what names them."""

from assay.engine.catalog import resolve_model
from assay.engine.load import DType
from assay.rewards.implicit import PREFIX, ImplicitSource, open_implicit
from assay.rewards.model import RewardModel
from assay.stages.common import hash_of_folder


def open_reward(spec: str, *, dtype: DType = "auto", token_budget: int = 8192) -> RewardModel:
    """A reward model's name, folder or hub id, or "implicit:beta*POLICY,REFERENCE"."""
    if spec.startswith(PREFIX):
        return open_implicit(spec, dtype=dtype, token_budget=token_budget)
    return RewardModel.from_pretrained(spec, dtype=dtype, token_budget=token_budget)


def weights_of(spec: str) -> str:
    """What the reward is made of: the hash of its model folder, or of both of an implicit reward's and its scale."""
    if not spec.startswith(PREFIX):
        return hash_of_folder(resolve_model(spec).path)
    source = ImplicitSource.parse(spec)
    policy, reference = (hash_of_folder(resolve_model(name).path) for name in (source.policy, source.reference))
    return f"{source.beta:g}*{policy},{reference}"
