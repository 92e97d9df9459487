"""Fresh processes that are timed from within, each prepared as the others are."""

import multiprocessing
import os
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any
from unittest.mock import patch

from common.base.cli import first_line, print_more
from common.train.device import prepare_process


class Process:
    """A process that makes an object and calls its methods when asked to.
    Raises: RuntimeError with what went wrong in it, then and at every call."""

    def __init__(self, make: Callable[..., Any], *arguments: Any, threads: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipe, inner = spawn.Pipe()
        args = (inner, threads, make, arguments)
        self.process = spawn.Process(target=serve, args=args, daemon=True)
        # Of pools that are made when a library loads, there and not here.
        with patch.dict(os.environ, OMP_NUM_THREADS=str(threads)):
            self.process.start()
        inner.close()
        self.freed_memory_kept = self.receive()

    def call(self, method: str, *arguments: Any) -> Any:
        self.send(method, *arguments)
        return self.receive()

    def send(self, method: str, *arguments: Any) -> None:
        """Begin a call, which goes on beside this process until its answer is received."""
        with suppress(ConnectionError):  # the answer will say so
            self.pipe.send((method, arguments))

    def receive(self) -> Any:
        """The answer to a call."""
        try:
            value, error = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            error = f"the engine's process ended with status {self.process.exitcode}"
        if error:
            raise RuntimeError(error)
        return value

    def close(self) -> None:
        self.pipe.close()
        self.process.join(timeout=10)
        self.process.kill()  # where it has not ended
        self.process.join()


def serve(pipe: Connection, threads: int, make: Callable[..., Any], arguments: tuple) -> None:
    """Body of a process: make the object, then do what comes through the pipe until it closes."""
    try:
        kept = prepare_process(threads)
        served = make(*arguments)
        pipe.send((kept, None))
        while True:
            method, arguments = pipe.recv()
            pipe.send((getattr(served, method)(*arguments), None))
    except EOFError:
        return
    except Exception as error:  # a damaged file costs its engine's rows, and no other's
        print_more(error)
        pipe.send((None, first_line(error)))
