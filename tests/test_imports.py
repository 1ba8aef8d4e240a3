"""Rules of the package: who may import whom, how long a file may be, what needs a docstring.

The sources are parsed, never imported. Every rule is a function from {module: source} to a list of
complaints. So each rule is also tried on a small invented tree that breaks it.
"""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "minidsv3"

# Reading order and import order: a folder ("room") imports only from itself and from those before.
ROOMS = ["command", "files", "fields", "config", "device", "kernels", "model", "fp8", "hf", "data",
         "infer", "measure", "train", "context", "scale", "serve", "study"]
MODEL = ["layers", "rope", "cache", "mla", "experts", "moe", "block", "mtp", "objective",
         "transformer"]

# Imports that take seconds or that not everybody has, and the modules that may have them on top.
HEAVY = {"matplotlib": {"minidsv3.measure.plots"}, "transformers": set(), "datasets": set(),
         "lm_eval": set(),
         "triton": set(), "huggingface_hub": set()}

MAX_MODULE, MAX_MODEL, MAX_SCRIPT = 299, 999, 149
MAX_LINES = {"minidsv3.train.trainer": 199}      # of modules with a limit of their own
SCRIPTS = ["train_tiny.py", "generate.py"]


parse = cache(ast.parse)                         # each rule goes over all sources


@cache
def read_tree(root):
    """{module name: source} of every Python file of the package; a room's __init__ has its name."""
    tree = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        tree[name] = path.read_text(encoding="utf-8")
    return tree


def imported_names(nodes, module, is_package):
    """Dotted names that the import statements among nodes ask for, relative ones made absolute."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")
            base = base[:len(base) - node.level + is_package] if node.level else []
            stem = ".".join(base + ([node.module] if node.module else []))
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def edges(tree):
    """{module: modules of the package that it imports, anywhere in its source}."""
    found = {}
    for module, source in tree.items():
        is_package = any(other.startswith(module + ".") for other in tree)
        found[module] = set()
        for name in imported_names(ast.walk(parse(source)), module, is_package):
            while name not in tree and "." in name:     # minidsv3.config.ModelConfig -> its module
                name = name.rpartition(".")[0]
            if name.split(".")[0] == PACKAGE:
                found[module].add(name)
    return found


def room(module):
    """minidsv3.model.mla -> model, minidsv3.hf -> hf, minidsv3 -> None (it imports from all)."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def unknown_places(tree):
    """Folders of the package, and files of model/, that have no place in the order."""
    rooms = {room(module) for module in tree} - {None, *ROOMS}
    files = {m.split(".")[2] for m in tree if m.startswith(f"{PACKAGE}.model.")} - set(MODEL)
    return [f"{name}: not in the reading order; give it a place in tests/test_imports.py"
            for name in sorted(rooms) + sorted(f"model/{name}" for name in files)]


def wrong_directions(tree):
    """Imports of a later folder, of minidsv3 itself, or of a later file within model/."""
    complaints = []
    for module, targets in edges(tree).items():
        here = room(module)
        for target in sorted(targets - {module}):
            there = room(target)
            if here not in ROOMS:
                continue
            if there is None:
                complaints.append(f"{module} imports {target}, the front door; "
                                  "import from the room itself")
            elif there in ROOMS and ROOMS.index(there) > ROOMS.index(here):
                complaints.append(f"{module} imports {target}, but {there} comes after {here}")
            elif here == there == "model" and position(target) > position(module):
                complaints.append(f"{module} imports {target}, which comes after it in model/")
    return complaints


def position(module):
    """Place within model/: its __init__ collects the others, so it stands last."""
    name = module.rpartition(".")[2]
    return MODEL.index(name) if name in MODEL else len(MODEL)


def cycles(tree):
    """The first cycle of imports, lazy ones included, as one complaint."""
    graph = {module: targets - {module} for module, targets in edges(tree).items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return ["cycle: " + " <- ".join(error.args[1])]
    return []


def run_at_import(node):
    """All nodes below this one that run at import; the bodies of functions do not."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from run_at_import(child)


def heavy_imports(tree):
    """Heavy or optional packages imported with the module, outside the modules that own them."""
    complaints = []
    for module, source in tree.items():
        is_package = any(other.startswith(module + ".") for other in tree)
        names = imported_names(run_at_import(parse(source)), module, is_package)
        for name in sorted({name.split(".")[0] for name in names}):
            if module not in HEAVY.get(name, {module}):
                complaints.append(f"{module} imports {name} at its top; "
                                  "import it inside the function that needs it")
    return complaints


def long_modules(tree):
    """Modules of 300 lines or more, the trainer of 200, and a model/ of 1,000 or more."""
    lines = {module: len(source.splitlines()) for module, source in tree.items()}
    whole = sum(n for module, n in lines.items() if room(module) == "model")
    limits = {module: MAX_LINES.get(module, MAX_MODULE) for module in tree}
    complaints = [f"{module} has {n} lines; fewer than {limits[module] + 1} are allowed"
                  for module, n in lines.items() if n > limits[module]]
    if whole > MAX_MODEL:
        complaints.append(f"model/ has {whole} lines; fewer than {MAX_MODEL + 1} are allowed")
    return complaints


def missing_docstrings(tree):
    """Modules, and public functions and classes of a module, without a docstring."""
    complaints = []
    for module, source in tree.items():
        parsed = parse(source)
        definitions = [node for node in parsed.body
                       if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
                       and not node.name.startswith("_")]
        for node in [parsed, *definitions]:
            if not (ast.get_docstring(node) or "").strip():
                complaints.append(f"{module}: {getattr(node, 'name', 'the module')} "
                                  "has no docstring")
    return complaints


def distributed_in_the_model(tree):
    """model/ never names torch.distributed: parallel code attaches to it from outside."""
    complaints = []
    for module, source in tree.items():
        nodes = list(ast.walk(parse(source)))
        names = {*imported_names(nodes, module, False),
                 *(ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute))}
        if room(module) in ("kernels", "model") and any(
                name.startswith("torch.distributed") for name in names):
            complaints.append(f"{module} uses torch.distributed; do it in train/ or scale/")
    return complaints


RULES = [unknown_places, wrong_directions, cycles, heavy_imports, long_modules, missing_docstrings,
         distributed_in_the_model]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule):
    """Oracle: the rule, which the tests below see complain about a wrong tree."""
    complaints = rule(read_tree(ROOT))
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_scripts_stay_thin(script):
    """Oracle: a count of lines."""
    path = ROOT / script
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_SCRIPT, f"{script} has {lines} lines; move what is not arguments or calls"


GOOD = {
    "minidsv3": '"""Door."""\nfrom minidsv3.model import DeepSeekV3\nfrom . import config\n',
    "minidsv3.config": '"""C."""\nclass ModelConfig:\n    "c"\n',
    "minidsv3.model": '"""M."""\nfrom .transformer import DeepSeekV3\n',
    "minidsv3.model.mla": '"""A."""\nfrom ..config import ModelConfig\nfrom . import rope\n',
    "minidsv3.model.rope": '"""R."""\nimport torch\n',
    "minidsv3.model.transformer": '"""T."""\nfrom minidsv3.model.mla import MLA\n',
    "minidsv3.hf": '"""H."""\ndef load():\n    "l"\n    from huggingface_hub import x\n',
    "minidsv3.measure.plots": '"""P."""\nimport matplotlib.pyplot\n',
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_good_tree_passes(rule):
    """Oracle: a tree written by hand, right by inspection."""
    assert rule(GOOD) == []


# rule, module, the source that breaks it, what the complaint must name
WRONG = [
    (unknown_places, "minidsv3.utils", '"""U."""', "utils"),
    (unknown_places, "minidsv3.model.helpers", '"""H."""', "model/helpers"),
    (wrong_directions, "minidsv3.model.rope", "import minidsv3.hf", "hf comes after model"),
    (wrong_directions, "minidsv3.model.rope", "from minidsv3 import hf", "hf comes after model"),
    (wrong_directions, "minidsv3.model.rope", "from .. import hf", "hf comes after model"),
    (wrong_directions, "minidsv3.config", "def f():\n from .measure.plots import save", "measure"),
    (wrong_directions, "minidsv3.model.rope", "from .mla import MLA", "after it in model/"),
    (wrong_directions, "minidsv3.model.rope", "from . import DeepSeekV3", "after it in model/"),
    (wrong_directions, "minidsv3.hf", "from minidsv3 import DeepSeekV3", "front door"),
    (cycles, "minidsv3.model.rope", "from .mla import MLA", "minidsv3.model.rope"),
    (wrong_directions, "minidsv3.hf.__main__", "from ..measure.plots import x", "after hf"),
    (cycles, "minidsv3.config", "def f():\n import minidsv3.model.mla", "minidsv3.config"),
    (heavy_imports, "minidsv3.hf", "import transformers.models", "transformers"),
    (heavy_imports, "minidsv3.hf", "try:\n from datasets import x\nexcept E: pass", "datasets"),
    (heavy_imports, "minidsv3.hf", "class A:\n import triton", "triton"),
    (heavy_imports, "minidsv3.hf", "from huggingface_hub import x", "huggingface_hub"),
    (heavy_imports, "minidsv3.measure.evaluate", "import matplotlib as m", "matplotlib"),
    (long_modules, "minidsv3.hf", "x = 1\n" * 300, "300 lines"),
    (long_modules, "minidsv3.model.moe", "x = 1\n" * 1000, "model/ has 10"),
    (long_modules, "minidsv3.train.trainer", "x = 1\n" * 200, "fewer than 200"),
    (distributed_in_the_model, "minidsv3.model.moe", "import torch.distributed as d", "model.moe"),
    (distributed_in_the_model, "minidsv3.model.moe", "from torch import distributed", "model.moe"),
    (distributed_in_the_model, "minidsv3.kernels.norm", "torch.distributed.barrier()", "norm"),
    (missing_docstrings, "minidsv3.hf", "def load(): pass", "load"),
    (missing_docstrings, "minidsv3.hf", '"""H."""\nclass A:\n def f(): "f"', ": A has no"),
    (missing_docstrings, "minidsv3.hf", "import torch", "the module"),
]


@pytest.mark.parametrize(("rule", "module", "source", "named"), WRONG)
def test_a_wrong_tree_is_noticed(rule, module, source, named):
    """Oracle: one mistake, written into the good tree by hand."""
    complaints = rule({**GOOD, module: source})
    assert any(named in complaint for complaint in complaints), complaints
