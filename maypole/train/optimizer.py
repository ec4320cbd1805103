"""The optimiser of a run and its schedule, which in a run of several rounds may begin anew in each.

Knows nothing about rows, losses or processes.
"""

from typing import Any

import torch
from transformers import get_scheduler

from maypole.core.errors import ConfigError
from maypole.models.language_model import LanguageModel
from maypole.train.config import TrainConfig
from maypole.train.source import Source


def optimizer_of(lm: LanguageModel, config: TrainConfig) -> torch.optim.Optimizer:
    """For all weights that learn; matrices decay, embeddings, biases and norms do not."""
    embeddings: Any = lm.transformer.get_input_embeddings()
    plain = {id(p) for p in embeddings.parameters()} if embeddings is not None else set()
    learning = [p for p in lm.model.parameters() if p.requires_grad]
    decayed = [p for p in learning if p.ndim > 1 and id(p) not in plain]
    others = [p for p in learning if p.ndim <= 1 or id(p) in plain]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if config.optim == "rmsprop":
        return torch.optim.RMSprop(groups, lr=config.learning_rate)
    betas = (config.adam_beta1, config.adam_beta2)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.adam_epsilon, fused=True)


def schedule_of(optimizer: torch.optim.Optimizer, config: TrainConfig, source: Source) -> Any:
    """Over all steps of the run, or with ``optimizer="fresh"`` over one round's, begun anew in each and scaled to the
    round's own learning rate."""
    anew = config.optimizer == "fresh"
    length = source.steps_per_round if anew else source.steps
    kind, kwargs = config.lr_scheduler_type, dict(config.lr_scheduler_kwargs)
    try:
        made: Any = get_scheduler(kind, optimizer, round(config.warmup_ratio * length), length, kwargs)
    except (TypeError, ValueError) as error:
        accepted = f"what transformers' {kind} schedule takes ({error})"
        raise ConfigError("lr_scheduler_kwargs", kwargs, accepted) from error
    if not anew:
        return made
    shape, rates = made.lr_lambdas[0], config.round_learning_rates  # one shape for all groups of weights

    def in_every_round(step: int) -> float:
        number = min(step // length, source.rounds - 1)
        rate = rates[number] / config.learning_rate if rates else 1.0
        return rate * shape(step - number * length)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, in_every_round)
