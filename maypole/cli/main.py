"""The command line's entry: parse, call, show. Help loads no torch; every error is one paragraph.

Exit codes: 0 done, 1 ran and missed its aim, 2 the input is wrong, 3 our own fault, a full disk or too little memory,
130 interrupted. Results go to stdout, everything else to stderr. Of several processes that a launcher started for one
command the first speaks; the others say only what it cannot.
"""

import json
import os
import sys

from cyclopts.exceptions import CycloptsError

from maypole.cli import fault
from maypole.cli.app import TOP_HELP, Invocation, parse
from maypole.cli.commands import COMMANDS, Table
from maypole.cli.options import Options, split
from maypole.cli.show import error_document, exit_code, show
from maypole.core.errors import MaypoleError, UserError
from maypole.core.progress import set_quiet


def main() -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str], commands: Table = COMMANDS) -> int:
    """Run the command that the words `argv` describe; returns its exit code."""
    if not argv or argv in (["--help"], ["-h"]):
        sys.stdout.write(TOP_HELP)
        return 0
    options, invocation = Options(), None
    try:
        options, words = split(argv)
        quiet = options.quiet or not _speaks()
        fault.listen(debug=options.debug, quiet=quiet)
        set_quiet(quiet)
        invocation = parse(words, options.config, commands)
        if invocation.threads:
            # torch reads this once, when it is first imported, which is later.
            os.environ["OMP_NUM_THREADS"] = str(invocation.threads)
        result = invocation.call()
        if not invocation.is_help and _speaks():
            show(result, as_json=options.json)
        sys.stdout.flush()
        return exit_code(result)
    except KeyboardInterrupt:
        return _interrupted(argv, invocation)
    except BrokenPipeError:
        # The reader (head, less) has seen enough; stdout must not be flushed again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except Exception as error:
        return _failed(error, argv, options, invocation)


def _speaks() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _interrupted(argv: list[str], invocation: Invocation | None) -> int:
    if not _speaks():
        return 130
    kept = invocation is not None and invocation.out is not None
    after = f" Continue:  {fault.command(argv)}" if kept else ""
    sys.stderr.write(f"\nstopped.{after}\n")
    return 130


def _failed(error: Exception, argv: list[str], options: Options, invocation: Invocation | None) -> int:
    code = 2 if isinstance(error, UserError | CycloptsError) else 3
    message = fault.message(error)
    saved = ""
    if code == 3 and not isinstance(error, MaypoleError) and not fault.is_shortage(error):
        saved = fault.save(error, argv, invocation.out if invocation else None)
    if options.debug:
        fault.print_traceback(error)
    if options.json:
        sys.stdout.write(json.dumps(error_document(error, code), indent=2, ensure_ascii=False) + "\n")
    sys.stderr.write(f"error: {message}\n" + (f"  traceback: {saved}\n" if saved else ""))
    return code


if __name__ == "__main__":
    main()
