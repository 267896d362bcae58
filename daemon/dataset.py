"""From memories of the ledger to the samples of a job: what is taken, and what is left out for which reason.

`training` freezes a job from it, `engramd preview` shows it: both walk the same way. It reads the ledger and
writes nothing.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from daemon.ledger import Database, alike, memories
from daemon.records import Memory
from daemon.rules import classic, duplicates
from daemon.rules.curation import Curation, clean, is_boilerplate, judge
from daemon.rules.prompts import Prompts
from daemon.rules.samples import make_samples, shown
from trainer.contract import Sample

Row = tuple[int, int, str, Memory]  # seq, batch, id, memory


@dataclass(frozen=True, slots=True)
class Entry:
    """One memory that is learnt."""

    seq: int
    batch: int
    id: str
    memory: Memory
    samples: list[Sample]


@dataclass(slots=True)
class Dataset:
    db: Database
    curation: Curation
    prompts: Prompts
    seed: int
    system_prompt: str = ""
    builder: Literal["advanced", "classic"] = "advanced"
    pulse: Callable[[], None] = lambda: None  # called often: whoever waits must not think us dead
    used: list[tuple[int, int, str, int]] = field(default_factory=list)  # seq, batch, id, samples
    left_out: dict[int, str] = field(default_factory=dict)  # seq -> reason
    bands: list[tuple[int, int]] = field(default_factory=list)  # (band, seq) of the used ones
    _pairs: set[tuple[str, ...]] = field(default_factory=set)  # of the classic builder
    _own: dict[int, list[tuple[int, str, str]]] = field(default_factory=dict)  # band -> (seq, id, text) of this job

    def __post_init__(self) -> None:
        if self.builder == "classic":
            self.curation = classic.plain(self.curation)

    def entries(self, rows: Iterable[Row]) -> Iterator[Entry]:
        """Those that are learnt, in order; `used`, `left_out` and `bands` are full when it has ended."""
        for number, (seq, batch, id_, memory) in enumerate(rows):
            if number % 100 == 0:
                self.pulse()
            reason = self._why_not(seq, id_, memory)
            samples: list[Sample] = []
            if reason is None:
                samples = make_samples(memory, self.curation, self.prompts, self.seed, self.system_prompt)
                reason = None if samples else "it gives no sample"
            if self.builder == "classic" and samples:
                samples = [one for one in samples if classic.pair(one) not in self._pairs]
                self._pairs.update(map(classic.pair, samples))
                reason = None if samples else "the same question and answer as before"
            if reason is not None:
                self.left_out[seq] = reason
                continue
            self.used.append((seq, batch, id_, len(samples)))
            yield Entry(seq, batch, id_, memory, samples)

    def _why_not(self, seq: int, id_: str, memory: Memory) -> str | None:
        verdict = judge(memory, self.curation)  # the settings may have changed since it was read
        if not verdict.keep:
            return verdict.reason
        key = None if memory.payload else alike.text_key(self.db, seq)
        if key is not None and is_boilerplate(alike.times(self.db, key), self.curation):
            return "boilerplate: the same text again and again"
        text = said_in(memory)
        found = duplicates.bands_of(text)
        first = self._first_like(text, found, seq)
        if first is not None:
            return f"a near duplicate of memory {first[:12]}"
        for band in found:
            self.bands.append((band, seq))
            self._own.setdefault(band, []).append((seq, id_, text))
        return None

    def _first_like(self, text: str, bands: list[int], seq: int) -> str | None:
        """The id of the memory that this one repeats."""
        looked_at: set[int] = set()
        for band in bands:
            for other, id_, said in self._own.get(band, ()):
                if other in looked_at:
                    continue
                if len(looked_at) >= duplicates.MOST_COMPARED:
                    break
                looked_at.add(other)
                if duplicates.are_alike(text, said, self.curation):
                    return id_
        for row in alike.candidates(self.db, bands, seq):
            if duplicates.are_alike(text, said_in(memories.from_row(row)), self.curation):
                return str(row["id"].hex())
        return None


def said_in(memory: Memory) -> str:
    """What two memories are compared by: the question and the answer, or the text; of a tool call its data as well."""
    said = memory.content if memory.response is None else f"{memory.content}\n{memory.response}"
    return f"{said}\n{shown(memory.payload)}" if memory.payload else said


def curated_form(id_: str, memory: Memory, mode: str, curation: Curation) -> dict[str, object]:
    """One line of `curated_memories.json`: the texts as they were cleaned."""
    cleaned = clean(memory, curation, id_)
    return {
        "id": id_, "type": memory.type, "cognitiveMode": mode, "source": memory.source,
        "originalTimestamp": memory.timestamp, "time": memory.time, "content": cleaned.content,
        "response": cleaned.response, "context": [[turn.role, turn.text] for turn in cleaned.context],
        "tags": list(memory.tags),
    }  # fmt: skip
