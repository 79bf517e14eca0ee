"""Language models whose log-probabilities are read: judges, and the two halves of an implicit reward."""

from assay.engine.catalog import load_tokenizer, resolve_model
from assay.engine.learner import Learner
from assay.engine.load import DType, load_policy
from assay.tokens.chat import Encoder


def load_language_model(name: str, *, dtype: DType, token_budget: int) -> tuple[Learner, Encoder]:
    """A causal language model by name, folder or hub id, and how conversations are rendered for it."""
    source = resolve_model(name)
    encoder = Encoder(load_tokenizer(source))
    model = load_policy(source, dtype=dtype)
    model.config.pad_token_id = encoder.tokenizer.pad_token_id
    return Learner(model, token_budget=token_budget), encoder
