"""One module that owns body, vocabulary head and scalar heads; its forward returns columns `[B, T]`.

Trees go in packed into one row where the family takes them, else each response in a padded row of its own. Nothing
outside of `forward` touches a weight, so the whole module can be sharded.
"""

import contextlib
import inspect
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from assay.batch import ModelOutput, TokenBatch, Trunks, VocabularyFn
from assay.engine.attention import TREE, Scores, TreeAttention, attend_to
from assay.engine.fused import fuse_norms, sparse_embeddings
from assay.engine.truncation import allowed_logprobs
from assay.engine.vocabulary import over_vocabulary, scaled_logits, token_logprobs
from assay.settings import InputError
from assay.tokens.trees import Layout, Packed, pack, pad

logger = logging.getLogger("assay")

KNOWN_LAYERS = {"full_attention", "sliding_attention"}


class Model(nn.Module):
    """A transformers network and its heads.

    `heads` maps "value" and "reward" to linear layers computed in fp32; a classifier's own `score` layer serves as
    either. A reward head has one number, or several (`outputs`). A classifier can be given a "language" head, which
    makes logits. `learned` are numbers that a loss learns beside the weights, such as the threshold of a tie. Several
    adapters have a reward head each, "reward_NAME", or one called as they are, and `use` says which of them computes.
    """

    def __init__(
        self, network: Any, heads: Mapping[str, nn.Linear] | None = None, learned: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.heads = nn.ModuleDict(heads or {})
        self.learned = nn.ParameterDict({name: nn.Parameter(value) for name, value in (learned or {}).items()})
        self.temperature = 1.0
        self.adapter: Any = None  # PEFT's wrapper of the network, if adapters were added
        self.active = ""  # which of several adapters computes
        self.num_tokens = 0  # computed by the last forward pass
        fuse_norms(network)
        if self.vocabulary_head is None:  # or its gradient, which is dense, may be that of the same weights
            sparse_embeddings(network)
        check_logits(network)
        self.shares_prompts = takes_trees(network)

    @property
    def config(self) -> Any:
        """The text model's configuration."""
        return self.network.config.get_text_config()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    @property
    def vocabulary_head(self) -> nn.Linear | None:
        """The layer that makes logits; None for a sequence classifier that was not given one."""
        if "language" in self.heads:
            return cast(nn.Linear, self.heads["language"])
        return self.network.get_output_embeddings()

    def head(self, name: str) -> nn.Linear:
        """The head of that name."""
        name = f"{name}_{self.active}" if name == "reward" and self.active else name
        if name in self.heads:
            return cast(nn.Linear, self.heads[name])
        if name in ("reward", "value") and hasattr(self.network, "score"):
            return self.network.score
        raise KeyError(f"the model has no {name} head")

    def use(self, adapter: str) -> None:
        """Compute with this one of several adapters and its head from now on; no other can be trained meanwhile."""
        if adapter == self.active:
            return
        self.adapter.set_adapter(adapter)
        self.active = adapter
        for name, head in self.heads.items():
            head.requires_grad_(name in (f"reward_{adapter}", adapter))

    def pack(self, batch: TokenBatch) -> Packed:
        """Rows as this family takes them."""
        return pack(batch) if self.shares_prompts else pad(batch, self.config.pad_token_id or 0)

    def forward(
        self,
        batch: TokenBatch,
        reads: Iterable[str],
        vocabulary: Mapping[str, VocabularyFn] | None = None,
        columns: Mapping[str, Tensor] | None = None,
    ) -> ModelOutput:
        """Columns of the batch's responses: those in `reads`, as `ModelOutput` names them.

        `vocabulary` functions see the logits of counted tokens and the `columns` [B, T] at those tokens; "targets"
        (the token ids) is always among them. Where the mask is False, or a first token follows nothing, columns are 0.
        """
        wanted = set(reads)
        rows = self.pack(batch)
        self.num_tokens = rows.num_tokens
        hidden = self._hidden(rows)
        found: dict[str, Any] = {}
        counted = (batch.mask & rows.follows).to(hidden.device)
        if wanted & {"logprobs", "entropy"} or vocabulary:
            found |= self._over_vocabulary(batch, rows, hidden, counted, wanted, vocabulary or {}, columns or {})
        if "values" in wanted:
            found["values"] = self._scalar("value", hidden, rows.before, rows.follows)
        if "token_rewards" in wanted:
            found["token_rewards"] = self._scalar("reward", hidden, rows.at, rows.real)
        if "token_outputs" in wanted:
            found["token_outputs"] = self._head("reward", hidden, rows.at, rows.real)
        if wanted & {"rewards", "outputs"}:
            at = torch.nn.functional.pad(rows.at, (0, 1))  # a batch of empty responses alone has no column
            last = at.gather(1, (batch.lengths - 1).clamp(min=0)[:, None]).squeeze(1)
            outputs = self._head("reward", hidden, last, batch.lengths > 0)
            found |= {"outputs": outputs} if "outputs" in wanted else {}
            found |= {"rewards": _only(outputs)} if "rewards" in wanted else {}
        if "parameters" in wanted:
            found["parameters"] = dict(self.learned)
        return ModelOutput(**found)

    def _hidden(self, rows: Packed) -> Tensor:
        """[R * L, D] the last hidden vectors."""
        device = self.device
        ids = rows.ids.to(device)
        if rows.layout is None:
            assert rows.padding is not None
            return hidden_states(self.network, ids, attention_mask=rows.padding.to(device))
        with attend_to(TreeAttention(rows.layout)):
            return hidden_states(self.network, ids, position_ids=rows.positions.to(device))

    def _scalar(self, name: str, hidden: Tensor, places: Tensor, where: Tensor) -> Tensor:
        """The one number of a head at `places`, 0 elsewhere."""
        return _only(self._head(name, hidden, places, where))

    def _head(self, name: str, hidden: Tensor, places: Tensor, where: Tensor) -> Tensor:
        """[..., K] a head's numbers at `places` [...], 0 where `where` is False."""
        places, where = places.to(hidden.device), where.to(hidden.device)
        head = self.head(name)
        values = head(hidden[places[where]].to(head.weight.dtype)).float()
        out = torch.zeros(*places.shape, values.shape[-1], dtype=torch.float32, device=hidden.device)
        return out.masked_scatter(where[..., None], values)

    def _over_vocabulary(
        self,
        batch: TokenBatch,
        rows: Packed,
        hidden: Tensor,
        counted: Tensor,
        wanted: set[str],
        functions: Mapping[str, VocabularyFn],
        columns: Mapping[str, Tensor],
    ) -> dict[str, Any]:
        head = self.vocabulary_head
        if head is None:
            raise TypeError(f"{type(self.network).__name__} has no vocabulary head")
        here = hidden[rows.before.to(hidden.device)[counted]]
        targets = batch.ids.to(hidden.device)[counted]
        found: dict[str, Any] = {}

        def spread(values: Tensor) -> Tensor:
            where = counted.view(*counted.shape, *(1,) * (values.ndim - 1))
            return values.new_zeros(*counted.shape, *values.shape[1:]).masked_scatter(where, values)

        bias = head.bias
        settings = {"temperature": self.temperature, "cap": logit_cap(self.config), "scale": logit_scale(self.config)}
        if wanted & {"logprobs", "entropy"} and "allowed" in batch:
            given = {"targets": targets, "allowed": batch.allowed.to(hidden.device)[counted]}
            among = over_vocabulary(allowed_logprobs, here, head.weight, bias, given, **settings)
            found |= {n: spread(values) for n, values in zip(("logprobs", "entropy"), among.unbind(-1), strict=True)}
        elif wanted & {"logprobs", "entropy"}:
            logprobs, entropy = token_logprobs(
                here, head.weight, bias, targets, **settings, entropy="entropy" in wanted
            )
            found["logprobs"] = spread(logprobs)
            if entropy is not None:
                found["entropy"] = spread(entropy)
        if functions:
            given = {"targets": targets} | {n: c.to(hidden.device)[counted] for n, c in columns.items()}
            found["vocabulary"] = {
                name: spread(over_vocabulary(function, here, head.weight, bias, given, **settings))
                for name, function in functions.items()
            }
        return found


@contextlib.contextmanager
def tempered(model: Model, temperature: float) -> Iterator[None]:
    """The model reading at this temperature, and at its own again afterwards."""
    usual, model.temperature = model.temperature, temperature
    try:
        yield
    finally:
        model.temperature = usual


def _only(outputs: Tensor) -> Tensor:
    if outputs.shape[-1] != 1:
        raise TypeError(f"the head has {outputs.shape[-1]} numbers, and one is asked for: read `outputs`")
    return outputs.squeeze(-1)


def hidden_states(network: Any, ids: Tensor, **inputs: Any) -> Tensor:
    """[R * L, D] the body's last hidden vectors for ids [R, L]."""
    out = network.base_model(input_ids=ids, use_cache=False, **inputs).last_hidden_state
    return out.flatten(0, 1)


def logit_cap(config: Any) -> float | None:
    """Soft cap on the logits (Gemma)."""
    return getattr(config, "final_logit_softcapping", None)


def logit_scale(config: Any) -> float:
    """Factor on the logits (Granite divides, Cohere multiplies)."""
    if getattr(config, "logits_scaling", None) is not None:
        return 1 / config.logits_scaling
    scale = getattr(config, "logit_scale", None)
    return 1.0 if scale is None else scale


def context(config: Any) -> int:
    """Tokens that a conversation may have.

    Two kinds of rotary scaling change with the longest row computed, so that a conversation's numbers would depend on
    its neighbours; such models are held to the length from which on they do.
    """
    config = config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or 2**31
    told = getattr(config, "rope_parameters", None) or {}
    for rope in (told, *(value for value in told.values() if isinstance(value, dict))):
        if rope.get("rope_type") in ("dynamic", "longrope"):
            original = rope.get("original_max_position_embeddings")
            longest = min(longest, original or getattr(config, "original_max_position_embeddings", None) or longest)
    return int(longest)


@torch.no_grad()
def check_logits(network: Any) -> None:
    """Raise InputError where a family makes its logits in a way not known here: log-probabilities would be wrong."""
    head = network.get_output_embeddings()
    if head is None:
        return
    config = network.config.get_text_config()
    ids = torch.arange(1, 7)[None].to(next(network.parameters()).device) * 7919 % min(config.vocab_size, 1000)
    was_training = network.training
    network.eval()
    theirs = network(input_ids=ids, use_cache=False).logits[0].float()
    hidden = hidden_states(network, ids)
    ours = scaled_logits(hidden, head.weight, getattr(head, "bias", None), logit_cap(config), logit_scale(config))
    network.train(was_training)
    error = float((ours.log_softmax(-1) - theirs.log_softmax(-1)).abs().max())
    if ours.shape != theirs.shape or not error < (1e-3 if hidden.dtype == torch.float32 else 0.2):
        raise InputError(
            f"{type(network).__name__} makes its logits in a way that is not known here (log-probabilities differ by "
            f"{error:.2g}): use a model of another family"
        )


def takes_trees(network: Any) -> bool:
    """Switch the network to tree attention if its family takes it, proven on a small tree; else leave it as it was.

    A family that only warns about an unknown attention, has recurrent or chunked layers, ignores position ids or
    computes something else than it does alone keeps its own attention, and its prompts are not shared.
    """
    config = network.config.get_text_config()
    family = type(network).__name__
    layers = set(getattr(config, "layer_types", None) or ())
    reason = ""
    if layers - KNOWN_LAYERS:
        reason = f"layers of type {', '.join(sorted(layers - KNOWN_LAYERS))}"
    elif "position_ids" not in inspect.signature(network.base_model.forward).parameters:
        reason = "no position ids"
    elif not getattr(network, "_supports_attention_backend", False):
        reason = "attention that cannot be replaced"
    if not reason:
        before = config._attn_implementation
        alone = _probe(network, shared=False)
        network.set_attn_implementation(TREE)
        if config._attn_implementation != TREE:
            reason = "attention that was not replaced when asked"
        else:
            windows: list[int | None] = []
            together = _probe(network, shared=True, windows=windows)
            error = float((together - alone).norm() / alone.norm().clamp(min=1e-12))
            if error > (1e-3 if alone.dtype == torch.float32 else 0.1):
                reason = f"another result for a tree than for its parts (relative error {error:.2g})"
            elif _lost_window(config, windows):
                reason = "a sliding window that only its mask knows"
        if reason:
            network.set_attn_implementation(before)
    if reason:
        logger.warning("%s: prompts are not shared between responses: %s", family, reason)
    return not reason


class _Recording(TreeAttention):
    """Notes the window of each layer."""

    def __init__(self, layout: Layout, windows: list[int | None]) -> None:
        super().__init__(layout)
        self.windows = windows

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, layer: int, settings: Scores) -> Tensor:
        self.windows.append(settings.window)
        return super().__call__(query, key, value, layer, settings)


def _lost_window(config: Any, windows: list[int | None]) -> bool:
    """Whether the config has a sliding window that a layer's attention was not told."""
    types = getattr(config, "layer_types", None)
    if types and len(types) == len(windows):
        return any(t == "sliding_attention" and w is None for t, w in zip(types, windows, strict=True))
    window = getattr(config, "sliding_window", None)
    return isinstance(window, int) and window < context(config) and all(w is None for w in windows)


@torch.no_grad()
def _probe(network: Any, *, shared: bool, windows: list[int | None] | None = None) -> Tensor:
    """Hidden vectors of the responses of a tiny tree, computed together or each alone."""
    was_training = network.training
    network.eval()
    device = next(network.parameters()).device
    size = network.config.get_text_config().vocab_size
    ids = torch.arange(1, 13) * 7919 % min(size, 1000)
    lengths = torch.tensor([3, 2, 4])
    batch = TokenBatch(
        prompts=Trunks((ids[:3],)),
        ids=torch.stack([ids[3:7], ids[7:11], ids[8:12]]),
        mask=torch.arange(4) < lengths[:, None],
        lengths=lengths,
        group=torch.zeros(3, dtype=torch.long),
    )
    rows = pack(batch) if shared else pad(batch, 0)
    if shared and rows.layout is not None:
        with attend_to(_Recording(rows.layout, [] if windows is None else windows)):
            hidden = hidden_states(network, rows.ids.to(device), position_ids=rows.positions.to(device))
    else:
        assert rows.padding is not None
        hidden = hidden_states(network, rows.ids.to(device), attention_mask=rows.padding.to(device))
    network.train(was_training)
    return hidden[rows.at[rows.real].to(device)]
