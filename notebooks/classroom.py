"""Write the notebooks for a class: without outputs, and on request the core path alone.

    python notebooks/classroom.py                        all of them, to the folder class
    python notebooks/classroom.py 02 03 --core           two of them, only the cells of a lesson
    python notebooks/classroom.py 05 --core --list       write nothing, print the names of its cells

The copies run wherever they are, as long as minidsv3 is installed. They hold the exercises and
their checkers, and nothing of `notebooks/solutions`.
"""

import json
import sys
from pathlib import Path

from minidsv3.command import Parser, UserError, answer
from minidsv3.files import write_text

HERE = Path(__file__).resolve().parent


def parse_arguments(arguments=None):
    """The command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("notebooks", nargs="*", metavar="NN",
                        help="numbers of notebooks, for instance 02 03 [all of them]")
    parser.add_argument("--core", action="store_true",
                        help="only the cells of a lesson of 90 minutes, without those for depth")
    parser.add_argument("--list", action="store_true",
                        help="write nothing; print the name and the first line of each cell")
    parser.add_argument("--out", type=Path, default=HERE.parent / "class", metavar="DIR",
                        help="a new or empty folder for the copies [class]; links to docs work "
                             "from a folder beside notebooks")
    return parser.parse_args(arguments)


def chosen(numbers, folder=HERE):
    """Paths of the notebooks with these numbers, of all without any. Raises UserError."""
    there = {path.name[:2]: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    if not there:
        raise UserError(f"the folder {folder} has no notebooks.")
    for number in numbers:
        if number not in there:
            raise UserError(f"there is no notebook {number!r}; choose from {', '.join(there)}.")
    return [there[number] for number in numbers or there]


def new_folder(path):
    """Make a folder for copies. Raises UserError if it is there and not empty."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"--out {path} is there and not empty; it may hold somebody's work: name "
                        "a new folder.")
    path.mkdir(parents=True, exist_ok=True)
    return path


def for_a_class(content, core=False):
    """A notebook as a dict -> the same without outputs; core: only its core path, if it has one."""
    is_core = [core and "core" in cell["metadata"].get("tags", []) for cell in content["cells"]]
    cells = [dict(cell) for cell, kept in zip(content["cells"], is_core, strict=True)
             if kept or not any(is_core)]
    for cell in cells:
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
    return content | {"cells": cells}


def names_of_cells(content):
    """A notebook as a dict -> a line for each cell: its name, and its first line of text."""
    for cell in content["cells"]:
        first = "".join(cell["source"]).strip().partition("\n")[0].lstrip("# ")
        yield f"  {cell['id']:22} {first[:70]}"


def main(arguments=None):
    """Write the copies, or print the names of the cells -> exit code."""
    arguments = parse_arguments(arguments)
    paths = chosen(arguments.notebooks)
    out = None if arguments.list else new_folder(arguments.out)
    for path in paths:
        content = for_a_class(json.loads(path.read_text(encoding="utf-8")), arguments.core)
        if arguments.list:
            print(path.stem, *names_of_cells(content), sep="\n")
            continue
        write_text(out / path.name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        print(f"{out / path.name}: {len(content['cells'])} cells")
    return 0


if __name__ == "__main__":
    sys.exit(answer(main))
