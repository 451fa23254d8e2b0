"""Starts Python programs from a parent that has the imports behind it: 20 ms instead of 400.

`start` and `run` take what `subprocess.Popen` and `subprocess.run` take for ``[sys.executable, …]``
and differ in one thing alone: the process is forked from a parent that has imported the library.
It is a process of its own, at the head of its own group, to be killed as any other; it ends as an
interpreter does: threads are waited for, exit functions run, and the exit code is the same.
With ``prefect=True`` the parent is another one, which has imported Prefect too: 2 to 6 seconds;
with ``also`` one that has imported these modules besides.

The workers of pytest-xdist share what their parents import: one process does so for all, and forks
a parent for each of them (`joined`).

What is itself about a fresh interpreter (what an import loads, options of Python other than ``-W
error``) starts one, with `subprocess`.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing import context, popen_spawn_posix, util
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
_PATIENCE = 180.0
_PACKET = 1 << 17
_PASSED = 32  # at most
SDKS = ("openai", "anthropic")  # two to five seconds, once for all processes that use one of them


class Program:
    """One process, as `subprocess.Popen` shows it."""

    def __init__(
        self, pid: int, ended: Callable[[float | None], int | None], pipes: list[Any]
    ) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdin, self.stdout, self.stderr = pipes
        self._ended = ended

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._ended(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self.returncode = self._ended(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return self.returncode

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        deadline = None if timeout is None else time.monotonic() + timeout
        found: list[Any] = [None, None]

        def read(at: int, stream: Any) -> None:
            with stream:
                found[at] = stream.read()

        readers = [
            threading.Thread(target=read, args=(at, stream), daemon=True)
            for at, stream in enumerate((self.stdout, self.stderr))
            if stream is not None and not stream.closed
        ]
        for reader in readers:
            reader.start()
        if self.stdin is not None and not self.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                if input:
                    self.stdin.write(input)
                self.stdin.close()
        for reader in readers:
            reader.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        self.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return found[0], found[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it ends just now
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self.wait()


def _begun(theirs: socket.socket, more: list[str], session: str = "") -> subprocess.Popen[bytes]:
    """The process that imports all this and forks, with its end of a channel or a listener."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.warm", f"{theirs.fileno()}:{session}", *more],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )


def joined(run: str, session: int, more: list[str]) -> socket.socket:
    """A channel to a parent of one's own, whose imports all who ask in this run have in common.

    Whoever comes first starts the process that imports; it ends when that of the session does.
    """
    address = "\0" + " ".join(["tests.warm", run, *more])
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        try:
            listener.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            listener.listen(64)
            started = _begun(listener, more, str(session))
            started.returncode = 0  # it outlives this process, on purpose
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    until = time.monotonic() + _PATIENCE
    while channel.connect_ex(address):  # who is first may not listen yet
        assert time.monotonic() < until, "nobody listens"
        time.sleep(0.01)
    return channel


class Parent:
    """The process that forks, seen from here."""

    def __init__(self, prefect: bool = False, also: tuple[str, ...] = ()) -> None:
        more = [*["prefect"] * prefect, *also]
        self._process: subprocess.Popen[bytes] | None = None
        if "PYTEST_XDIST_WORKER" in os.environ:
            self._socket = joined(os.environ["PYTEST_XDIST_TESTRUNUID"], os.getppid(), more)
        else:
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._process = _begun(theirs, more)
        self._count = 0
        self._started: dict[int, int] = {}
        self._ended: dict[int, int] = {}
        self._over = False
        self._news = threading.Condition()
        self._asking = threading.Lock()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def start(self, request: dict[str, Any], handles: list[int], pipes: list[Any]) -> Program:
        data = json.dumps(request).encode()
        assert len(data) < _PACKET, "too long a program for one packet"
        with self._asking:
            self._count += 1
            number = self._count
            socket.send_fds(self._socket, [data], handles)
        with self._news:
            self._news.wait_for(lambda: number in self._started or self._over, _PATIENCE)
            assert number in self._started, "the warm parent has died; see its standard error"
            pid = self._started.pop(number)

        def ended(seconds: float | None) -> int | None:
            with self._news:
                self._news.wait_for(lambda: number in self._ended or self._over, seconds)
                return self._ended.get(number)

        return Program(pid, ended, pipes)

    def close(self) -> None:
        """Kill what still runs, and end."""
        self._socket.shutdown(socket.SHUT_RDWR)
        if self._process is not None:
            self._process.wait(_PATIENCE)
        self._thread.join(_PATIENCE)
        self._socket.close()

    def _listen(self) -> None:
        while data := self._socket.recv(_PACKET):
            number, what, value = json.loads(data)
            with self._news:
                (self._started if what == "started" else self._ended)[number] = value
                self._news.notify_all()
        with self._news:
            self._over = True
            self._news.notify_all()


_parents: dict[tuple[bool, tuple[str, ...]], Parent] = {}


def start(
    command: Sequence[object],
    *,
    cwd: object = None,
    env: dict[str, str] | None = None,
    stdin: Any = None,
    stdout: Any = None,
    stderr: Any = None,
    text: bool = False,
    start_new_session: bool = True,
    pass_fds: Sequence[int] = (),
    prefect: bool = False,
    also: tuple[str, ...] = (),
) -> Program:
    """`subprocess.Popen` for a program of Python; the group is its own in any case."""
    words = [os.fspath(word) if isinstance(word, Path) else str(word) for word in command]
    if words[0] == sys.executable:
        words = words[1:]
    with contextlib.ExitStack() as closed:
        pipes: list[Any] = [None, None, None]
        handles: list[int] = []
        for at, given in enumerate((stdin, stdout, stderr)):
            handle, pipes[at] = _stream(at, given, handles, text, closed)
            handles.append(handle)
        handles += pass_fds
        if (prefect, also) not in _parents:
            _parents[prefect, also] = Parent(prefect, also)
            atexit.register(close)
        request = {
            "command": words,
            "cwd": os.fspath(cwd) if cwd else os.getcwd(),  # type: ignore[call-overload]
            "env": dict(os.environ if env is None else env),
            "handles": [0, 1, 2, *pass_fds],
        }
        return _parents[prefect, also].start(request, handles, pipes)


def _stream(
    at: int, given: Any, before: list[int], text: bool, closed: contextlib.ExitStack
) -> tuple[int, Any]:
    """The handle for the process, and for a pipe this side's end of it."""
    if given is subprocess.STDOUT:
        return before[1], None
    if given is subprocess.PIPE:
        reading, writing = os.pipe()
        theirs, ours = (reading, writing) if at == 0 else (writing, reading)
        closed.callback(os.close, theirs)
        stream: Any = os.fdopen(ours, "wb" if at == 0 else "rb", -1)
        return theirs, io.TextIOWrapper(stream, write_through=True) if text else stream
    if given is subprocess.DEVNULL or (given is None and at == 0):
        handle = os.open(os.devnull, os.O_RDWR)
        closed.callback(os.close, handle)
        return handle, None
    if given is None:
        return at, None
    return given if isinstance(given, int) else given.fileno(), None


def run(
    command: Sequence[object],
    *,
    input: Any = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run` for a program of Python."""
    if capture_output:
        options["stdout"] = options["stderr"] = subprocess.PIPE
    if input is not None:
        options["stdin"] = subprocess.PIPE
    with start(command, **options) as program:
        try:
            out, error = program.communicate(input, timeout)
        except BaseException:
            program.kill()
            raise
    done = subprocess.CompletedProcess(command, program.wait(), out, error)
    if check:
        done.check_returncode()
    return done


class WarmForms:
    """Before `FormSuite` among a suite's bases: its programs come from the warm parent."""

    def start(self, command: list[str], place: Path) -> Any:
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        return start(command, cwd=place, text=True, **pipes)


class Workers:
    """In the place of `subprocess` in `resumable_tasks.runners.worker`: its workers are forked."""

    def __getattr__(self, name: str) -> Any:
        return getattr(subprocess, name)

    def Popen(self, command: list[str], **how: Any) -> Any:
        words = [word for word in command if word != "-B"]
        if words[:2] != [sys.executable, "-c"]:  # under other options of Python
            return subprocess.Popen(command, **how)
        return start(words, **how)


class _Spawned(popen_spawn_posix.Popen):
    def _launch(self, process: Any) -> None:
        def begin(path: bytes, words: list[Any], handles: list[int]) -> int:
            at = words.index("-c")
            self._program = start([sys.executable, *words[at:]], pass_fds=handles)
            return self._program.pid

        with patch.object(util, "spawnv_passfds", begin):
            super()._launch(process)

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        self.returncode = self._program.poll() if flag else self._program.wait()
        return self.returncode


class _Process(context.SpawnProcess):
    @staticmethod
    def _Popen(process: Any) -> Any:
        return _Spawned(process)


class Spawn(context.SpawnContext):
    """The "spawn" of `multiprocessing`, whose processes are forked from the warm parent."""

    Process = _Process


def close() -> None:
    """End the warm parents, and with them whatever still runs."""
    while _parents:
        _parents.popitem()[1].close()


# --- In the parent. Nothing above is used there, and no thread of Python's runs, so that a fork is
# a clean one; Arrow's jemalloc has a thread in the background, and sees to it at a fork itself.


def preload(prefect: bool, also: list[str]) -> None:
    """Import what the programs would, so that none has to, and none in the middle of an attack."""
    import importlib
    import pkgutil
    import warnings

    # Python 3.12 and later count the thread of jemalloc.
    warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
    import resumable_tasks

    # All of it, by whatever names: a run that imports something late does so amid an attack.
    found = pkgutil.walk_packages(resumable_tasks.__path__, "resumable_tasks.", lambda name: None)
    names = [
        each.name
        for each in found
        if (prefect or ".prefect" not in each.name) and "_suite" not in each.name
    ]
    names += ["pyarrow.dataset", "pyarrow.parquet", "multiprocessing.spawn", "psycopg", "pytest"]
    names += [f"tests.proof.crash.{name}" for name in ("child", "mutants", "powerloss")]
    if prefect:
        names += [f"prefect.{name}" for name in ("cli", "flow_engine", "runner", "workers.process")]
        names += ["prefect.server.api.server", "httpx"]
    for name in names + also:
        try:
            importlib.import_module(name)
        except ImportError as error:  # an extra that is not installed
            if error.name is None or error.name.partition(".")[0] in ("resumable_tasks", "tests"):
                raise


def parent_for_each(listener: socket.socket, session: int) -> socket.socket | None:
    """Fork for whoever comes; returns in each child, with its channel, and None at the end."""
    import gc
    import select

    gc.freeze()
    children: set[int] = set()
    while Path(f"/proc/{session}").exists():
        children -= {pid for pid in children if os.waitpid(pid, os.WNOHANG)[0]}
        if not select.select([listener], [], [], 1.0)[0]:
            continue
        channel, _ = listener.accept()
        if pid := os.fork():
            children.add(pid)
            channel.close()
        else:
            os.setsid()
            return channel
    return None


def serve(channel: socket.socket) -> dict[str, Any] | None:
    """Fork on request; returns in each child, with the request, and at the end, with None."""
    import gc
    import select

    wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker)
    gc.freeze()
    alive: dict[int, int] = {}
    count = 0
    while True:
        ready, _, _ = select.select([channel, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
        while alive:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            _say(channel, alive.pop(pid), "ended", os.waitstatus_to_exitcode(status))
        if channel not in ready:
            continue
        data, handles, _, _ = socket.recv_fds(channel, _PACKET, 3 + _PASSED)
        if not data:
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            return None
        count += 1
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.setpgid(0, 0)
            channel.close()
            found: dict[str, Any] = json.loads(data)
            _take([wake, waker], dict(zip(found["handles"], handles, strict=True)))
            return found
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(pid, pid)
        for handle in handles:
            os.close(handle)
        alive[pid] = count
        _say(channel, count, "started", pid)


def _take(not_ours: list[int], handles: dict[int, int]) -> None:
    """Give each handle the number that the program knows it by, and close the others."""
    above = max(handles) + 1
    moved = {wanted: fcntl.fcntl(got, fcntl.F_DUPFD, above) for wanted, got in handles.items()}
    for handle in {*not_ours, *handles.values()} - {0, 1, 2}:
        os.close(handle)
    for wanted, handle in moved.items():
        os.dup2(handle, wanted)
        os.close(handle)


def _say(channel: socket.socket, *answer: object) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the next read finds the end
        channel.send(json.dumps(answer).encode())


def become(request: dict[str, Any]) -> Callable[[], None]:
    """In the child: what the command of the request would do, as its ``__main__``."""
    import importlib.util
    import types
    import warnings

    env, words = request["env"], request["command"]
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    os.chdir(request["cwd"])
    direct = bool(env.get("PYTHONUNBUFFERED"))
    if words[:2] == ["-W", "error"]:
        words = words[2:]
        sys.warnoptions.append("error")  # for the processes that this one starts
        warnings.simplefilter("error")
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", 1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stdout.reconfigure(write_through=direct)  # type: ignore[attr-defined]
    main = types.ModuleType("__main__")
    main.__builtins__ = __builtins__  # type: ignore[attr-defined]
    if words[0] == "-c":
        first, code, sys.argv = "", compile(words[1], "<string>", "exec"), ["-c", *words[2:]]
    elif words[0] == "-m":
        first = os.getcwd()
    else:
        first = os.path.dirname(os.path.abspath(words[0]))
        main.__file__ = words[0]
        sys.argv = words
        code = compile(Path(words[0]).read_bytes(), words[0], "exec")
    more = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    # The repository last, where an editable install has it.
    sys.path[:] = [first, *more, *(path for path in sys.path if path != str(ROOT)), str(ROOT)]
    if words[0] == "-m":
        found = importlib.util.find_spec(words[1])
        if found is not None and found.submodule_search_locations is not None:
            found = importlib.util.find_spec(f"{words[1]}.__main__")
        assert found is not None, f"no module {words[1]}"
        assert found.loader is not None
        main.__spec__, main.__file__, main.__package__ = found, found.origin, found.parent
        code = found.loader.get_code(found.name)  # type: ignore[attr-defined]
        sys.argv = [str(found.origin), *words[2:]]
    sys.modules["__main__"] = main
    if "prefect" in sys.modules:
        _settings_of_prefect_anew()
    return lambda: exec(code, main.__dict__)


def _settings_of_prefect_anew() -> None:
    """What its import takes from the environment."""
    from prefect.context import refresh_global_settings_context
    from prefect.logging.configuration import setup_logging

    refresh_global_settings_context()
    setup_logging()


def end(program: Callable[[], None]) -> None:
    """Run it and end as an interpreter does, but for the modules: 150 ms to take apart."""
    code: object = 0
    try:
        program()
    except SystemExit as error:
        code = error.code
    except BaseException as error:
        code = 1
        try:
            sys.excepthook(type(error), error, error.__traceback__)
        except SystemExit as other:
            code = other.code
        if type(error) is KeyboardInterrupt and code == 1:
            code = -signal.SIGINT
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = 120
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit((code or 0) & 0xFF)


if __name__ == "__main__":
    preload("prefect" in sys.argv, [name for name in sys.argv[2:] if name != "prefect"])
    _handle, _, _session = sys.argv[1].partition(":")
    _channel: socket.socket | None = socket.socket(fileno=int(_handle))
    _channel.set_inheritable(False)
    if _session:
        with _channel as _listener:
            _channel = parent_for_each(_listener, int(_session))
    if _channel is not None:
        with _channel:
            _request = serve(_channel)
        if _request is not None:
            end(become(_request))
