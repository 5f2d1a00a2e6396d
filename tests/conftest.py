"""One thread for every test: models are tiny, and two busy pools on two cores slow each other many times over."""

import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # dvc of this environment

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a run in the background ignores Ctrl-C; some tests press it
hypothesis.settings.register_profile("busy", deadline=None)  # a machine that does other work is slow, not wrong
hypothesis.settings.load_profile("busy")


@pytest.fixture(autouse=True)
def one_thread():
    """A stage under test sets the threads of its recipe; the next test starts with one again."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)
