"""The process of ``template_worker``: begun when it is needed, and anew when it was ended."""

import atexit
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from icl_jax.interop import template_worker
from icl_jax.interop.safetensors import missing_package


class TemplateProcess:
    """Renders templates in a process of its own; one request at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def render(self, template: str, renderings: list[dict[str, Any]]) -> list[dict[str, str]]:
        """What ``template_worker.answer`` answers; an error for a process that was ended.

        Raises:
          ImportError: jinja2 is not installed.
        """
        request = json.dumps({"template": template, "renderings": renderings})
        with self._lock:
            process = self._running()
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(request + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except OSError:
                line = ""
            if line.endswith("\n"):
                answered: list[dict[str, str]] = json.loads(line)
                return answered
            self._end()
        seconds, memory = template_worker.SECONDS, template_worker.MEMORY // 2**20
        return [
            {
                "kind": "TimeoutError",
                "error": f"it takes more than {seconds:g} s, or more than {memory} MiB of memory",
            }
        ]

    def close(self) -> None:
        """Ends the process, if there is one."""
        with self._lock:
            self._end()

    def _running(self) -> "subprocess.Popen[str]":
        if self._process is not None and self._owner == os.getpid():
            if self._process.poll() is None:
                return self._process
            self._end()
        try:
            import jinja2
            import markupsafe
        except ImportError as error:
            raise missing_package("jinja2") from error
        folders = {str(Path(str(package.__file__)).parents[1]) for package in (jinja2, markupsafe)}
        # Isolated: neither the environment nor the working directory say what is imported.
        command = [sys.executable, "-I", "-S", template_worker.__file__, *sorted(folders)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        )
        self._owner = os.getpid()
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:  # What was still to be written.
                    pass


PROCESS = TemplateProcess()
atexit.register(PROCESS.close)
