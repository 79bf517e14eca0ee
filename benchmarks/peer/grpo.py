"""GRPO with TRL's GRPOTrainer; one JSON line on stdout (benchmarks/README.md).

The clock has the whole step less generation and scoring: reference log-probabilities where there is a KL, forward,
backward and optimiser. The loss is averaged over each answer's tokens; with answers of one length TRL's default,
over all tokens, is the same.
"""

import argparse
from collections import Counter
from typing import Any

from measure import answer, answering
from online import Clock, add_peer, add_training, check, parser, reward
from online_training import key_of, logged, online_arguments, record, rows_of, run
from training import add_positions, begin, head_sees, load_model, load_tokenizer


def train_policy(args: argparse.Namespace) -> dict[str, Any]:
    """The record of the run."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    head_sees(args.positions)

    clock = Clock()
    tokenizer = load_tokenizer(args)
    rows = rows_of(args, tokenizer)
    by_prompt = {key_of(row["prompt"]): row for row in rows}

    class Timed(GRPOTrainer):
        def _generate(self, prompts: list[Any]) -> Any:
            with clock.leave_out("generate"):
                return super()._generate(prompts)

        def _calculate_rewards(self, *rest: Any) -> Any:
            with clock.leave_out("score"):
                return super()._calculate_rewards(*rest)

    def replay(prompts: list[Any], _: Any) -> dict[str, Any]:
        """The answers of the file: the first time that a prompt comes its first, and so on."""
        seen: Counter[Any] = Counter()
        found: dict[str, Any] = {"prompt_ids": [], "completion_ids": [], "logprobs": None}
        for prompt in prompts:
            row = by_prompt[key_of(prompt)]
            found["prompt_ids"].append(row["prompt_ids"])
            found["completion_ids"].append(row["answers"][seen[key_of(prompt)]])
            seen[key_of(prompt)] += 1
        return found

    def paid(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [reward(ids) for ids in completion_ids]

    trainer = Timed(
        model=load_model(args, AutoModelForCausalLM),
        reward_funcs=paid,
        args=GRPOConfig(
            **online_arguments(args),
            num_generations=args.answers,
            max_completion_length=args.tokens,
            generation_kwargs={"min_new_tokens": args.tokens},
            temperature=1.0,
            shuffle_dataset=False,
            beta=args.kl_coef or 0.0,
            loss_type="grpo",
            use_bias_correction_kl=False,  # k3 as it is, where there is a KL
        ),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in rows]),
        processing_class=tokenizer,
        rollout_func=replay if args.rollouts else None,
    )
    measured = run(trainer, clock, args)
    measured["losses"] = logged(trainer, "loss", args)
    measured["grad_norms"] = [float(norm) for norm in logged(trainer, "grad_norm", args)]
    return record("grpo", trainer.model, rows, args, **measured)


if __name__ == "__main__":
    options = parser(__doc__)
    add_training(options)
    add_peer(options, batch=8)
    add_positions(options)
    options.set_defaults(epochs=1)
    arguments = options.parse_args()
    check(arguments)
    begin(arguments)
    with answering() as out:
        answer(out, train_policy(arguments))
