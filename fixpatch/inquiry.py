"""Ask the process that looks at files (`examiner`), which starts with the first question."""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from fixpatch.apart import command_for
from fixpatch.errors import ModelError, UnsafeError

ONCE_SECONDS = 600
Job = dict[str, Any]


@dataclass
class Question:
    """A job that the examiner has, and what it said."""

    job: Job
    said: Job | None = None


@dataclass
class Examiner:
    """The process that looks at files; it starts with the first job, and anew where it has gone.

    Attributes:
        owner: Id of the process that started it; a fork of that has to start its own.
        anew: It was started again for a job that got no answer, and once is enough.
        waiting: Jobs without an answer, in the order of the answers to come.
    """

    process: subprocess.Popen | None = None
    owner: int = 0
    anew: bool = False
    waiting: deque[Question] = field(default_factory=deque)

    def hand(self, job: Job) -> Question:
        """Hand in a job without waiting for it."""
        if not self.waiting and not self._lives():
            self._begin_anew()
        question = Question(job)
        self.waiting.append(question)
        self._send(job)
        return question

    def answer(self, question: Question) -> Job:
        """Wait for what the examiner says of a job.

        Raises:
            UnsafeError: The file cannot be opened; says why.
            ModelError: It is no model that fixpatch opens.
        """
        while question.said is None:
            assert self.process is not None
            assert self.process.stdout is not None
            line = self.process.stdout.readline()
            if line or self.anew:
                self.waiting.popleft().said = json.loads(line) if line else {"reason": GONE}
                self.anew = False
            else:  # it may have ended, having had nothing to do, just when it got the job
                self._begin_anew()
                self.anew = True
                for waiting in self.waiting:
                    self._send(waiting.job)
        return told_by(question.said)

    def glance(self, question: Question, seconds: float) -> None:
        """Wait a little for what the examiner says of a job; raises as `answer` does if it was said by then."""
        assert self.process is not None
        assert self.process.stdout is not None
        if select.select([self.process.stdout], [], [], seconds)[0]:
            self.answer(question)

    def _lives(self) -> bool:
        # After a fork, the pipes are the other process's.
        return self.process is not None and self.owner == os.getpid() and self.process.poll() is None

    def _begin_anew(self) -> None:
        self.close()
        self.process, self.owner = _start("numpy"), os.getpid()

    def _send(self, job: Job) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # `answer` notices
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()

    def close(self) -> None:
        """Let the process end."""
        if self.process is not None and self.owner == os.getpid():
            with suppress(BrokenPipeError), self.process:  # closes its input, and waits
                pass
        self.process = None


GONE = "the process that looks at files has gone (was it stopped, or is memory short?)"
EXAMINER = Examiner()


def _start(backend: str, *options: str) -> subprocess.Popen:
    """Start the examiner with as few threads as it needs: each would count as memory of its children."""
    quiet = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONDONTWRITEBYTECODE": "1", **quiet}
    line, pipe = command_for("examiner", *options), subprocess.PIPE
    return subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=environment)


def told_by(said: Job) -> Job:
    """Return the answer in what the examiner said, or raise what it refused."""
    if "fault" in said:
        raise ModelError(printable(said["fault"]), printable(said["hint"]))
    if "reason" in said:
        raise UnsafeError(printable(said["reason"]))
    return dict(said["answer"])


def printable(text: str) -> str:
    """Leave out what steers a terminal: names in a stranger's file are his."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:1000]


def ask(job: Job) -> Job:
    """Return the examiner's answer to a job; raises as `Examiner.answer` does."""
    return EXAMINER.answer(EXAMINER.hand(job))


def ask_once(job: Job) -> Job:
    """Have a model built by a process with the backend that this one has: the user's own code may call it directly.

    Raises:
        UnsafeError, ModelError: As `ask` does.
    """
    import keras

    with _start(keras.backend.backend(), "--once") as process:
        try:
            said, _ = process.communicate(json.dumps(job) + "\n", timeout=ONCE_SECONDS)
            found = dict(json.loads(said.splitlines()[-1]))
        except (subprocess.TimeoutExpired, ValueError, IndexError):
            process.kill()
            found = {"reason": "building it took too long, or more memory than its size accounts for"}
    return told_by(found)


atexit.register(EXAMINER.close)
