"""The error of a job is the first that a process met, not what the others saw of it."""

from __future__ import annotations

import threading
import time

import pytest
from torch.distributed import DistNetworkError

from rlhf_lightning.cli import failures
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.failures import Failure, Watch, cause, failure_of, first_failure, forget, keep, traceback_of

LOST = "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:43571"


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


def kept(folder, error: Exception, rank: int) -> Failure:
    failure = failure_of(raised(error), rank)
    keep(failure, raised(error), folder)
    return failure


def test_the_cause_is_shown_and_not_its_consequence(tmp_path):
    """Rank 0 is told first that the connection is gone; fails when it reports that."""
    kept(tmp_path, RuntimeError(LOST), 0)
    kept(tmp_path, KeyError("no entry"), 1)
    kept(tmp_path, ValueError("later"), 2)
    first = first_failure(tmp_path)
    assert first is not None
    assert first.rank == 1
    assert first.message.startswith(f"rank 1 on {first.host}: KeyError: 'no entry'")
    assert (tmp_path / "errors" / "rank-1.txt").exists()
    assert "Traceback" in traceback_of(tmp_path, first)
    assert first.bug


def test_the_first_of_several_errors_by_time(tmp_path):
    kept(tmp_path, ConfigError("late"), 0)
    early = Failure(failures.BEGAN + 1e-3, 3, "host-b", "early", 2)
    keep(early, raised(ValueError("early")), tmp_path)
    assert first_failure(tmp_path) == early


def test_what_all_processes_found_is_of_none(tmp_path):
    for rank in (2, 1, 0):
        kept(tmp_path, ConfigError("data.batch_size=3 is odd"), rank)
    first = first_failure(tmp_path)
    assert first is not None
    assert (first.message, first.code, first.bug) == ("data.batch_size=3 is odd", 2, False)


def test_a_connection_that_nobody_explains_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(failures, "_PATIENCE", 0.0)
    failure = kept(tmp_path, RuntimeError(LOST), 0)
    assert failure.consequence
    assert "one was killed (out of memory?)" in cause(tmp_path, failure).message
    assert first_failure(tmp_path) == failure


@pytest.mark.parametrize(
    ("error", "consequence"),
    [
        (RuntimeError(LOST), True),
        (DistNetworkError("The client socket has timed out after 5000ms"), True),
        (ConnectionRefusedError("Connection refused"), False),  # of a server that a reward asks
        (ConfigError("NCCL is not there"), False),
        (KeyError("gloo"), False),
    ],
)
def test_which_errors_only_say_that_another_process_has_gone(error, consequence):
    failure = failure_of(raised(error), 1)
    assert failure.consequence == consequence
    assert failure.bug == isinstance(error, KeyError)


def test_an_error_that_another_process_is_still_writing_is_waited_for(tmp_path):
    failure = kept(tmp_path, RuntimeError(LOST), 0)
    writer = threading.Timer(0.3, kept, (tmp_path, KeyError("no entry"), 1))
    writer.start()
    assert cause(tmp_path, failure).rank == 1
    writer.join()


def test_errors_of_an_earlier_command_are_no_errors_of_this_one(tmp_path):
    old = Failure(failures.BEGAN - 60, 1, "host", "old", 1)
    keep(old, raised(ValueError("old")), tmp_path)
    assert first_failure(tmp_path) is None
    kept(tmp_path, ValueError("new"), 2)
    forget(tmp_path, all_of_them=False)  # rank 2 was faster than the process that tidies up
    assert [file.name for file in (tmp_path / "errors").iterdir()] == ["rank-2.txt"]
    forget(tmp_path, all_of_them=True)
    assert not (tmp_path / "errors").exists()


@pytest.mark.parametrize(("rank", "ended"), [(0, True), (1, False)], ids=["another's", "its own"])
def test_a_process_that_waits_for_a_failed_one_is_ended(tmp_path, monkeypatch, rank, ended):
    """Fails without the watch: with NCCL the others wait until their time is up."""
    monkeypatch.setattr(failures, "_LOOK_EVERY", 0.05)
    monkeypatch.setattr(failures, "_GRACE", 0.05)
    reported: list[Failure] = []
    kept(tmp_path, KeyError("no entry"), 1)
    with Watch(tmp_path, rank, reported.append):
        time.sleep(0.5)
    assert [failure.rank for failure in reported] == ([1] if ended else [])
