"""One function over many shards, one file each: in this process, in several, or on a Ray cluster, with equal bytes.

A file appears when it is whole; killed at any moment, the same command goes on with the shards that are missing. Memory
holds what the workers work on and one small result a shard. Knows nothing about what a shard is.
"""

import json
import os
import pickle
import secrets
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from maypole.core.artifact import Artifact
from maypole.core.atomic import fsync_directory, fsync_file, write_atomic
from maypole.core.errors import ConfigError, MaypoleError, portable
from maypole.core.identity import digest, identity
from maypole.core.progress import track
from maypole.core.ray_cluster import connected

Setup = Callable[[], Any]
"""Makes what a worker needs for all its shards (a model, an engine); called once per worker."""
Function = Callable[[Any, Any, Path], Any]
"""function(state, shard, path) writes the file `path` and returns a small result that JSON can hold."""

Made = Generator[tuple[str, Any], None, None]
"""Name and result of each file as it is made, in any order."""

RESTARTS = 3
"""How often a worker that died on a Ray cluster is started again."""


@dataclass(frozen=True, slots=True)
class _Job:
    shard: Any
    path: Path


def map_shards(
    setup: Setup,
    function: Function,
    shards: Mapping[str, Any],
    *,
    out: Artifact,
    title: str,
    workers: int = 1,
    ray: str | None = None,
) -> list[Any]:
    """Make the file of every shard in the open artifact `out`; the functions' results in the order of the shards.

    What a function raises is raised here. MaypoleError where a worker's process died.

    Parameters
    ----------
    setup, function
        With several workers or Ray they and the shards are pickled, so module-level functions or partials.
    shards
        The file's path inside `out` -> the shard. A file made before is kept if the keys of `out` and of the shard
        (its `core.identity`) are those it was made with.
    workers
        1 works in this process, on its own memory.
    ray
        "local", or the address of a cluster whose nodes see `out` at the same path.
    """
    if workers < 1:
        raise ConfigError("workers", workers, "a whole number above 0")
    notes = {name: _Note(out, name, shard) for name, shard in shards.items()}
    results = {name: note.result for name, note in notes.items() if note.fits()}
    todo = {name: _Job(shard, out.path / name) for name, shard in shards.items() if name not in results}
    for job in todo.values():
        job.path.parent.mkdir(parents=True, exist_ok=True)
    if ray is not None:
        made = _on_ray(ray, setup, function, todo, workers)
    elif workers == 1 or len(todo) < 2:
        made = _here(setup, function, todo)
    else:
        made = _in_processes(setup, function, todo, min(workers, len(todo)))
    with track(title, len(shards), "shards") as step, closing(made):
        step(len(results))
        for name, result in made:
            results[name] = notes[name].write(result)
            step(1)
    return [results[name] for name in shards]


class _Note:
    """What is remembered about a finished file until all are: the key it was made with, and the function's result."""

    def __init__(self, out: Artifact, name: str, shard: Any) -> None:
        known_as = identity(shard)
        if known_as is None:
            raise ValueError(f"shard {name}: a {type(shard).__name__} has no identity, so it could not be resumed")
        self._file = out.path / name
        self._key = digest("shard", out.key, known_as)
        self._path = out.checkpoints / "shards" / f"{digest(name)}.json"

    def fits(self) -> bool:
        return self._file.is_file() and self._path.is_file() and self._read()["key"] == self._key

    @property
    def result(self) -> Any:
        return self._read()["result"]

    def write(self, result: Any) -> Any:
        if not self._file.is_file():
            what = "was written elsewhere: the workers do not see the directory of the result"
            raise MaypoleError(f"{self._file} {what}; it must be on a file system that all nodes share")
        self._path.parent.mkdir(exist_ok=True)
        write_atomic(self._path, json.dumps({"key": self._key, "result": result}) + "\n")
        return result

    def _read(self) -> dict[str, Any]:
        return json.loads(self._path.read_bytes())


def _write(function: Function, state: Any, job: _Job) -> Any:
    """Run `function` into a file beside the wanted one, renamed when it is whole and on the disk."""
    part = job.path.with_name(f".{job.path.name}.{secrets.token_hex(4)}.tmp")
    try:
        result = function(state, job.shard, part)
        fsync_file(part)
        os.replace(part, job.path)
        fsync_directory(job.path.parent)
    finally:
        part.unlink(missing_ok=True)
    return result


def _here(setup: Setup, function: Function, todo: Mapping[str, _Job]) -> Made:
    state = setup() if todo else None
    for name, job in todo.items():
        yield name, _write(function, state, job)


def _in_processes(setup: Setup, function: Function, todo: Mapping[str, _Job], workers: int) -> Made:
    """Results as they come; the processes end with this iterator, however it ends."""
    context = get_context("spawn")  # a fork would take torch's threads and locks along
    threads = max(1, (os.cpu_count() or 1) // workers)
    waiting, running = deque(todo), dict[Connection, str]()
    processes: dict[Connection, BaseProcess] = {}
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe()
            processes[ours] = context.Process(target=_serve, args=(theirs, os.getpid(), threads), daemon=True)
            processes[ours].start()
            theirs.close()
            ours.send_bytes(pickle.dumps((setup, function)))
            running[ours] = waiting.popleft()
            ours.send((running[ours], todo[running[ours]]))
        while running:
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                name = running.pop(ready)
                try:
                    result, error = ready.recv()
                except EOFError as gone:
                    processes[ready].join()
                    raise _died(name, f"its exit code is {processes[ready].exitcode}") from gone
                if error is not None:
                    raise error
                yield name, result
                if waiting:
                    running[ready] = waiting.popleft()
                    ready.send((running[ready], todo[running[ready]]))
    finally:
        for process in processes.values():
            process.kill()
        for process in processes.values():
            process.join()


def _serve(connection: Connection, parent: int, threads: int) -> None:
    """A worker's life: setup and function first, then one job after the other until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # before what is unpickled imports torch
    worker: _Worker | None = None
    given = connection.recv_bytes()
    while True:
        try:
            _, job = connection.recv()
        except EOFError:
            return
        try:
            worker = worker or _Worker(*pickle.loads(given), os.getcwd())
            answer = worker.run(job)
        except BaseException as error:
            answer = None, portable(error, "in a worker")
        connection.send(answer)


def _end_with(parent: int) -> None:
    """End this process when its parent is gone: an orphan would write beside the run that goes on."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


class _Worker:
    """Setup's state and the function, in a process of their own that takes relative paths as beginning in `folder`."""

    def __init__(self, setup: Setup, function: Function, folder: str) -> None:
        self._setup, self._function, self._folder = setup, function, folder
        self._made: list[Any] = []

    def run(self, job: _Job) -> tuple[Any, BaseException | None]:
        """The result, or what went wrong: an exception that is raised here would come out wrapped on a cluster."""
        try:
            if not self._made:
                os.chdir(self._folder)
                self._made.append(self._setup())
            return _write(self._function, self._made[0], job), None
        except Exception as error:
            return None, portable(error, "in a worker")


def _died(name: str, how: str) -> MaypoleError:
    hint = "out of memory? Then fewer workers help; the same command goes on with what is missing"
    return MaypoleError(f"a worker died while it made {name}: {how}\n  hint: {hint}")


def _on_ray(address: str, setup: Setup, function: Function, todo: Mapping[str, _Job], workers: int) -> Made:
    """Results as they come from actors, one job each at a time; an actor that dies is started again."""
    with redirect_stdout(sys.stderr), connected(address, workers) as has:  # Ray says on stdout that a worker died
        yield from _as_actors(has, setup, function, todo, workers)


def _as_actors(
    has: Mapping[str, float], setup: Setup, function: Function, todo: Mapping[str, _Job], workers: int
) -> Made:
    import ray
    from ray.exceptions import RayActorError

    actors: list[Any] = []
    try:
        # Each worker takes its part of the cluster: all cores' threads are used, and a GPU each where there are enough.
        part = {"num_cpus": max(1, int(has["CPU"]) // workers), "num_gpus": min(1.0, has.get("GPU", 0.0) / workers)}
        actor: Any = ray.remote(**part, max_restarts=RESTARTS, max_task_retries=RESTARTS)(_Worker)
        waiting, running = deque(todo), dict[Any, tuple[Any, str]]()
        while waiting and len(actors) < workers:
            actors.append(actor.remote(setup, function, os.getcwd()))
            name = waiting.popleft()
            running[actors[-1].run.remote(todo[name])] = actors[-1], name
        while running:
            (ready,), _ = ray.wait(list(running))
            worker, name = running.pop(ready)
            try:
                result, error = ray.get(ready)
            except RayActorError as gone:
                raise _died(name, str(gone).splitlines()[0]) from gone
            if error is not None:
                raise error
            yield name, result
            if waiting:
                following = waiting.popleft()
                running[worker.run.remote(todo[following])] = worker, following
    finally:
        for worker in actors:
            ray.kill(worker)
