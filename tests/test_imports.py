"""Imports have no side effects: modules define things, and only calls change the process."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The first round imports the libraries, which do have effects. They are undone, and our modules are imported again:
# the libraries stay imported, so that a difference after the second round comes from our modules.
CHECK = """
import atexit, ctypes, faulthandler, importlib, json, logging, multiprocessing, os, pkgutil, random, signal, sys
import threading, warnings
import numpy, torch

PACKAGES = ("pipeline", "models", "jobs", "cluster", "examples")
variables, path, filters, folder = dict(os.environ), list(sys.path), list(warnings.filters), os.getcwd()
handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
root = logging.getLogger()


def import_all():
    found = pkgutil.walk_packages([os.curdir])
    names = [module.name for module in found if module.name.partition(".")[0] in PACKAGES]
    names += [f"examples.{name}" for name in ("census.prepare", "synthetic.generate")]
    names += [f"benchmarks.{module.name}" for module in pkgutil.iter_modules(["benchmarks"])]
    names += ["manygate", "manygate_guard", "benchmarks.peers.install"]
    for name in names:
        importlib.import_module(name)
    return names


def undo():
    sys.path[:], warnings.filters[:], root.handlers[:] = path, filters, []
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    for logger in loggers().values():
        logger.setLevel(logging.NOTSET)
    for number, handler in handlers.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)
    faulthandler.disable()
    multiprocessing.set_start_method(None, force=True)
    for seed in (random.seed, numpy.random.seed, torch.manual_seed):
        seed(1234)
    torch.set_num_threads(3)
    torch.set_default_dtype(torch.float32)
    torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(False)
    torch.set_grad_enabled(True)
    torch.backends.cudnn.benchmark = False


def loggers():
    named = {name: logger for name, logger in logging.root.manager.loggerDict.items()}
    return {name: logger for name, logger in {"root": root, **named}.items() if isinstance(logger, logging.Logger)}


def state():
    return {
        "sys.path": list(sys.path),
        "hooks": [str(hook) for hook in (*sys.meta_path, *sys.path_hooks, sys.excepthook)],
        "variables": dict(os.environ),
        "working folder": os.getcwd(),
        "handlers of log lines": [str(handler) for handler in root.handlers],
        "levels of log lines": {name: logger.level for name, logger in loggers().items() if logger.level},
        "warnings": [str(entry) for entry in warnings.filters],
        "signals": {int(number): str(signal.getsignal(number)) for number in handlers},
        "at exit": atexit._ncallbacks(),
        "faulthandler": faulthandler.is_enabled(),
        "processes start by": multiprocessing.get_start_method(allow_none=True),
        "threads": [thread.name for thread in threading.enumerate()],
        "random numbers": [hash(str(random.getstate())), hash(str(numpy.random.get_state())), torch.initial_seed()],
        "threads of torch": torch.get_num_threads(),
        "settings of torch": [
            str(torch.get_default_dtype()),
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_grad_enabled(),
            torch.backends.cudnn.benchmark,
        ],
    }


def no_library(*arguments, **settings):
    raise AssertionError(f"a library in C is loaded while importing: {arguments}")


names = import_all()
for name in list(sys.modules):
    if name.partition(".")[0] in (*PACKAGES, "benchmarks", "manygate", "manygate_guard"):
        del sys.modules[name]
undo()
ctypes.CDLL = no_library
before = state()
import_all()
after = state()
changed = {key: [before[key], after[key]] for key in before if before[key] != after[key]}
json.dump({"modules": names, "changed": changed}, sys.stdout)
"""


def test_imports_have_no_side_effects() -> None:
    answer = subprocess.run([sys.executable, "-c", CHECK], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert found["changed"] == {}
    expected = [*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("models/**/*.py"), *ROOT.glob("jobs/*.py")]
    expected += [*ROOT.glob("cluster/*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("examples/*/*.py")]
    files = {file.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for file in expected}
    assert {name.removesuffix(".__init__") for name in files} <= set(found["modules"])
