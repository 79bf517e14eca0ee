"""What TRL's reward and DPO runs share: options, trainer arguments, clock and the record they answer with."""

import argparse
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import Contention, environment, fail, limit_memory, peak_memory_gb, start_over_with, versions
from pairs import read_pairs, token_lengths

EFFECTIVE_BATCH = 8  # pairs a step, whatever the micro-batch
# transformers sorts within mega-batches of num_pairs // (4 * effective batch) steps: below 2 steps it cannot group
MIN_PAIRS_TO_GROUP = 2 * 4 * EFFECTIVE_BATCH
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def parser(description: str | None, *, lr: float) -> argparse.ArgumentParser:
    """Options common to all tasks."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--model", type=Path, required=True, help="folder of SmolLM2-135M-Instruct")
    options.add_argument("--data", type=Path, required=True, help="JSONL: prompt, chosen, rejected; or responses")
    options.add_argument("--num-pairs", type=int, default=0, help="train on the first N pairs; 0: all")
    options.add_argument("--pairs-per-group", type=int, default=2, help="pairs made of each row with responses")
    options.add_argument("--batch", type=int, choices=(1, 2, 4, 8), default=1, help="pairs a micro-batch, 8 a step")
    options.add_argument("--order", choices=("random", "grouped", "given"), default="random")
    options.add_argument("--attention", choices=("eager", "sdpa"), default="eager")
    options.add_argument("--weights", choices=("autocast", "bf16", "fp32"), default="autocast", help="fp32: to compare")
    options.add_argument("--malloc", choices=("default", "keep"), default="default", help="keep: glibc keeps pages")
    options.add_argument("--max-length", type=int, default=1024, help="tokens; 2048 for long prompts")
    options.add_argument("--lr", type=float, default=lr)
    options.add_argument("--schedule", choices=("linear", "constant"), default="linear")
    options.add_argument("--epochs", type=float, default=1.0)
    options.add_argument("--steps", type=int, default=0, help="optimiser steps; overrides --epochs")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--clock", choices=("all", "warm"), default="all", help="warm: without the first step")
    options.add_argument("--compile", action="store_true", help="torch.compile")
    options.add_argument("--memory-limit", type=float, default=20.0, help="GB; 0: none")
    return options


def begin(args: argparse.Namespace) -> None:
    """Settle environment, memory limit and threads before any library is loaded."""
    start_over_with(environment(malloc=args.malloc, threads=args.threads))
    limit_memory(args.memory_limit)
    import torch

    torch.set_num_threads(args.threads)


def add_positions(options: argparse.ArgumentParser) -> None:
    """The option of what scores answers with TRL's vocabulary head."""
    told = "that the vocabulary head sees; all: as TRL does where it has no Triton"
    options.add_argument("--positions", choices=("answers", "all"), default="all", help=told)


def head_sees(positions: str) -> None:
    """With "answers" the head sees those alone, as it does with Triton; the kernels are left as they are."""
    from trl.trainer import utils

    if positions == "answers":
        utils._use_triton = lambda device: True


def load_tokenizer(args: argparse.Namespace) -> Any:
    from transformers import AutoTokenizer

    if not (args.model / "config.json").is_file():
        fail(f"--model {args.model}: not a model folder, it has no config.json")
    return AutoTokenizer.from_pretrained(args.model)


def load_model(args: argparse.Namespace, model_class: Any, **options: Any) -> Any:
    """The model in the weights and attention asked for; a new head is drawn from --seed."""
    import torch
    from transformers import set_seed

    set_seed(args.seed)
    dtype = torch.bfloat16 if args.weights == "bf16" else torch.float32
    model = model_class.from_pretrained(args.model, dtype=dtype, attn_implementation=args.attention, **options)
    if model.config._attn_implementation != args.attention:
        raise RuntimeError(f"asked for {args.attention} attention, got {model.config._attn_implementation}")
    return model


class Data:
    """The training rows in the order asked for, and what became of them."""

    def __init__(self, args: argparse.Namespace, tokenizer: Any) -> None:
        from datasets import Dataset

        pairs = read_pairs(args.data, num_pairs=args.num_pairs, pairs_per_group=args.pairs_per_group)
        lengths = token_lengths(pairs, tokenizer)
        self.num_pairs = len(pairs)
        self.num_too_long = sum(length > args.max_length for length in lengths)
        self.strategy = {"random": "random", "given": "sequential", "grouped": "group_by_length"}[args.order]
        if args.order == "grouped" and len(pairs) < MIN_PAIRS_TO_GROUP:
            self.strategy = "sequential"
            longest_first = sorted(range(len(pairs)), key=lambda i: -lengths[i])
            pairs, lengths = [pairs[i] for i in longest_first], [lengths[i] for i in longest_first]
        self.order = "sorted" if args.order == "grouped" and self.strategy == "sequential" else args.order
        rows = pairs
        if self.strategy == "group_by_length":
            rows = [{**pair, "length": length} for pair, length in zip(pairs, lengths, strict=True)]
        self.dataset = Dataset.from_list(rows)


def common_arguments(args: argparse.Namespace, rows: int) -> dict[str, Any]:
    """The arguments that every trainer's config has, for `rows` a step; what is not named stays TRL's default."""
    return {
        "output_dir": tempfile.mkdtemp(prefix="peer-"),
        "per_device_train_batch_size": args.batch,
        "gradient_accumulation_steps": rows // args.batch,
        "gradient_checkpointing": False,
        "bf16": args.weights == "autocast",
        "use_cpu": True,
        "learning_rate": args.lr,
        "lr_scheduler_type": args.schedule,
        "seed": args.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def trainer_arguments(args: argparse.Namespace, data: Data) -> dict[str, Any]:
    """The arguments that RewardConfig and DPOConfig share."""
    return {
        **common_arguments(args, EFFECTIVE_BATCH),
        "max_length": args.max_length,
        "num_train_epochs": args.epochs,
        "max_steps": args.steps or -1,
        "train_sampling_strategy": data.strategy,
        # or the length column is gone before the sampler looks for it
        "remove_unused_columns": data.strategy != "group_by_length",
        "torch_compile": args.compile,
    }


class Tally:
    """What a run computed and when: pairs, real and padded tokens a step; step times from the first batch's fetch."""

    def __init__(self) -> None:
        self.pairs, self.tokens, self.padded, self.marks = [0], [0], [0], [time.perf_counter()]

    def start(self) -> None:
        self.marks = [time.perf_counter()]

    def batch(self, attention_mask: Any) -> None:
        self.pairs[-1] += len(attention_mask) // 2
        self.tokens[-1] += int(attention_mask.sum())
        self.padded[-1] += attention_mask.numel()

    def step(self) -> None:
        self.marks.append(time.perf_counter())
        for counts in (self.pairs, self.tokens, self.padded):
            counts.append(0)

    def speed(self, clock: str) -> dict[str, Any]:
        """Seconds and pairs under the clock asked for."""
        first = 1 if clock == "warm" else 0
        steps = len(self.marks) - 1
        if steps <= first:
            raise RuntimeError(f"{steps} steps are too few for the clock {clock!r}")
        pairs, seconds = sum(self.pairs[first:]), self.marks[-1] - self.marks[first]
        return {
            "num_steps": steps,
            "pairs_seen": sum(self.pairs),
            "clocked_pairs": pairs,
            "seconds": round(seconds, 3),
            "pairs_per_second": round(pairs / seconds, 4),
            "step_seconds": [round(b - a, 3) for a, b in zip(self.marks[:-1], self.marks[1:], strict=True)],
            "tokens": sum(self.tokens),
            "clocked_work": sum(self.tokens[first:]),
            "padded_tokens": sum(self.padded),
        }


def timed(trainer_class: Any) -> Any:
    """The trainer class, keeping a tally of its micro-batches."""

    class Timed(trainer_class):
        tally: Tally

        def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            self.tally.batch(inputs["attention_mask"])
            return super().training_step(model, inputs, *rest, **named)

    return Timed


def train(trainer: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Train, and return speed, memory, losses and contention."""
    from transformers import TrainerCallback

    tally, contention = Tally(), Contention()

    class Stopwatch(TrainerCallback):
        def on_train_begin(self, *rest: Any, **named: Any) -> None:
            contention.start()
            tally.start()

        def on_step_end(self, *rest: Any, **named: Any) -> None:
            tally.step()

    trainer.tally = tally
    trainer.add_callback(Stopwatch())
    trainer.train()
    measured = {"contention": contention.stop(), "peak_memory_gb": round(peak_memory_gb(), 3)}
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if len(losses) != len(tally.marks) - 1 or not all(math.isfinite(loss) for loss in losses):
        raise RuntimeError(f"{len(tally.marks) - 1} steps left these losses: {losses}")
    return {**tally.speed(args.clock), **measured, "losses": losses}


def share_moved(model: Any, args: argparse.Namespace) -> dict[str, float]:
    """Share of weights that differ from the folder's in the dtype trained in: the projections', and all but the head's.

    Only embeddings of tokens that occurred can move, so `projections` is the share to read.
    """
    from transformers import AutoModelForCausalLM

    before = AutoModelForCausalLM.from_pretrained(args.model, dtype=model.dtype).state_dict()
    changed = {"projections": 0, "all": 0}
    total = dict(changed)
    for name, weight in getattr(model, "_orig_mod", model).state_dict().items():
        if name not in before or name == "lm_head.weight":
            continue
        kinds = ("projections", "all") if any(part in name for part in PROJECTIONS) else ("all",)
        for kind in kinds:
            changed[kind] += int((weight != before[name]).sum())
            total[kind] += weight.numel()
    return {kind: round(changed[kind] / total[kind], 5) for kind in total}


def record(task: str, trainer: Any, args: argparse.Namespace, data: Data, measured: dict[str, Any]) -> dict[str, Any]:
    """The answer to the driver; benchmarks/README.md describes it."""
    return {
        "side": "peer",
        "task": task,
        "num_pairs": data.num_pairs,
        "num_dropped": data.num_pairs - len(trainer.train_dataset),
        "num_too_long": data.num_too_long,
        **measured,
        "moved": share_moved(trainer.model, args),
        "settings": {
            **{name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()},
            "order_used": data.order,
            "effective_batch": EFFECTIVE_BATCH,
            "optimizer": str(trainer.args.optim.value),
            "weight_decay": trainer.args.weight_decay,
            "max_grad_norm": trainer.args.max_grad_norm,
            "malloc_environment": {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")},
        },
        "versions": versions("torch", "transformers", "trl", "datasets", "accelerate"),
    }
