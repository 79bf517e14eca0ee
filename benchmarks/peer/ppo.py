"""PPO with TRL's PPOTrainer, which TRL 1.12 was the last to have; one JSON line on stdout (benchmarks/README.md).

The clock has the whole step less generation: log-probabilities of policy and reference, values, advantages, all epochs.
The reward is counted from the tokens and takes no time. What TRL does not do by itself and is done here in its favour:
mixed precision is switched on as `accelerate launch` does, which its PPO needs beside bf16=True; values are computed
under autocast and the frozen reference in bf16, both fp32 otherwise; minibatches end in an optimiser step each.
"""

import argparse
import os
from types import SimpleNamespace
from typing import Any

from measure import answer, answering
from online import Clock, Row, add_epochs, add_peer, add_training, by_step, check, critic_head, parser, reward
from online_training import logged, online_arguments, record, rows_of, run
from training import begin, load_model, load_tokenizer

VF_COEF = 0.1


def as_logits(rows: list[Row], vocabulary: int) -> tuple[Any, Any]:
    """Answers [B, T], and logits [B, T, V] under which each token has the log-probability that it was sampled with."""
    import torch

    ids = torch.tensor([ids for row in rows for ids in row["answers"]])
    logprobs = torch.tensor([values for row in rows for values in row["logprobs"]]).clamp(max=-1e-6)
    logits = torch.zeros(*ids.shape, vocabulary)
    odds = logprobs - torch.log(-torch.expm1(logprobs)) + torch.log(torch.tensor(vocabulary - 1.0))
    return ids, logits.scatter_(2, ids[..., None], odds[..., None])


def queries_of(rows: list[Row], num: int, pad: int) -> Any:
    """[B, L] each prompt `num` times, padded on the left."""
    import torch

    longest = max(len(row["prompt_ids"]) for row in rows)
    padded = [[pad] * (longest - len(row["prompt_ids"])) + row["prompt_ids"] for row in rows]
    return torch.tensor(padded).repeat_interleave(num, dim=0)


def scorer(num_tokens: int) -> Any:
    """A reward model in TRL's form that only counts the answer's tokens."""
    import torch

    class Scorer(torch.nn.Module):
        base_model_prefix = "body"

        def body(self, input_ids: Any, **_: Any) -> Any:
            found = torch.tensor([reward(ids) for ids in input_ids[:, -num_tokens:].tolist()])
            return SimpleNamespace(hidden_states=[found[:, None, None].expand(*input_ids.shape, 1)])

        def score(self, hidden: Any) -> Any:
            return hidden

    return Scorer()


def unused_token(rows: list[Row], tokenizer: Any) -> str:
    """A token to pad with: TRL takes whatever equals the padding for padding, in prompts and answers too."""
    used = {i for row in rows for ids in [row["prompt_ids"], *row.get("answers", ())] for i in ids}
    free = next(i for i in range(len(tokenizer)) if i not in used and i not in tokenizer.all_special_ids)
    return tokenizer.convert_ids_to_tokens(free)


def watch_norms(trainer: Any) -> list[dict[str, float]]:
    """The gradient norm of policy and critic at each optimiser step."""
    import torch

    norms: list[dict[str, float]] = []

    def norm(model: Any) -> float:
        grads = [p.grad.double().norm() for p in model.parameters() if p.grad is not None]
        return float(torch.stack(grads).norm())

    def before_step(*_: Any) -> None:
        norms.append({"policy": norm(trainer.policy_model), "value": norm(trainer.value_model)})

    trainer.optimizer.optimizer.register_step_pre_hook(before_step)
    return norms


def train_policy(args: argparse.Namespace) -> dict[str, Any]:
    """The record of the run."""
    if args.weights == "autocast":
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    clock = Clock()
    tokenizer = load_tokenizer(args)
    rows = rows_of(args, tokenizer)
    tokenizer.pad_token = unused_token(rows, tokenizer)
    steps = by_step(rows, args.prompts)
    replayed = iter(steps)
    frozen = argparse.Namespace(**{**vars(args), "weights": "fp32" if args.weights == "fp32" else "bf16"})
    critic = load_model(args, AutoModelForSequenceClassification, num_labels=1)
    critic.score.weight.data.copy_(critic_head(critic.config.hidden_size, args.seed))
    generate, value_of = ppo_trainer.batch_generation, ppo_trainer.get_reward

    def generation(model: Any, queries: Any, *rest: Any) -> tuple[Any, Any]:
        with clock.leave_out("generate"):
            if not args.rollouts:
                return generate(model, queries, *rest)
            ids, logits = as_logits(next(replayed), model.config.vocab_size)
            return torch.cat([queries, ids], dim=1), logits

    def values(*rest: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=args.weights == "autocast"):
            return value_of(*rest)

    ppo_trainer.batch_generation, ppo_trainer.get_reward = generation, values
    trainer = PPOTrainer(
        args=PPOConfig(
            **online_arguments(args),
            total_episodes=args.prompts * args.answers * args.steps,
            num_ppo_epochs=args.epochs,
            num_mini_batches=args.minibatches,
            local_rollout_forward_batch_size=args.forward_batch or args.batch,
            num_sample_generations=0,
            response_length=args.tokens,
            temperature=1.0,
            kl_coef=0.05 if args.kl_coef is None else args.kl_coef,
            vf_coef=VF_COEF,
        ),
        processing_class=tokenizer,
        model=load_model(args, AutoModelForCausalLM),
        ref_model=load_model(frozen, AutoModelForCausalLM),
        reward_model=scorer(args.tokens),
        train_dataset=Dataset.from_list([{"input_ids": row["prompt_ids"]} for row in rows] * args.answers),
        value_model=critic,
    )
    if trainer.accelerator.mixed_precision != ("bf16" if args.weights == "autocast" else "no"):
        raise RuntimeError(f"--weights {args.weights}, but mixed precision is {trainer.accelerator.mixed_precision!r}")
    # the same batches in the same order as the other side; TRL would shuffle
    trainer.dataloader = [{"input_ids": queries_of(step, args.answers, tokenizer.pad_token_id)} for step in steps]
    trainer.accelerator.gradient_accumulation_steps //= args.minibatches
    norms = watch_norms(trainer) if args.norms else []
    measured = run(trainer, clock, args)
    # the averages are over places of which with minibatches only so many are filled
    policy, value = (logged(trainer, f"loss/{name}_avg", args) for name in ("policy", "value"))
    value = [args.minibatches * loss for loss in value]
    measured["losses"] = [args.minibatches * p + VF_COEF * v for p, v in zip(policy, value, strict=True)]
    measured |= {"value_losses": value, "grad_norms": norms}
    return record("ppo", trainer.policy_model, rows, args, **measured)


if __name__ == "__main__":
    options = parser(__doc__)
    add_training(options)
    add_epochs(options)
    add_peer(options, batch=1)
    options.add_argument("--forward-batch", type=int, default=0, help="answers at once without gradient; 0: --batch")
    options.add_argument("--norms", action="store_true", help="keep the gradients' norms, which takes time")
    arguments = options.parse_args()
    check(arguments)
    begin(arguments)
    with answering() as out:
        answer(out, train_policy(arguments))
