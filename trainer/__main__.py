"""`python -m trainer JOBDIR`: do what the folder says, write `result.json` last, exit with its code.

`python -m trainer chat PATH` talks to a model instead. docs/contract.md describes both from outside.
"""

import argparse
import contextlib
import errno
import fcntl
import hashlib
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import NoReturn, TextIO

from pydantic import ValidationError

from trainer import launch, names
from trainer.base_files import BaseMissing
from trainer.contract import BadSpec, JobEnded, JobResult, JobSpec, what_is_wrong
from trainer.durable import write_text
from trainer.names import ExitCode
from trainer.rank_line import Ending, Line, die_with
from trainer.report import Report
from trainer.surroundings import settle

_DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def main(arguments: list[str]) -> int:
    """Run the command line; the exit code. Everything written is the owner's alone."""
    os.umask(0o077)
    if arguments[:1] == ["chat"]:
        return _chat(arguments[1:])
    parser = argparse.ArgumentParser(prog="python -m trainer", description="Run one job folder.")
    parser.add_argument("job", type=Path, help="the job folder; or the word chat")
    parser.add_argument("--alive-fd", type=int, help="a pipe's end: when the other end closes, stop")
    parser.add_argument("--lock-fd", type=int, help="the folder's lock, taken by the daemon and handed down")
    parser.add_argument("--line", help=argparse.SUPPRESS)  # of one of several processes: who started it
    options = parser.parse_args(arguments)
    if options.line is not None:
        _share(options.job, options.line)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if options.alive_fd is not None:
        threading.Thread(target=_watch, args=(options.alive_fd, stop), daemon=True).start()
    return run(options.job, stop, options.lock_fd)


def run(job: Path, stop: threading.Event, lock: int | None = None) -> int:
    """Do the job in `job` under its lock, which may be held already; the exit code."""
    if not job.is_dir():
        print(f"{job} is no folder", file=sys.stderr)
        return ExitCode.BAD_SPEC
    if lock is None:
        lock = os.open(job / names.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(f"another trainer is at work in {job}: nothing was touched", file=sys.stderr)
            return ExitCode.LOCKED
    # Never closed: the lock ends with the process, which holds the device's memory until then.
    return _run_locked(job, stop, lock)


def _run_locked(job: Path, stop: threading.Event, lock: int) -> int:
    began = time.monotonic()
    content = _content(job)
    report = Report(spec_sha256=hashlib.sha256(content).hexdigest())
    if _already_done(job, report.spec_sha256):
        return ExitCode.DONE
    (job / names.RESULT).unlink(missing_ok=True)
    try:
        processes = launch.wanted(content)
    except BadSpec as wrong:
        return _tell(job, report, ExitCode.BAD_SPEC, str(wrong), began)
    if processes > 1:
        return launch.run(job, lock, stop, processes, report)
    code, reason = _attempt(job, content, stop, report)
    return _tell(job, report, code, reason, began)


def _share(job: Path, name: str) -> NoReturn:
    """Be one of the several processes of a job. The line tells how it ended; the exit code, only whether it crashed.

    It ends at once: what torch and NCCL take down at a usual end may wait for the other processes
    (https://github.com/pytorch/pytorch/commit/26b942c4fc0ed6b192df4b328994daa06705ea6d), which wait for this one.
    """
    crashed = 1
    try:
        began = time.monotonic()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the line says when to stop
        die_with(os.getppid())
        rank = int(os.environ.get("RANK", "-1"))
        line = Line(name, rank)
        content = _content(job)
        report = Report(spec_sha256=hashlib.sha256(content).hexdigest())
        code, reason = _attempt(job, content, line.stop, report, line.store)
        if rank == 0:
            code = _tell(job, report, code, reason, began)
        line.tell(Ending(code, reason))
        crashed = 0
    except BaseException:
        with contextlib.suppress(OSError):
            traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(crashed)


def _content(job: Path) -> bytes:
    try:
        return (job / names.SPEC).read_bytes()
    except FileNotFoundError:
        return b""


def _attempt(
    job: Path, content: bytes, stop: threading.Event, report: Report, store: str | None = None
) -> tuple[ExitCode, str | None]:
    """Do the job, or this process's share of it; how it ended. Any other exception is a crash."""
    code, reason = ExitCode.DONE, None
    try:
        _work(job, content, stop, report, store)
    except JobEnded as end:
        code, reason = end.exit_code, _sentence(end)
    except BaseMissing as missing:
        code, reason = ExitCode.BAD_SPEC, _sentence(missing)
    except Exception as error:
        if _is_disk_trouble(error):
            code, reason = ExitCode.NO_DEVICE, f"the disk is full or read-only: {_why(error)}, {job}"
        elif _is_out_of_memory(error):
            code, reason = ExitCode.OUT_OF_MEMORY, "the device ran out of memory: fewer tokens at a time may fit"
        else:
            raise
    return code, reason


def _tell(job: Path, report: Report, code: ExitCode, reason: str | None, began: float) -> ExitCode:
    """Write `result.json`; the exit code."""
    result = report.result(code, reason, time.monotonic() - began)
    try:
        write_text(job / names.RESULT, result.model_dump_json(indent=1) + "\n")
    except OSError as error:
        if not _is_disk_trouble(error):
            raise
        code = ExitCode.NO_DEVICE  # which alone says it, where there is no room for a result
    if reason is not None:
        with contextlib.suppress(OSError):  # the log is on the same disk
            print(reason, file=sys.stderr)
    return code


def _work(job: Path, content: bytes, stop: threading.Event, report: Report, store: str | None) -> None:
    """`store`: how several processes that share a finetune job find each other."""
    spec = _read_spec(content)
    settle(models=spec.kind != "prepare", quantised=spec.recipe.quantised and spec.kind != "export")
    from trainer.progress import ProgressLog, Silence

    team = None
    if store is not None:
        from trainer.ranks import join

        team = join(store)
    log = ProgressLog(job) if team is None or team.first else Silence()
    try:
        if spec.kind == "prepare":
            from trainer.prepare import prepare

            prepare(job, spec, stop, log)
        elif spec.kind == "finetune":
            from trainer.finetune import finetune

            finetune(job, spec, stop, log, report, team)
        elif spec.kind == "generate":
            from trainer.generate import generate

            generate(job, spec, stop, log, report)
        elif spec.kind == "export":
            from trainer.export import export

            export(job, spec, stop, log, report)
        else:
            from trainer.evaluation import evaluate

            evaluate(job, spec, stop, log, report)
    finally:
        log.close()


def _read_spec(content: bytes) -> JobSpec:
    if not content:
        raise BadSpec(f"{names.SPEC} is missing in the job folder")
    try:
        return JobSpec.model_validate_json(content)
    except ValidationError as error:
        raise BadSpec(f"{names.SPEC}: {what_is_wrong(error)}") from error


def _already_done(job: Path, spec_sha256: str) -> bool:
    """Whether this very spec was finished before; any other earlier end is tried again."""
    try:
        result = JobResult.model_validate_json((job / names.RESULT).read_bytes())
    except (OSError, ValidationError):
        return False
    return result.exit_code == ExitCode.DONE and result.spec_sha256 == spec_sha256


def _is_disk_trouble(error: Exception) -> bool:
    """safetensors has a class of its own for all that goes wrong, with the system's number in the sentence."""
    if isinstance(error, OSError):
        return error.errno in _DISK_TROUBLE
    return type(error).__name__ == "SafetensorError" and any(f"os error {one})" in str(error) for one in _DISK_TROUBLE)


def _why(error: Exception) -> str:
    return error.strerror or "" if isinstance(error, OSError) else _sentence(error)


def _is_out_of_memory(error: Exception) -> bool:
    """CUDA has a class for it, torch's CPU allocator only a sentence; torch may not even be imported."""
    if not isinstance(error, RuntimeError | MemoryError):
        return False
    named = type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
    return named or "DefaultCPUAllocator" in str(error)


def _sentence(error: Exception) -> str:
    """One line, beginning as it was written."""
    return " ".join(str(error).split())


def _watch(descriptor: int, stop: threading.Event) -> None:
    """Nothing is ever written to the pipe: a read returns when the daemon is gone."""
    try:
        while os.read(descriptor, 1):
            pass
    except OSError as error:
        print(f"the alive pipe cannot be read: {error}", file=sys.stderr)
    stop.set()


def _chat(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer chat", description="Talk over stdio, in JSON lines."
    )
    parser.add_argument("path", help="a checkpoint folder, the name of a base model, or a GGUF file")
    parser.add_argument("--base", help="the base model, where it is not the one that the checkpoint names")
    parser.add_argument(
        "--weights", choices=("raw", "ema"), default="raw", help="ema: the running mean of the checkpoint's weights"
    )
    parser.add_argument("--tokenizer", metavar="BASE", help="of a GGUF: the base model whose tokenizer it is")
    parser.add_argument("--adapter-gguf", type=Path, metavar="FILE", help="of a GGUF: an adapter on top of it")
    options = parser.parse_args(arguments)
    if options.path.endswith(".gguf"):
        if options.tokenizer is None:
            parser.error("a GGUF needs --tokenizer BASE")
        return _chat_gguf(Path(options.path), options.adapter_gguf, options.tokenizer)
    settle(models=True, quantised=False)
    from trainer.chat import chat

    return chat(options.path, options.base, weights=options.weights)


def _chat_gguf(gguf: Path, adapter: Path | None, tokenizer: str) -> int:
    """llama.cpp computes: torch, which transformers imports wherever it finds it, would be most of the start."""
    settle(models=False, quantised=False)
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    from trainer.gguf_chat import chat

    return chat(gguf, adapter, tokenizer)


def _let_go(stream: TextIO) -> None:
    """What could not be written is given up: the interpreter would try once more, fail, and end with a code of its
    own instead of ours."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    ended = main(sys.argv[1:])
    _let_go(sys.stdout)
    _let_go(sys.stderr)
    sys.exit(ended)
