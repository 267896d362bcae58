"""Over there: what outlives the line. The making of an environment, and the guardian of a trainer.

The guardian is a process of its own session that starts the trainer, keeps its deadline, and writes how it ended.
"""

import os
import shutil
import signal
import subprocess
import sys
import time

from daemon.compute.ground import RUN, Told, job_of, lock_of, place_of, read, say, sha256_of, write

LOOK = 0.1  # seconds between two looks at the trainer


def environment(told: Told) -> None:
    """State of the environment of this lock file: ready, failed, or being made; `make` begins, or begins again."""
    path = place_of(told, "environments", told["key"])
    python = os.path.join(path, "venv", "bin", "python")
    if os.path.exists(os.path.join(path, "ready")):
        say({"state": "ready", "python": python})
        return
    os.makedirs(path, mode=0o700, exist_ok=True)
    lock = lock_of(os.path.join(path, "lock"))
    log = os.path.join(path, "log")
    if lock is None:
        say({"state": "making", "told": _tail(log)})
        return
    if not told["make"]:
        say({"state": "failed", "told": _tail(log)})
        return
    with open(os.path.join(path, "requirements.txt"), "w") as file:
        file.write(told["requirements"])
    if _in_background(log):
        say({"state": "making", "told": ""})
        return
    shutil.rmtree(os.path.join(path, "venv"), ignore_errors=True)
    pip = [python, "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    for words in ([sys.executable, "-m", "venv", os.path.join(path, "venv")],
                  [*pip, "-r", os.path.join(path, "requirements.txt")]):  # fmt: skip
        if subprocess.call(words, stdin=subprocess.DEVNULL) != 0:
            os._exit(1)  # the log says why
    write(os.path.join(path, "ready"), {"python": python})
    os._exit(0)


def _tail(path: str, most: int = 300) -> str:
    """The last line of a log that tells something."""
    try:
        with open(path, "rb") as file:
            lines = file.read()[-20_000:].decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    errors = [one for one in lines if one.startswith("ERROR")]
    return ((errors or lines)[-1:] or [""])[0][:most]


def _in_background(log: str) -> bool:
    """Fork twice. True in the caller; the grandchild, in a session of its own and with no line to hold open, goes on
    with False, its output in `log`."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return True
    os.setsid()
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDONLY)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    return False


def begin(told: Told) -> None:
    """Start the trainer, unless it runs, has done all, or this run has ended. Gives the name of the run; with
    `attach` it is the one that is there."""
    job = job_of(told)
    run = os.path.join(job, RUN)
    lock = lock_of(os.path.join(job, "lock"), 0.0 if told["attach"] else 1.0)
    state = read(os.path.join(run, "state.json"))
    if lock is None:
        say({"state": "running", "run": state.get("run", told["run"])})
        return
    if state.get("run") == told["run"] or (told["attach"] and state):  # it was at work a moment ago
        say({"state": "ended", "run": state["run"]})
        return
    if _done(job):
        write(os.path.join(run, "state.json"), {"run": told["run"], "log_at": _size(os.path.join(job, "trainer.log"))})
        write(os.path.join(run, "ended.json"), {"run": told["run"], "code": 0, "signal": None, "why": None})
        say({"state": "ended", "run": told["run"]})
        return
    for name in (os.path.join(run, "ended.json"), os.path.join(run, "stop"), os.path.join(job, "result.json")):
        if os.path.exists(name):
            os.unlink(name)
    log = os.path.join(job, "trainer.log")
    write(os.path.join(run, "state.json"), {"run": told["run"], "log_at": _size(log)})
    if _in_background(log):
        os.close(lock)  # the guardian has its own
        say({"state": "running", "run": told["run"]})
        return
    try:
        _guard(told, job, lock)
    finally:
        os._exit(0)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _done(job: str) -> bool:
    result = read(os.path.join(job, "result.json"))
    spec = os.path.join(job, "spec.json")
    return result.get("exit_code") == 0 and os.path.exists(spec) and result.get("spec_sha256") == sha256_of(spec)


def _guard(told: Told, job: str, lock: int) -> None:
    """Start the trainer and see it through to its end. Dies this process, the trainer's alive pipe closes."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    run = os.path.join(job, RUN)
    ended: Told = {"run": told["run"], "code": None, "signal": None, "why": None}
    reading, alive = os.pipe()
    try:
        child = subprocess.Popen(
            [told["python"], "-m", "trainer", job, "--alive-fd", str(reading), "--lock-fd", str(lock)],
            stdin=subprocess.DEVNULL, cwd=job, env=_environment(told), pass_fds=(reading, lock),
            start_new_session=True, preexec_fn=_usual_signals,
        )  # fmt: skip
    except OSError as error:
        print(f"the trainer cannot be started: {error}", flush=True)
        write(os.path.join(run, "ended.json"), dict(ended, code=14))
        return
    os.close(reading)
    deadline, asked = time.monotonic() + told["seconds"], 0.0
    while child.poll() is None:
        now = time.monotonic()
        stop = os.path.exists(os.path.join(run, "stop"))
        if not asked and (stop or now > deadline):
            asked, ended["why"] = now, "stop" if stop else "deadline"
            _kill(child.pid, signal.SIGTERM)
        elif asked and now - asked > told["stop_seconds"]:
            _kill(child.pid, signal.SIGKILL)
        time.sleep(LOOK)
    for group in {child.pid, *_left(job)}:
        _kill(group, signal.SIGKILL)  # what it may have left behind: processes that shared the job
    code = child.returncode
    ended.update({"code": code} if code >= 0 else {"signal": signal.Signals(-code).name})
    write(os.path.join(run, "ended.json"), ended)
    os.close(alive)


def _left(job: str) -> list[int]:
    """Process groups that were started on this job's folder, other than ours."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
            if job.encode() in words and {b"--lock-fd", b"--line"} & {*words}:
                found.append(os.getpgid(int(pid)))
        except OSError:
            continue
    return [group for group in found if group != os.getpgrp()]


def _usual_signals() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _kill(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except OSError:
        pass


def _environment(told: Told) -> dict[str, str]:
    threads = str(told["threads"] or max(1, (os.cpu_count() or 1) // 2))
    own = {"PYTHONPATH": place_of(told, "code", told["code"]), "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads,
           "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", "TOKENIZERS_PARALLELISM": "false",
           "ENGRAMD_PROCESSES": str(told["processes"]), "ENGRAMD_SHARDED": told["sharded"]}  # fmt: skip
    if told["base"]:
        own["ENGRAMD_BASE_FOLDER"] = place_of(told, "bases", told["base"])
    return dict(os.environ, **own)


def halt(told: Told) -> None:
    """Ask the trainer to save and end; its guardian sees this."""
    with open(os.path.join(job_of(told), RUN, "stop"), "w"):
        pass
    say({})
