"""`engramd ask` and `engramd chat`: the head answers, from a trainer's child. Reads only; it is no job."""

import argparse
import sys
from typing import TYPE_CHECKING

from daemon.cli import command, profile_option, whole
from daemon.cli.context import home_of, print_json, settings_of
from daemon.cli.exit_codes import Exit, UserError

if TYPE_CHECKING:
    from daemon.cli import Subparsers
    from daemon.cli.talking import Message, Talk
    from daemon.home import Home


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
    target, version, weights = _target(args)
    with _talk(target, weights) as talk:
        messages = [*_system(args), {"role": "user", "content": question}]
        text, tokens = _answer(talk, messages, args)
    if args.json:
        told = {"question": question, "answer": text, "tokens": tokens, "version": version}
        print_json({"profile": args.profile} | told | {"model": target})
    else:
        print(text)
    return Exit.OK


def _chat(args: argparse.Namespace) -> int:
    target, version, weights = _target(args)
    seen = sys.stdin.isatty()
    if seen:
        import readline  # noqa: F401  # the arrow keys in input()

        print("loading ...", file=sys.stderr, end="\r")
    with _talk(target, weights) as talk:
        if seen:
            print(f"{f'v{version}' if version else 'the base model'}; Ctrl-D ends it", file=sys.stderr)
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


def _talk(target: str, weights: str) -> "Talk":
    from daemon.cli.talking import Talk, TalkError, chat_command

    chosen = [] if weights == "raw" else ["--weights", weights]
    try:
        return Talk([*chat_command(target), *chosen])
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


def _target(args: argparse.Namespace) -> tuple[str, int | None, str]:
    """What the trainer is told to load, which version that is (None: the base model), and which of its weights."""
    if args.version is not None:
        from daemon.cli.versions import number_of, opened_version

        if args.base or args.line:
            raise UserError("--base, --line and --version: one of them", Exit.USAGE)
        number = number_of(args.version)
        folder, weights = opened_version(home_of(args), args.profile, number)
        return str(folder), number, weights
    if args.line and args.base:
        raise UserError("--base, --line and --version: one of them", Exit.USAGE)
    if not args.base and (found := head_folder(home_of(args), args.profile, args.line)):
        return found
    if args.line:
        raise UserError(f"nothing was trained on line {args.line} yet: engramd models lists the versions with their "
                        "lines, and engramd cycle --mode or --method trains one", Exit.NOTHING)  # fmt: skip
    base = settings_of(args).recipe(args.profile).base_model
    if not args.base:
        print(f"nothing was trained yet; {base} itself answers", file=sys.stderr)
    return base, None, "raw"


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
