"""How the command line ends. Documented in `engramd --help`; scripts may rely on it."""

from enum import IntEnum


class Exit(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    NOTHING = 3
    UNAVAILABLE = 69
    TRY_AGAIN = 75
    CONFIG = 78
    INTERRUPTED = 130


MEANINGS = {
    Exit.OK: "done",
    Exit.FAILED: "it was tried and failed, or what was checked is not in order",
    Exit.USAGE: "the command was not understood",
    Exit.NOTHING: "there is no such thing, or nothing to do",
    Exit.UNAVAILABLE: "something that is needed is not to be had (run: another engramd runs on this home)",
    Exit.TRY_AGAIN: "not now: the same command may succeed later",
    Exit.CONFIG: "the settings are wrong",
    Exit.INTERRUPTED: "interrupted from the keyboard",
}


class UserError(Exception):
    """Ends a command with one sentence on stderr."""

    def __init__(self, message: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.code = code
