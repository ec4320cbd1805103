"""The thirty-three systems as data; README, docs, `maypole systems` and the tests derive from this table."""

from dataclasses import dataclass

ROOMS: dict[str, str] = {
    "curate": "choose and clean training data",
    "adapt": "fine-tune with adapters, reuse them",
    "align": "train on preferences and rewards",
    "edit": "correct facts in weights",
    "interpret": "look inside",
    "compress": "make it smaller and cheaper",
    "retrieve": "ground answers in documents and graphs",
    "see": "images in, images out",
    "serve": "answer requests, fast",
    "evaluate": "know how good it is",
}
"""Room -> what a user comes here to do."""


@dataclass(frozen=True, slots=True)
class System:
    """One method: `id` is also the name of its claim, its docs page and (with underscores) its module in `room`.

    `entry` is the dotted path of its public function, `command` its verb on the command line; both resolve where
    `built` is true (tested), and are announced names where it is not. `partly` says what there is of such a system: it
    has a page, and claims of its own. `need` is why somebody would come for it.
    """

    id: str
    title: str
    arxiv: str
    room: str
    entry: str
    command: str
    need: str
    built: bool = False
    partly: str = ""

    @property
    def source(self) -> str:
        return f"https://arxiv.org/abs/{self.arxiv}"


def _system(
    id: str, title: str, arxiv: str, room: str, function: str, command: str, need: str, built: bool = False,
    partly: str = "",
) -> System:  # fmt: skip
    entry = f"maypole.{room}.{id.replace('-', '_')}:{function}"
    return System(id, title, arxiv, room, entry, command, need, built, partly)


SYSTEMS: tuple[System, ...] = (
    _system(
        "perplexity-pruning", "Perplexed by Perplexity", "2405.20541",
        "curate", "prune", "curate prune",
        "there is more text than budget: keep the share that teaches most", built=True,
    ),
    _system(
        "wildchat", "WildChat", "2405.01470",
        "curate", "clean_chats", "curate chats",
        "chat logs must become clean, lawful training rows",
    ),
    _system(
        "mora", "MoRA: high-rank updating", "2405.12130",
        "adapt", "convert", "train sft --peft.type mora",
        "LoRA does not take in enough: a higher rank with as many parameters",
    ),
    _system(
        "trans-lora", "Trans-LoRA: data-free adapter transfer", "2405.17258",
        "adapt", "transfer", "adapt transfer",
        "the base changes and an adapter's data is gone: move the adapter",
    ),
    _system(
        "lora-library", "LoRA libraries: clustering and Arrow routing", "2405.11157",
        "adapt", "cluster", "adapt cluster",
        "many adapters of one base: group them, and route each token to those that fit",
    ),
    _system(
        "lora-learns-less", "LoRA learns less and forgets less", "2405.09673",
        "adapt", "forgetting", "adapt forgetting",
        "all weights or LoRA: what each learns and forgets on your data",
    ),
    _system(
        "lora-land", "LoRA Land and LoRAX", "2405.00732",
        "adapt", "matrix", "adapt matrix",
        "which base and which tasks pay off, side by side; and all their adapters served on one base",
        partly="serving is there",
    ),
    _system(
        "sppo", "SPPO: self-play preference optimisation", "2405.00675",
        "align", "Sppo", "align online --method sppo",
        "prompts and a judge of pairs, no answers: improve by self-play", built=True,
    ),
    _system(
        "selm", "SELM: self-exploring language models", "2405.19332",
        "align", "Selm", "align online --method selm",
        "online training goes round in circles: explore beyond what the model says already", built=True,
    ),
    _system(
        "rlhf-workflow", "RLHF Workflow: online iterative DPO", "2405.07863",
        "align", "IterativeDPO", "align online --method dpo",
        "preferences over the model's own answers, round by round, without PPO", built=True,
    ),
    _system(
        "online-offline-gap", "The online-offline gap of alignment", "2405.08448",
        "align", "gap", "align gap",
        "are fresh samples worth their cost: win rates at equal distance from the start", built=True,
    ),
    _system(
        "flame", "FLAME: factuality-aware alignment", "2405.01525",
        "align", "flame", "align flame",
        "instruction tuning taught the model to invent: keep it to what it knows", built=True,
    ),
    _system(
        "openrlhf", "OpenRLHF: PPO on Ray", "2405.11143",
        "align", "ppo", "align ppo",
        "a reward to maximise: PPO, its models together or apart on Ray",
    ),
    _system(
        "nemo-aligner", "NeMo-Aligner: SteerLM and friends", "2405.01481",
        "align", "steer", "align steer",
        "qualities to set at answer time: train on rated attributes",
    ),
    _system(
        "model-editing", "ROME, MEMIT, EMMET", "2405.00664",
        "edit", "edit_facts", "edit facts",
        "some facts are wrong: correct one or thousands without training",
    ),
    _system(
        "multi-dim-features", "Multi-dimensional (circular) features", "2405.14860",
        "interpret", "find_features", "interpret features",
        "how the model holds weekdays, months, numbers: find circles and other shapes",
    ),
    _system(
        "secretly-linear", "Your transformer is secretly linear", "2405.12250",
        "interpret", "linearity", "interpret linearity",
        "which layers are little more than a linear map: measure, replace, prune",
    ),
    _system(
        "llama-nas", "LLaMA-NAS: one-shot architecture search", "2405.18377",
        "compress", "search", "compress search",
        "a limit on size or latency: a menu of smaller models from one fine-tuning",
    ),
    _system(
        "hipporag", "HippoRAG: graph memory", "2405.14831",
        "retrieve", "build_index", "retrieve index",
        "evidence is spread over passages: retrieve along a graph of facts",
    ),
    _system(
        "gnn-rag", "GNN-RAG: reasoning over knowledge graphs", "2405.20139",
        "retrieve", "reason", "retrieve reason",
        "answers lie in a knowledge graph: find the paths and let the model read them",
    ),
    _system(
        "g-rag", "G-RAG: reranking with document graphs", "2405.18414",
        "retrieve", "rerank", "retrieve rerank",
        "good documents rank too low: rerank by how documents connect",
    ),
    _system(
        "jina-clip", "Jina CLIP: one encoder for text and images", "2405.20204",
        "retrieve", "train_encoder", "retrieve encoder",
        "one index for text and images, without losing text search",
    ),
    _system(
        "vlm-introduction", "An introduction to vision-language modelling", "2405.17247",
        "see", "train_vlm", "see train",
        "give a language model eyes, and measure what it sees",
    ),
    _system(
        "matryoshka-mm", "Matryoshka multimodal models", "2405.17430",
        "see", "scales", "see scales",
        "images cost too many tokens: choose how many at answer time",
    ),
    _system(
        "aligngpt", "AlignGPT: alignment levels", "2405.14129",
        "see", "levels", "see levels",
        "captions fit their images more or less: learn from all of them",
    ),
    _system(
        "meteor", "Meteor: Mamba-carried rationales", "2405.15574",
        "see", "rationale", "see rationale",
        "rationales help but are slow to write: carry them in ten vectors",
    ),
    _system(
        "chameleon", "Chameleon: mixed-modal early fusion", "2405.09818",
        "see", "mixed", "see mixed",
        "one model that reads and writes text and images in any order",
    ),
    _system(
        "omniglue", "OmniGlue: generalisable feature matching", "2405.12979",
        "see", "match", "see match",
        "find the same points in two images, also far from any training data",
    ),
    _system(
        "story-diffusion", "StoryDiffusion: consistent characters", "2405.01434",
        "see", "story", "see story",
        "one character through a series of generated images",
    ),
    _system(
        "parrot", "Parrot: semantic variables", "2405.19888",
        "serve", "run_program", "serve program",
        "programs of many calls: run together what can, compute shared text once", built=True,
    ),
    _system(
        "theory-of-mind", "Higher-order theory of mind", "2405.18870",
        "evaluate", "minds", "evaluate minds",
        "how deep the model follows who thinks what about whom",
    ),
    _system(
        "prometheus-eval", "Prometheus 2: rubric judges", "2405.01535",
        "evaluate", "judge", "evaluate judge",
        "judge answers by your own rubric, with an open model",
    ),
    _system(
        "many-shot-icl", "Many-shot in-context learning", "2405.09798",
        "evaluate", "shots", "evaluate shots",
        "hundreds of examples in the prompt instead of training: gain and cost",
    ),
)  # fmt: skip


def find(id: str) -> System:
    """The system called `id`; KeyError names the nearest ids."""
    for system in SYSTEMS:
        if system.id == id:
            return system
    import difflib

    near = difflib.get_close_matches(id, [s.id for s in SYSTEMS], n=3)
    raise KeyError(f"no system {id!r}" + (f"; did you mean {', '.join(near)}?" if near else ""))
