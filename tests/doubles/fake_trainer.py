"""A trainer that obeys trainer/contract.py and learns nothing: for tests of the book-keeping around it.

Its "weights" are a SHA-256 over the samples that it has seen, in order, so that a sample seen twice,
left out or out of order changes them. Faults on request, in a file `fault` in the job folder's parent, one a
line: `crash`, `diverge`, `oom:<tokens>`, `hang`, `no_device`, `wrong_count`; and `step_seconds:<s>`.

Candidate, served version and base know each probe equally well, unless a line `metrics:<file.json>` says
otherwise: its figures ("candidate.old.token_accuracy": 0.4) replace the usual ones, in metrics.json also of
each probe of the group. A name without a folder lies beside `fault`. `weights:ema` says which ones are better.
The loss of a sample, as it is trained, is one that follows from its id. A generate job answers "answer to <id>".
An export job writes GGUF headers that follow from the weights, padded to `export_bytes:<n>`; `parity` fails its gate,
`no_room` and `export_crash` do as they say.

    python tests/doubles/fake_trainer.py JOBDIR [--alive-fd N] [--lock-fd N]
"""

import argparse
import errno
import fcntl
import hashlib
import json
import os
import select
import shutil
import signal
import struct
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from trainer import names, scores
from trainer.contract import (
    Exported,
    ExportedFile,
    Generated,
    JobResult,
    JobSpec,
    Plan,
    Probe,
    Progress,
    Prompt,
    Retry,
    Sample,
)

stopping = False

USUAL = {"loss": 0.5, "token_accuracy": 0.9, "exact": 1.0, "free_exact": 1.0, "free_fuzzy": 1.0}
TOKENS = 8  # of each answer


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    temporary = path.with_name(f".tmp-{path.name}")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.chmod(mode)
    os.replace(temporary, path)


class Job:
    padding = b""  # behind the weights, for a checkpoint of some size

    def __init__(self, folder: Path, alive: int | None) -> None:
        self.folder, self.alive = folder, alive
        self.raw = (folder / names.SPEC).read_bytes()
        self.spec = JobSpec.model_validate_json(self.raw)
        self.samples = [Sample.model_validate_json(line) for line in self.lines(names.SAMPLES)]
        self.probes = [Probe.model_validate_json(line) for line in self.lines(names.PROBES)]
        fault_file = folder.parent / "fault"
        self.faults = dict(
            (line.split(":", 1) + [""])[:2] for line in fault_file.read_text().split() if line
        ) if fault_file.exists() else {}
        self.started = time.monotonic()

    def lines(self, name: str) -> list[bytes]:
        path = self.folder / name
        return path.read_bytes().splitlines() if path.exists() else []

    def stop_asked(self) -> bool:
        if self.alive is not None and select.select([self.alive], [], [], 0)[0]:
            return True
        return stopping

    def result(self, code: names.ExitCode, reason: str | None = None, **fields: object) -> int:
        result = JobResult(exit_code=code, reason=reason, spec_sha256=hashlib.sha256(self.raw).hexdigest(), **fields)
        write_atomic(self.folder / names.RESULT, result.model_dump_json().encode())
        return int(code)

    def load(self) -> tuple[int, int, str]:
        """(global step, step in this job, weights) of the newest own checkpoint, else of the parent."""
        own = [(names.checkpoint_step(p.name), p) for p in self.folder.iterdir()]
        own = sorted((s, p) for s, p in own if s is not None)
        if own:
            state = json.loads((own[-1][1] / names.STATE).read_text())
            return state["global_step"], state["job_step"], state["weights"]
        if self.spec.parent:
            manifest = (self.folder / names.PARENT / names.MANIFEST).read_bytes()
            assert hashlib.sha256(manifest).hexdigest() == self.spec.parent
            state = json.loads((self.folder / names.PARENT / names.STATE).read_text())
            return state["global_step"], 0, state["weights"]
        return 0, 0, f"seed {self.spec.seed}"

    def save(self, step: int, job_step: int, weights: str) -> str:
        state = json.dumps({"global_step": step, "job_step": job_step, "weights": weights}).encode()
        adapter = weights.encode() + self.padding
        manifest = {
            "files": {
                name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
                for name, data in ((names.STATE, state), (names.ADAPTER_WEIGHTS, adapter))
            },
            "spec_sha256": hashlib.sha256(self.raw).hexdigest(),
            "parent": self.spec.parent,
        }
        temporary = self.folder / f".tmp-checkpoint-{step}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        write_atomic(temporary / names.STATE, state, 0o400)
        write_atomic(temporary / names.ADAPTER_WEIGHTS, adapter, 0o400)
        write_atomic(temporary / names.MANIFEST, json.dumps(manifest, sort_keys=True).encode(), 0o400)
        target = self.folder / f"{names.CHECKPOINT_PREFIX}{step}"
        shutil.rmtree(target, ignore_errors=True)
        os.rename(temporary, target)
        return hashlib.sha256((target / names.MANIFEST).read_bytes()).hexdigest()

    def progress(self, **fields: object) -> None:
        line = Progress(time=now(), **fields).model_dump_json(exclude_none=True)
        with open(self.folder / names.PROGRESS, "a") as file:
            file.write(line + "\n")

    def cut_losses(self, step: int) -> None:
        """An attempt before may have got further than its last checkpoint."""
        lines = (line for line in self.lines(names.LOSSES) if line.endswith(b"}") and json.loads(line)["step"] <= step)
        (self.folder / names.LOSSES).write_bytes(b"".join(line + b"\n" for line in lines))

    def tell_losses(self, step: int, chunk: list[int]) -> None:
        told = {"step": step, "losses": [[index, loss_of(self.samples[index].id)] for index in chunk]}
        with (self.folder / names.LOSSES).open("a") as file:
            file.write(json.dumps(told) + "\n")

    def score(self, *who: str) -> dict[str, float]:
        """metrics.json, and the figures in it."""
        if not self.probes:
            return {}
        wished = {}
        if "metrics" in self.faults:
            wished = json.loads((self.folder.parent / self.faults["metrics"]).read_text())
        theirs = {one: [score_of(probe, one, wished) for probe in self.probes] for one in who}
        tokens = [TOKENS] * len(self.probes)
        figures = {**scores.flat(self.probes, tokens, theirs), **wished}
        told = {"metrics": figures, "probes": scores.lines(self.probes, tokens, theirs)}
        write_atomic(self.folder / names.METRICS, json.dumps(told).encode())
        return figures

    def score_before(self) -> None:
        told = {one: {probe.id: score_of(probe, one, {}) for probe in self.probes} for one in ("served", "base")}
        if self.probes and not (self.folder / names.BEFORE).exists():
            write_atomic(self.folder / names.BEFORE, json.dumps(told).encode())

    def generate(self) -> int:
        prompts = [Prompt.model_validate_json(line) for line in self.lines(names.PROMPTS)]
        path = self.folder / names.GENERATED
        whole = [line for line in self.lines(names.GENERATED) if line.endswith(b"}")]
        path.write_bytes(b"".join(line + b"\n" for line in whole))
        self.progress(phase="loading")
        for prompt in prompts[len(whole) :]:
            if "hang" in self.faults:
                time.sleep(3600)
            time.sleep(float(self.faults.get("step_seconds", 0)))
            if "crash" in self.faults:
                raise RuntimeError("asked to crash")
            answer = Generated(id=prompt.id, messages=prompt.messages, answer=f"answer to {prompt.id}", finished=True)
            with path.open("a") as file:
                file.write(answer.model_dump_json() + "\n")
            self.progress(phase="working")
            if self.stop_asked():
                return self.result(names.ExitCode.INTERRUPTED, "asked to stop")
        return self.result(names.ExitCode.DONE, seconds=time.monotonic() - self.started)

    def export(self) -> int:
        order, out = self.spec.export, self.folder / names.EXPORT
        assert order is not None
        for fault, code in (("parity", names.ExitCode.BAD_SPEC), ("no_room", names.ExitCode.NO_DEVICE)):
            if fault in self.faults:
                return self.result(code, f"asked for {fault}")
        if "export_crash" in self.faults:
            raise RuntimeError("asked to crash")
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        weights, size = self.load()[2], int(self.faults.get("export_bytes", 0))
        self.progress(phase="working")
        deadline = time.monotonic() + float(self.faults.get("step_seconds", 0))
        while time.monotonic() < deadline or "hang" in self.faults:
            if self.stop_asked():
                return self.result(names.ExitCode.INTERRUPTED, "asked to stop")
            time.sleep(0.01)
        if order.form == "adapter":
            (out / names.PEFT_FOLDER).mkdir()
            (out / names.PEFT_FOLDER / names.ADAPTER_WEIGHTS).write_bytes(weights.encode())
            write_atomic(out / names.ADAPTER_GGUF, gguf(weights, "adapter", size))
            if order.base_gguf is None:
                write_atomic(out / names.BASE_GGUF, gguf(self.spec.recipe.base_model, "model", 10 * size))
            else:
                assert hashlib.sha256((self.folder / names.BASE_GGUF).read_bytes()).hexdigest() == order.base_gguf
            lines = f"FROM ./{names.BASE_GGUF}\nADAPTER ./{names.ADAPTER_GGUF}\n"
        else:
            (out / names.MODEL_FOLDER).mkdir()
            (out / names.MODEL_FOLDER / "model.safetensors").write_bytes(weights.encode())
            write_atomic(out / names.MODEL_GGUF, gguf(weights, "model", size))
            lines = f"FROM ./{names.MODEL_GGUF}\n"
        template = "{{ range .Messages }}{{ .Role }}: {{ .Content }}\n{{ end }}assistant: "
        write_atomic(out / names.MODELFILE, f'{lines}TEMPLATE """{template}"""\n'.encode())
        files = {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
        told = Exported(
            form=order.form, quantisation=order.quantisation, architecture="qwen2", merge_onto=order.merge_onto,
            files={name: ExportedFile(size=len(data), sha256=hashlib.sha256(data).hexdigest())
                   for name, data in files.items()},
            template=template, stop=["<end>"], context_length=512, parity={"token_ids": 1.0},
        )  # fmt: skip
        data = told.model_dump_json().encode()
        write_atomic(out / names.EXPORTED, data)
        return self.result(names.ExitCode.DONE, export_sha256=hashlib.sha256(data).hexdigest(),
                           seconds=time.monotonic() - self.started)  # fmt: skip

    def plan(self) -> Plan:
        per = self.spec.recipe.samples_per_step
        segments = [(len(s) + per - 1) // per for s in self.spec.segments]
        plan = Plan(
            samples=len(self.samples), segments=segments, steps=sum(segments),
            sample_uses=sum(map(len, self.spec.segments)), tokens=1, loss_tokens=1, sequences=len(self.samples),
            split_samples=0, cut_prompts=0, longest=16,
        )  # fmt: skip
        write_atomic(self.folder / names.PLAN, plan.model_dump_json().encode())
        return plan

    def already_done(self) -> bool:
        if not (self.folder / names.RESULT).exists():
            return False
        told = JobResult.model_validate_json((self.folder / names.RESULT).read_bytes())
        return told.exit_code == names.ExitCode.DONE and told.spec_sha256 == hashlib.sha256(self.raw).hexdigest()

    def run(self) -> int:
        if self.already_done():
            return int(names.ExitCode.DONE)
        plan = self.plan()
        if "no_device" in self.faults:
            return self.result(names.ExitCode.NO_DEVICE, "no CUDA device was found")
        if "oom" in self.faults:
            retry_file = self.folder / names.RETRY
            retry = Retry.model_validate_json(retry_file.read_bytes()) if retry_file.exists() else None
            tokens = retry.micro_batch_tokens if retry else self.spec.recipe.micro_batch_tokens
            if tokens > int(self.faults["oom"]):
                return self.result(names.ExitCode.OUT_OF_MEMORY, f"{tokens} tokens did not fit")
        if self.spec.kind == "export":
            return self.export()
        if self.spec.kind == "generate":
            return self.generate()
        if self.spec.kind == "evaluate":
            who = ("candidate", "served", "base") if self.spec.served else ("candidate", "base")
            return self.result(names.ExitCode.DONE, metrics=self.score(*who))
        step, done, weights = self.load()
        self.score_before()
        self.cut_losses(step)
        start, seen = step - done, 0
        self.progress(phase="loading", note=f"from step {step}")
        per, position = self.spec.recipe.samples_per_step, 0
        for segment in self.spec.segments:
            for first in range(0, len(segment), per):
                chunk = segment[first : first + per]
                position += 1
                seen += len(chunk)
                if position <= done:
                    continue
                if "hang" in self.faults:
                    time.sleep(3600)
                time.sleep(float(self.faults.get("step_seconds", 0)))
                for index in chunk:
                    weights = hashlib.sha256(f"{weights}{self.samples[index].id}".encode()).hexdigest()
                step += 1
                if "crash" in self.faults:
                    raise RuntimeError("asked to crash")
                if "diverge" in self.faults:
                    return self.result(names.ExitCode.DIVERGED, f"the loss became NaN at step {step}")
                self.tell_losses(step, chunk)
                self.progress(phase="training", step=step, steps=start + plan.steps, loss=1.0, samples_seen=seen)
                if self.stop_asked() and position < plan.steps:
                    sha = self.save(step, position, weights)
                    return self.result(names.ExitCode.INTERRUPTED, "asked to stop", global_step=step,
                                       checkpoint=f"{names.CHECKPOINT_PREFIX}{step}", checkpoint_sha256=sha)
                if step % self.spec.recipe.save_steps == 0 and position < plan.steps:
                    self.save(step, position, weights)
        sha = self.save(step, position, weights)
        figures = self.score("candidate", "served", "base")
        if "wrong_count" in self.faults:
            seen -= 1
        return self.result(
            names.ExitCode.DONE, start_step=start, global_step=step, steps=plan.steps, samples_seen=seen, tokens=1,
            last_loss=1.0, checkpoint=f"{names.CHECKPOINT_PREFIX}{step}", checkpoint_sha256=sha,
            seconds=time.monotonic() - self.started, metrics=figures, weights=self.faults.get("weights", "raw"),
        )  # fmt: skip


def gguf(mark: str, kind: str, size: int) -> bytes:
    """A GGUF header without tensors, enough for the stand-in of Ollama to tell a model from an adapter."""
    values = {"general.architecture": "qwen2", "general.type": kind, "adapter.type": "lora", "test.mark": mark}
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, len(values))
    for pair in values.items():
        key, value = (text.encode() for text in pair)
        data += struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, len(value)) + value
    return (data + b"\0" * (-len(data) % 32)).ljust(size, b"\0")


def loss_of(identity: str) -> float:
    """Between 0.5 and 1.5, the same for the same sample."""
    return 0.5 + int(hashlib.sha256(identity.encode()).hexdigest()[:4], 16) / 65536


def score_of(probe: Probe, who: str, wished: dict[str, float]) -> dict[str, object]:
    told = {measure: wished.get(f"{who}.{probe.group}.{measure}", usual) for measure, usual in USUAL.items()}
    told["exact"] = told["exact"] >= 0.5
    if not probe.free:
        return {measure: told[measure] for measure in ("loss", "token_accuracy", "exact")}
    free = {measure: told[measure] >= 0.5 for measure in ("free_exact", "free_fuzzy")}
    return {**told, **free, "free": probe.answer if free["free_exact"] else f"not {probe.answer}"}


def main(words: list[str] | None = None) -> int:
    global stopping
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--alive-fd", type=int)
    parser.add_argument("--lock-fd", type=int)
    arguments = parser.parse_args(words)

    def on_term(*_: object) -> None:
        global stopping
        stopping = True

    signal.signal(signal.SIGTERM, on_term)
    if arguments.lock_fd is None:
        lock = os.open(arguments.folder / names.LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(names.ExitCode.LOCKED)
    try:
        return Job(arguments.folder, arguments.alive_fd).run()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return int(names.ExitCode.NO_DEVICE)  # without a result, where even that finds no room


if __name__ == "__main__":
    raise SystemExit(main())
