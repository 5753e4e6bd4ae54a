"""A rank that is made to hang, in a real run: by a `sitecustomize` in its environment.

Nothing in the product knows of it: Python imports `sitecustomize` as it starts, and this one wraps
a function of the product once that has been imported.
"""

from pathlib import Path

from tests.support.runs import environment

Plan = tuple[str, str, tuple[int, ...], tuple[int, ...], str]
"""Module, function in it, ranks, in which calls of it (none: in all), and the fault: sleep, stop,
die, hold, slow, work or pause."""

SITE = """
import ctypes, importlib.abc, importlib.util, os, signal, sys, time

def sleep():
    time.sleep(1000)

def stop():
    os.kill(os.getpid(), signal.SIGSTOP)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def slow():
    time.sleep(0.6)

def work():
    until = time.process_time() + 1  # which does not go on while the process is stopped
    while time.process_time() < until:
        pass

def pause():
    time.sleep(3)

def hold():
    ctypes.PyDLL(None).sleep(1000)  # with the interpreter's lock

PLANS = {plans!r}

def wrap(module, name, ranks, call, fault):
    holder, _, attribute = name.rpartition(".")
    owner = getattr(module, holder) if holder else module
    inner, calls = getattr(owner, attribute), []
    def stand_in(*args, **named):
        calls.append(None)
        if int(os.environ.get("RANK", 0)) in ranks and len(calls) in (call or (len(calls),)):
            globals()[fault]()
        return inner(*args, **named)
    setattr(owner, attribute, stand_in)

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        plans = [p for p in PLANS if p[0] == name]
        if not plans:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, self)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            for _, function, ranks, call, fault in plans:
                wrap(module, function, ranks, call, fault)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


def planted(folder: Path, *plans: Plan) -> dict[str, str]:
    """Return the environment of a run in which faults are planted.

    Args:
        folder: For the `sitecustomize`.
        plans: The faults.
    """
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(SITE.format(plans=plans))
    env = environment()
    return {**env, "PYTHONPATH": f"{folder}:{env.get('PYTHONPATH', '')}".rstrip(":")}
