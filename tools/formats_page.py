"""Writes docs/formats.md: docs/formats.in.md with what each reader says of its format.

    python tools/formats_page.py [--check]

A module of `daemon/readers` says it in `ABOUT`. With --check nothing is written; it ends with 1 where the page is
not what it would be.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from daemon import readers  # noqa: E402
from daemon.readers.shape import ItemReader, StreamReader, TextReader, TreeReader  # noqa: E402

PAGE = ROOT / "docs" / "formats.md"
TEMPLATE = ROOT / "docs" / "formats.in.md"
NOTE = "<!-- Written by tools/formats_page.py from docs/formats.in.md and the readers' ABOUT: change those. -->\n\n"
Reader = TreeReader | StreamReader | ItemReader | TextReader

_KINDS: tuple[tuple[type[Reader], str], ...] = (
    (TreeReader, "the files of a zip or folder, together"),
    (StreamReader, "an export of any size"),
    (ItemReader, "one JSON object; a list of them; JSONL"),
    (TextReader, "a whole text"),
)


def modules() -> dict[ModuleType, list[Reader]]:
    """Each module that has readers (READER, TREE_READER, or several in READERS), in the order of trial."""
    owners: dict[int, ModuleType] = {}
    for info in pkgutil.iter_modules(readers.__path__, f"{readers.__name__}."):
        module = importlib.import_module(info.name)
        own = [getattr(module, key) for key in ("READER", "TREE_READER") if hasattr(module, key)]
        owners.update((id(reader), module) for reader in (*own, *getattr(module, "READERS", ())))
    found: dict[ModuleType, list[Reader]] = {}
    for reader in readers.READERS:
        if id(reader) not in owners:
            raise SystemExit(f"{reader.name}: no module of daemon/readers has it as READER, TREE_READER or in READERS")
        found.setdefault(owners[id(reader)], []).append(reader)
    return found


def about(module: ModuleType) -> str:
    text = getattr(module, "ABOUT", "").strip()
    if not text:
        raise SystemExit(f"{module.__name__} has no ABOUT, from which docs/formats.md is written")
    return str(text)


def page() -> str:
    known = modules()
    rows = ["| reader | takes |", "| --- | --- |"]
    for reader in readers.READERS:
        takes = next(text for kind, text in _KINDS if isinstance(reader, kind))
        rows.append(f"| {reader.name} | {takes} |")
    parts = []
    for module, own in known.items():
        names = dict.fromkeys(reader.name for reader in own)  # one name may have a stream and a tree
        parts.append(f"### {', '.join(names)}\n\n{about(module)}")
    text = TEMPLATE.read_text(encoding="utf-8")
    return NOTE + text.replace("{{TABLE}}", "\n".join(rows)).replace("{{FORMATS}}", "\n\n".join(parts))


def main() -> int:
    parser = argparse.ArgumentParser(description="Write docs/formats.md.")
    parser.add_argument("--check", action="store_true", help="only say whether it is as it would be written")
    options = parser.parse_args()
    text = page()
    if not options.check:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print("docs/formats.md is not what the readers say: run python tools/formats_page.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
