"""Starts `python -m src...` as a fork of a process with all imports done: 0.6 s instead of 12 s.

`install()` replaces `subprocess.Popen` with `ForkedPopen`, here and in the processes that it starts, so that the
children of DDP and of searches are forks too. All other commands start as usual, and so do commands whose
environment sets `REAL_INTERPRETER`.
"""

import atexit
import inspect
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from multiprocessing import forkserver, reduction
from multiprocessing.context import ForkServerProcess
from typing import Any

from src import ROOT

CONTEXT = multiprocessing.get_context("forkserver")


def install() -> None:
    """Fork the commands that this process starts."""
    CONTEXT.set_forkserver_preload(["tests.preload"])
    if forkserver.get_inherited_fds() is not None:
        # A fork asks the server that it came from; Python 3.11 to 3.14 would start, and preload, a second server.
        forkserver._forkserver.ensure_running = lambda: None  # type: ignore[attr-defined]
    subprocess.Popen = ForkedPopen  # type: ignore[misc]


class ForkedPopen(subprocess.Popen[Any]):
    """`subprocess.Popen`, except that multiprocessing's fork server forks the commands of this project."""

    forked: ForkServerProcess | None = None

    def _execute_child(self, *given: Any) -> None:
        start = super()._execute_child  # type: ignore[misc]
        call = inspect.signature(start).bind(*given).arguments
        env = dict(os.environ if call["env"] is None else call["env"])
        if not _is_command(call["args"], env, call["cwd"]) or call["preexec_fn"] is not None:
            start(*given)
            return
        child_fds = (call["p2cread"], call["c2pwrite"], call["errwrite"])
        fds = [_Fd(number if fd == -1 else fd) for number, fd in enumerate(child_fds)]
        cwd = os.fspath(call["cwd"] or os.getcwd())
        arguments = (list(map(str, call["args"][2:])), env, cwd, fds, call["start_new_session"])
        self.forked = CONTEXT.Process(target=_run, args=arguments)
        self.forked.start()
        self.pid = self.forked.pid  # type: ignore[assignment]
        self._child_created = True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(call[name] for name in pipes))  # type: ignore[attr-defined]

    def _internal_poll(self, *given: Any, **options: Any) -> Any:
        if self.forked is None:
            return super()._internal_poll(*given, **options)  # type: ignore[misc]
        if self.returncode is None:
            self.returncode = self.forked.exitcode  # type: ignore[assignment]
        return self.returncode

    def _wait(self, timeout: float | None) -> Any:
        if self.forked is None:
            return super()._wait(timeout)  # type: ignore[misc]
        self.forked.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode


class _Fd:
    """A file descriptor to pass to a forked process."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> Any:
        return _detach, (reduction.DupFd(self.fd),)


def _detach(fd: Any) -> int:
    number: int = fd.detach()
    return number


def _is_command(args: Any, env: dict[str, str], cwd: Any) -> bool:
    if isinstance(args, str | bytes | os.PathLike) or "REAL_INTERPRETER" in env:
        return False
    words = [os.fspath(word) for word in args]
    in_copy = env.get("PYTHONPATH", str(ROOT)) != str(ROOT) or (os.path.isdir(f"{cwd}/src") and str(cwd) != str(ROOT))
    return words[:2] == [sys.executable, "-m"] and words[2].startswith("src.") and not in_copy


def _run(words: list[str], env: dict[str, str], cwd: str, fds: list[int], new_session: bool) -> None:
    """Run a command in a forked process as a new interpreter would."""
    import torch
    from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only

    for number, fd in enumerate(fds):
        os.dup2(fd, number)
    for fd in set(fds):
        os.close(fd)
    if new_session:
        os.setsid()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    multiprocessing.set_start_method(None, force=True)  # so that its workers are its children, as usual
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(int(env.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    rank_zero_only.rank = _get_rank() or 0  # Lightning reads it from the environment only when it is imported
    sys.argv = ["", *words[1:]]
    install()
    code: Any = 0
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        code = stop.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (BrokenPipeError, OSError):
            code = code or 120
    os._exit(code if isinstance(code, int) else int(code is not None))
