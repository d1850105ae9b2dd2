"""What MkDocs does not do by itself: reference pages from the stub, MathML, notebooks as pages."""

import ast
import base64
import html
import json
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File
from names import ROOT, by_module, groups, returned

#: Where a page of the reference lists the names of its group.
MARKER = "<!-- the names of this group -->"
#: A drawing that follows the page's colours, which an image of its own cannot.
DRAWING = re.compile(r'<img [^>]*src="(\w+\.svg)#inline"[^>]*>')


def on_files(files: Any, config: Any) -> Any:
    """Every notebook also is a page, its stored outputs included."""
    for notebook in sorted(Path(config.docs_dir).glob("notebooks/*.ipynb")):
        page = notebook_page(json.loads(notebook.read_text(encoding="utf-8")), notebook.name)
        name = f"notebooks/{notebook.stem}.md"
        files.append(File.generated(config, name, content=page))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links to notebooks lead to their pages, and a group of names stands where it is asked for."""
    markdown = re.sub(r"\]\(([\w./]*)\.ipynb\)", r"](\1.md)", markdown)
    if MARKER not in markdown:
        return markdown
    group = page.meta.get("group")
    found = groups()
    if group not in found:
        raise PluginError(f"{page.file.src_path}: group must be one of {list(found)}, got {group}")
    return markdown.replace(MARKER, reference(found[group]))


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """TeX becomes MathML, which browsers draw themselves; drawings become a part of the page."""
    html = DRAWING.sub(lambda match: drawing(Path(config.docs_dir) / match[1]), html)
    return re.sub(
        r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>',
        lambda match: mathml(match[2], block=match[1] == "div"),
        html,
        flags=re.DOTALL,
    )


def mathml(tex: str, *, block: bool) -> str:
    """A formula as MathML; a wide one scrolls in its own box."""
    made = convert(html.unescape(tex).strip(), display="block" if block else "inline")
    return f'<div class="formula">{made}</div>' if block else made


def drawing(path: Path) -> str:
    """An SVG file as an element of a page; on a narrow one it scrolls."""
    return f'<div class="drawing">{path.read_text(encoding="utf-8").strip()}</div>'


def reference(paths: list[str]) -> str:
    """A table of names with what each is, then each in full, module by module."""
    lines = ["| name | |", "|---|---|"]
    lines += [f"| [`{path.rsplit('.', 1)[1]}`][{path}] | {summary(path)} |" for path in paths]
    for module, members in by_module(paths).items():
        lines += ["", f"## `{module}`", "", summary(module), ""]
        for path in [*members, *returned(module, members)]:
            lines += [f"::: {path}", ""]
    return "\n".join(lines)


def summary(path: str) -> str:
    """The first line of what a module, function, class or constant says of itself."""
    module = ROOT.joinpath(*path.split(".")).with_suffix(".py")
    if module.is_file():
        doc = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8")))
    else:
        parent, name = path.rsplit(".", 1)
        module = ROOT.joinpath(*parent.split(".")).with_suffix(".py")
        doc = described(module.read_text(encoding="utf-8"), name)
    first = (doc or "").partition("\n\n")[0]
    parts = " ".join(first.split()).split("``")
    # Between backticks everything stands for itself, a pipe in a table too.
    parts[::2] = [html.escape(part, quote=False).replace("|", "\\|") for part in parts[::2]]
    return "``".join(parts)


def described(source: str, name: str) -> str | None:
    """The docstring of a name, or the ``#:`` comment above a constant."""
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return ast.get_docstring(node)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(one, ast.Name) and one.id == name for one in targets):
            return comment_above(lines, node.lineno)
    return None


def comment_above(lines: list[str], number: int) -> str:
    """The ``#:`` lines right above a line (counted from 1)."""
    start = number - 1
    while start and lines[start - 1].startswith("#:"):
        start -= 1
    return " ".join(line.removeprefix("#:").strip() for line in lines[start : number - 1])


def notebook_page(notebook: dict[str, Any], name: str) -> str:
    """A notebook as Markdown: its words, its code, and the small outputs stored in it."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                raw = "".join(data["image/png"]).replace("\n", "")
                base64.b64decode(raw, validate=True)
                parts.append(f'<img class="figure" alt="" src="data:image/png;base64,{raw}">')
            elif "text" in output:
                parts.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
            elif "text/plain" in data:
                parts.append(f"```text\n{''.join(data['text/plain']).rstrip()}\n```")
    parts.append(f'<a href="{name}" download>The notebook itself</a>')
    return "\n\n".join(parts) + "\n"
