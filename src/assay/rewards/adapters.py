"""An ensemble of adapters on one body: several opinions for the memory of little more than one.

Saved as PEFT saves adapters, one folder each, the head in it; the body is that of the base model, which stays where it
is and is checked to be the one that was trained on.
"""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from assay.engine.catalog import hash_of_folder, local_path, resolve_model
from assay.engine.learner import OneAdapter
from assay.engine.load import DType, LoRASettings, adapter_names, load_reward
from assay.engine.model import Model
from assay.rewards.ensemble import Ensemble
from assay.rewards.model import FINGERPRINT, RewardModel, check_fingerprint, read_facts, readout_of
from assay.rewards.readout import Readout
from assay.settings import InputError
from assay.tokens.chat import Encoder

WEIGHTS = "adapter_model.safetensors"
HEAD = "base_model.model.score.weight"  # PEFT's name for the layer that is saved with an adapter


class AdapterEnsemble(Ensemble):
    """Reward models that share a body. They compute one after the other: time grows with their number, memory hardly.

    Source: Zhai et al. 2024, arXiv:2401.00243 (uncertainty of a reward by several low-rank adapters).
    """

    def __init__(self, members: Sequence[RewardModel], readout: Readout, *, name: str) -> None:
        """`members` are read through a `OneAdapter` each, all of one model."""
        super().__init__(members, readout)
        self.name = name
        self.learner = members[0].learner  # its model holds the body, all adapters and their heads

    @classmethod
    def from_pretrained(cls, name: str, *, dtype: DType = "auto", token_budget: int = 8192) -> Self:
        """A folder that `save` wrote; raises InputError where the base model is another one now, or weights lack."""
        folder = local_path(name)
        facts = read_facts(folder)
        source = resolve_model(facts["base"])
        if hash_of_folder(source.path) != facts["base_weights"]:
            raise InputError(f"{folder}: its base model {facts['base']} is not the one that it was trained on any more")
        encoder = Encoder(AutoTokenizer.from_pretrained(folder))
        check_fingerprint(folder, encoder)
        lora = LoRASettings(**facts["lora"])
        model = load_reward(source, dtype=dtype, lora=lora, fresh_head=True, num_adapters=facts["adapters"])
        members: list[RewardModel] = []
        for adapter in adapter_names(facts["adapters"]):
            _fill(model, adapter, folder / adapter / WEIGHTS)
            learner = OneAdapter(model, adapter, token_budget=token_budget)
            members.append(RewardModel(learner, encoder, name=f"{name}/{adapter}"))
        return cls(members, readout_of(facts["readout"]), name=name)

    def save(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """A folder of PEFT's for each adapter, the tokenizer, and what is known of them.

        `facts` must name the base model and the hash of its folder, "base" and "base_weights".
        """
        model = self.learner.model
        configs = model.adapter.peft_config
        for adapter, config in configs.items():
            (folder / adapter).mkdir(parents=True, exist_ok=True)
            save_file(_state(model, adapter), folder / adapter / WEIGHTS)
            _for_plain_peft(config, facts["base"]).save_pretrained(folder / adapter)
        self.encoder.tokenizer.save_pretrained(folder)
        config = next(iter(configs.values()))
        told = {
            "fingerprint": self.encoder.fingerprint(),
            "readout": asdict(self.readout),
            "adapters": len(configs),
            "lora": {"rank": config.r, "alpha": config.lora_alpha},
        }
        (folder / FINGERPRINT).write_text(json.dumps({**told, **facts}, indent=1) + "\n")


def adapter_folders(name: str) -> list[Path]:
    """The folders of an ensemble's adapters; none where the name means anything else."""
    folder = local_path(name)
    return [folder / adapter for adapter in adapter_names(num)] if (num := read_facts(folder).get("adapters")) else []


def base_of(folder: Path) -> Path:
    """The folder with the body's weights: that of the base model, or of any other model the folder itself."""
    return Path(resolve_model(read_facts(folder)["base"]).path) if adapter_folders(str(folder)) else folder


def plain_members(folder: Path) -> Iterator[nn.Module]:
    """Each member as a user of plain transformers and PEFT loads it, in fp32."""
    from peft import PeftModel

    for member in adapter_folders(str(folder)):
        base = AutoModelForSequenceClassification.from_pretrained(base_of(folder), num_labels=1, dtype=torch.float32)
        base.config.pad_token_id = AutoTokenizer.from_pretrained(folder).pad_token_id
        yield PeftModel.from_pretrained(base, str(member))


def _for_plain_peft(config: Any, base: str) -> Any:
    """The adapter's configuration, with its head among what is saved."""
    config = copy.copy(config)
    config.base_model_name_or_path, config.task_type, config.modules_to_save = base, "SEQ_CLS", ["score"]
    return config


def _state(model: Model, adapter: str) -> dict[str, torch.Tensor]:
    """An adapter's weights and its head's, by the names that PEFT gives them."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model.adapter, adapter_name=adapter) | {HEAD: _head(model, adapter).weight}
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


@torch.no_grad()
def _fill(model: Model, adapter: str, path: Path) -> None:
    """From a file that `_state` filled; raises InputError unless it holds just those weights."""
    from peft import set_peft_model_state_dict

    if not path.is_file():
        raise InputError(f"{path} is missing: the ensemble is not whole")
    saved, here = load_file(path), _state(model, adapter)
    if wrong := sorted(set(saved) ^ set(here)) or [n for n in here if here[n].shape != saved[n].shape]:
        raise InputError(f"{path}: {len(wrong)} weights are missing, unexpected or misshapen ({', '.join(wrong[:5])})")
    _head(model, adapter).weight.copy_(saved.pop(HEAD))
    set_peft_model_state_dict(model.adapter, saved, adapter_name=adapter)


def _head(model: Model, adapter: str) -> nn.Linear:
    head = model.heads[f"reward_{adapter}"]
    assert isinstance(head, nn.Linear)
    return head
