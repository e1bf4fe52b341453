"""What the project's pages say: their links, headings, commands and paths."""

import re
from pathlib import Path

MODULES = ("trainer", "data_pipeline", "benchmarks", "studies", "tests", "examples")
FOLDERS = (*MODULES, "configs", "cluster", "docs")


def pages_of(root: Path) -> dict[str, str]:
    """The text of the README, of docs/, and of the other pages at the top and in tests/, by path."""
    paths = [*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("tests/*.md")]
    return {str(path.relative_to(root)): path.read_text() for path in sorted(paths)}


def anchors_of(page: str) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    found: list[str] = []
    for heading in re.findall(r"^#{1,6} +(.*?)[ #]*$", without_code(page), re.M):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)  # a link shows its text
        anchor = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        number = sum(re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", other) is not None for other in found)
        found.append(f"{anchor}-{number}" if number else anchor)
    return set(found)


def links_of(page: str) -> list[str]:
    """The targets of a page's links and pictures, those to the web left out."""
    text = re.sub(r"`[^`\n]*`", "", without_code(page))
    return [link for link in re.findall(r"\]\(<?([^)\s>]+)", text) if not re.match(r"[a-z]+:", link)]


def wrong_links(root: Path) -> list[str]:
    """Every relative link of a page that leads to no file, or to no heading of its page."""
    pages, wrong = pages_of(root), []
    for name, page in pages.items():
        for link in links_of(page):
            path, _, anchor = link.partition("#")
            target = (root / name).parent / path if path else root / name
            if not target.exists():
                wrong.append(f"{name}: there is no {link}")
            elif anchor and anchor not in anchors_of(target.read_text()):
                wrong.append(f"{name}: {path or 'this page'} has no heading #{anchor}")
    return wrong


def wrong_commands(root: Path) -> list[str]:
    """Every target of make, module and path of the project that a page names and that is not there."""
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.M))
    wrong = []
    for name, page in pages_of(root).items():
        made = set(re.findall(r"^ *make ([a-z-]+)\b(?!/)", page, re.M)) | set(re.findall(r"`make ([a-z-]+)", page))
        wrong += [f"{name}: the Makefile has no target {target}" for target in sorted(made - targets)]
        for how, module in sorted(
            set(re.findall(rf"(python -m|from|import) ((?:{'|'.join(MODULES)})[.][\w.]+)", page))
        ):
            place = root / module.rstrip(".").replace(".", "/")
            package = place / ("__main__.py" if how == "python -m" else "__init__.py")
            if not (place.with_suffix(".py").exists() or package.exists()):
                wrong.append(f"{name}: there is no module {module}")
        wrong += [f"{name}: there is no {path}" for path in sorted(_paths(page)) if not any(root.glob(path))]
    return wrong


def without_code(page: str) -> str:
    """A page without its fenced and its indented blocks of code."""
    return re.sub(r"^(```|~~~).*?^\1[^\n]*$|^ {4,}[^\n]*$", "", page, flags=re.M | re.S)


def _paths(page: str) -> set[str]:
    """Paths into the project's folders, `*` for any name. A word in capitals stands for something, `mine` is the reader's."""
    found = re.findall(rf"(?<![\w/.-])((?:{'|'.join(FOLDERS)})/[\w*/.-]*)", page)
    found = [re.sub(r"[.,:]+$", "", path).rstrip("/") for path in found]
    return {path for path in found if not re.search(r"\b([A-Z]{2,}|mine\b)", path)}
