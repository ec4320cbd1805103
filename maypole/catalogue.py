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
    `built` is true (tested), and are announced names where it is not.
    """

    id: str
    title: str
    arxiv: str
    room: str
    entry: str
    command: str
    built: bool = False

    @property
    def source(self) -> str:
        return f"https://arxiv.org/abs/{self.arxiv}"


def _system(id: str, title: str, arxiv: str, room: str, function: str, command: str, built: bool = False) -> System:
    return System(id, title, arxiv, room, f"maypole.{room}.{id.replace('-', '_')}:{function}", command, built)


SYSTEMS: tuple[System, ...] = (
    _system("perplexity-pruning", "Perplexed by Perplexity", "2405.20541", "curate", "prune", "curate prune"),
    _system("wildchat", "WildChat", "2405.01470", "curate", "clean_chats", "curate chats"),
    _system("mora", "MoRA: high-rank updating", "2405.12130", "adapt", "convert", "train sft --peft.type mora"),
    _system(
        "trans-lora", "Trans-LoRA: data-free adapter transfer", "2405.17258", "adapt", "transfer", "adapt transfer"
    ),
    _system(
        "lora-library",
        "LoRA libraries: clustering and Arrow routing",
        "2405.11157",
        "adapt",
        "cluster",
        "adapt cluster",
    ),
    _system(
        "lora-learns-less", "LoRA learns less and forgets less", "2405.09673", "adapt", "forgetting", "adapt forgetting"
    ),
    _system("lora-land", "LoRA Land and LoRAX", "2405.00732", "adapt", "matrix", "adapt matrix"),
    _system(
        "sppo", "SPPO: self-play preference optimisation", "2405.00675", "align", "Sppo", "align online --method sppo"
    ),
    _system(
        "selm", "SELM: self-exploring language models", "2405.19332", "align", "Selm", "align online --method selm"
    ),
    _system(
        "rlhf-workflow",
        "RLHF Workflow: online iterative DPO",
        "2405.07863",
        "align",
        "Workflow",
        "align online --method dpo",
    ),
    _system("online-offline-gap", "The online-offline gap of alignment", "2405.08448", "align", "gap", "align gap"),
    _system("flame", "FLAME: factuality-aware alignment", "2405.01525", "align", "flame", "align flame"),
    _system("openrlhf", "OpenRLHF: PPO on Ray", "2405.11143", "align", "ppo", "align ppo"),
    _system("nemo-aligner", "NeMo-Aligner: SteerLM and friends", "2405.01481", "align", "steer", "align steer"),
    _system("model-editing", "ROME, MEMIT, EMMET", "2405.00664", "edit", "edit_facts", "edit facts"),
    _system(
        "multi-dim-features",
        "Multi-dimensional (circular) features",
        "2405.14860",
        "interpret",
        "find_features",
        "interpret features",
    ),
    _system(
        "secretly-linear",
        "Your transformer is secretly linear",
        "2405.12250",
        "interpret",
        "linearity",
        "interpret linearity",
    ),
    _system(
        "llama-nas", "LLaMA-NAS: one-shot architecture search", "2405.18377", "compress", "search", "compress search"
    ),
    _system("hipporag", "HippoRAG: graph memory", "2405.14831", "retrieve", "build_index", "retrieve index"),
    _system(
        "gnn-rag", "GNN-RAG: reasoning over knowledge graphs", "2405.20139", "retrieve", "reason", "retrieve reason"
    ),
    _system("g-rag", "G-RAG: reranking with document graphs", "2405.18414", "retrieve", "rerank", "retrieve rerank"),
    _system(
        "jina-clip",
        "Jina CLIP: one encoder for text and images",
        "2405.20204",
        "retrieve",
        "train_encoder",
        "retrieve encoder",
    ),
    _system(
        "vlm-introduction",
        "An introduction to vision-language modelling",
        "2405.17247",
        "see",
        "train_vlm",
        "see train",
    ),
    _system("matryoshka-mm", "Matryoshka multimodal models", "2405.17430", "see", "scales", "see scales"),
    _system("aligngpt", "AlignGPT: alignment levels", "2405.14129", "see", "levels", "see levels"),
    _system("meteor", "Meteor: Mamba-carried rationales", "2405.15574", "see", "rationale", "see rationale"),
    _system("chameleon", "Chameleon: mixed-modal early fusion", "2405.09818", "see", "mixed", "see mixed"),
    _system("omniglue", "OmniGlue: generalisable feature matching", "2405.12979", "see", "match", "see match"),
    _system("story-diffusion", "StoryDiffusion: consistent characters", "2405.01434", "see", "story", "see story"),
    _system("parrot", "Parrot: semantic variables", "2405.19888", "serve", "run_program", "serve program"),
    _system("theory-of-mind", "Higher-order theory of mind", "2405.18870", "evaluate", "minds", "evaluate minds"),
    _system("prometheus-eval", "Prometheus 2: rubric judges", "2405.01535", "evaluate", "judge", "evaluate judge"),
    _system("many-shot-icl", "Many-shot in-context learning", "2405.09798", "evaluate", "shots", "evaluate shots"),
)


def find(id: str) -> System:
    """The system called `id`; KeyError names the nearest ids."""
    for system in SYSTEMS:
        if system.id == id:
            return system
    import difflib

    near = difflib.get_close_matches(id, [s.id for s in SYSTEMS], n=3)
    raise KeyError(f"no system {id!r}" + (f"; did you mean {', '.join(near)}?" if near else ""))
