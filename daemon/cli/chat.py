"""`engramd ask` and `engramd chat`: the head answers, from a trainer's child. Reads only; it is no job.

Where llama.cpp is there and the version has what it is served from, that answers: its start takes a fraction of the
time. Else, and for the base model, the checkpoint does, with torch.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.cli import command, profile_option, whole
from daemon.cli.context import home_of, print_json, settings_of
from daemon.cli.exit_codes import Exit, UserError

if TYPE_CHECKING:
    from daemon.cli import Subparsers
    from daemon.cli.talking import Message, Talk
    from daemon.home import Home


@dataclass(frozen=True, slots=True)
class _Served:
    """What llama.cpp opens: a model or the base below an adapter, the adapter, and the base whose tokenizer it is."""

    gguf: Path
    adapter: Path | None
    tokenizer: str


@dataclass(frozen=True, slots=True)
class _Chosen:
    """What the trainer is told to load (None: its files are gone), which version that is (None: the base model), which
    of its weights, and what it is served from."""

    model: str | None
    version: int | None
    weights: str = "raw"
    served: _Served | None = None


def register(subparsers: "Subparsers") -> None:
    ask = command(subparsers, "ask")
    ask.add_argument("question", help="in quotes; - reads it from stdin")
    _options(ask)
    ask.add_argument("--json", action="store_true", help="keys: see docs/cli.md")
    ask.set_defaults(run=_ask)
    chat = command(subparsers, "chat", description="Talk to the newest model; Ctrl-D ends it.")
    _options(chat)
    chat.set_defaults(run=_chat)


def _options(parser: argparse.ArgumentParser) -> None:
    profile_option(parser)
    parser.add_argument("--base", action="store_true", help="the base model, without what it has learnt")
    parser.add_argument("--version", metavar="vN", help="this version instead of the head: also one that was refused")
    parser.add_argument("--line", default="", metavar="NAME", help="the head of this line, such as emulation or full")
    parser.add_argument(
        "--trainer", action="store_true", help="the checkpoint itself, not the quantised file that it is served from"
    )
    parser.add_argument("--system", metavar="TEXT", help="a system prompt for this conversation")
    parser.add_argument(
        "--max-new-tokens", type=whole, default=200, metavar="N", help="the answer's length at most (default: 200)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 (default) takes the likeliest word"
    )
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="for a temperature above 0")


def _ask(args: argparse.Namespace) -> int:
    question = sys.stdin.read() if args.question == "-" else args.question
    if not question.strip():
        raise UserError("there is no question", Exit.USAGE)
    chosen = _target(args)
    talk, engine, model = _talk(chosen)
    with talk:
        messages = [*_system(args), {"role": "user", "content": question}]
        text, tokens = _answer(talk, messages, args)
    if args.json:
        told = {"question": question, "answer": text, "tokens": tokens, "version": chosen.version}
        print_json({"profile": args.profile} | told | {"model": model, "engine": engine})
    else:
        print(text)
    return Exit.OK


def _chat(args: argparse.Namespace) -> int:
    chosen = _target(args)
    seen = sys.stdin.isatty()
    if seen:
        import readline  # noqa: F401  # the arrow keys in input()

        print("loading ...", file=sys.stderr, end="\r")
    talk, engine, _ = _talk(chosen)
    with talk:
        if seen:
            name = f"v{chosen.version}" if chosen.version else "the base model"
            print(f"{name}, by {engine}; Ctrl-D ends it", file=sys.stderr)
        history = _system(args)
        while True:
            try:
                line = input("> " if seen else "")
            except EOFError:
                if seen:
                    print()
                return Exit.OK
            if not line.strip():
                continue
            history.append({"role": "user", "content": line})
            text, _ = _answer(talk, history, args)
            history.append({"role": "assistant", "content": text})
            print(text, flush=True)


def _system(args: argparse.Namespace) -> "list[Message]":
    return [{"role": "system", "content": args.system}] if args.system else []


def _talk(chosen: _Chosen) -> "tuple[Talk, str, str]":
    """The child, what computes in it, and the model that it has opened: the GGUF where llama.cpp opens it, else the
    checkpoint."""
    from daemon.cli.talking import Talk, TalkError, chat_command, gguf_options

    if chosen.served is not None:
        served = chosen.served
        options = gguf_options(served.tokenizer, served.adapter)
        try:
            talk = Talk([*chat_command(str(served.gguf)), *options])
            return talk, "llama.cpp", str(served.adapter or served.gguf)
        except TalkError as error:
            if chosen.model is None:
                raise UserError(f"{error}; the checkpoint of v{chosen.version} is gone", Exit.UNAVAILABLE) from None
            print(f"v{chosen.version} answers from its checkpoint, through the trainer: {error}", file=sys.stderr)
    assert chosen.model is not None
    weights = [] if chosen.weights == "raw" else ["--weights", chosen.weights]
    try:
        return Talk([*chat_command(chosen.model), *weights]), "trainer", chosen.model
    except TalkError as error:
        raise UserError(str(error), Exit.UNAVAILABLE) from None


def _answer(talk: "Talk", messages: "list[Message]", args: argparse.Namespace) -> tuple[str, int | None]:
    from daemon.cli.talking import TalkError

    try:
        answer = talk.say(
            messages, max_new_tokens=args.max_new_tokens, temperature=args.temperature, seed=args.seed
        )
    except TalkError as error:
        raise UserError(str(error)) from None
    return str(answer.get("text", "")), answer.get("tokens")


def _target(args: argparse.Namespace) -> _Chosen:
    """Who answers, as the options have it. Raises UserError."""
    home, profile = home_of(args), args.profile
    if args.version is not None:
        from daemon.cli.versions import number_of, opened_version

        if args.base or args.line:
            raise UserError("--base, --line and --version: one of them", Exit.USAGE)
        number = number_of(args.version)
        served = _served(args, number)
        try:
            folder, weights = opened_version(home, profile, number)
        except UserError:
            if served is None:
                raise
            return _Chosen(None, number, served=served)  # pruned, but what it is served from is still there
        return _Chosen(str(folder), number, weights, served)
    if args.line and args.base:
        raise UserError("--base, --line and --version: one of them", Exit.USAGE)
    if not args.base and (found := head_folder(home, profile, args.line)):
        return _Chosen(*found, served=_served(args, found[1]))
    if args.line:
        raise UserError(f"nothing was trained on line {args.line} yet: engramd models lists the versions with their "
                        "lines, and engramd cycle --mode or --method trains one", Exit.NOTHING)  # fmt: skip
    base = settings_of(args).recipe(profile).base_model
    if not args.base:
        print(f"nothing was trained yet; {base} itself answers", file=sys.stderr)
    return _Chosen(base, None)


def _served(args: argparse.Namespace, version: int | None) -> _Served | None:
    """What a version is served from, where llama.cpp is there to open it and nobody wants the trainer."""
    from daemon.cli.talking import llama_is_there

    if version is None or args.trainer or not llama_is_there():
        return None
    from daemon.cli.reading import opened, world_of
    from daemon.ledger import jobs, serving

    home = home_of(args)
    with opened(home, args.profile) as db:
        row = jobs.version(db, version)
        if row is None or serving.export(db, version) is None:
            return None
        from daemon import exporting

        try:
            made = exporting.made(world_of(home, args.profile, db, settings_of(args)), version)
        except UserError:  # in the rules of curation, which have no part in a conversation
            return None
        base = str((jobs.chain_key(db, row["chain"]) or {}).get("base_model") or "")
    if made is None or not base:
        return None
    if made.base_gguf is None:
        return _Served(made.gguf, None, base)
    return _Served(made.base_gguf, made.gguf, base)


def head_folder(home: "Home", profile: str, line: str = "") -> tuple[str, int | None, str] | None:
    """The checkpoint folder of a line's head, its version and which of its weights are relied on; None before its
    first job."""
    from daemon.cli.reading import opened_if_there, profiles
    from daemon.ledger import jobs
    from trainer import names

    profiles(home, profile)
    with opened_if_there(home, profile) as db:
        head = jobs.get_head(db, line) if db else None
        version = jobs.version(db, head["version"]) if db and head else None
    if head is None:
        return None
    folder = home.profile(profile).chains / str(head["chain"]) / f"{names.CHECKPOINT_PREFIX}{head['step']}"
    if not folder.is_dir():
        raise UserError(f"the head's checkpoint is missing: {folder}; engramd audit says more")
    return str(folder), head["version"], version["weights"] if version else "raw"
