"""Threads, signals and forks beside a `Loader`."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import LONG, ids, needs, program

from bigbigan import Loader


def heeds_ctrl_c():
    """As a terminal starts a program: what a shell starts in the background does not hear it, nor its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_ends_a_wait_at_once(data):
    script = """if True:
        import sys, bigbigan
        epoch = iter(bigbigan.Loader(sys.argv[1], batch=10, size=16, depth=1, held_s=None))
        held = [next(epoch) for _ in range(3)]
        print("waiting", flush=True)
        try:
            next(epoch)
        except KeyboardInterrupt:
            held.clear()
            print("interrupted", len(next(epoch)), flush=True)
    """
    words = [sys.executable, "-c", script, data]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, preexec_fn=heeds_ctrl_c)
    assert child.stdout.readline() == "waiting\n"
    time.sleep(0.3)
    begun = time.monotonic()
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=10)[0] == "interrupted 10\n"
    assert child.returncode == 0 and time.monotonic() - begun < 5


def test_other_threads_run_while_a_batch_is_waited_for(data):
    loader = Loader(data, batch=10, size=16, depth=1, held_s=2)
    epoch = iter(loader)
    held = [next(epoch) for _ in range(3)]
    turns, ended = [0], threading.Event()

    def turn():
        while not ended.is_set():
            turns[0] += 1
            time.sleep(0.001)

    thread = threading.Thread(target=turn)
    thread.start()
    with pytest.raises(RuntimeError):
        next(epoch)
    ended.set()
    thread.join()
    assert turns[0] > 200 and len(held) == 3


def test_several_threads_may_share_an_epoch(data):
    loader, seen = Loader(data, batch=7, size=16, seed=2, depth=4), []
    epoch = iter(loader)

    def take():
        for batch in epoch:
            seen.extend(batch.ids.tolist())
            loader.stats(), loader.state_dict()

    threads = [threading.Thread(target=take) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    alone = sum(ids(Loader(data, batch=7, size=16, seed=2)), [])
    assert sorted(seen) == sorted(alone)


def forked(work):
    """What `work` says in a process forked off."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            text = str(work())
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    text = b"".join(iter(lambda: os.read(read, 4096), b"")).decode()
    os.waitpid(child, 0)
    return text


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_loader_of_a_url_stays_in_its_process(data):
    import functools
    import http.server

    class Ranges(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

        def do_GET(self):
            path = Path(self.translate_path(self.path))
            if not path.is_file():
                return self.send_error(404)
            whole, part = path.read_bytes(), self.headers.get("Range")
            first, last = 0, len(whole) - 1
            if part:
                low, high = part.removeprefix("bytes=").split("-")
                first, last = (int(low), int(high or last)) if low else (len(whole) - int(high), last)
            body = whole[first : last + 1]
            self.send_response(206 if part else 200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(whole)}")
            self.end_headers()
            self.wfile.write(body)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Ranges, directory=data))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    loader = Loader(f"http://127.0.0.1:{server.server_address[1]}", batch=7, size=16, seed=2)
    assert forked(lambda: len(ids(loader))).startswith("RuntimeError")
    assert ids(loader) == ids(Loader(data, batch=7, size=16, seed=2))
    server.shutdown()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_forked_off_is_told_or_begins_its_own(data):
    loader = Loader(data, batch=7, size=16, seed=2)
    assert forked(lambda: len(ids(loader))) == "29", "no thread was there before"
    held = next(iter(loader))
    said = forked(lambda: ids(loader))
    assert said.startswith("RuntimeError") and "spawn" in said, said
    assert forked(lambda: loader.state_dict()).startswith("RuntimeError")
    assert forked(lambda: held.images.sum()) == str(held.images.sum())
    assert len(ids(loader)) == 28, "the parent goes on"


def test_a_worker_of_a_dataloader_may_use_it(data):
    torch = needs("torch")

    class Batches(torch.utils.data.IterableDataset):
        def __init__(self):
            self.loader = Loader(data, batch=20, size=16, seed=1)

        def __iter__(self):
            for batch in self.loader:
                yield torch.from_numpy(batch.ids.astype(np.int64))

    worked = torch.utils.data.DataLoader(Batches(), batch_size=None, num_workers=1)
    assert [batch.tolist() for batch in worked] == ids(Loader(data, batch=20, size=16, seed=1))


def test_ctrl_c_ends_the_program_as_it_ends_any(tmp_path):
    words = ["synth", "--output", tmp_path / "out", "--images", "100000", "--classes", "5", "--size", "64"]
    words = [program("shard-imagenet"), *words]
    child = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, preexec_fn=heeds_ctrl_c)
    while not list(tmp_path.glob(".out.partial/*.tar")) and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    said = child.communicate(timeout=60)[1]
    assert child.returncode == 75 and "Traceback" not in said, said


@pytest.mark.parametrize("what", ["loop", "stats", "view", "held"])
def test_python_ends_well_while_daemon_threads_are_in_it(data, what):
    """CPython ends such a thread by unwinding its stack, which once killed the process after all work was done."""
    program = f"""if True:
        import bigbigan, io, threading, time
        import numpy as np
        loader = bigbigan.Loader({str(data)!r}, batch=8, size=32, held_s=None)
        begun, held, picture = threading.Event(), [], np.zeros((400, 400, 3), np.uint8)
        def work():
            while True:
                if {what!r} == "view":
                    bigbigan.view(picture, 64); begun.set()
                elif {what!r} == "stats":
                    loader.stats(); begun.set()
                else:
                    for batch in loader:
                        begun.set()
                        if {what!r} == "held": held.append(batch)
        threading.Thread(target=work, daemon=True).start()
        begun.wait(); time.sleep(0.1)
    """
    for _ in range(40 if LONG else 6):
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert ended.returncode == 0 and not ended.stderr, (ended.returncode, ended.stderr)


def test_ctrl_c_is_heard_however_many_threads_wait(data):
    program = f"""if True:
        import bigbigan, signal, threading, time, os
        loader = bigbigan.Loader({str(data)!r}, batch=8, size=32, held_s=None)
        held = []
        def work():
            for batch in loader: held.append(batch)
        for _ in range(16): threading.Thread(target=work, daemon=True).start()
        time.sleep(0.5)
        sent = []
        def send():
            time.sleep(0.3); sent.append(time.monotonic()); os.kill(os.getpid(), signal.SIGINT)
        threading.Thread(target=send).start()
        try:
            for batch in loader: held.append(batch)
        except KeyboardInterrupt:
            took = time.monotonic() - sent[0]
            print(took)
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0 and float(ended.stdout) < 1, (ended.stdout, ended.stderr)


def test_a_worker_that_is_forked_anew_says_that_its_epochs_are_the_same(data):
    torch = needs("torch")

    class Stream(torch.utils.data.IterableDataset):
        def __init__(self, loader):
            self.loader = loader

        def __iter__(self):
            return (batch.ids.tolist() for batch in self.loader)

    def epochs(persistent):
        loader = Loader(data, batch=20, size=16, seed=1)
        options = {"num_workers": 1, "multiprocessing_context": "fork", "persistent_workers": persistent}
        worker = torch.utils.data.DataLoader(Stream(loader), batch_size=None, **options)
        return [list(worker) for _ in range(2)]

    one, two = epochs(True)
    assert one != two and one == ids(Loader(data, batch=20, size=16, seed=1))
    program = f"""if True:
        import bigbigan, os, sys
        loader = bigbigan.Loader({str(data)!r}, batch=20, size=16)
        child = os.fork()
        if not child:
            for batch in loader: pass
            sys.stderr.flush(); os._exit(0)
        os.waitpid(child, 0)
    """
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "persistent_workers=True" in ended.stderr, ended.stderr


def test_a_handler_that_raises_loses_no_batch(data, monkeypatch):
    """A warning is given to logging with a batch in hand."""
    import logging

    def angry(record):
        raise RuntimeError("no room for the log")

    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    monkeypatch.setattr(logging.getLogger("bigbigan"), "handle", angry)
    loader = Loader(data, batch=20, size=16, seed=1, depth=1, held_s=None)
    held, seen = [], []
    batches = iter(loader)
    for _ in range(3):
        held.append(next(batches))
    threading.Timer(2.5, held.clear).start()
    for batch in batches:
        seen.append(batch.ids.tolist())
    assert seen == ids(Loader(data, batch=20, size=16, seed=1))[3:]
    assert told, "no warning came"


def test_what_is_called_at_exit_may_wait_for_a_thread_in_the_loader(data):
    program = f"""if True:
        import atexit, threading, time
        stop = threading.Event()
        atexit.register(lambda: (stop.set(), thread.join(), print("joined")))
        import bigbigan
        loader = bigbigan.Loader({str(data)!r}, batch=8, size=32)
        def work():
            while not stop.is_set():
                for batch in loader:
                    if stop.is_set(): return
        thread = threading.Thread(target=work, daemon=True)
        thread.start(); time.sleep(0.2)
    """
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "joined\n"), (ended.returncode, ended.stdout, ended.stderr)


def test_a_process_that_was_forked_off_ends_at_once(data):
    program = f"""if True:
        import bigbigan, os, sys, threading, time
        loader = bigbigan.Loader({str(data)!r}, batch=8, size=32)
        def work():
            while True: loader.stats()
        for _ in range(4): threading.Thread(target=work, daemon=True).start()
        for _ in range(8):
            begun = time.monotonic()
            child = os.fork()
            if not child: sys.exit(0)
            assert os.waitpid(child, 0)[1] == 0 and time.monotonic() - begun < 0.8, time.monotonic() - begun
    """
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, (ended.returncode, ended.stderr)
