"""The CUDA path, FlexAttention, checked forward on the CPU, where it has no backward."""

import pytest
import torch

from assay.engine.attention import Scores, TreeAttention
from assay.tokens.trees import pack
from engine.test_tree_equality import BATCHES, make_batch


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("shape", ["pairs", "three levels"])
def test_flex_equals_blocks(shape, window):
    layout = pack(make_batch(*BATCHES[shape])).layout
    torch.manual_seed(0)
    query = torch.randn(1, 4, layout.num_tokens, 16)
    key, value = torch.randn(2, 1, 2, layout.num_tokens, 16).unbind(0)
    settings = Scores(0.25, None, window, None)
    attention = TreeAttention(layout)
    # Compiling takes half a minute on a CPU; uncompiled, the same masks are evaluated entry by entry.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        blocks = attention(query, key, value, 0, settings)
        flex = attention.flex(query, key, value, settings)
    assert flex.shape == blocks.shape
    assert float((flex - blocks).abs().max()) < 1e-5
