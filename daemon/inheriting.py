"""What of the origin beside its memories comes here: the settings of its training, and the history of its models."""

import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from daemon import durable
from daemon.home import Home
from daemon.importing import Import, Row
from daemon.profile_tree import open_inside
from daemon.rules import metahuman
from daemon.rules.metahuman import Differs
from daemon.settings import Settings, SettingsError, load, origins
from daemon.settings_sections import CycleSettings
from trainer.contract import TrainingRecipe

MOST_BYTES = 16 << 20  # of a file of settings or of a registry
SHIPPED_BASE = "unsloth/Qwen3-14B"  # in the etc/training.json that comes with engramd
_COMMENT = "Taken over from MetaHuman OS by engramd import-metahuman."


@dataclass(slots=True)
class Inherited:
    differs: list[Differs] = field(default_factory=list)
    settings_row: Row | None = None
    registries: list[tuple[Row, dict[str, Any]]] = field(default_factory=list)


def look(done: Import, settings: Settings) -> Inherited:
    """Read what was found; a file that cannot be used gets its reason."""
    found = Inherited()
    recipe = settings.training.recipe.model_dump(mode="json")
    cycle = settings.cycle.model_dump(mode="json")
    rows = [row for row in done.rows if row.taken and row.kind in ("settings", "registry")]
    for row in sorted(rows, key=lambda row: (not row.path.startswith("etc/"), row.path)):
        value = _read(done, row)
        if value is None:
            continue
        if row.kind == "registry":
            history = metahuman.history_of(value)
            if history is None:
                row.reason = "it is no registry of models"
            else:
                found.registries.append((row, history))
        elif found.settings_row is not None:
            row.reason = f"the settings are those of {found.settings_row.path}"
        else:
            found.settings_row = row
            found.differs = _judged(metahuman.settings_that_differ(value, recipe, cycle), recipe, cycle)
    return found


def _read(done: Import, row: Row) -> dict[str, Any] | None:
    if row.found.size > MOST_BYTES:
        row.reason = f"it has more than {MOST_BYTES >> 20} MiB, which no file of its kind has"
        return None
    try:
        with open_inside(done.source.folder, row.found.path) as stream:
            value = json.loads(stream.read(MOST_BYTES + 1).decode("utf-8-sig"))
    except OSError as error:
        row.reason = f"it cannot be read ({error.strerror}): chmod u+r it, then import again"
    except (ValueError, RecursionError) as error:
        row.reason = f"the JSON cannot be read: {' '.join(str(error).split())}"
    else:
        if isinstance(value, dict):
            return value
        row.reason = "the JSON is no object"
    return None


def _judged(differs: list[Differs], recipe: dict[str, Any], cycle: dict[str, Any]) -> list[Differs]:
    """With a reason at those whose value is not allowed here."""
    found = []
    for one in differs:
        if one.setting and not one.problem:
            section, base = (TrainingRecipe, recipe) if one.setting.startswith("training.") else (CycleSettings, cycle)
            try:
                if isinstance(one.theirs, bool) != isinstance(one.here, bool):
                    one = one._replace(problem=f"not allowed here: it is not of the kind of {one.here}")
                section.model_validate(base | {one.key: one.theirs})
            except ValidationError as error:
                said = error.errors(include_url=False)[0]["msg"]
                one = one._replace(problem=f"not allowed here: {said[:1].lower()}{said[1:]}")
        found.append(one)
    return found


def wanted(differs: Iterable[Differs]) -> dict[str, Any]:
    """The keys that can be taken over, as they stand in training.json."""
    return {one.key: one.theirs for one in differs if one.setting and not one.problem}


def take_settings(home: Home, differs: list[Differs]) -> str:
    """Write what differs into `etc/training.json`, where nobody has changed that file. Gives one sentence on it.

    Raises OSError.
    """
    values = wanted(differs)
    path = home.etc / "training.json"
    if not values:
        return "no setting is to be taken over"
    try:
        here = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        here = {}
    except ValueError:
        here = None
    if not isinstance(here, dict) or not is_default(here):
        return f"{path} has been changed by somebody and stays as it is; set there: {_shown(values)}"
    new = here | values | {"comment": here.get("comment") or _COMMENT}
    if problem := _refused(new):
        return f"the settings cannot be taken over together ({problem}); set one by one: {_shown(values)}"
    durable.make_folder(path.parent, 0o755)
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    durable.write_atomic(path, (json.dumps(new, indent=2, ensure_ascii=False) + "\n").encode(), mode)
    over = [f"{key} ({where})" for key, where in _won_over(home, values)]
    return f"{len(values)} settings were written into {path}" + (
        f"; these are set elsewhere too, which wins: {', '.join(over)}" if over else ""
    )


def _refused(values: dict[str, Any]) -> str:
    """What a home with this training.json alone would say against it; empty where nothing."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Home(Path(folder))
        scratch.etc.mkdir()
        (scratch.etc / "training.json").write_text(json.dumps(values), encoding="utf-8")
        try:
            load(scratch, environ={})
        except SettingsError as error:
            return str(error)
    return ""


def beside(done: Import) -> list[Path]:
    """Files of the whole system, outside of the profile's folder, that one would like to have in it."""
    folder, there = done.source.folder, {row.path for row in done.rows}
    if folder.parent.name != "profiles":
        return []
    names = [name for name in ("training.json", "model-registry.json") if f"etc/{name}" not in there]
    return [path for name in names if (path := folder.parent.parent / "etc" / name).is_file()]


def _won_over(home: Home, values: dict[str, Any]) -> list[tuple[str, str]]:
    """Keys that a layer above training.json sets."""
    found = origins(home)
    return [
        (key, where) for key, _, where in found
        if key.rpartition(".")[2] in values and key.startswith(("training.", "cycle."))
        and key.count(".") == 1 and where not in ("etc/training.json", "default")
    ]  # fmt: skip


def is_default(values: dict[str, Any]) -> bool:
    """Whether a training.json says nothing else than the one that comes with engramd."""
    settings = Settings()
    usual = settings.training.recipe.model_dump(mode="json") | settings.cycle.model_dump(mode="json")
    return all(
        key in ("comment", "notes") or usual.get(key, _NOTHING) == value or (key, value) == ("base_model", SHIPPED_BASE)
        for key, value in values.items()
    )


_NOTHING = object()


def _shown(values: dict[str, Any]) -> str:
    return ", ".join(f'"{key}": {json.dumps(value)}' for key, value in values.items())


def keep_registry(done: Import, row: Row, home: Home, profile: str) -> Path:
    """A copy beside the profile, under the first free name, or the one that is there with the same bytes.

    Raises OSError.
    """
    with open_inside(done.source.folder, row.found.path) as stream:
        data = stream.read(MOST_BYTES + 1)
    folder = home.profile(profile).root / "imported"
    durable.make_folder(folder)
    number = 1
    while True:
        path = folder / ("model-registry.json" if number == 1 else f"model-registry-{number}.json")
        try:
            if path.read_bytes() == data:
                return path
        except FileNotFoundError:
            durable.write_atomic(path, data)
            return path
        number += 1
