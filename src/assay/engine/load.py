"""Networks from folders, in the type they compute in, with every weight accounted for."""

import copy
import functools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from assay.engine.catalog import ModelSource
from assay.engine.memory import keep_freed_memory
from assay.engine.model import Model, context
from assay.settings import InputError, Settings

DType = Literal["auto", "float32", "bfloat16"]
Critic = Literal["", "shared", "adapter"]
POLICY = "default"  # PEFT's name for the only adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRASettings(Settings):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) on all linear layers; rank 0 trains every weight."""

    rank: int = 0
    alpha: int = 32


def best_device() -> torch.device:
    """CUDA if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compute_dtype(wanted: DType, device: torch.device) -> torch.dtype:
    """bf16 where the hardware multiplies it, on processors also faster than fp32, else fp32; or what was asked for."""
    if wanted != "auto":
        return getattr(torch, wanted)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if _processor_prefers_bf16() else torch.float32


def computed_in(wanted: DType) -> str:
    """What `compute_dtype` comes to on this machine, by its name."""
    return str(compute_dtype(wanted, best_device())).removeprefix("torch.")


@functools.cache
def _processor_prefers_bf16() -> bool:
    """Measured: with AVX512-BF16, AMD's take half of fp32's time for a product, Intel's without AMX twice its time."""
    if torch.cpu._is_amx_tile_supported():
        return True
    return torch.cpu._is_avx512_bf16_supported() and _product_seconds(torch.bfloat16) < _product_seconds(torch.float32)


def _product_seconds(dtype: torch.dtype) -> float:
    """The shortest of a few products as large as a layer's; the first, which compiles, never is."""
    rows, weights = torch.ones(512, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    found: list[float] = []
    for _ in range(5):
        began = time.perf_counter()
        torch.mm(rows, weights)
        found.append(time.perf_counter() - began)
    return min(found)


def load_policy(
    source: ModelSource, *, dtype: DType = "auto", lora: LoRASettings | None = None, critic: Critic = ""
) -> Model:
    """A causal language model; with a `critic` it has a value head, 0 at the start, on its body or on an adapter."""
    network = _load(AutoModelForCausalLM, source)[0]
    heads: dict[str, nn.Linear] = {}
    if critic:
        heads["value"] = nn.Linear(network.get_input_embeddings().weight.shape[1], 1)
        nn.init.zeros_(heads["value"].weight)
        nn.init.zeros_(heads["value"].bias)
    names = (POLICY, "value") if critic == "adapter" else (POLICY,)
    model = _model(network, dtype, lora, heads=heads, adapters=names)
    if critic == "adapter":
        model.use(POLICY)
    return model


def load_critic(source: ModelSource, *, dtype: DType = "auto", lora: LoRASettings | None = None) -> Model:
    """A model of its own for values, from a reward model (its head is where values start) or a language model (0)."""
    network, missing = _load(AutoModelForSequenceClassification, source, {"score.weight", "score.bias"}, num_labels=1)
    if missing:
        nn.init.zeros_(network.score.weight)
    return _model(network, dtype, lora)


def load_reward(
    source: ModelSource,
    *,
    dtype: DType = "auto",
    lora: LoRASettings | None = None,
    fresh_head: bool = False,
    num_outputs: int | None = 1,
    learned: Mapping[str, Tensor] | None = None,
    language: bool = False,
    at_tokens: bool = False,
    num_adapters: int = 1,
) -> Model:
    """A sequence classifier with `num_outputs` numbers (None: as many as it was saved with).

    With `at_tokens` a token classifier. A missing head is an error, or made where `fresh_head` allows it. `learned`:
    see `Model`. With `language` it keeps the language model's own head beside: log-probabilities can be read, and
    trained on, as well as rewards. Several adapters, called as `adapter_names` says, have a fresh head each.
    """
    allowed = {"score.weight", "score.bias"} if fresh_head else set()
    options = {} if num_outputs is None else {"num_labels": num_outputs}
    kind = AutoModelForTokenClassification if at_tokens else AutoModelForSequenceClassification
    network, missing = _load(kind, source, allowed, **options)
    if not isinstance(getattr(network, "score", None), nn.Linear):
        raise InputError(f"{source.name}: {type(network).__name__} keeps its head elsewhere than in `score`")
    if "score.weight" in missing:
        _begin(network.score)
    if "score.bias" in missing:
        nn.init.zeros_(network.score.bias)
    heads = {"language": _language_head(network, source)} if language else {}
    model = _model(network, dtype, lora, learned, heads, adapter_names(num_adapters))
    if num_adapters > 1:
        network.score.requires_grad_(False)
        for name in adapter_names(num_adapters):
            model.heads[f"reward_{name}"] = _begin(copy.deepcopy(network.score))
        model.use(adapter_names(num_adapters)[0])
    return model


def adapter_names(num: int) -> tuple[str, ...]:
    """What the adapters of one model are called; PEFT takes a bare number for that of a layer."""
    return tuple(f"member{index}" for index in range(num)) if num > 1 else (POLICY,)


def _begin(head: nn.Linear) -> nn.Linear:
    """Draw a reward head's weights anew."""
    nn.init.normal_(head.weight, std=1 / math.sqrt(head.in_features + 1))  # Stiennon et al. 2020, appendix B.1
    return head


def _language_head(network: Any, source: ModelSource) -> nn.Linear:
    """The layer that makes logits: the embeddings where they are tied to it, else the language model's own."""
    embeddings = network.get_input_embeddings().weight
    if not network.config.get_text_config().tie_word_embeddings:
        return _load(AutoModelForCausalLM, source)[0].get_output_embeddings()
    head = nn.Linear(embeddings.shape[1], embeddings.shape[0], bias=False, device="meta")
    head.weight = embeddings
    return head


def context_of(source: ModelSource) -> int:
    """Tokens that a conversation may have, read without loading a weight."""
    return context(_config(source))


def _config(source: ModelSource) -> Any:
    try:
        return AutoConfig.from_pretrained(source.path, trust_remote_code=False)
    except ValueError as error:
        raise InputError(
            f"{source.name}: {' '.join(str(error).split())}; code that comes with a model never runs"
        ) from None


def _load(auto: Any, source: ModelSource, allowed: set[str] | None = None, **options: Any) -> tuple[Any, set[str]]:
    """The network in fp32, and which of the `allowed` weights it lacks.

    Other missing, misshapen or unexpected weights are an error, whatever transformers would fill in.
    """
    keep_freed_memory()
    config = _config(source)
    if type(config) not in auto._model_mapping:
        raise InputError(f"{source.name}: transformers has no {auto.__name__} for the {config.model_type} family")
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # what it would warn of is checked below
    transformers_logging.disable_progress_bar()
    try:
        network, info = auto.from_pretrained(
            source.path,
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            **options,
        )
    finally:
        transformers_logging.set_verbosity(level)
    lacking = set(info["missing_keys"])
    wrong = {key for key, *_ in info.get("mismatched_keys", ())}
    missing = lacking - (allowed or set())
    if missing or wrong:
        names = ", ".join(sorted(missing | wrong)[:5])
        hint = ": this is no reward model, its head is missing" if "score.weight" in missing else ""
        raise InputError(f"{source.name}: {len(missing | wrong)} weights are missing or misshapen ({names}){hint}")
    unexpected = {key for key in info["unexpected_keys"] if not key.startswith(("lm_head", "embed_out"))}
    if unexpected:
        raise InputError(f"{source.name}: unexpected weights ({', '.join(sorted(unexpected)[:5])})")
    for name in ("attention_dropout", "hidden_dropout", "embd_pdrop", "resid_pdrop", "attn_pdrop", "dropout"):
        if getattr(network.config, name, 0):
            setattr(network.config, name, 0.0)
    return network, lacking


def _model(
    network: Any,
    dtype: DType,
    lora: LoRASettings | None,
    learned: Mapping[str, Tensor] | None = None,
    heads: Mapping[str, nn.Linear] | None = None,
    adapters: Sequence[str] = (POLICY,),
) -> Model:
    """Cast what computes to `dtype`. Heads for rewards and values stay fp32, as do adapters, beside which the rest is
    frozen."""
    device = best_device()
    wanted = compute_dtype(dtype, device)
    network.to(device=device)
    for name, p in network.named_parameters():
        if not name.startswith("score."):
            p.data = p.data.to(wanted)
    for name, head in (heads or {}).items():
        head.to(device=device, dtype=torch.float32 if name == "value" else wanted)
    model = Model(network, heads, {name: value.to(device) for name, value in (learned or {}).items()})
    if lora is not None and lora.rank:
        for name, head in model.heads.items():
            head.requires_grad_(name == "value")
        model.adapter = _add_adapters(network, lora, adapters)
    return model


def _add_adapters(network: Any, lora: LoRASettings, names: Sequence[str]) -> Any:
    """PEFT's wrapper with one adapter, or several that compute one at a time."""
    from peft import LoraConfig, get_peft_model

    body = network.base_model
    prefix = network.base_model_prefix + "."
    targets = [prefix + name for name, module in body.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets)
    adapter = get_peft_model(network, config, names[0])
    for name in names[1:]:
        adapter.add_adapter(name, copy.copy(config))
    for name, p in network.named_parameters():
        if name.startswith("score."):
            p.requires_grad_(True)  # a reward head is trained in full, with or without adapters
        elif "lora_" in name:
            p.data = p.data.float()
    return adapter
