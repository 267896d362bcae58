"""A version's own folder, `models/v<N>/`: its model card for people and tools, and the summary of its run.

The card is Markdown with a YAML header, as the Hugging Face hub reads it (huggingface.co/docs/hub/model-cards, and
`modelcard_template.md` of huggingface_hub for the sections). It says what was learnt in counts, kinds and months: no
text of a memory, no name of a person, file or folder comes into it, so that it can be shown to somebody.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from daemon import durable
from daemon.ledger import Database, learnt
from trainer import names

CARD = "README.md"
WHO = ("candidate", "served", "base")
GROUPS = {  # of probes, as a person would say it
    "new": "what it just learnt", "recent": "learnt lately", "old": "learnt before that",
    "held_out": "kept out of training", "anchor": "general text",
}  # fmt: skip
MEASURES = {
    "loss": "nats a token", "token_accuracy": "tokens known", "exact": "answers known whole",
    "free_exact": "said exactly", "free_fuzzy": "said nearly",
}  # fmt: skip
_ROLES = {
    "new": ("new memory", "new memories"), "replay": ("memory rehearsed", "memories rehearsed"),
    "anchor": ("sample of general text", "samples of general text"),
}  # fmt: skip
_LINES_BEFORE = 10  # of the lineage; what is further down is only counted
_NEVER_SHOWN = frozenset(("base_model",))  # of the recipe: a folder's name may be somebody's
_CYCLE = ("kind", "mode", "since", "days_recent", "old_samples", "max_samples", "method", "recent", "old", "seed")


def needed(folder: Path) -> bool:
    """Whether a version's folder is not whole yet: the card comes last."""
    return not (folder / CARD).is_file()


def write(
    folder: Path, db: Database, line: Sequence[dict[str, Any]], summary: dict[str, Any], job_summary: Path
) -> None:
    """The folder of a version: `job_summary` is copied first, the card is written last. May be done again."""
    durable.make_folder(folder)
    durable.remove_temps(folder)  # of a writer that was killed
    if job_summary.is_file() and not (folder / names.SUMMARY).is_file():
        durable.write_atomic(folder / names.SUMMARY, job_summary.read_bytes(), 0o400)
    durable.write_atomic(folder / CARD, card(db, line, summary).encode())


def card(db: Database, line: Sequence[dict[str, Any]], summary: dict[str, Any]) -> str:
    """The model card of the first entry of `line`, which are those of `registry.mirror` from it down to the base;
    `summary` is its `run-summary.json`, empty where it is gone."""
    entry = line[0]
    recipe = summary.get("recipe") or {}
    base = shown_base(line[-1]["base_model_used"])
    parts = [
        _header(entry, base), f"# {_title(entry)}\n", _about(entry, base, line), _trained_on(db, entry, line),
        _recipe(entry, recipe), _figures(entry), _lineage(entry, line, base), _limits(db, entry), _use(entry),
    ]  # fmt: skip
    return "\n".join(parts)


def shown_base(model: str) -> str:
    """A hub's name as it is; of a folder its last part only."""
    return Path(model).name if model.startswith(("/", "~", ".")) else model


# -- the header --------------------------------------------------------------------------------------


def _header(entry: dict[str, Any], base: str) -> str:
    import yaml  # only when a version is made, not by the idle daemon

    lora = entry["method"] != "full"
    head: dict[str, Any] = {
        "base_model": base,
        "base_model_relation": "adapter" if lora else "finetune",
        "library_name": "peft" if lora else "transformers",
        "pipeline_tag": "text-generation",
        "language": "und",  # ISO 639: not determined; memories are in whatever language a person lives in
        "tags": ["engramd", "memory", "personal", "lora" if lora else "full-fine-tuning",
                 *([f"line-{entry['line']}"] if entry.get("line") else [])],
    }  # fmt: skip
    if results := list(_results(entry)):
        head["model-index"] = [{"name": _title(entry), "results": results}]
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n"


def _results(entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """As Papers with Code has it, which is what the hub reads."""
    found = figures(entry.get("metrics"))
    for group, what in GROUPS.items():
        metrics = [
            {"type": measure, "name": MEASURES[measure], "value": value["candidate"]}
            for measure, value in found.get(group, {}).items() if "candidate" in value
        ]  # fmt: skip
        if metrics:
            yield {
                "task": {"type": "text-generation"},
                "dataset": {"type": f"engramd-{group.replace('_', '-')}", "name": f"own probes: {what}"},
                "metrics": metrics,
            }


# -- the sections ------------------------------------------------------------------------------------


def _title(entry: dict[str, Any]) -> str:
    return f"engramd v{entry['version']}" + (f" ({entry['line']})" if entry.get("line") else "")


def _about(entry: dict[str, Any], base: str, line: Sequence[dict[str, Any]]) -> str:
    what = "A LoRA adapter" if entry["method"] != "full" else "A whole model"
    first = f"on top of `{base}`" if entry["method"] != "full" else f"that began as `{base}`"
    state = {"promoted": "in service or was", "undone": "gone back over", "refused": "refused by the gate",
             "candidate": "not judged yet"}.get(entry["state"], entry["state"])  # fmt: skip
    steps = "one step" if len(line) < 2 else f"{len(line)} steps"
    judged = ""
    if entry.get("decided_at"):
        reason = entry["decision"] if entry["decision"] and "/" not in entry["decision"] else entry["state"]
        judged = f", judged {_day(entry['decided_at'])}: {reason}"
    told = [f"{what} {first}, trained on one person's memories in {steps}. State: {state}.\n",
            f"Made {_day(entry['timestamp'])}{judged}.\n"]  # fmt: skip
    if entry.get("despite"):
        told.append("The gate had refused it; a person promoted it all the same.\n")
    return "\n".join(told)


def _trained_on(db: Database, entry: dict[str, Any], line: Sequence[dict[str, Any]]) -> str:
    roles = entry.get("memories") or {}
    own = ", ".join(_many(roles[use], *words) for use, words in _ROLES.items() if roles.get(use))
    told = ["## What it was trained on\n", f"In this step: {own or 'nothing new'}; "
            f"{entry['samples_trained']:,} uses of samples in {entry['steps']:,} optimizer steps.\n"]  # fmt: skip
    rows = [[use["use"], use["type"], f"{use['memories']:,}", _months(use)] for use in
            learnt.of_job(db, int(entry["run_id"]))]  # fmt: skip
    if rows:
        told.append(_table(["role", "type of memory", "memories", "from when"], rows))
    if len(line) > 1:
        rows = [[use["type"], f"{use['memories']:,}", _months(use)] for use in learnt.below(db, entry["version"])]
        told += [f"In all {len(line)} versions of its line, each memory counted once:\n",
                 _table(["type of memory", "memories", "from when"], rows)]  # fmt: skip
    if cycle := entry.get("cycle"):
        known = [f"{key} {cycle[key]}" for key in _CYCLE if isinstance(cycle.get(key), str | int | float)]
        told.append(f"It was a cycle over selected memories: {', '.join(known)}.\n")
    return "\n".join(told)


def _recipe(entry: dict[str, Any], recipe: dict[str, Any]) -> str:
    told = ["## How it was trained\n"]
    rows = [[key, f"`{value}`"] for key, value in recipe.items() if key not in _NEVER_SHOWN]
    told.append(_table(["setting", "value"], rows) if rows else "The settings of this run were not kept.\n")
    facts = {
        "recipe SHA-256": entry.get("recipe_sha256"), "dataset SHA-256": entry.get("dataset_sha256"),
        "checkpoint's manifest SHA-256": entry["checkpoint_sha256"], "global step": entry["step"],
        "tokens": entry.get("tokens"), "seconds": _rounded(entry.get("seconds")),
        **(entry.get("sizes") or {}),
    }  # fmt: skip
    told.append(_table(["of this run", ""], [[key, f"`{value}`"] for key, value in facts.items() if value is not None]))
    return "\n".join(told)


def _figures(entry: dict[str, Any]) -> str:
    told = ["## How well it does\n"]
    found = figures(entry.get("metrics"))
    rows = [
        [GROUPS.get(group, group), MEASURES.get(measure, measure), *(_figure(values.get(who)) for who in WHO)]
        for group, measures in found.items() for measure, values in measures.items()
    ]  # fmt: skip
    if not rows:
        return told[0] + "\nIt was not measured: there were no probes.\n"
    probes = ", ".join(
        f"{int(count):,} {GROUPS.get(group, group)}" for group, count in probe_counts(entry["metrics"]).items()
    )
    told.append(
        f"Questions whose answers are known, made from its own memories and from general text ({probes}), asked of "
        "this version, of the one that was in service before it, and of the untouched base.\n"
    )
    told.append(_table(["of what", "measure", "this version", "in service before", "base"], rows))
    told.append("Nats a token: lower is better. The rest are shares from 0 to 1: higher is better.\n")
    if entry.get("weights") == "ema":
        told.append("Of its weights the running mean is relied on (`ema`), which scored better than the last ones.\n")
    checks = (entry.get("gate") or {}).get("checks") or []
    if rows := [[one["name"], _figure(one.get("before", one.get("served"))), _figure(one["candidate"]), one["margin"],
                 "too few questions" if not one["decides"] else "refused" if one["worse"] else "passed"]
                for one in checks]:  # fmt: skip
        told += ["The gate, which refuses a version that is worse by more than the margin:\n",
                 _table(["of what", "before", "this version", "margin", "verdict"], rows)]  # fmt: skip
    return "\n".join(told)


def _lineage(entry: dict[str, Any], line: Sequence[dict[str, Any]], base: str) -> str:
    told = ["## Where it comes from\n"]
    for one in line[: _LINES_BEFORE + 1]:
        new = (one.get("memories") or {}).get("new", 0)
        told.append(
            f"- v{one['version']}: step {one['step']}, {_many(new, *_ROLES['new'])}, {_day(one['timestamp'])}"
        )
    if (more := len(line) - _LINES_BEFORE - 1) > 0:
        told.append(f"- {_many(more, 'earlier version', 'earlier versions')}")
    return "\n".join([*told, f"- `{base}`, untouched\n"])


def _limits(db: Database, entry: dict[str, Any]) -> str:
    told = [
        "## What it is not good for\n",
        "- It speaks of one person's life, and may say private things of that person and of others: do not publish it.",
        "- What it recalls may be wrong or mixed up; the memories themselves are the record.",
        "- The figures are of small samples of questions, and teacher-forced unless they say otherwise.",
        "- The base model's licence, abilities and faults are its own.",
    ]
    if gone := learnt.forgotten_below(db, entry["version"]):
        told.append(f"- {gone:,} of the memories that it was trained on were forgotten since: their texts are gone, "
                    "but these weights have seen them.")  # fmt: skip
    return "\n".join(told) + "\n"


def _use(entry: dict[str, Any]) -> str:
    return f"## How to use it\n\n```\nengramd chat --version v{entry['version']}\n```\n"


# -- figures -----------------------------------------------------------------------------------------


def figures(metrics: dict[str, Any] | None) -> dict[str, dict[str, dict[str, float]]]:
    """{group: {measure: {who: value}}} of flat metrics `<who>.<group>.<measure>`, in the order of the tables above."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for group in GROUPS:
        for measure in MEASURES:
            values = {who: (metrics or {}).get(f"{who}.{group}.{measure}") for who in WHO}
            known = {who: float(value) for who, value in values.items() if isinstance(value, int | float)}
            if known:
                found.setdefault(group, {})[measure] = known
    return found


def probe_counts(metrics: dict[str, Any]) -> dict[str, float]:
    counts = {group: metrics.get(f"candidate.{group}.probes") for group in GROUPS}
    return {group: float(count) for group, count in counts.items() if count}


def _many(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _day(time: str | None) -> str:
    return (time or "")[:10]


def _months(row: dict[str, Any]) -> str:
    """`2024-03 to 2026-11`."""
    first, last = row["first"], row["last"]
    if first is None:
        return "not dated"
    span = first if first == last else f"{first} to {last}"
    return span + (f", {row['undated']:,} not dated" if row["undated"] else "")


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines)
