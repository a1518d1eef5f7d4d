# SPDX-License-Identifier: Apache-2.0
"""fork, signal handlers, atexit, interpreter shutdown: each in a process of its own, which must end by itself.

Catches: a lock of the engine held across fork (the child hangs), a handler that writes while a clone is half made, a
ledger or hook that is used after the interpreter has torn it down (a crash at exit).
"""

from __future__ import annotations

import os
import sys

import pytest

from support.oracle import run_script

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

START = """
import atexit, gc, os, signal, sys, threading, time, weakref
import torch, torchcow, torchcow.testing
from torch import nn
torch.set_num_threads(1)
torch.manual_seed(0)

def wait(child):
    for _ in range(600):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert status == 0, f"the child ended with {status}"
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    raise SystemExit("the child hangs")

def child(function):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function()
            code = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return pid

source = torch.rand(256, 256)
want = source + 0
"""


def script(body, **kwargs):
    out = run_script(START + body + "\nprint('reached the end')\n", **kwargs)
    assert "reached the end" in out, out
    return out


def test_fork_after_a_clone():
    script("""
clone = torchcow.clone(source)
def inside():
    clone.add_(1)
    assert torch.equal(source, want) and torch.equal(clone, want + 1)
    source.zero_()
    assert torch.equal(clone, want + 1)
    other = torchcow.clone(clone)
    other.zero_()
    assert torch.equal(clone, want + 1)
    torchcow.testing.verify()
pid = child(inside)
clone.add_(2)
assert torch.equal(source, want) and torch.equal(clone, want + 2)
wait(pid)
assert torch.equal(source, want) and torch.equal(clone, want + 2)
""")


def test_fork_while_threads_clone_and_write():
    script("""
model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(8)))
stop = threading.Event()
def busy():
    while not stop.is_set():
        mine = torchcow.clone(model)
        with torch.no_grad():
            for p in mine.parameters():
                p.add_(1)
threads = [threading.Thread(target=busy) for _ in range(3)]
for t in threads: t.start()
def inside():
    mine = torchcow.clone(model)
    with torch.no_grad():
        for p in mine.parameters():
            p.zero_()
    torchcow.ledger(); torchcow.events(); torchcow.memory(model, mine)
    source.add_(1)
    assert torch.equal(source, want + 1)
try:
    for _ in range(25):
        wait(child(inside))
finally:
    stop.set()
    for t in threads: t.join()
""")


def test_fork_of_a_fork():
    script("""
clone = torchcow.clone(source)
def inner():
    clone[3].zero_()
    assert torch.equal(source, want)
def outer():
    wait(child(inner))
    assert torch.equal(clone, want)
    clone.add_(1)
    wait(child(inner))
    assert torch.equal(clone, want + 1)
wait(child(outer))
assert torch.equal(clone, want)
""")


def test_shared_memory_after_a_clone_reaches_the_child():
    script("""
clone = torchcow.clone(source)
clone.share_memory_()
def inside():
    clone.fill_(5)
wait(child(inside))
assert torch.equal(clone, torch.full((256, 256), 5.0))
assert torch.equal(source, want)
""")


def test_signal_handler_that_writes_and_clones():
    script("""
model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(20)))
before = {k: v + 0 for k, v in model.state_dict().items()}
tensor, relatives = torch.ones(64, 64), []
calls = []
def handler(number, frame):
    calls.append(1)
    mine = torchcow.clone(model)
    with torch.no_grad():
        for p in mine.parameters():
            p.zero_()
    tensor.add_(1)
    relatives[:] = [torchcow.clone(tensor)]
    signal.setitimer(signal.ITIMER_REAL, 0.002)  # one at a time: a handler slower than the timer would nest for ever
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.002)
end = time.monotonic() + 2
while time.monotonic() < end:
    clone = torchcow.clone(model)
    with torch.no_grad():
        for p in clone.parameters():
            p.mul_(2)
    for k, v in clone.state_dict().items():
        assert torch.equal(v, before[k] * 2), k
signal.setitimer(signal.ITIMER_REAL, 0)
assert len(calls) > 20, len(calls)
assert torch.equal(tensor, torch.full((64, 64), 1.0 + len(calls)))
assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
torchcow.testing.verify()
""")


def test_signal_that_raises_inside_a_clone():
    script("""
model = nn.ModuleList(nn.Linear(8, 8) for _ in range(2000))
before = {k: v + 0 for k, v in model.state_dict().items()}
class Stop(Exception): pass
def handler(number, frame): raise Stop
signal.signal(signal.SIGALRM, handler)
stopped = 0
for delay in range(1, 30):
    try:
        signal.setitimer(signal.ITIMER_REAL, delay * 0.0005)
        clone = torchcow.clone(model)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Stop:
        stopped += 1
    clone = None
gc.collect()
assert stopped
assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
torchcow.testing.verify()
clone = torchcow.clone(model)
with torch.no_grad():
    for p in clone.parameters(): p.zero_()
assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
""")


def test_writes_in_atexit_and_del():
    out = script("""
clone = torchcow.clone(source)
other = torchcow.clone(source)
class Last:
    def __init__(self, tensor): self.tensor = tensor
    def __del__(self, say=os.write):
        self.tensor.add_(1)
        say(1, b"__del__ wrote\\n")
keep = Last(torchcow.clone(source))
keep.cycle = keep
sys.modules["torchcow_keeps"] = keep
@atexit.register
def late():
    clone.zero_()
    assert torch.equal(source, want)
    another = torchcow.clone(source)
    source.add_(1)
    assert torch.equal(another, want)
    os.write(1, b"atexit wrote\\n")
""")
    assert "atexit wrote" in out


@pytest.mark.parametrize("keep", ["module global", "builtins", "cycle", "thread-local", "storage", "numpy", "daemon"])
def test_shutdown_with_live_clones(keep):
    bodies = {
        "module global": "everything = [torchcow.clone(source) for _ in range(9)]; everything[0].add_(1)",
        "builtins": "import builtins; builtins.kept = [torchcow.clone(source), source]; builtins.kept[0].add_(1)",
        "cycle": "a = [torchcow.clone(source)]; a.append(a); b = torchcow.clone(a); del a",
        "thread-local": "local = threading.local(); local.x = torchcow.clone(source)",
        "storage": "kept = torchcow.clone(source).untyped_storage()",
        "numpy": "array = torchcow.clone(source).numpy(); array[0] = 3",
        # It sleeps: torch itself aborts when a daemon thread is inside an operator at exit.
        "daemon": """
def forever():
    mine = torchcow.clone(source)
    mine.add_(1)
    other = torchcow.clone(mine)
    time.sleep(1000)
threading.Thread(target=forever, daemon=True).start()
time.sleep(0.3)
""",
    }
    script(bodies[keep])


def test_sharers_outlive_the_module_object():
    script("""
clone = torchcow.clone(source)
del sys.modules["torchcow"], torchcow
gc.collect()
clone.add_(1)
assert torch.equal(source, want)
""")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(method, tmp_path):
    """Clones passed to workers, by inheritance and by pickle."""
    path = tmp_path / "worker_program.py"
    path.write_text("""
import sys, torch, torchcow
import torch.multiprocessing as mp

def work(tensor, queue):
    torch.set_num_threads(1)
    tensor.add_(1)
    mine = torchcow.clone(tensor)
    mine.zero_()
    queue.put(float(tensor.sum()))

if __name__ == "__main__":
    torch.set_num_threads(1)
    source = torch.ones(64, 64)
    clone = torchcow.clone(source)
    context = mp.get_context(sys.argv[1])
    queue = context.SimpleQueue()
    process = context.Process(target=work, args=(clone, queue))
    process.start()
    got = queue.get()
    process.join(60)
    assert process.exitcode == 0, process.exitcode
    assert got == 2 * 64 * 64, got
    assert torch.equal(source, torch.ones(64, 64))
    print("reached the end")
""")
    code = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    if method == "spawn":
        import subprocess

        done = subprocess.run(
            [sys.executable, str(path), method], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0 and "reached the end" in done.stdout, done.stderr
    else:
        assert "reached the end" in run_script(code, str(path), method)
