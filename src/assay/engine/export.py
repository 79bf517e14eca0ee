"""A trained model as an ordinary Hugging Face folder that plain transformers loads."""

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import torch

from assay.engine.learner import Learner
from assay.engine.model import Model


def export(model: Model, folder: Path, tokenizer: Any, *, learner: Learner | None = None) -> None:
    """Weights (fp32 masters where `learner` trains them; adapters merged), config and tokenizer into `folder`.

    Raises ValueError for pad = EOS: plain transformers finds a reward's token by skipping trailing pad ids.
    """
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ValueError("the tokenizer's pad token must differ from its EOS")
    masters = learner.optimizer.masters() if learner is not None and learner.optimizer is not None else {}
    prefix = "network."
    masters = {name.removeprefix(prefix): weight for name, weight in masters.items() if name.startswith(prefix)}
    with learner.computing() if learner is not None else contextlib.nullcontext():  # its adapter, not another's
        network = merged(model, masters) if model.adapter is not None else model.network
    state = {name: value.detach() for name, value in network.state_dict().items()}
    if model.adapter is None:
        state |= masters
        for name, other in network.named_parameters(remove_duplicate=False):  # tied weights follow their twin
            twin = next((n for n in masters if n != name and network.get_parameter(n) is other), None)
            if twin is not None:
                state[name] = masters[twin]
    state = {name: value.float().cpu().contiguous() for name, value in state.items()}
    network.config.pad_token_id = tokenizer.pad_token_id
    network.save_pretrained(folder, state_dict=state)
    saved = folder / "config.json"
    config = json.loads(saved.read_text())
    config["dtype"] = "float32"  # what is saved, whatever the network computed in
    saved.write_text(json.dumps(config, indent=2) + "\n")
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def merged(model: Model, masters: dict[str, torch.Tensor]) -> Any:
    """An fp32 copy of the network with its adapters folded into the weights."""
    adapter = copy.deepcopy(model.adapter).float()
    parameters = dict(adapter.base_model.model.named_parameters())
    for name, weight in masters.items():
        parameters[name].copy_(weight)
    return adapter.merge_and_unload()
