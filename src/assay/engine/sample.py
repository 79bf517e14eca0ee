"""Sampling several answers a prompt: the prompt's keys and values are computed once and shared by all of them.

Every step runs the model on one row whose tokens are the current tokens of the unfinished answers; only attention
knows that they belong to different prompts.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig

from assay.batch import TokenBatch, Trunks
from assay.engine.attention import Scores, TreeAttention, attend_to
from assay.engine.learner import Learner
from assay.engine.model import Model, hidden_states, logit_cap, logit_scale, tempered
from assay.engine.samples import PLAIN, Drawing, Samples, SamplingSettings
from assay.engine.truncation import cut, nucleus, pack_bits
from assay.engine.vocabulary import scaled_logits
from assay.settings import InputError
from assay.tokens.trees import Layout, Segment, plan


@torch.no_grad()
def sample(
    model: Model,
    prompts: Sequence[Sequence[int]],
    num: int,
    settings: SamplingSettings,
    *,
    stop: Sequence[int],
    generator: torch.Generator,
    drawing: Drawing = PLAIN,
    live: Tensor | None = None,
) -> Samples:
    """`num` answers to each prompt. `stop` are the ids that end an answer.

    Each answer's draws depend on the generator and its place alone, not on when its neighbours end; nor do those of a
    further call. Where only some of N places are answered, `live` [N] is True for them, and their draws are as beside
    the others; families that do not take trees go without that.
    """
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("a prompt to sample from needs at least one token")
    if not model.shares_prompts:
        if not drawing.plain:
            raise InputError(f"{type(model.network).__name__} cannot be sampled from beside another model")
        return _generate(model, prompts, num, settings, stop=stop, generator=generator, greedy=drawing.greedy)
    slots = len(prompts) * num
    own = _Decoder(Learner(model), prompts, num, settings.max_tokens)
    others = {one: _Decoder(one, prompts, num, settings.max_tokens) for one in _others(drawing)}
    ids = torch.zeros(slots, settings.max_tokens, dtype=torch.long)
    logprobs = torch.zeros(slots, settings.max_tokens)
    allowed: list[Tensor] = []
    lengths = torch.full((slots,), settings.max_tokens)
    stopped = torch.zeros(slots, dtype=torch.bool)
    stops = torch.tensor(list(stop))
    active = torch.arange(slots)
    places = torch.ones(slots, dtype=torch.bool) if live is None else live
    uniforms = torch.rand(settings.max_tokens, len(places), generator=generator)
    uniforms = uniforms[:, places]  # out of all of them, whenever the answers end
    for t in range(settings.max_tokens):
        uniform = uniforms[t, active].to(model.device)
        scores, keep = _distribution(own, others, settings, drawing)
        token = scores.argmax(-1) if drawing.greedy else draw(scores, uniform)
        ids[active, t] = token.cpu()
        logprobs[active, t] = 0.0 if drawing.greedy else scores.gather(1, token[:, None]).squeeze(1).cpu()
        if keep is not None:
            bits = pack_bits(keep).cpu()
            allowed.append(bits.new_zeros(slots, bits.shape[1]).index_copy(0, active, bits))
        ended = torch.isin(ids[active, t], stops)
        stopped[active[ended]], lengths[active[ended]] = True, t + 1
        active = active[~ended]
        if len(active) == 0 or t + 1 == settings.max_tokens:
            break
        for decoder in (own, *others.values()):
            decoder.step(ids[active, t], active, t)
    width = int(lengths.max())
    columns = {"allowed": torch.stack(allowed, 1)[:, :width]} if allowed else {}
    return Samples(ids[:, :width], lengths, logprobs[:, :width], stopped, columns)


def _others(drawing: Drawing) -> list[Learner]:
    return [learner for learner in (drawing.other, drawing.masked_by) if learner is not None]


def _distribution(
    own: "_Decoder", others: Mapping[Learner, "_Decoder"], settings: SamplingSettings, drawing: Drawing
) -> tuple[Tensor, Tensor | None]:
    """[A, V] log-probabilities of the next token, and which tokens have one where not all have."""
    scores = torch.log_softmax(own.logits / settings.temperature, dim=-1)
    if drawing.other is not None:
        theirs = torch.log_softmax(others[drawing.other].logits / settings.temperature, dim=-1)
        scores = torch.log_softmax((1 - drawing.share) * scores + drawing.share * theirs, dim=-1)
    if not settings.cuts or drawing.greedy:
        return scores, None
    told = scores if drawing.masked_by is None else others[drawing.masked_by].logits / settings.temperature
    keep = nucleus(told, settings.top_p, settings.top_k)
    return torch.log_softmax(cut(scores, keep), dim=-1), keep


def draw(logprobs: Tensor, uniform: Tensor) -> Tensor:
    """[A] one token a row of [A, V] log-probabilities, by inverting the distribution at `uniform` [A]."""
    cumulative = logprobs.exp().cumsum(dim=-1)
    total = cumulative[:, -1:]
    token = torch.searchsorted(cumulative, uniform[:, None] * total, right=True).squeeze(1)
    return torch.minimum(token, (cumulative < total).sum(-1))  # rounding must not pass the last one that is possible


class _Decoder:
    """A model on its way through the answers: `logits` [A, V] are those of the next token of the active slots."""

    def __init__(self, learner: Learner, prompts: Sequence[Sequence[int]], num: int, max_tokens: int) -> None:
        self.learner = learner
        state = _Prefill(prompts)
        with learner.computing() as model:
            self.logits = state.run(model)[torch.arange(len(prompts)).repeat_interleave(num)]
        self.cache = _Cache(state, num, max_tokens)
        self.depth = torch.tensor([len(prompt) for prompt in prompts]).repeat_interleave(num)

    def step(self, ids: Tensor, active: Tensor, t: int) -> None:
        """Token `t` of the slots `active` [A] is `ids` [A]."""
        with self.learner.computing() as model:
            self.cache.begin(active.to(model.device), t)
            with attend_to(self.cache):
                position = (self.depth[active] + t)[None].to(model.device)
                hidden = hidden_states(model.network, ids[None].to(model.device), position_ids=position)
            self.logits = _logits(model, hidden)


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
    greedy: bool,
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
        found = _plain_generate(model, rows, settings, stop, generator, greedy)
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
    logprobs = torch.zeros(slots, width)
    with tempered(model, settings.temperature):
        if settings.cuts and not greedy:
            batch = batch.fill(allowed=_could_be_drawn(model, batch, settings))
        for part in [] if greedy else plan(batch, 4096, shared=False):
            found = model(batch.select(part), ("logprobs",)).logprobs.cpu()
            logprobs[part, : found.shape[1]] = found
    columns = {"allowed": batch.allowed} if "allowed" in batch else {}
    return Samples(batch.ids, lengths, logprobs, stopped, columns)


def _could_be_drawn(model: Model, batch: TokenBatch, settings: SamplingSettings) -> Tensor:
    """[B, T, W] the tokens that transformers drew among; what was drawn is one of them, whatever rounding says."""

    def kept(logits: Tensor, columns: Mapping[str, Tensor]) -> Tensor:
        keep = nucleus(logits, settings.top_p, settings.top_k)
        return pack_bits(keep.scatter(-1, columns["targets"][:, None], True))

    size = (model.config.vocab_size + 7) // 8
    found = torch.zeros(*batch.ids.shape, size, dtype=torch.uint8)
    for part in plan(batch, 4096, shared=False):
        rows = batch.select(part)
        bits = model(rows, (), {"kept": kept}).vocabulary["kept"].cpu()
        found[part, : bits.shape[1]] = bits
    return found


def _plain_generate(
    model: Model,
    rows: Tensor,
    settings: SamplingSettings,
    stop: Sequence[int],
    generator: torch.Generator,
    greedy: bool,
) -> Tensor:
    """[B, at most T] ids after prompts of one length; nothing of the model's own generation settings counts."""
    own = model.network.generation_config
    model.network.generation_config = GenerationConfig(
        do_sample=not greedy,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
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
