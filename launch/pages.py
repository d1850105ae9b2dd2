"""Pages a part of which is written by a command."""

from pathlib import Path


def write_between(page: Path, begin: str, end: str, shown: str) -> None:
    """Replaces what stands between two marks of a page."""
    before, _, rest = page.read_text().partition(begin)
    after = rest.partition(end)[2]
    page.write_text(f"{before}{begin}\n\n{shown}\n\n{end}{after}")
