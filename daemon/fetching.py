"""What a person asks of exports: a version's files for elsewhere (`engramd export`), and serving at once
(`engramd serve`).

The export of a request stays in its job's folder, and is copied out by the command line: where the person may write,
the daemon may not. Each function gives None where it is not done yet, and raises ValueError with a sentence.
"""

from pathlib import Path
from typing import Any

from daemon import exporting
from daemon.ledger import Database, jobs, serving
from daemon.logs import get_logger
from daemon.serving import Serving
from daemon.serving_steps import NOTE
from daemon.world import World
from trainer import names

Told = dict[str, Any]

_log = get_logger()


def export(world: World, home_db: Database, request: Told, arguments: Told, now: str, held: str | None) -> Told | None:
    """The folder that has it: that of the version, if it was made like that to be served, else that of a job."""
    version = jobs.version(world.db, int(arguments["version"]))
    if version is None:
        raise ValueError(f"there is no v{arguments['version']} of profile {world.name}: engramd models lists them")
    form = "adapter" if arguments.get("adapter_only") else "merged"
    if form == "adapter" and (jobs.chain_key(world.db, version["chain"]) or {}).get("method") == "full":
        raise ValueError(f"v{version['id']} was trained with method full: it is a whole model, and has no adapter")
    wanted = exporting.wish(world, version, quantisation=arguments.get("quant"), form=form)
    made = exporting.made(world, version["id"])
    if made is not None and (made.told.form, made.told.quantisation) == (form, wanted.export.quantisation):
        return _told(made.folder, made.told.files, version, None, wanted.notice)
    job = jobs.of_request(world.db, request["id"])
    if job is None:
        if held is not None:
            raise ValueError(f"no job may run now: {held}")
        if jobs.open_job(world.db) is not None:
            return None
        try:
            exporting.freeze(world, home_db, version, wanted, now, request=request["id"])
        except exporting.NoExport as none:
            raise ValueError(str(none)) from None
        return None
    if job["state"] in ("failed", "undone"):
        raise ValueError(f"v{version['id']} was not exported (job {job['id']}): {job['reason']}")
    if job["state"] != "done":
        return None
    folder = world.paths.jobs / str(job["folder"]) / names.EXPORT
    found = exporting.read(folder)
    if found is None:
        raise ValueError(f"what job {job['id']} exported is not there any more: ask again")
    return _told(folder, found.files, version, job["id"], wanted.notice)


def _told(folder: Path, files: Told, version: Told, job: int | None, notice: str | None) -> Told:
    return {"version": version["id"], "state": version["state"], "folder": str(folder), "files": sorted(files),
            "job": job, "notice": notice}  # fmt: skip


def fetched(world: World, arguments: Told, now: str) -> Told:
    """A person has copied it: the job's folder keeps its records."""
    job = jobs.get(world.db, int(arguments["job"]))
    if job is None or job["kind"] != "export" or serving.about(job).get(serving.FOR) != serving.REQUEST:
        raise ValueError(f"job {arguments['job']} is no export that was asked for")
    if job["state"] == "done" and job["pruned_at"] is None:
        exporting.fetched(world, job, now)
    return {"job": job["id"]}


def serve(world: World, at_work: Serving, request: Told, now: str, held: str | None) -> Told | None:
    """Tried at once, whatever was in vain before; what came of it."""
    if world.settings.serve.ollama == "off" and not world.settings.serve.command:
        raise ValueError('nothing is served: serve.ollama = "off", and serve.command is empty')
    if request["state"] == "waiting":
        at_work.ask(now)
        return None
    open_one = jobs.open_job(world.db)
    if at_work.at_work or (at_work.wants_export and held is None) or (open_one and open_one["kind"] == "export"):
        return None
    if at_work.wants_export:
        raise ValueError(f"no job may run now, and the newest version is to be exported first: {held}")
    heads = jobs.heads(world.db)
    lines = [{**row, "wanted": heads[line]["version"] if line in heads else None}
             for line, row in serving.lines(world.db).items()]  # fmt: skip
    return {"lines": lines, "note": jobs.get_meta(world.db, NOTE)}
