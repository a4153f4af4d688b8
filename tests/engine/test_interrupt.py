from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from limbeck.engine import interrupt

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@pytest.fixture
def installed():
    interrupt.uninstall()  # a test before may have left it
    # under nohup, or in the background of a script, some are ignored, and stay so
    before = {n: signal.signal(getattr(signal, n), signal.default_int_handler) for n in interrupt.NAMES}
    interrupt.install()
    yield
    interrupt.uninstall()
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)


@pytest.mark.parametrize("name", interrupt.NAMES)
def test_a_signal_sets_the_flag_and_nothing_else(installed, name, capfd):
    assert interrupt.requested() is None
    os.kill(os.getpid(), getattr(signal, name))
    assert interrupt.requested() == getattr(signal, name)
    assert name in capfd.readouterr().err


def test_the_first_signal_counts(installed, capfd):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGHUP)
    assert interrupt.requested() == signal.SIGTERM


def test_uninstalling_puts_back_what_was_there(capfd):
    before = signal.getsignal(signal.SIGTERM)
    interrupt.install()
    interrupt.install()
    os.kill(os.getpid(), signal.SIGTERM)
    interrupt.uninstall()
    assert signal.getsignal(signal.SIGTERM) is before
    assert interrupt.requested() is None


def test_other_threads_leave_signals_alone():
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=interrupt.install)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        interrupt.install()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        interrupt.uninstall()
        signal.signal(signal.SIGHUP, before)


def test_a_second_ctrl_c_leaves_at_once():
    code = (
        "import os, signal, time\n"
        "from limbeck.engine import interrupt\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "interrupt.install()\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "assert interrupt.requested() == signal.SIGINT\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "time.sleep(30)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=20, check=False)
    assert done.returncode == -signal.SIGINT
    assert b"leaving at once" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_helper_outlives_the_first_signal_of_each_kind():
    code = (
        "import os, signal\n"
        "from limbeck.engine import interrupt\n"
        "interrupt.outlive_first()\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "print('here', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "print('not here', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=20, check=False)
    assert done.returncode == -signal.SIGTERM
    assert done.stdout == b"here\n"
