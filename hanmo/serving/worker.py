"""The inference thread, which alone owns the engines, and the jobs that the event loop gives it.

Commands go to the thread through a queue; what a step has brought comes back in one call on the event loop. Everything
that is not said to run in the thread belongs to the event loop, so nothing is locked.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hanmo.generation.engine import Engine
from hanmo.generation.group import Group
from hanmo.nn.row_model import evaluating
from hanmo.serving.errors import ApiError, api_error, overloaded
from hanmo.serving.job import Ask, Job, Update

T = TypeVar("T")
STOP_WAIT = 5  # seconds to wait for the thread's last step when the server ends
_DEAD = "the model's worker has died; the server is about to end"


@dataclass
class _Live:
    """A reply in the thread: its group in the engine, and how much of it has been reported."""

    job: Job
    index: int
    group: Group
    ids: int = 0
    logprobs: int = 0
    best: int = 0
    started: bool = False


@dataclass
class _Do:
    """A function to run in the thread between two steps."""

    function: Callable[[], Any]
    done: asyncio.Future[Any]


_Add = tuple[Job, Sequence[int], "asyncio.Future[None] | None"]


@dataclass
class Worker:
    """Owner of the thread. ``dead`` says why it has ended, once it has."""

    engines: Mapping[str, Engine]  # by the name of the model
    most_waiting: int = 256  # replies that wait for a row
    waiting: Counter[str] = field(default_factory=Counter)  # replies, by model
    running: Counter[str] = field(default_factory=Counter)
    dead: str | None = None
    closing: bool = False  # the server is about to end
    on_death: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Start the thread, from the event loop that it will report to."""
        self._loop = asyncio.get_running_loop()
        self._jobs: set[Job] = set()
        self._promised: set[asyncio.Future[Any]] = set()
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._live: dict[tuple[int, int], _Live] = {}  # in the thread, as all below
        self._functions: deque[_Do] = deque()
        self._news: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._run, name="hanmo inference", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its current step."""
        self._commands.put(None)
        self._thread.join(STOP_WAIT)

    async def submit(self, model: str, asks: Sequence[Ask]) -> Job:
        """A job whose replies the engine has accepted; HanmoError if it refuses one, ApiError if there is no place."""
        self._require_open()
        if self.waiting.total() + len(asks) > self.most_waiting:
            raise overloaded(f"the queue is full: {self.waiting.total()} replies wait already; try later", "queue_full")
        job = Job(self, model, asks)
        self._jobs.add(job)
        self.waiting[model] += len(asks)
        accepted = self._promise()
        self._commands.put(lambda: self._add(job, range(len(asks)), accepted))
        try:
            await accepted
        except BaseException:
            self.close(job)
            raise
        return job

    def extend(self, job: Job, index: int, ask: Ask) -> None:
        job.asks[index] = ask
        self.waiting[job.model] += 1
        self._commands.put(lambda: self._add(job, [index], None))

    def cancel(self, job: Job, index: int) -> None:
        self._commands.put(lambda: self._cancel(job, index))

    def close(self, job: Job) -> None:
        """The request is answered: forget its job, and cancel what is left of it."""
        job.cancel()
        self._jobs.discard(job)

    async def run(self, function: Callable[[], T]) -> T:
        """The result of a function that is run in the thread between two steps."""
        self._require_open()
        done = self._promise()
        self._commands.put(lambda: self._functions.append(_Do(function, done)))
        return await done

    def _promise(self) -> asyncio.Future[Any]:
        """A future that the thread settles, or its death."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._promised.add(future)
        future.add_done_callback(self._promised.discard)
        return future

    def end_jobs(self) -> None:
        """End every reply where it is, because the server ends."""
        for job in list(self._jobs):
            job.end(Update(finish="shutdown"))

    def _require_open(self) -> None:
        if self.dead is not None:
            raise overloaded(_DEAD, "worker_dead")
        if self.closing:
            raise overloaded("the server is about to end", "shutting_down")

    # In the thread.

    def _run(self) -> None:
        try:
            with ExitStack() as stack:
                for engine in self.engines.values():
                    stack.enter_context(evaluating(engine.model.network))
                while self._obey():
                    self._round()
        except BaseException as error:
            traceback.print_exc()
            problem = f"{type(error).__name__}: {error}"
            with suppress(RuntimeError):  # the event loop has ended first
                self._loop.call_soon_threadsafe(self._died, problem)

    def _round(self) -> None:
        """A step of every engine, and one function."""
        for engine in self.engines.values():
            if not engine.idle:
                self._report(engine.step())
        if self._functions:
            self._call(self._functions.popleft())
        self._tell()

    def _obey(self) -> bool:
        """Run the commands that have arrived, waiting for one if there is nothing else to do; False at the end."""
        idle = not self._functions and all(engine.idle for engine in self.engines.values())
        while True:
            try:
                command = self._commands.get(block=idle)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            idle = False
            self._tell()

    def _tell(self) -> None:
        """Report to the event loop, in one call."""
        if self._news:
            news, self._news = self._news, []
            self._loop.call_soon_threadsafe(lambda: [report() for report in news])

    def _add(self, job: Job, indices: Sequence[int], accepted: asyncio.Future[None] | None) -> None:
        problem: Exception | None = None
        for index in indices:
            ask = job.asks[index]
            try:
                if problem is None:
                    engine = self.engines[job.model]
                    group = engine.add([ask.context], ask.settings, [ask.place], best=ask.best)
                    self._live[id(job), index] = _Live(job, index, group)
                    continue
            except Exception as error:
                problem = _noted(error)
            self._over(job, index, False, Update(error=problem))
        if accepted is not None:
            self._news.append(lambda: _settle(accepted, None, problem))

    def _cancel(self, job: Job, index: int) -> None:
        live = self._live.pop((id(job), index), None)
        if live is not None:
            self.engines[job.model].cancel(live.group)
            self._over(job, index, live.started, Update(finish="cancelled"))

    def _call(self, do: _Do) -> None:
        if do.done.cancelled():
            return
        result, problem = None, None
        try:
            result = do.function()
        except Exception as error:
            problem = _noted(error)
        self._news.append(lambda: _settle(do.done, result, problem))

    def _report(self, changed: Sequence[Group]) -> None:
        """Report what a step has changed."""
        groups = {id(group) for group in changed}
        for key, live in [(key, live) for key, live in self._live.items() if id(live.group) in groups]:
            if live.group.started and not live.started:
                live.started = True
                first = live.job.asks[live.index].place.choice == 0  # the others read the same prompt
                reused = live.group.reused if first else 0
                self._news.append(lambda job=live.job, reused=reused: self._started(job, reused))  # type: ignore[misc]
            update = _news_of(live)
            if update.finish is not None or update.error is not None:
                del self._live[key]
                self._over(live.job, live.index, live.started, update)
            else:
                self._news.append(lambda live=live, update=update: live.job.receive(live.index, update))  # type: ignore[misc]

    def _over(self, job: Job, index: int, started: bool, update: Update) -> None:
        def report() -> None:
            (self.running if started else self.waiting)[job.model] -= 1
            job.receive(index, update)

        self._news.append(report)

    # On the event loop again.

    def _started(self, job: Job, reused: int) -> None:
        job.reused += reused
        self.waiting[job.model] -= 1
        self.running[job.model] += 1
        job.started_at = job.started_at or time.monotonic()

    def _died(self, problem: str) -> None:
        self.dead = problem
        error = overloaded(_DEAD, "worker_dead")
        for future in list(self._promised):
            _settle(future, None, error)
        for job in list(self._jobs):
            job.end(Update(error=error))
        self.waiting.clear()
        self.running.clear()
        self.on_death()


def _news_of(live: _Live) -> Update:
    """What has not been reported of a reply."""
    group, [reply] = live.group, live.group.replies
    update = Update(
        tuple(reply.ids[live.ids :]),
        tuple(reply.logprobs[live.logprobs :]),
        tuple(reply.best[live.best :]),
        reply.finish if group.done else None,
        None if group.error is None else _noted(group.error),
        reply.stop,
    )
    live.ids, live.logprobs, live.best = len(reply.ids), len(reply.logprobs), len(reply.best)
    return update


def _noted(error: Exception) -> Exception:
    """The error as the client is told it; the log of the server holds what the client is not told."""
    told = api_error(error)
    if told.status >= 500 and not isinstance(error, ApiError):
        traceback.print_exception(type(error), error, error.__traceback__)
    return told


def _settle(future: asyncio.Future[Any], result: Any, problem: Exception | None) -> None:
    if future.done():  # cancelled; or settled just before the thread died
        return
    if problem is None:
        future.set_result(result)
    else:
        future.set_exception(problem)
