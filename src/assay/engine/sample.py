"""Sampling several answers a prompt: the prompt's keys and values are computed once and shared by all of them.

Every step runs the model on one row whose tokens are the current tokens of the unfinished answers; only attention
knows that they belong to different prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig

from assay.batch import TokenBatch, Trunks
from assay.engine.attention import Scores, TreeAttention, attend_to
from assay.engine.model import Model, hidden_states, logit_cap, logit_scale
from assay.engine.vocabulary import scaled_logits
from assay.settings import Settings
from assay.tokens.trees import Layout, Segment, plan


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings(Settings):
    """How answers are drawn."""

    max_tokens: int = 64  # an answer that has not ended by then is cut
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Samples:
    """B answers, those of one prompt side by side; at most T tokens, the end-of-sequence token included.

    ids [B, T]; lengths [B]; logprobs [B, T] of what was sampled, at the sampling temperature; stopped [B] False where
    an answer was cut by length.
    """

    ids: Tensor
    lengths: Tensor
    logprobs: Tensor
    stopped: Tensor

    def rows(self) -> list[tuple[int, ...]]:
        """Each answer's ids."""
        return [tuple(row[:length]) for row, length in zip(self.ids.tolist(), self.lengths.tolist(), strict=True)]


@torch.no_grad()
def sample(
    model: Model,
    prompts: Sequence[Sequence[int]],
    num: int,
    settings: SamplingSettings,
    *,
    stop: Sequence[int],
    generator: torch.Generator,
) -> Samples:
    """`num` answers to each prompt. `stop` are the ids that end an answer.

    Each answer's draws depend on the generator and its place alone, not on when its neighbours end.
    """
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("a prompt to sample from needs at least one token")
    if not model.shares_prompts:
        return _generate(model, prompts, num, settings, stop=stop, generator=generator)
    device, slots = model.device, len(prompts) * num
    state = _Prefill(prompts)
    logits = state.run(model)[torch.arange(len(prompts)).repeat_interleave(num)]
    cache = _Cache(state, num, settings.max_tokens)
    depth = torch.tensor([len(prompt) for prompt in prompts]).repeat_interleave(num)
    ids = torch.zeros(slots, settings.max_tokens, dtype=torch.long)
    logprobs = torch.zeros(slots, settings.max_tokens)
    lengths = torch.full((slots,), settings.max_tokens)
    stopped = torch.zeros(slots, dtype=torch.bool)
    stops = torch.tensor(list(stop))
    active = torch.arange(slots)
    for t in range(settings.max_tokens):
        uniform = torch.rand(slots, generator=generator)[active]
        token, logprob = draw(logits, uniform.to(device), settings.temperature)
        ids[active, t], logprobs[active, t] = token.cpu(), logprob.cpu()
        ended = torch.isin(ids[active, t], stops)
        stopped[active[ended]], lengths[active[ended]] = True, t + 1
        active = active[~ended]
        if len(active) == 0 or t + 1 == settings.max_tokens:
            break
        cache.begin(active.to(device), t)
        with attend_to(cache):
            position = (depth[active] + t)[None].to(device)
            hidden = hidden_states(model.network, ids[active, t][None].to(device), position_ids=position)
        logits = _logits(model, hidden)
    width = int(lengths.max())
    return Samples(ids[:, :width], lengths, logprobs[:, :width], stopped)


def draw(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """One token a row from softmax(logits / temperature), by inverting its distribution at `uniform` [B].

    Returns the tokens [B] and their log-probabilities [B] under that distribution.
    """
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    cumulative = logprobs.exp().cumsum(dim=-1)
    total = cumulative[:, -1:]
    token = torch.searchsorted(cumulative, uniform[:, None] * total, right=True).clamp(max=logits.shape[-1] - 1)
    return token.squeeze(1), logprobs.gather(1, token).squeeze(1)


def _logits(model: Model, hidden: Tensor) -> Tensor:
    head = model.vocabulary_head
    if head is None:
        raise TypeError(f"{type(model.network).__name__} has no vocabulary head to sample from")
    return scaled_logits(hidden, head.weight, head.bias, logit_cap(model.config), logit_scale(model.config))


class _Prefill(TreeAttention):
    """All prompts in one packed row, keeping every layer's keys and values."""

    def __init__(self, prompts: Sequence[Sequence[int]]) -> None:
        lengths = [len(prompt) for prompt in prompts]
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        segments = [Segment(start, length, -1, 0) for start, length in zip(starts, lengths, strict=True)]
        super().__init__(Layout(segments, [(s.start, s.stop) for s in segments]))
        self.ids = torch.tensor([token for prompt in prompts for token in prompt])
        self.kept: list[tuple[Tensor, Tensor]] = []

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, layer: int, settings: Scores) -> Tensor:
        self.kept.append((key[0], value[0]))
        return super().__call__(query, key, value, layer, settings)

    def run(self, model: Model) -> Tensor:
        """[prompts, V] the logits after each prompt."""
        with attend_to(self):
            ids, positions = self.ids[None].to(model.device), self.layout.positions[None].to(model.device)
            hidden = hidden_states(model.network, ids, position_ids=positions)
        last = torch.tensor([segment.stop - 1 for segment in self.layout.segments])
        return _logits(model, hidden[last.to(hidden.device)])


class _Cache:
    """Keys and values: of each prompt once, padded to the longest; of each answer in a slot of its own.

    P prompts, n answers each, S = P n slots, G key heads, R query heads for each, L the longest prompt.
    """

    def __init__(self, prefill: _Prefill, num: int, max_tokens: int) -> None:
        self.num, self.max_tokens = num, max_tokens
        segments = prefill.layout.segments
        self.num_prompts, longest = len(segments), max(segment.length for segment in segments)
        lengths = torch.tensor([segment.length for segment in segments])
        device = prefill.kept[0][0].device
        self.lengths = lengths.to(device)
        self.places = torch.arange(longest, device=device)
        self.prompts: list[tuple[Tensor, Tensor]] = []
        self.answers: list[tuple[Tensor, Tensor]] = []
        for key, value in prefill.kept:
            self.prompts.append((_padded(key, segments, longest), _padded(value, segments, longest)))
            shape = (self.num_prompts * num, key.shape[0], max_tokens)
            self.answers.append((key.new_zeros(*shape, key.shape[2]), value.new_zeros(*shape, value.shape[2])))

    def begin(self, active: Tensor, t: int) -> None:
        """The step that computes answer token `t` of the slots `active`."""
        self.active, self.t, self.layer = active, t, 0

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, layer: int, settings: Scores) -> Tensor:
        """One layer: query [1, H, A, D] of the A active slots -> [1, A, H, D]."""
        keys, values = self.answers[self.layer]
        shared_keys, shared_values = self.prompts[self.layer]
        self.layer += 1
        stop = self.t + 1
        keys[self.active, :, self.t], values[self.active, :, self.t] = key[0].transpose(0, 1), value[0].transpose(0, 1)
        groups, width = keys.shape[1], query.shape[3]
        heads = query.shape[1]
        repeat = heads // groups
        slots = self.num_prompts * self.num
        asked = query.new_zeros(slots, heads, width)
        asked[self.active] = query[0].transpose(0, 1)
        asked = asked.view(self.num_prompts, self.num, groups, repeat, width)
        by_prompt = asked.transpose(1, 2).reshape(self.num_prompts, groups, self.num * repeat, width)
        before = torch.matmul(by_prompt, shared_keys.transpose(2, 3))  # [P, G, nR, L]
        before = before.view(self.num_prompts, groups, self.num, repeat, -1).transpose(1, 2)
        before = before.reshape(slots, groups, repeat, -1)
        own = torch.matmul(asked.reshape(slots, groups, repeat, width), keys[:, :, :stop].transpose(2, 3))
        scores = torch.cat([before, own], dim=-1).float() * settings.scale
        if settings.cap is not None:
            scores = torch.tanh(scores / settings.cap) * settings.cap
        scores.masked_fill_(self._hidden(stop, settings.window)[:, None, None], float("-inf"))
        if settings.sinks is not None:
            sinks = settings.sinks.float().view(1, groups, repeat, 1).expand(slots, -1, -1, -1)
            scores = torch.cat([scores, sinks], dim=-1)
        weights = torch.softmax(scores, dim=-1).to(value.dtype)
        longest = shared_keys.shape[2]
        of_prompt = weights[..., :longest].view(self.num_prompts, self.num, groups, repeat, longest)
        of_prompt = of_prompt.transpose(1, 2).reshape(self.num_prompts, groups, self.num * repeat, longest)
        mixed = torch.matmul(of_prompt, shared_values).view(self.num_prompts, groups, self.num, repeat, -1)
        mixed = mixed.transpose(1, 2).reshape(slots, groups, repeat, -1)
        mixed = mixed + torch.matmul(weights[..., longest : longest + stop], values[:, :, :stop])
        return mixed.reshape(slots, heads, -1)[self.active][None]

    def _hidden(self, stop: int, window: int | None) -> Tensor:
        """[S, L + stop] True on keys that are padding or outside of the window."""
        hidden = self.places >= self.lengths[:, None]
        own = torch.zeros(self.num_prompts, stop, dtype=torch.bool, device=hidden.device)
        if window is not None:
            here = self.lengths[:, None] + stop - 1
            hidden = hidden | (here - self.places >= window)
            own = own | (stop - 1 - torch.arange(stop, device=hidden.device) >= window)
        return torch.cat([hidden, own], dim=1).repeat_interleave(self.num, dim=0)


def _padded(row: Tensor, segments: Sequence[Segment], longest: int) -> Tensor:
    """[G, N, D] of a packed row -> [P, G, L, D]."""
    out = row.new_zeros(len(segments), row.shape[0], longest, row.shape[2])
    for index, segment in enumerate(segments):
        out[index, :, : segment.length] = row[:, segment.start : segment.stop]
    return out


def _generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    num: int,
    settings: SamplingSettings,
    *,
    stop: Sequence[int],
    generator: torch.Generator,
) -> Samples:
    """For families that do not take trees: plain transformers, prompts of one length at a time, nothing padded."""
    slots = len(prompts) * num
    ids = torch.zeros(slots, settings.max_tokens, dtype=torch.long)
    lengths = torch.full((slots,), settings.max_tokens)
    stopped = torch.zeros(slots, dtype=torch.bool)
    for length in sorted({len(prompt) for prompt in prompts}):
        places = [index for index, prompt in enumerate(prompts) if len(prompt) == length]
        rows = torch.tensor([list(prompts[index]) for index in places]).repeat_interleave(num, dim=0)
        slot = torch.tensor([index * num + answer for index in places for answer in range(num)])
        found = _plain_generate(model, rows, settings, stop, generator)
        ids[slot, : found.shape[1]] = found
        ends = torch.isin(found, torch.tensor(list(stop), dtype=torch.long))
        stopped[slot] = ends.any(dim=1)
        lengths[slot] = torch.where(stopped[slot], ends.int().argmax(dim=1) + 1, found.shape[1])
    width = int(lengths.max())
    counted = torch.arange(width) < lengths[:, None]
    batch = TokenBatch(
        prompts=Trunks(tuple(torch.tensor(prompt) for prompt in prompts)),
        ids=torch.where(counted, ids[:, :width], 0),
        mask=counted,
        lengths=lengths,
        group=torch.arange(len(prompts)).repeat_interleave(num),
    )
    before, model.temperature = model.temperature, settings.temperature
    logprobs = torch.zeros(slots, width)
    for part in plan(batch, 4096, shared=False):
        found = model(batch.select(part), ("logprobs",)).logprobs.cpu()
        logprobs[part, : found.shape[1]] = found
    model.temperature = before
    return Samples(batch.ids, lengths, logprobs, stopped)


def _plain_generate(
    model: Model, rows: Tensor, settings: SamplingSettings, stop: Sequence[int], generator: torch.Generator
) -> Tensor:
    """[B, at most T] ids after prompts of one length; nothing of the model's own generation settings counts."""
    own = model.network.generation_config
    model.network.generation_config = GenerationConfig(
        do_sample=True,
        temperature=settings.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=settings.max_tokens,
        eos_token_id=list(stop) or None,
        pad_token_id=model.config.pad_token_id or 0,
    )
    try:
        with torch.random.fork_rng(devices=[] if model.device.type == "cpu" else None):
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            rows = rows.to(model.device)
            out = model.network.generate(input_ids=rows, attention_mask=torch.ones_like(rows))
    finally:
        model.network.generation_config = own
    return out[:, rows.shape[1] :].cpu()
