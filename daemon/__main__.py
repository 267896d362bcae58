"""`engramd` and `python -m daemon`: errors become exit codes here, and nowhere else."""

import os
import sys
from collections.abc import Sequence

from daemon import cli
from daemon.cli.exit_codes import Exit, UserError

_BROKEN_PIPE = 141  # 128 + SIGPIPE, what a shell shows for any program whose reader went away


def main(argv: Sequence[str] | None = None) -> int:
    try:
        code = cli.execute(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"engramd: {error}", file=sys.stderr)
        return error.code
    except PermissionError as error:
        from daemon.cli.permission import closed

        print(f"engramd: {closed(error)}", file=sys.stderr)
        return Exit.FAILED
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more at exit: give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE


if __name__ == "__main__":
    sys.exit(main())
