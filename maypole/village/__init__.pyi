from .describe import oracle as oracle
from .instruct import TASKS as TASKS
from .mix import base_mix as base_mix
from .mix import phase1 as phase1
from .mix import phase2 as phase2
from .tokenizer import train_tokenizer as train_tokenizer
from .world import World as World

__all__ = ["TASKS", "World", "base_mix", "oracle", "phase1", "phase2", "train_tokenizer"]
