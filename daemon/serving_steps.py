"""The steps of serving, each with what it records: one transaction when it is done, and a name before it is given."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from daemon import delivering, ledger
from daemon.candidates import environment_of, model_of, names_decided, questions_of
from daemon.delivering import Model, Place, Stop, Wrong
from daemon.exporting import Made
from daemon.ledger import jobs, serving
from daemon.logs import get_logger
from daemon.world import World

NOTE = "serving"  # in a ledger's meta: why nothing is served

_log = get_logger()


@dataclass(frozen=True, slots=True)
class Step:
    """`work` runs in the worker's thread; `done` records what it gave, at that time. `name`: in Ollama."""

    what: str
    line: str
    version: int | None
    work: Callable[[Stop], Any]
    done: Callable[[Any, str], None]
    name: str = ""


class Steps:
    """Of one profile and one Ollama. What is given to `done` came from the worker; it may raise Wrong."""

    def __init__(self, world: World) -> None:
        self._world, self._serve, self.host = world, world.settings.serve, world.settings.serve.where()
        self._log = _log.bind(profile=world.name)

    def alias(self, line: str) -> str:
        return self._serve.alias(self._world.name, line)

    def names(self) -> dict[str, dict[str, Any]]:
        """Those that we gave there."""
        return serving.names_at(self._world.db, self.host)

    def stands(self, alias: str) -> bool:
        """Whether an alias is where the ledger has it: not in the middle of a move that nobody saw the end of."""
        return self.names().get(alias, {}).get("state") in serving.READY

    def _place(self) -> Place:
        known = self.names()
        aliases = {name for name, row in known.items() if row["kind"] == "alias"}
        aliases |= {name.rpartition("-v")[0] for name, row in known.items() if row["kind"] == "version"}
        return Place(self.host, self._serve.timeout, tuple(sorted(aliases)))

    def making(self, line: str, version: dict[str, Any], made: Made) -> Step:
        """Create it; but first write its names down, if they are not."""
        alias, known, place, wanted = self.alias(line), self.names(), self._place(), int(version["id"])
        name = f"{alias}-v{wanted}"
        model = model_of(self._world, name, version, made)
        begun = alias in known and name in known and known[name]["state"] == "making"
        if begun and known[name]["base"] == model.base and model.base in (None, *known):
            return Step("make", line, wanted, lambda stop: delivering.make(place, model, stop),
                        lambda _, at: self._created(line, wanted, model, at), name)  # fmt: skip
        return Step("names", line, wanted, lambda stop: delivering.names_there(place, stop),
                    lambda there, at: self._name(line, wanted, model, there, at), name)  # fmt: skip

    def _name(self, line: str, wanted: int, model: Model, there: set[str], now: str) -> None:
        """Names are written down before they are given; one that somebody else has given is left alone."""
        db, alias = self._world.db, self.alias(line)
        known = serving.names_at(db, self.host)
        kinds = {model.name: "version", alias: "alias", **({model.base: "base"} if model.base else {})}
        own = [name for name in kinds if name != model.base]  # a base is that of each home and profile
        for name in own:
            if whose := self._whose(name, line, kinds[name], known.get(name)):
                raise Wrong(f"{whose} has the name {name} in Ollama already: give each its own (serve.name, with "
                            "{profile} in it where several people are served)")  # fmt: skip
            if name in there and name not in known:
                raise Wrong(f"Ollama has a model {name} already that this home did not make: give ours another name "
                            f"(serve.name), or take it away (ollama rm {name})")  # fmt: skip
        blobs = {model.name: model.sha256, **({model.base: model.base_sha256} if model.base else {})}
        with db.transaction():
            for name, kind in kinds.items():
                if name == model.name or name not in known or known[name]["state"] == "leaving":
                    version, base = (wanted, model.base) if kind == "version" else (None, None)
                    serving.begin_name(db, self.host, name, kind, now, line=line, version=version, base=base,
                                       blob=blobs.get(name))  # fmt: skip

    def _whose(self, name: str, line: str, kind: str, known: dict[str, Any] | None) -> str | None:
        """Who else of this home was given this name there: what one person taught must not answer another one."""
        if known is not None and (known["line"], known["kind"]) != (line, kind):
            return f"line {known['line']}" if known["line"] else "the main line"
        home = self._world.home
        for other in home.profile_names():
            if other != self._world.name and (path := home.profile(other).ledger).exists():
                with ledger.open_profile(path, write=False) as db:
                    if name in serving.names_at(db, self.host):
                        return f"profile {other}"
        return None

    def _turning(self, alias: str) -> None:
        """Before it is moved or removed: whatever comes between, it is not taken to be what it was."""
        with self._world.db.transaction():
            serving.set_name(self._world.db, self.host, alias, "making")

    def _created(self, line: str, wanted: int, model: Model, now: str) -> None:
        with self._world.db.transaction():
            for name in filter(None, (model.base, model.name)):
                serving.set_name(self._world.db, self.host, name, "made")
        self._log.info("model_created", model=model.name, version=wanted, line=line, on_top_of=model.base)

    def asking(self, line: str, wanted: int, name: str) -> Step:
        version = jobs.version(self._world.db, wanted)
        questions = questions_of(self._world, version) if version else ()
        most, place = self._world.settings.evaluation.free_answer_tokens, self._place()

        def answered(note: str, now: str) -> None:
            with self._world.db.transaction():
                serving.set_name(self._world.db, self.host, name, "answered", note)
            self._log.info("model_answered", model=name, version=wanted, note=note)

        return Step("ask", line, wanted, lambda stop: delivering.ask(place, name, questions, most, stop),
                    answered, name)  # fmt: skip

    def moving(self, line: str, wanted: int | None, name: str, alias: str) -> Step:
        place, keep = self._place(), self._serve.keep_alive
        self._turning(alias)

        def moved(_: None, now: str) -> None:
            before = serving.line(self._world.db, line)["version"]
            with self._world.db.transaction():
                serving.set_name(self._world.db, self.host, alias, "answered")
                serving.moved(self._world.db, line, host=self.host, alias=alias, to=name, version=wanted, now=now)
                jobs.set_meta(self._world.db, NOTE, None)
            self._log.info("alias_moved", alias=alias, model=name, version=wanted, before=before, line=line)

        return Step("alias", line, wanted, lambda stop: delivering.move(place, alias, name, keep, stop), moved, name)

    def to_base(self, line: str, row: dict[str, Any]) -> Step:
        """The head went back to the base: so does the alias, where that is in Ollama; else it goes, since a model that
        was not trained must not be one that was."""
        known, alias = serving.names_at(self._world.db, self.host), str(row["alias"])
        base = known.get(str(row["name"]), {}).get("base")
        if base in known and known[base]["state"] in serving.READY:
            return self.moving(line, None, str(base), alias)
        place = self._place()
        self._turning(alias)

        def gone(_: None, now: str) -> None:
            with self._world.db.transaction():
                serving.drop_name(self._world.db, self.host, alias)
                serving.moved(self._world.db, line, host=self.host, alias=alias, to=None, version=None, now=now)
            self._log.info("alias_removed", alias=alias, line=line, reason="the head is the base model again")

        return Step("reset", line, None, lambda stop: delivering.remove(place, alias, None, None, stop), gone, alias)

    def checking(self, line: str, row: dict[str, Any]) -> Step:
        place, alias, name = self._place(), str(row["alias"]), str(row["name"])

        def checked(right: bool, now: str) -> None:
            if not right:
                with self._world.db.transaction():
                    serving.lost(self._world.db, line)
                self._log.warning("alias_lost", alias=alias, model=name, note="it is made again")

        return Step("check", line, None, lambda stop: delivering.points_to(place, alias, name, stop), checked, name)

    def telling(self, line: str, version: dict[str, Any], made: Made) -> Step:
        """serve.command, with the paths of the version."""
        environment, serve, wanted = environment_of(self._world, version, made), self._serve, int(version["id"])

        def told(_: None, now: str) -> None:
            with self._world.db.transaction():
                serving.told(self._world.db, line, wanted)
                serving.settled(self._world.db, line)
            self._log.info("serve_command_done", version=wanted, line=line)

        return Step("command", line, wanted, lambda stop: delivering.command(
            serve.command, environment, made.folder, serve.timeout, stop), told)  # fmt: skip

    def cleaning(self) -> Step | None:
        """Names that nobody needs any more, one at a time: the versions first, then what was below them."""
        db = self._world.db
        known, decided = serving.names_at(db, self.host), names_decided(self._world, self.host)
        going = [name for name, (keep, _) in decided.items() if not keep]
        if fresh := [name for name in going if known[name]["state"] in serving.READY]:
            with db.transaction():
                for name in fresh:
                    serving.set_name(db, self.host, name, "leaving")
        if not going:
            return None
        name = min(going, key=lambda one: (known[one]["kind"] != "version", one))
        row, place = known[name], self._place()
        blob = row["blob"] if row["state"] == "making" else None

        def gone(_: None, now: str) -> None:
            with db.transaction():
                serving.drop_name(db, self.host, name)
            self._log.info("model_removed", model=name, version=row["version"], reason=decided[name][1])

        return Step("clean", row["line"], None, lambda stop: delivering.remove(
            place, name, row["base"], blob, stop), gone, name)  # fmt: skip
