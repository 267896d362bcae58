"""`python -m daemon.compute JOBDIR`: in the trainer's place, with the trainer's options, signals and exit codes."""

import argparse
import fcntl
import os
import resource
import signal
import sys
import threading
from pathlib import Path

from pydantic import ValidationError

from daemon.compute import orders
from daemon.compute.courier import Courier, End
from trainer import names
from trainer.contract import what_is_wrong
from trainer.names import ExitCode


def main(arguments: list[str]) -> End:
    os.umask(0o077)
    parser = argparse.ArgumentParser(prog="python -m daemon.compute", description="Train one job folder elsewhere.")
    parser.add_argument("job", type=Path, help=f"the job folder, with {orders.FILE}")
    parser.add_argument("--alive-fd", type=int, help="a pipe's end: when the other end closes, leave")
    parser.add_argument("--lock-fd", type=int, help="the folder's lock, taken by the daemon and handed down")
    options = parser.parse_args(arguments)
    job: Path = options.job.resolve()
    if options.lock_fd is None:
        lock = os.open(job / names.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(f"another trainer is at work in {job}: nothing was touched", file=sys.stderr)
            return End(ExitCode.LOCKED)
    else:
        os.set_inheritable(options.lock_fd, False)  # ssh and rsync must not hold it
    stop, gone = threading.Event(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if options.alive_fd is not None:
        os.set_inheritable(options.alive_fd, False)
        threading.Thread(target=_watch, args=(options.alive_fd, gone), daemon=True).start()
    try:
        order = orders.read(job)
    except (OSError, ValidationError) as error:
        said = what_is_wrong(error) if isinstance(error, ValidationError) else str(error)
        print(f"{job / orders.FILE} cannot be read: {said}", file=sys.stderr)
        return End(ExitCode.BAD_SPEC)
    return Courier(job, order, stop, gone).run()


def _watch(descriptor: int, gone: threading.Event) -> None:
    """Nothing is ever written to the pipe: a read returns when the daemon is gone."""
    try:
        while os.read(descriptor, 1):
            pass
    except OSError as error:
        print(f"the alive pipe cannot be read: {error}", file=sys.stderr)
    gone.set()


def leave(end: End) -> None:
    """Exit with the trainer's code, or die of its signal."""
    sys.stdout.flush()
    number = signal.Signals.__members__.get(end.signal or "")
    if number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    sys.exit(end.code)


if __name__ == "__main__":
    if sys.argv[1:] == ["sweep"]:
        from daemon.compute import sweep

        sys.exit(sweep.main())
    leave(main(sys.argv[1:]))
