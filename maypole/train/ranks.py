"""The processes that train one model together, as `accelerate launch` or torchrun start them; alone it does nothing.

What they tell each other goes over gloo, whatever their devices are; only tensors go over the devices' own backend.
What ends one of them ends all, and the first speaks for them. Knows nothing about models, rows or steps.
"""

import atexit
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from maypole.core.artifact import Artifact
from maypole.core.errors import ArtifactError, MaypoleError, UnsupportedCapability, UserError, portable

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

T = TypeVar("T")

BUCKET_BYTES = 64 * 2**20
"""Gradients that travel together; copied once, so that many small ones cost one message."""

PATIENCE = timedelta(days=30)
"""The first process may take this long over what the others wait for, as the rows of a round."""

ANSWER = timedelta(seconds=5)
"""How long a process that failed waits for the first to speak for it, before it speaks itself."""

_control: Any = None
"""The gloo group of all processes."""
_joined: "Ranks | None" = None


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among `size`. `sharded`: each holds a part of every weight (FSDP2) rather than all of them.

    `local` counts the processes of one machine; `device` is this process's, None alone, where the model's counts.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    sharded: bool = False
    device: "torch.device | None" = None

    @property
    def first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    def each(self, make: Callable[[], T]) -> list[T]:
        """What `make` gives in every process, in their order; what one raises all raise."""
        if self.size == 1:
            return [make()]
        import torch.distributed as dist

        value, error = None, None
        try:
            value = make()
        except Exception as raised:
            if self.sharded:  # the others are not here: they wait for this one's shards
                raise
            error = raised
        said: list[Any] = [None] * self.size
        with _noticing_the_lost():
            dist.all_gather_object(said, (value, error and portable(error, f"in process {self.rank}")), group=_control)
        failed = next((e for _, e in said if e is not None), None)
        if failed is not None:
            raise error if error is not None and self.first else failed
        return [value for value, _ in said]

    def lead(self, make: Callable[[], T]) -> T:
        """What `make` gives in the first process, in all of them."""
        found: Any = self.each(lambda: make() if self.first else None)[0]
        return found

    def in_turn(self, make: Callable[[], T]) -> T:
        """Made by the first process of each machine, then by its others, which find in the cache what that took."""
        mine: list[T] = []
        self.each(lambda: mine.append(make()) if self.local == 0 else None)
        return mine[0] if mine else make()

    def any(self, here: bool) -> bool:
        """Whether `here` is true in any process."""
        return any(self.each(lambda: here))

    def sum(self, tensors: Sequence["torch.Tensor"]) -> None:
        """Every tensor becomes the sum of its namesakes in all processes."""
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        for bucket in _buckets(tensors):
            flat = torch.cat([t.reshape(-1) for t in bucket])
            with _noticing_the_lost():
                dist.all_reduce(flat)
            for tensor, total in zip(bucket, flat.split([t.numel() for t in bucket])):
                tensor.copy_(total.view_as(tensor))

    def same(self, what: str, value: object) -> None:
        """UserError unless `value` is the same in all processes."""
        if len(set(self.each(lambda: value))) > 1:
            raise UserError(f"the processes began with different {what}", expected="the same files on every machine")

    def open(self, begin: Callable[[], Artifact]) -> Artifact:
        """The artifact that `begin` opens in the first process; the others see its files and hold no lock."""
        mine: list[Artifact] = []

        def opened() -> tuple[Any, ...]:
            mine.append(begin())
            return mine[0].path.resolve(), mine[0].out, mine[0].manifest

        path, out, manifest = self.lead(opened)
        self.each(lambda: _check_seen(path))
        if mine:
            return mine[0]
        artifact = Artifact(path, manifest)
        artifact.out = out
        return artifact

    def finish(self, artifact: Artifact, metrics: dict[str, Any] | None = None) -> Artifact:
        """Made whole by the first process; where it stands then is known to all."""

        def finished() -> tuple[Any, ...]:
            artifact.finish(metrics)
            return artifact.path, artifact.manifest

        artifact.path, artifact.manifest = self.lead(finished)
        return artifact

    @contextmanager
    def together(self) -> Iterator[None]:
        """What ends one process inside ends all: the first raises it, the others leave with SystemExit, silent."""
        if self.size == 1:
            yield
            return
        try:
            yield
        except (SystemExit, GeneratorExit):
            raise
        except BaseException as error:
            raise (_as_the_first(error) if self.first else _as_another(error, self)) from error


ALONE = Ranks()


def join() -> Ranks:
    """This process's place among those that a launcher started with it; UserError says which launches cannot work."""
    global _control, _joined
    if _joined is not None:
        return _joined
    size = int(os.environ.get("WORLD_SIZE", "1"))
    # Weights are sharded here, on any device; left in place, transformers would load none in all processes but one.
    sharded = os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise UnsupportedCapability("DeepSpeed is not available", "--use_deepspeed", "--use_fsdp --fsdp_version 2")
    if size == 1:
        return ALONE
    if sharded and os.environ.get("FSDP_VERSION", "1") != "2":
        raise UnsupportedCapability("FSDP 1 is not available", "--use_fsdp", "--fsdp_version 2")
    if os.environ.get("FSDP_ACTIVATION_CHECKPOINTING", "false").lower() == "true":
        expected = "maypole's --gradient-checkpointing true"
        raise UnsupportedCapability("is not available", "--fsdp_activation_checkpointing", expected)
    if "RANK" not in os.environ:
        expected = "a start by accelerate launch or torchrun, or neither of them set"
        raise UserError("WORLD_SIZE is set, and RANK is not", expected=expected)
    import torch
    import torch.distributed as dist

    local = int(os.environ.get("LOCAL_RANK", "0"))
    cpu = not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "false").lower() == "true"
    device = torch.device("cpu") if cpu else torch.device("cuda", local)
    if not cpu:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("gloo" if cpu else None)
        atexit.register(_leave)
    _control = dist.new_group(backend="gloo", timeout=PATIENCE)
    _joined = Ranks(dist.get_rank(), size, local, sharded, device)
    return _joined


def _leave() -> None:
    """Joins the groups' threads while the interpreter still stands: one that outlives it may abort the process."""
    global _control
    import torch.distributed as dist

    _control = None
    if dist.is_initialized():
        with suppress(RuntimeError):
            dist.destroy_process_group()


class LostProcess(MaypoleError):
    """A process that trained with this one is gone, and did not say why."""

    def __init__(self) -> None:
        hint = "killed, or out of memory? The same command goes on from the last checkpoint"
        super().__init__(f"one of {os.environ['WORLD_SIZE']} processes is gone\n  hint: {hint}")


@contextmanager
def _noticing_the_lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise LostProcess from error


def _as_the_first(error: BaseException) -> BaseException:
    """What the first process says: its own error, or where that only tells that another is gone, the other's."""
    store = _store()
    with suppress(RuntimeError):
        if isinstance(error, RuntimeError | LostProcess) and store.check(["error"]):
            error = pickle.loads(store.get("error"))
        store.set("told", "")
    return LostProcess() if _is_lost(error) else error


def _as_another(error: BaseException, ranks: Ranks) -> BaseException:
    """SystemExit once the first has spoken, or where there is nothing to say; else the error."""
    global _control
    if isinstance(error, LostProcess) or _is_lost(error):
        return SystemExit(3)
    if _control is None:  # it was in vain before
        return error
    import torch.distributed as dist

    with suppress(RuntimeError):
        store = _store()
        note: Any = pickle.dumps(portable(error, f"in process {ranks.rank}"))  # the stubs want text
        store.set("error", note)
        control, _control = _control, None
        dist.destroy_process_group(control)  # wakes those that wait for this process
        del control
        if ranks.device is not None and ranks.device.type == "cpu":
            dist.destroy_process_group()
        store.wait(["told"], ANSWER)
        return SystemExit(130 if isinstance(error, KeyboardInterrupt) else 2 if isinstance(error, UserError) else 3)
    return error


def _check_seen(path: Path) -> None:
    if not path.is_dir():
        expected = "an --out on a file system that all machines share, under the same path"
        raise ArtifactError("another machine does not see it", str(path), expected)


def _is_lost(error: BaseException) -> bool:
    """Whether a collective inside a library failed because a process is gone."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _store() -> "dist.Store":
    import torch.distributed as dist

    return dist.PrefixStore("maypole", dist.distributed_c10d._get_default_store())


def _buckets(tensors: Sequence["torch.Tensor"]) -> Iterator[list["torch.Tensor"]]:
    bucket: list[torch.Tensor] = []
    for tensor in tensors:
        if bucket and (tensor.dtype != bucket[0].dtype or sum(t.nbytes for t in bucket) + tensor.nbytes > BUCKET_BYTES):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
