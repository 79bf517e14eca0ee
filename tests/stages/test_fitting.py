"""What a fit believes of its pairs, batch by batch and all at once."""

import pytest
import torch

from assay.config import DataSettings, RewardConfig
from assay.engine.catalog import load_tokenizer, resolve_model
from assay.engine.learner import Learner
from assay.engine.load import load_reward
from assay.feedback.read import read_comparisons
from assay.report.run import RunDirectory
from assay.rewards.likelihoods import LIKELIHOODS
from assay.rewards.model import RewardModel
from assay.stages.fitting import Fitting
from assay.stages.judgements import collator, encode
from assay.tokens.chat import Encoder
from tiny import pairs, tiny_model


@pytest.mark.parametrize("name", ["bradley_terry", "token_bradley_terry"])
def test_labels_move_to_the_belief_that_is_trained_by_step_as_by_epoch(tmp_path, name):
    likelihood, source = LIKELIHOODS[name](), resolve_model(tiny_model())
    encoder = Encoder(load_tokenizer(source))
    torch.manual_seed(0)
    model = load_reward(source, dtype="float32", fresh_head=True, at_tokens=likelihood.pooling is not None)
    reward = RewardModel(Learner(model), encoder, name=name, pooling=likelihood.pooling)
    config, collate = RewardConfig(likelihood=likelihood), collator(encoder, likelihood)
    fitting = Fitting(config, likelihood, reward, collate, RunDirectory(tmp_path), "")
    items = encode(read_comparisons(pairs(6)).records, reward.encode, reward.context, DataSettings())
    by_epoch = fitting._believed(items)
    assert by_epoch.abs().min() > 1e-3
    assert torch.allclose(fitting._difference(collate(items)), by_epoch, atol=1e-5)
