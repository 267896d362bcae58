"""Names of lines: the main one of the nights is '', the others are called after their mode and their method.

A cycle for one cognitive mode trains a specialist (`emulation`), one with another method than the nights' trains a
model of its own (`full`, `lora`), and one with both is called after both (`emulation-full`).
"""

MAIN = ""
MODES = ("dual", "emulation", "agent")
METHODS = ("lora", "full")


def name_of(mode: str | None, method: str | None, nights: str) -> str:
    """The line of a cycle; `method` None is that of the nights, `nights`."""
    return "-".join(part for part in (mode, method if method != nights else None) if part)


def parts_of(line: str) -> tuple[str | None, str | None]:
    """(mode, method) that a line is named by. Raises ValueError where no cycle would be named so."""
    parts = line.split("-") if line else []
    mode = parts.pop(0) if parts and parts[0] in MODES else None
    method = parts.pop(0) if parts and parts[0] in METHODS else None
    if parts:
        ways = "a mode (dual, emulation, agent), a method (lora, full), or both as in emulation-full"
        raise ValueError(f"{line!r} is no line; one is named by {ways}")
    return mode, method


def called(profile: str, line: str) -> str:
    """As people and other programs call what a line has learnt: `me`, `me-emulation`."""
    return f"{profile}-{line}" if line else profile


def said(line: str) -> str:
    """For sentences: nothing about the main line."""
    return f"line {line}" if line else "the main line"
