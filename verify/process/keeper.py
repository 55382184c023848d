"""Stands between us and a program that we start, so that all of it ends when we do.

Run as a script, by `gpt_verify.process.children` alone: ``keeper.py CONTROL PROGRAM WORD…``.
CONTROL is one end of a pair of sockets. The program gets our standard streams and a session of its
own. On CONTROL the keeper says, a line each: ``pid N``, or ``failed ERRNO`` where there is no such
program; and ``status N`` when it has ended, negative for a signal. When the other end of CONTROL is
closed, which is what the death of its owner does as well, however sudden, the program and whatever
it has started are killed: its process group everywhere, and on Linux, where the keeper inherits
orphans, those that have left the group too.

A process that only waits is what all platforms have. Linux can send a signal at a parent's death
(prctl, PR_SET_PDEATHSIG), but means the *thread* that started the child, and threads of ours come
and go. The keeper has one thread, and asks for that signal in turn: who kills it kills the program.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress

#: prctl(2).
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
#: Seconds between looks at what nothing announces.
_LOOK_S = 1.0
#: Seconds that killed processes may take to be gone: one in the middle of a system call takes some.
_GONE_S = 5.0
#: What a program may write to standard error before the beginning is given up, in bytes: it is a
#: file, of which only the end is ever quoted.
_LONGEST_STDERR = 64 << 20


def inherit_orphans() -> None:
    """What a child of ours leaves behind becomes our own child. Linux alone knows this."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        import ctypes

        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _start(words: list[str], control: socket.socket) -> int:
    """The process id of the program; says why where it cannot be started, and ends."""
    keeper = os.getpid()
    failed, fails = os.pipe()  # closed by a program that starts
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != keeper:
                os._exit(1)
            for name in ("SIGPIPE", "SIGXFSZ"):  # which Python ignores
                signal.signal(getattr(signal, name), signal.SIG_DFL)
            os.execvp(words[0], words)
        except OSError as error:
            os.write(fails, str(error.errno or 0).encode())
        except ValueError:  # a NUL in a word
            os.write(fails, b"22")
        os._exit(127)
    os.close(fails)
    if why := os.read(failed, 16):
        os.waitpid(pid, 0)
        _say(control, f"failed {why.decode()}")
        sys.exit(0)
    os.close(failed)
    _say(control, f"pid {pid}")
    return pid


def _say(control: socket.socket, line: str) -> None:
    with suppress(OSError):  # nobody is there any more
        control.sendall(line.encode() + b"\n")


def _watch(pid: int, control: socket.socket) -> None:
    """Watch the program until nobody wants it any more."""
    owner = os.getppid()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    ended = False
    while True:
        if not ended and (status := _status(pid)) is not None:
            ended = True
            _say(control, f"status {status}")
        readable, _, _ = select.select([control.fileno(), woken], [], [], _LOOK_S)
        if woken in readable:
            os.read(woken, 4096)
        # A copy of the owner that it forked keeps CONTROL open; then the parent's id tells.
        if control.fileno() in readable or os.getppid() != owner:
            return
        _reap_orphans(pid)
        _shorten_stderr()


def _status(pid: int) -> int | None:
    """How the program ended; None while it runs. It stays a zombie, so that its process group
    cannot become somebody else's."""
    if not hasattr(os, "waitid"):  # macOS
        found, status = os.waitpid(pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if found else None
    result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if result is None:
        return None
    return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status


def _reap_orphans(program: int) -> None:
    for child in _children().get(os.getpid(), []):
        if child != program:
            with suppress(ChildProcessError):
                os.waitpid(child, os.WNOHANG)


def _children() -> dict[int, list[int]]:
    """Process → its children; empty where there is no /proc."""
    found: dict[int, list[int]] = {}
    with suppress(OSError):
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            with suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat", "rb") as f:
                # The name of the program, in brackets, may hold anything.
                parent = int(f.read().rpartition(b")")[2].split()[1])
                found.setdefault(parent, []).append(int(name))
    return found


def _shorten_stderr() -> None:
    with suppress(OSError):
        status = os.fstat(2)
        if status.st_blocks * 512 > _LONGEST_STDERR:
            # All but the end becomes a hole, which takes no space. The program writes on behind it.
            start = max(0, status.st_size - 4096)
            end = os.pread(2, 4096, start)
            os.ftruncate(2, 0)
            os.pwrite(2, end, start)


def kill_all(group: int | None = None) -> None:
    """Kill all that descends from this process, and that process group."""
    until = time.monotonic() + _GONE_S
    while time.monotonic() < until:
        if group is not None:
            with suppress(OSError):
                os.killpg(group, signal.SIGKILL)
        tree, pending = _children(), [os.getpid()]
        while pending:
            for child in tree.get(pending.pop(), []):
                pending.append(child)
                with suppress(OSError):
                    os.kill(child, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    inherit_orphans()
    pid = _start(sys.argv[2:], control)
    # The pipes are the program's alone, so that its end closes them.
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # CONTROL tells when it is over
    try:
        _watch(pid, control)
    finally:
        kill_all(pid)


if __name__ == "__main__":
    main()
