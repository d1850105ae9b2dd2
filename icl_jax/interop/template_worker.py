"""A process that renders chat templates for ``chat``: a sandbox with bounds on time and memory.

A template is a program of strangers. Jinja's sandbox keeps it from reaching anything, but not from
running for ever or filling the memory, and what one operation in C asks for (a width of 10^9, say)
can only be refused by the operating system. So templates run in a process of their own, which has
little memory and whose processor time is counted per request; on systems without such limits the
sandbox alone is left.

The process is this file, run as a script: it imports nothing but jinja2, from the folders that its
arguments name. A request is a line of JSON, ``{"template": ..., "renderings": [variables, ...]}``,
and so is its answer, a list with ``{"text": ...}`` or ``{"error": ..., "kind": ...}`` for each.
"""

import functools
import json
import re
import sys
from typing import Any, NoReturn

#: Seconds of processor time for a request, bytes of memory, characters of one text.
SECONDS, MEMORY, LENGTH = 1.0, 2**29, 2**22

#: The kind of error of a template that cannot be compiled.
DAMAGED = "damaged"

#: Today, as templates see it: the day that those of Llama 3 write without a clock, at midnight.
DATE = {
    **{"%Y": "2024", "%y": "24", "%m": "07", "%B": "July", "%b": "Jul", "%d": "26", "%-d": "26"},
    **{"%A": "Friday", "%a": "Fri", "%j": "208", "%F": "2024-07-26", "%-m": "7", "%%": "%"},
    **{"%H": "00", "%I": "12", "%M": "00", "%S": "00", "%p": "AM", "%T": "00:00:00"},
}

_ASKS_FOR_CLOCK = re.compile(r"\bstrftime_now\s+is\s+(not\s+)?(un)?defined\b")


def answer(request: dict[str, Any]) -> list[dict[str, str]]:
    """The text, or the error, of each rendering."""
    try:
        template = compiled(request["template"])
    except Exception as error:
        line = getattr(error, "lineno", None)
        where = "the chat template" if line is None else f"line {line} of the chat template"
        reason = getattr(error, "message", None) or str(error) or type(error).__name__
        return [{"kind": DAMAGED, "error": f"{where} is damaged: {reason}"}]
    return [_rendered(template, variables) for variables in request["renderings"]]


def _rendered(template: Any, variables: dict[str, Any]) -> dict[str, str]:
    try:
        text = str(template.render(variables))
        if len(text) > LENGTH:
            raise MemoryError(f"it writes {len(text)} characters, and {LENGTH} are allowed")
        return {"text": text}
    except MemoryError as error:
        return {"kind": "MemoryError", "error": str(error) or "it asks for too much memory"}
    except Exception as error:  # Of the sandbox, or whatever the template's own code comes to.
        return {"kind": type(error).__name__, "error": str(error)[:2000]}


@functools.lru_cache(maxsize=8)
def compiled(template: str) -> Any:
    """A template in a sandbox that changes nothing and reaches nothing."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _generation_extension()],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    if not _ASKS_FOR_CLOCK.search(template):
        environment.globals["strftime_now"] = _date
    return environment.from_string(template)


def _generation_extension() -> Any:
    """``{% generation %}`` marks what an assistant says; it changes nothing of the text."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    return Generation


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own escapes what HTML would read.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _date(form: str) -> str:
    """DATE as ``strftime`` would write it."""

    def part(match: re.Match[str]) -> str:
        if match[0] not in DATE:
            _raise(f"strftime_now knows {', '.join(DATE)}, got {match[0]!r}")
        return DATE[match[0]]

    return re.sub(r"%-?.?", part, form)


def _raise(message: str) -> NoReturn:
    from jinja2.exceptions import TemplateError

    raise TemplateError(message)


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows.
        return
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    bound = MEMORY if most == resource.RLIM_INFINITY else min(MEMORY, most)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (bound, most))
    except (ValueError, OSError):  # macOS refuses it.
        pass


def _limit_time(seconds: float) -> None:
    """Ends this process after so much processor time from now; 0 is never."""
    import signal

    if hasattr(signal, "setitimer"):
        # Its signal is left as it is: it ends a process in the middle of an operation, too.
        signal.setitimer(signal.ITIMER_PROF, seconds)


def serve() -> None:
    """Answers line for line until there are no more."""
    import jinja2.ext
    import jinja2.sandbox  # noqa: F401  Before the limits.

    _limit_memory()
    for line in sys.stdin:
        _limit_time(SECONDS)
        try:
            answered = json.dumps(answer(json.loads(line)))
        finally:
            _limit_time(0.0)
        sys.stdout.write(answered + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.path[:] = [*sys.argv[1:], *sys.path]
    serve()
