"""What lies beside the chats in the export of an AI: files that were sent to it, projects, pages that it made.

Read as notes they would teach as the person's own words what nobody said. They are known by the chats that they lie
with, which are looked into: a folder of notes that has a name like those is left alone. (Seen in exports: ChatGPT's
`file-AbC-notes.txt`, Gemini's attachments beside `MyActivity.json`, Claude's `projects/` and `artifacts/`.)
"""

import re
from collections.abc import Iterable

from daemon.readers import chatgpt, gemini
from daemon.readers.document import HEAD
from daemon.readers.shape import Limits, Locale, Sniff, StreamReader, Tree, TreeReader
from daemon.records import Heard, LeftOut, Refused

ABOUT = """\
**Files beside the chats with an AI.** Files that you sent to ChatGPT or Gemini, Claude's projects and the pages that it
made lie in the same zip as the chats. They are left out, each with its reason: nobody said what stands in them.
"""

_CHATS = re.compile(r"conversations(?:-\d{1,6})?\.json")
_SENT = re.compile(r"file[-_][0-9A-Za-z]{16,}|[0-9a-f]{32,}\.dat")
_TAKEOUTS = re.compile(r"Gemini|Bard", re.IGNORECASE)  # the product has this name in each language
_PROJECT, _ARTIFACT = frozenset(("uuid", "name", "docs")), frozenset(("versions.item.id", "owner_account"))


def _claims(tree: Tree) -> frozenset[str]:
    return frozenset(_found(tree))


def _found(tree: Tree) -> dict[str, str]:
    """The reason for which each path that is no chat is left out."""
    folders: dict[str, list[str]] = {}
    for path in tree.paths():
        folders.setdefault(path.rpartition("/")[0], []).append(path)
    found: dict[str, str] = {}
    for folder, paths in folders.items():
        chats = [path for path in paths if _CHATS.fullmatch(_name(path))]
        if any(_is_of(chatgpt.READER, tree, path) for path in chats):
            within = f"{folder}/" if folder else ""
            for path in tree.paths():
                if path.startswith(within) and (_SENT.match(_name(path)) or path.startswith(f"{within}textdocs/")):
                    found[path] = "a file that was sent to ChatGPT or made by it"
        pages = [path for path in paths if path.lower().endswith((".html", ".json"))]
        its_own = _TAKEOUTS.search(_name(folder) or ("" if "." in tree.name else tree.name))
        if its_own and len(pages) <= 3 and any(_is_of(gemini.READER, tree, path) for path in pages):
            beside = (path for path in paths if path not in pages)
            found.update(dict.fromkeys(beside, "a file that was sent to Gemini or made by it"))
        if _name(folder).startswith("projects"):
            for path in paths:
                if path.endswith(".json") and _sniffed(tree, path).keys >= _PROJECT:
                    found[path] = "a project of Claude, which holds no conversation"
        artifact = next((path for path in paths if _name(path) == "artifact.json"), None)
        if artifact and _sniffed(tree, artifact).keys >= _ARTIFACT:
            made = (path for path in tree.paths() if path.startswith(f"{folder}/"))
            found.update(dict.fromkeys(made, "a page that Claude made"))
    return found


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _is_of(reader: StreamReader, tree: Tree, path: str) -> bool:
    return reader.claims(_sniffed(tree, path))


def _sniffed(tree: Tree, path: str) -> Sniff:
    try:
        with tree.open(path) as stream:
            head = stream.read(HEAD).removeprefix(b"\xef\xbb\xbf")
    except (Refused, OSError):
        head = b""
    return Sniff(_name(path), head, whole=len(head) < HEAD)


def _read(tree: Tree, claimed: frozenset[str], locale: Locale, limits: Limits) -> Iterable[Heard]:
    for path, reason in sorted(_found(tree).items()):
        if path in claimed:
            yield LeftOut(reason, where=path)


TREE_READER = TreeReader("ai_files", _claims, _read)
