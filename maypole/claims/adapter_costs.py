"""What adapters cost: on none, one or many of them, by other ways to serve them, while they load, and when few fit.

A base with random weights, for which numbers do not matter to speed. Knows no claim's world.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, PreTrainedTokenizerBase

from maypole.claims.effects import Effect
from maypole.core import theme
from maypole.core.seeds import derive
from maypole.engine import NO_ADAPTER, AdapterConfig, Engine, EngineConfig, Output, Request, Sampling
from maypole.models.adapters import new_adapter
from maypole.models.language_model import LanguageModel
from maypole.models.loading import create
from maypole.models.peft_options import PeftOptions
from maypole.models.saving import save
from maypole.village.word_tokenizer import word_tokenizer

NARROW = PeftOptions(r=8, lora_alpha=16, target_modules=("q_proj", "v_proj"))
"""The paper's."""
WIDE = PeftOptions(r=64, lora_alpha=128)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A model's layers and width, its adapters, and the requests that come at once."""

    model: tuple[int, int] = (8, 320)  # 11M parameters
    vocabulary: int = 4096
    adapters: int = 25
    some: int = 18  # of the adapters, beside other ways to serve them
    requests: int = 32
    prompt: int = 32
    new: int = 32
    rounds: int = 3
    hot: int = 8
    every: int = 6  # steps between two visitors
    active: int = 5  # adapters that fit where not all do
    cycle: float = 0.25  # seconds of a turn
    clients: int = 16
    traffic: int = 160
    zipf: float = 1.1


def llama(tokenizer: PreTrainedTokenizerBase, size: tuple[int, int], vocabulary: int, seed: int) -> LanguageModel:
    """Fresh weights as transformers draws them: `size` is layers and width."""
    layers, width = size
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = AutoConfig.for_model(
        "llama", vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=width // 32, num_key_value_heads=width // 32, max_position_embeddings=1024, **ids,
    )  # fmt: skip
    return create(config, tokenizer, seed)


@dataclass(frozen=True, slots=True)
class Answered:
    """Requests answered: tokens by request, CPU seconds until each was whole, and until all were."""

    tokens: list[list[int]]
    waited: list[float]
    seconds: float

    @property
    def rate(self) -> float:
        return sum(map(len, self.tokens)) / self.seconds


class Bench:
    """A base with random weights, and a way to have the same requests answered by it."""

    def __init__(self, seed: int, load: Load) -> None:
        self.seed, self.load, self.runs = seed, load, 0
        self.plain = self._base()
        draw = np.random.default_rng(derive(seed, "prompts"))
        self.prompts = draw.integers(8, load.vocabulary, (load.requests, load.prompt)).tolist()

    def _base(self) -> LanguageModel:
        return llama(word_tokenizer(["a"]), self.load.model, self.load.vocabulary, derive(self.seed, "base"))

    def adapted(self, options: PeftOptions) -> LanguageModel:
        """The base with adapters a0, a1, ... of random weights."""
        lm = self._base()
        for i in range(self.load.adapters):
            lm = new_adapter(lm, options, seed=derive(self.seed, "adapter", i), name=f"a{i}")
        generator = torch.Generator().manual_seed(derive(self.seed, "numbers"))
        with torch.no_grad():
            for name, parameter in lm.model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0.0, 0.02, generator=generator)
        lm.model.eval()
        return lm

    def names(self, adapters: int) -> list[str]:
        """Whose each request is."""
        return [f"a{i % adapters}" if adapters else NO_ADAPTER for i in range(self.load.requests)]

    def together(self, engine: Engine, adapters: int, prompt: int | None = None) -> Answered:
        """All in one batch, from all of each prompt or its first tokens."""

        def all_of_them(ids: list[list[int]], names: list[str]) -> list[list[int]]:
            return _tokens(engine.generate(self._requests([one[:prompt] for one in ids], names)))

        return self._answered(all_of_them, adapters, 1)

    def mixed(self, lm: LanguageModel, adapters: int) -> Answered:
        """PEFT's batch of several adapters."""
        return self._answered(lambda ids, names: self._peft(lm, ids, adapter_names=names), adapters, 1)

    def in_turn(self, lm: LanguageModel, adapters: int) -> Answered:
        """PEFT with one adapter after the other."""

        def one(ids: list[list[int]], names: list[str]) -> list[list[int]]:
            lm.model.set_adapter(names[0])
            return self._peft(lm, ids)

        return self._answered(one, adapters, adapters)

    def apart(self, engine: Engine, adapters: int) -> Answered:
        """An engine for each, with merged weights; all take their turn on one processor."""

        def one(ids: list[list[int]], names: list[str]) -> list[list[int]]:
            return _tokens(engine.generate(self._requests(ids, [NO_ADAPTER] * len(ids))))

        return self._answered(one, adapters, adapters)

    def _answered(
        self, answer: Callable[[list[list[int]], list[str]], list[list[int]]], adapters: int, groups: int
    ) -> Answered:
        names = self.names(adapters)
        self.runs += 1
        tokens: list[list[int]] = [[] for _ in names]
        waited = [0.0] * len(names)
        begun = time.process_time()
        for group in range(groups):
            mine = list(range(group, len(names), groups))
            found = answer([self.prompts[i] for i in mine], [names[i] for i in mine])
            for i, said in zip(mine, found):
                tokens[i], waited[i] = said, time.process_time() - begun
        return Answered(tokens, waited, time.process_time() - begun)

    def _requests(self, prompts: list[list[int]], names: list[str]) -> list[Request]:
        sampling = Sampling(max_tokens=self.load.new, temperature=0.0, ignore_eos=True)
        salt = str(self.runs)  # no prompt is known from a run before
        return [Request(ids, sampling, adapter=name, cache_salt=salt) for ids, name in zip(prompts, names)]

    def _peft(self, lm: LanguageModel, prompts: list[list[int]], **options: Any) -> list[list[int]]:
        ids, new = torch.tensor(prompts), self.load.new
        with torch.no_grad():
            out = lm.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new,
                do_sample=False, pad_token_id=0, **options,
            )  # fmt: skip
        return out[:, ids.shape[1] :].tolist()


def _tokens(outputs: Sequence[Output]) -> list[list[int]]:
    return [output.token_ids for output in outputs]


def throughput(seed: int, workdir: Path, load: Load) -> list[Effect]:
    """The same requests on none to all of the adapters, and by other ways to serve 18 of them, taking turns."""
    bench, most, some = Bench(seed, load), load.adapters, load.some
    lm, wide = bench.adapted(NARROW), bench.adapted(WIDE)
    config = EngineConfig(max_seqs=load.requests)
    engine, wider, merged = Engine(lm, config), Engine(wide, config), Engine(bench.plain, config)
    ways: dict[str, Callable[[], Answered]] = {
        **{f"{n}": lambda n=n: bench.together(engine, n) for n in sorted({0, 1, 4, 8, 16, some, most}) if n <= most},
        "decoding 1": lambda: bench.together(engine, 1, prompt=1),
        f"decoding {most}": lambda: bench.together(engine, most, prompt=1),
        "wide 1": lambda: bench.together(wider, 1),
        f"wide {most}": lambda: bench.together(wider, most),
        "mixed": lambda: bench.mixed(lm, some),
        "in turn": lambda: bench.in_turn(lm, some),
        "apart": lambda: bench.apart(merged, some),
    }
    best: dict[str, Answered] = {}
    quick = [name for name in ways if name.split()[-1].isdigit() and "wide" not in name]
    for _ in range(load.rounds):
        for name in (*ways, *quick, *quick):
            found = ways[name]()
            if name not in best or found.seconds < best[name].seconds:
                best[name] = found
    picture({name: answered.rate for name, answered in best.items()}, workdir / "figures")
    return compared(best, load)


def compared(best: Mapping[str, Answered], load: Load) -> list[Effect]:
    """What follows from the answers by way: a number of adapters in one batch, or "mixed", "in turn", "apart"."""
    most, some = load.adapters, load.some
    rates = {name: answered.rate for name, answered in best.items()}
    same = np.mean([ours == peft for ours, peft in zip(best[f"{some}"].tokens, best["mixed"].tokens)])
    rate, every = "tokens per CPU second", f"{most} adapters"
    waits = float(np.mean(best[f"{some}"].waited)), float(np.mean(best["in turn"].waited))
    return [
        Effect(f"{every} beside one, decoding", rate, rates[f"decoding {most}"], rates["decoding 1"], 0.9, "ratio>="),
        Effect(f"{some} beside PEFT's mixed batch", rate, rates[f"{some}"], rates["mixed"], 1.8, "ratio>="),
        Effect(f"{some} beside PEFT, one at a time", rate, rates[f"{some}"], rates["in turn"], 5.0, "ratio>="),
        Effect(f"{some} beside a process for each", rate, rates[f"{some}"], rates["apart"], 3.0, "ratio>="),
        Effect(f"{some} beside PEFT, one at a time", "CPU seconds to an answer", *waits, 0.4, "ratio<="),
        Effect("the same as PEFT says", "share of answers", float(same), None, 0.99, "ours>=", control=True),
        Effect(f"one beside {every}", rate, rates["1"], rates[f"{most}"], 1.15, "ratio<=", control=True),
        Effect(
            f"{every} of rank 64 beside one", rate, rates[f"wide {most}"], rates["wide 1"], 0.75, "ratio<=",
            control=True,
        ),
    ]  # fmt: skip


def loading(seed: int, workdir: Path, load: Load) -> list[Effect]:
    """Long answers of `hot` adapters, and short requests that come meanwhile: for the same adapters, then for others
    that nobody has asked for yet."""
    bench = Bench(seed, load)
    lm = bench.adapted(NARROW)
    save(bench.plain, workdir / "random")
    lm.name = str(workdir / "random")
    for name in lm.adapters:
        save(lm.with_adapter(name), workdir / "random-adapters" / name)
    config = EngineConfig(adapters=AdapterConfig(roots=(workdir / "random-adapters",)))
    engine = Engine.load(workdir / "random", config=config)
    hot, cold = list(lm.adapters[: load.hot]), list(lm.adapters[load.hot :])
    visitors = [hot[i % len(hot)] for i in range(len(cold))]
    asyncio.run(_visited(engine, bench, hot, visitors))  # all of them are warm now
    before = engine.adapters.stats()
    warm = asyncio.run(_visited(engine, bench, hot, visitors))
    cold_ones = asyncio.run(_visited(engine, bench, hot, cold))
    after = engine.adapters.stats()
    count, seconds = (after[key] - before[key] for key in ("loads", "load_seconds"))
    step = float(np.median(warm.gaps))
    gap, wait = "seconds between tokens, p95", "seconds to the first token, mean"
    return [
        Effect("loading beside no loading", gap, cold_ones.slowest, warm.slowest, 1.3, "ratio<="),
        Effect(
            "a cold adapter beside its loading and two steps", wait, float(np.mean(cold_ones.waits)),
            seconds / max(count, 1) + 2 * step, 1.0, "ratio<=",
        ),
        Effect("adapters loaded meanwhile", "adapters", count, len(cold), 0.0, "difference>=", control=True),
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Visited:
    """Seconds between the steps of long answers, and until each visitor's first token."""

    gaps: list[float]
    waits: list[float]

    @property
    def slowest(self) -> float:
        return float(np.quantile(self.gaps, 0.95))


async def _visited(engine: Engine, bench: Bench, hot: Sequence[str], visitors: Sequence[str]) -> Visited:
    """A visitor comes every few steps and leaves with its second token."""
    load, steps, waits = bench.load, [], []
    engine.on_step(lambda seconds: steps.append(time.perf_counter()))
    long = Sampling(max_tokens=load.every * (len(visitors) + 4), temperature=0.0, ignore_eos=True)
    short = Sampling(max_tokens=2, temperature=0.0, ignore_eos=True)

    async def visit(name: str) -> None:
        begun = time.perf_counter()
        async for _ in engine.stream(Request(bench.prompts[0][:4], short, adapter=name)):
            if len(waits) < len(visitors):
                waits.append(time.perf_counter() - begun)
            break

    visits: list[asyncio.Task[None]] = []
    turns = 0
    async for _ in engine.streams([Request(ids, long, adapter=n) for ids, n in zip(bench.prompts, hot)]):
        turns += 1
        if turns % load.every == 0 and len(visits) < len(visitors):
            visits.append(asyncio.create_task(visit(visitors[len(visits)])))
    await asyncio.gather(*visits)
    return Visited(np.diff(steps[load.every :]).tolist(), waits)


def exchange(seed: int, workdir: Path, load: Load) -> list[Effect]:
    """Clients that ask one adapter after another, some far more often than others, with room for a few or for all.

    Base and adapters are those that `loading` has saved.
    """
    bench = Bench(seed, load)
    few, every = (_traffic(bench, workdir, active) for active in (load.active, load.adapters))
    turns = -(-(load.adapters - load.active) // load.active)
    bound = load.cycle * turns + every.longest
    rate, name = "tokens per CPU second", f"room for {load.active} beside room for all"
    same = float(np.mean([few.said[i] == every.said[i] for i in range(load.traffic)]))
    return [
        Effect(name, "share of equal answers", same, None, 1.0, "ours>="),
        Effect(name, rate, few.rate, every.rate, 0.6, "ratio>="),
        Effect("the longest wait beside every turn and an answer", "seconds", few.wait, bound, 1.0, "ratio<="),
        Effect("adapters exchanged", "loads", few.loads, every.loads, 1.0, "difference>=", control=True),
    ]


@dataclass(frozen=True, slots=True)
class Traffic:
    """What every request was answered, tokens per CPU second, longest wait and answer in seconds, adapters loaded."""

    said: Mapping[int, list[int]]
    rate: float
    wait: float
    longest: float
    loads: float


def _traffic(bench: Bench, workdir: Path, active: int) -> Traffic:
    load = bench.load
    draw = np.random.default_rng(derive(bench.seed, "traffic"))
    odds = 1.0 / np.arange(1, load.adapters + 1) ** load.zipf
    whose = draw.choice(draw.permutation(load.adapters), load.traffic, p=odds / odds.sum())
    prompts = draw.integers(8, load.vocabulary, (load.traffic, load.prompt)).tolist()
    adapters = AdapterConfig(roots=(workdir / "random-adapters",), max_active=active, cycle_time=load.cycle)
    engine = Engine.load(workdir / "random", config=EngineConfig(adapters=adapters))
    sampling = Sampling(max_tokens=load.new, temperature=0.0, ignore_eos=True)
    waiting = list(range(load.traffic))
    outputs: dict[int, Output] = {}
    took: list[float] = []

    async def client() -> None:
        while waiting:
            i, begun = waiting.pop(0), time.perf_counter()
            (outputs[i],) = await engine.agenerate([Request(prompts[i], sampling, adapter=f"a{whose[i]}")])
            took.append(time.perf_counter() - begun - outputs[i].queued)

    async def everyone() -> None:
        await asyncio.gather(*(client() for _ in range(load.clients)))

    begun = time.process_time()
    asyncio.run(everyone())
    seconds = time.process_time() - begun
    said = {i: output.token_ids for i, output in outputs.items()}
    wait = max(output.queued for output in outputs.values())
    rate = sum(map(len, said.values())) / seconds
    return Traffic(said, rate, wait, max(took), engine.adapters.stats()["loads"])


def picture(rates: Mapping[str, float], folder: Path) -> None:
    """Tokens per second by number of adapters, with the other ways to serve 18 of them beside."""
    import matplotlib
    from matplotlib.figure import Figure

    colour = theme.LIGHT
    with matplotlib.rc_context({**theme.rc_params(), "figure.facecolor": colour["page"]}):
        figure = Figure(figsize=(10, 4), layout="constrained")
        axes = figure.subplots()
        counts = [int(name) for name in rates if name.isdigit()]
        ways = {"mixed": "PEFT, mixed batch", "in turn": "PEFT, one adapter at a time", "apart": "a process for each"}
        looks = theme.SERIES
        axes.plot(
            counts, [rates[str(n)] for n in counts], color=colour[looks[0].color], linestyle=looks[0].dash,
            marker=looks[0].marker, label="maypole",
        )  # fmt: skip
        for look, (name, label) in zip(looks[1:], ways.items()):
            axes.plot([18], [rates[name]], color=colour[look.color], linestyle="", marker=look.marker, label=label)
        axes.set(xlabel="adapters in a batch of 32 requests", ylabel="tokens per CPU second", ylim=(0, None))
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
        folder.mkdir(exist_ok=True)
        figure.savefig(folder / "adapters.svg", metadata={"Date": None, "Creator": None})
