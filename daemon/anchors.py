"""General text that keeps the abilities of the base model: anchors, made by the untouched base or brought by a person.

The base model answers general prompts in one generate job, before the first finetune that wants them. Its answers
stand in `state/bases/<fingerprint>/anchors.jsonl`, one `Sample` a line, for all profiles; without that file they are
made anew. Anchors hold nothing of any memory.
"""

import hashlib
import json
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from daemon import durable, jobdir
from daemon.ledger import Database, generating, jobs, requests
from daemon.logs import get_logger
from daemon.rules import mixing
from daemon.world import World
from trainer import names
from trainer.contract import Generated, JobSpec, Message, Prompt, Sample, TrainingRecipe, what_is_wrong

FILE = "anchors.jsonl"
PROMPTS = "anchor_prompts"  # .toml in `etc/`; .jsonl in the folder of a base model that brings its own
NOTE = "anchors"  # in a ledger's meta: why its jobs go without them
AGAIN = timedelta(days=1)  # after a generate job that failed, until the next one

_SHIPPED = Path(__file__).resolve().parent.parent / "etc"
_log = get_logger()


class Wrong(Exception):
    """The person's own file, or the prompts, cannot be used. The message is one sentence for them."""


@dataclass(frozen=True, slots=True)
class Pool:
    """`trained` go into jobs, `measured` only into their questions."""

    trained: Sequence[Sample] = ()
    measured: Sequence[Sample] = ()


def pool(world: World, fingerprint: str, now: str) -> Pool | None:
    """The general text for jobs on this base; None where a generate job has to make it first. Empty where none is
    wanted, or where the last generate job failed less than a day ago: then a note says so. Raises Wrong."""
    mix = world.settings.training.mix
    if not mix.anchor:
        _note(world, None)
        return Pool()
    if mix.anchors:
        _note(world, None)
        return _parted(read_file(_own_file(world)))
    path = _place(world, fingerprint)
    if path.exists():
        found = _kept(path)
        if found:
            _note(world, None)
            return _parted(found[: mix.anchor_prompts])
    last = generating.newest(world.db, fingerprint)
    if last is not None and _has_failed(last) and _ended(last) + AGAIN > datetime.fromisoformat(now):
        _note(world, f"jobs go without general text (training.mix.anchor): job {last['id']}, which makes it, failed: "
              f"{last['reason']}; it is tried again a day later")  # fmt: skip
        return Pool()
    return None


def there(world: World, fingerprint: str) -> Pool:
    """The general text for jobs on this base that lies on this disk, made or the person's own; empty where a generate
    job has to make it first. Writes nothing. Raises Wrong."""
    mix = world.settings.training.mix
    if mix.anchors:
        return _parted(read_file(_own_file(world)))
    return _parted(_kept(_place(world, fingerprint))[: mix.anchor_prompts])


def _has_failed(job: dict[str, Any]) -> bool:
    return job["state"] == "failed" or (job["state"] == "done" and job["reason"] is not None)


def _ended(job: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(job["finished_at"] or job["created_at"])


def freeze(world: World, home_db: Database, recipe: TrainingRecipe, base: Path, fingerprint: str, now: str) -> None:
    """Write the folder of the generate job, then record it. Raises Wrong where there are no prompts."""
    mix, paths = world.settings.training.mix, world.paths
    prompts = prompts_for(world, base)
    number = requests.next_id(home_db, world.name, "job", at_least=jobs.newest_id(world.db) + 1)
    folder = paths.jobs / f"{number}-generate"
    staged = jobdir.stage(paths.jobs, number)
    prompts_sha256 = jobdir.write_lines(staged / names.PROMPTS, prompts)
    spec = JobSpec(kind="generate", recipe=recipe, prompts_sha256=prompts_sha256, max_new_tokens=mix.anchor_tokens)
    spec_sha256 = jobdir.seal(staged, spec, folder)
    with world.db.transaction():
        jobs.insert(
            world.db, job=number, kind="generate", folder=folder.name, spec_sha256=spec_sha256, chain=None,
            parent_sha256=None, parent_step=0, steps=0, samples=0, now=now, memories=[], batches=[],
            cycle={generating.BASE: fingerprint},
        )  # fmt: skip
        jobs.set_meta(world.db, "waits", None)
    _log.info("job_frozen", profile=world.name, job=number, kind="generate", prompts=len(prompts),
              reason="the base model answers general prompts, for training.mix.anchor")  # fmt: skip


def collect(world: World, job: dict[str, Any]) -> None:
    """A generate job has finished: its answers are kept, then it is done. May be done again after any crash."""
    folder = world.paths.jobs / str(job["folder"])
    path = _place(world, str(json.loads(job["cycle"])[generating.BASE]))
    reason = None
    if not _kept(path):
        found = list(_usable(folder / names.GENERATED))
        if found:
            durable.make_folder(path.parent)
            durable.write_atomic(path, b"".join(_line(anchor) for anchor in found), 0o600)
        else:
            reason = "the base model gave no answer that can be used"
    with world.db.transaction():
        generating.done(world.db, job["id"], reason)
    log = _log.bind(profile=world.name, job=job["id"])
    if reason:
        log.warning("anchors_failed", reason=reason)
    else:
        log.info("anchors_made", anchors=len(_kept(path)), path=str(path))


def prompts_for(world: World, base: Path) -> list[Prompt]:
    """At most `training.mix.anchor_prompts`: those that the base model brings, else those of the home's `etc/`, else
    the shipped ones; where there are more, a draw that is the same for everyone. Raises Wrong."""
    own = base / f"{PROMPTS}.jsonl"
    path = world.home.etc / f"{PROMPTS}.toml"
    if own.is_file():
        found = [_prompt(turns) for turns in (_chat(path=own, number=n, told=told) for n, told in _lines(own))]
    else:
        found = [_prompt([Message(role="user", content=text)])
                 for text in _texts(path if path.exists() else _SHIPPED / path.name)]  # fmt: skip
    unique = list({prompt.id: prompt for prompt in found}.values())
    if not unique:
        raise Wrong(f"{own if own.is_file() else path} holds no prompt: add some, or set training.mix.anchor = 0")
    return mixing.drawn(unique, world.settings.training.mix.anchor_prompts, 0, PROMPTS)


def read_file(path: Path) -> list[Sample]:
    """The chats of a person's own JSONL: `{"messages": [...]}` or `{"prompt": ..., "response": ...}` a line. Every
    assistant turn is learnt, the last turn must be one. Chats that are there twice count once. Raises Wrong."""
    found: dict[str, Sample] = {}
    for number, told in _lines(path):
        turns = _chat(path=path, number=number, told=told)
        if turns[-1].role != "assistant" or not turns[-1].content.strip():
            raise Wrong(f"{_at(path, number)} does not end with an answer of the assistant{_MEND}")
        turns = [turn.model_copy(update={"loss": turn.role == "assistant"}) for turn in turns]
        anchor = Sample(id=_id(turns), messages=turns, use="anchor")
        found.setdefault(anchor.id, anchor)
    if not found:
        raise Wrong(f"{path} holds no chat{_MEND}")
    return list(found.values())


# -- files -------------------------------------------------------------------------------------------

_MEND = "; mend the file that training.mix.anchors names, or name another"


def _own_file(world: World) -> Path:
    path = Path(world.settings.training.mix.anchors).expanduser()
    return path if path.is_absolute() else world.home.root / path


def _place(world: World, fingerprint: str) -> Path:
    return world.home.state / "bases" / fingerprint[:16] / FILE


def _at(path: Path, number: int) -> str:
    return f"{path}, line {number},"


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(number, what it says) of each line that is not empty. Raises Wrong."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, json.loads(line)
    except OSError as error:
        raise Wrong(f"{path} cannot be read: {error.strerror}{_MEND}") from None
    except UnicodeDecodeError:
        raise Wrong(f"{path} is not UTF-8{_MEND}") from None
    except (json.JSONDecodeError, RecursionError):
        raise Wrong(f"{path} is not JSON Lines: one of its lines is no JSON{_MEND}") from None


def _chat(path: Path, number: int, told: Any) -> list[Message]:
    """The turns of one line. Raises Wrong."""
    if not isinstance(told, dict):
        raise Wrong(f"{_at(path, number)} is no object with messages, or with prompt and response{_MEND}")
    turns = told.get("messages")
    if turns is None and "prompt" in told:
        turns = [{"role": "user", "content": told["prompt"]}]
        turns += [{"role": "assistant", "content": told["response"]}] if "response" in told else []
    if not isinstance(turns, list) or not turns:
        raise Wrong(f"{_at(path, number)} has neither messages, nor prompt and response{_MEND}")
    try:
        chat = [Message.model_validate({key: turn[key] for key in ("role", "content")}) for turn in turns]
    except (KeyError, TypeError):
        raise Wrong(f"{_at(path, number)} has a turn without role and content{_MEND}") from None
    except ValidationError as error:
        raise Wrong(f"{_at(path, number)} has a turn that is wrong: {what_is_wrong(error)}{_MEND}") from None
    if not any(turn.role == "user" and turn.content.strip() for turn in chat):
        raise Wrong(f"{_at(path, number)} asks nothing: it has no turn of the user{_MEND}")
    return chat


def _texts(path: Path) -> Iterator[str]:
    """All prompts of `anchor_prompts.toml`: lists of texts, in tables of any name. Raises Wrong."""
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Wrong(f"{path} cannot be read: {error}; mend it, or set training.mix.anchor = 0") from None
    for name, table in told.items():
        texts = table.get("prompts") if isinstance(table, dict) else None
        if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
            raise Wrong(f"{path}: [{name}] must hold prompts, a list of texts")
        yield from texts


def _prompt(turns: list[Message]) -> Prompt:
    while turns[-1].role == "assistant":  # of a chat: it is the base model that answers
        turns = turns[:-1]
    return Prompt(id=_id(turns), messages=turns)


def _id(turns: Iterable[Message]) -> str:
    """The same for the same text, so that an anchor never changes sides."""
    told = json.dumps([[turn.role, turn.content] for turn in turns], ensure_ascii=False)
    return f"anchor-{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def _line(anchor: Sample) -> bytes:
    return anchor.model_dump_json(exclude_defaults=True).encode() + b"\n"


def _kept(path: Path) -> list[Sample]:
    """What was generated before; nothing where the file is not there, or damaged: then it is made anew."""
    try:
        return [Sample.model_validate_json(line) for line in path.read_bytes().splitlines()]
    except FileNotFoundError:
        return []
    except ValidationError:
        _log.warning("anchors_damaged", path=str(path), note="they are made anew")
        return []


def _usable(path: Path) -> Iterator[Sample]:
    """The answers as samples. One that the model did not end itself is cut at its last whole sentence; one that is
    empty, or all thought and no answer, is left out."""
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            told = Generated.model_validate_json(line)
        except ValidationError:
            continue
        answer = told.answer.strip()
        if answer.startswith("<think>"):
            answer = answer.partition("</think>")[2].strip()
        if not told.finished:
            answer = _whole_sentences(answer)
        if answer:
            said = Message(role="assistant", content=answer, loss=True)
            yield Sample(id=told.id, messages=[*told.messages, said], use="anchor")


def _whole_sentences(text: str) -> str:
    end = max(text.rfind(mark) for mark in (". ", "! ", "? ", ".\n", "!\n", "?\n", "。", "！", "？", ";\n", "\n\n"))
    return text[: end + 1].strip()


def _parted(anchors: Sequence[Sample]) -> Pool:
    measured = [anchor for anchor in anchors if mixing.is_measured_by(anchor.id)]
    trained = [anchor for anchor in anchors if not mixing.is_measured_by(anchor.id)]
    return Pool(trained or measured, measured if trained else ())


def _note(world: World, text: str | None) -> None:
    if jobs.get_meta(world.db, NOTE) != text:
        with world.db.transaction():
            jobs.set_meta(world.db, NOTE, text)
        if text:
            _log.warning("without_anchors", profile=world.name, reason=text)
