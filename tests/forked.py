"""Starts `python -m src...` as a fork of a process with all imports done: 0.6 s instead of 12 s.

`install()` replaces `subprocess.Popen` with `ForkedPopen`, here and in the processes that it starts, so that the
children of DDP and of searches are forks too. All other commands start as usual, unless their environment sets
`FORK=n`: then `python -m`, `python -c` and `python file.py` are forks too, and those that they start, down to `n`
levels. `REAL_INTERPRETER` forbids it. In a copy of this repository, or a project made from it, a fork first forgets
the modules of this one.
"""

import atexit
import ctypes
import importlib
import inspect
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import types
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
        if not _is_command(call["args"], env) or call["preexec_fn"] is not None:
            start(*given)
            return
        child_fds = (call["p2cread"], call["c2pwrite"], call["errwrite"])
        fds = [_Fd(number if fd == -1 else fd) for number, fd in enumerate(child_fds)]
        cwd = os.fspath(call["cwd"] or os.getcwd())
        arguments = (list(map(str, call["args"][1:])), env, cwd, fds, call["start_new_session"])
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


def _is_command(args: Any, env: dict[str, str]) -> bool:
    if isinstance(args, str | bytes | os.PathLike) or "REAL_INTERPRETER" in env:
        return False
    words = [os.fspath(word) for word in args]
    if len(words) < 2 or words[0] != sys.executable:
        return False
    if env.get("FORK", "0") == "0":
        return words[1] == "-m" and words[2].startswith("src.")
    return words[1] in ("-m", "-c") or words[1].endswith(".py")


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
    os.environ.update(env, FORK=str(max(0, int(env.get("FORK", "0")) - 1)))
    os.chdir(cwd)
    for name, option in (("MALLOC_MMAP_THRESHOLD_", -3), ("MALLOC_MMAP_MAX_", -4)):  # glibc reads them only at start
        if name in env:
            ctypes.CDLL(None).mallopt(option, int(env[name]))
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    multiprocessing.set_start_method(None, force=True)  # so that its workers are its children, as usual
    if os.environ["FORK"] != "0":
        multiprocessing.context._concrete_contexts["spawn"] = CONTEXT  # type: ignore[assignment]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(int(env.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    rank_zero_only.rank = _get_rank() or 0  # Lightning reads it from the environment only when it is imported
    _forget_this_repository_in_another(env.get("PYTHONPATH") or str(ROOT), cwd)
    importlib.import_module("tests.forked").install()  # of the repository that this command is of
    code: Any = 0
    try:
        _run_python(words)
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


def _forget_this_repository_in_another(path: str, cwd: str) -> None:
    root = cwd if os.path.isdir(f"{cwd}/src") else path
    if os.path.realpath(root) != str(ROOT):
        for name in [name for name in sys.modules if f"{name}.".startswith(("src.", "tests."))]:
            del sys.modules[name]
        sys.path[:] = [root, *(entry for entry in sys.path if entry not in ("", str(ROOT)))]


def _run_python(words: list[str]) -> None:
    """Run `-m module ...`, `-c code ...` or `file.py ...`."""
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.path.insert(0, "")
        _execute(words[1])
    else:
        script = os.path.abspath(words[0])
        sys.argv = [script, *words[1:]]
        sys.path.insert(0, os.path.dirname(script))
        with open(script, encoding="utf-8") as file:
            _execute(compile(file.read(), script, "exec"), __file__=script)


def _execute(code: Any, **names: Any) -> None:
    module = types.ModuleType("__main__")
    module.__dict__.update(names)
    sys.modules["__main__"] = module
    exec(code, module.__dict__)
