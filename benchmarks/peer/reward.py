"""Reward training with TRL's RewardTrainer; one JSON line on stdout (benchmarks/README.md)."""

import argparse
from typing import Any

from measure import answer, answering
from training import Data, begin, load_model, load_tokenizer, parser, record, timed, train, trainer_arguments


def train_reward_model(args: argparse.Namespace, task: str) -> tuple[Any, Any, dict[str, Any]]:
    """The trained model, its tokenizer and the record of the run."""
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    tokenizer = load_tokenizer(args)
    data = Data(args, tokenizer)
    model = load_model(args, AutoModelForSequenceClassification, num_labels=1)
    trainer = timed(RewardTrainer)(
        model=model,
        args=RewardConfig(**trainer_arguments(args, data)),
        train_dataset=data.dataset,
        processing_class=tokenizer,
    )
    measured = train(trainer, args)
    return trainer.model, tokenizer, record(task, trainer, args, data, measured)


if __name__ == "__main__":
    options = parser(__doc__, lr=1e-5).parse_args()
    begin(options)
    with answering() as out:
        answer(out, train_reward_model(options, "reward")[2])
