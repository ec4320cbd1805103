"""Every command: where its function is, and its line in the help. Knows nothing about what the functions do.

The line stands here so that listing commands imports none of them; a test compares it with the docstring's first line.
"""

from collections.abc import Mapping

Table = Mapping[tuple[str, ...], tuple[str, str]]
"""(room, verb), or (word,), -> ("module:function", first line of its docstring)."""

COMMANDS: Table = {
    ("align", "dpo"): (
        "maypole.align.verbs:dpo",
        "Train a model on preferences: DPO, or another loss on chosen and rejected answers.",
    ),
    ("align", "flame"): (
        "maypole.align.flame_verbs:flame",
        "Fine-tune a model and train its preferences so that it learns to answer and not to invent.",
    ),
    ("align", "gap"): (
        "maypole.align.gap_verbs:gap",
        "Find out whether fresh answers are worth their cost: online and offline training, beside each other.",
    ),
    ("align", "online"): (
        "maypole.align.online_verbs:online",
        "Train a model on its own answers, round by round, as a judge likes them.",
    ),
    ("align", "reward"): (
        "maypole.align.verbs:reward",
        "Train a judge on pairs: a reward model, or a model that compares two answers.",
    ),
    ("claim",): (
        "maypole.claims.verbs:claim",
        "Check a system's claim: run its experiment and compare with the paper.",
    ),
    ("curate", "score"): (
        "maypole.curate.verbs:score",
        "Score every document of a corpus by how surprised a small reference model is.",
    ),
    ("curate", "prune"): ("maypole.curate.verbs:prune", "Keep the documents of low, medium or high perplexity."),
    ("engine", "generate"): ("maypole.engine.verbs:generate", "Continue prompts with a model."),
    ("engine", "score"): ("maypole.engine.verbs:score", "Score continuations: how likely a model finds them."),
    ("engine", "embed"): ("maypole.engine.verbs:embed", "Turn texts into vectors."),
    ("evaluate", "facts"): (
        "maypole.evaluate.fact_verbs:facts",
        "Check the facts that answers state against documents, one by one.",
    ),
    ("evaluate", "perplexity"): (
        "maypole.evaluate.verbs:perplexity",
        "Measure how surprised a model is by text.",
    ),
    ("evaluate", "tasks"): (
        "maypole.evaluate.verbs:tasks",
        "Ask a model questions with known answers and score what it says.",
    ),
    ("evaluate", "winrate"): (
        "maypole.evaluate.verbs:winrate",
        "Let a judge compare two models' answers to the same prompts.",
    ),
    ("models", "info"): ("maypole.models.verbs:info", "Show what a model or adapter is and where it comes from."),
    ("models", "merge"): ("maypole.models.verbs:merge", "Merge an adapter into its base model."),
    ("models", "export"): (
        "maypole.models.verbs:export",
        "Write a model or adapter as a clean Hugging Face directory, or as a GGUF file for llama.cpp.",
    ),
    ("serve",): (
        "maypole.serve.verbs:serve",
        "Serve a model and its adapters over HTTP, as OpenAI's clients expect it.",
    ),
    ("serve", "program"): (
        "maypole.serve.verbs:program",
        "Run a program of many calls where the engines are, and show what each call cost.",
    ),
    ("train", "sft"): ("maypole.train.verbs:sft", "Fine-tune a model on chats, or on prompts with completions."),
    ("train", "pretrain"): (
        "maypole.train.verbs:pretrain",
        "Train a model on texts: go on with a checkpoint, or begin from nothing.",
    ),
    ("tour",): (
        "maypole.tour.verbs:tour",
        "Take a model through its stages on your text and write a report of what improved.",
    ),
    ("systems",): ("maypole.cli.about:systems", "List the systems: what each is, its paper, its command."),
    ("env",): ("maypole.cli.about:env", "Print versions for a bug report."),
}

POLE: dict[str, str] = {
    "train": "make and change weights",
    "engine": "generate, score, embed",
    "models": "look at, merge and export models",
}
"""Words that hold verbs and are no rooms -> what they are for."""
