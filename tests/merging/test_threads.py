from __future__ import annotations

import itertools
import os
import threading

import pytest
import torch

from evomerge.merging.philox import RUN
from evomerge.merging.threads import in_threads

LARGE = (1 << 21) + 77


@pytest.fixture(autouse=True, params=[1, 2, 3])
def n_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("run", [RUN, 3 * RUN, 1 << 19])
@pytest.mark.parametrize("n_elements", [0, 1, RUN, (1 << 18) + 1, 1 << 19, LARGE])
def test_every_element_is_in_one_piece_that_begins_with_a_run(n_elements, run):
    pieces = []

    def kernel(start, stop):
        pieces.append((start, stop))
        return True

    assert in_threads(kernel, n_elements, run=run)
    pieces.sort()
    assert all(start % run == 0 for start, _ in pieces)
    assert [start for start, _ in pieces] == [0, *(stop for _, stop in pieces[:-1])]
    assert pieces[-1][1] == n_elements


@pytest.mark.parametrize("bad", [0, LARGE // 2, LARGE - 1])
def test_one_piece_that_does_not_hold_is_enough(bad):
    assert not in_threads(lambda start, stop: not start <= bad < stop, LARGE)


def meeting(n_threads):
    """Return a kernel whose first calls end only once as many threads as wanted are in one."""
    met, calls = threading.Barrier(n_threads), itertools.count()

    def kernel(start, stop):
        if next(calls) < n_threads:
            met.wait(30)
        return True

    return kernel


def test_all_threads_take_part(n_threads):
    assert in_threads(meeting(n_threads), LARGE)


@pytest.mark.parametrize("in_caller", [True, False])
def test_an_error_is_raised_after_all_have_ended(in_caller, n_threads):
    if n_threads == 1 and not in_caller:
        pytest.skip("there is only the caller")
    running, failed, caller = set(), threading.Event(), threading.get_ident()

    def kernel(start, stop):
        running.add(start)
        is_caller = threading.get_ident() == caller
        try:
            if is_caller == in_caller:
                raise ValueError("no")
            failed.wait(30)
        finally:
            running.discard(start)
            failed.set()
        return True

    with pytest.raises(ValueError, match="no"):
        in_threads(kernel, LARGE)
    assert not running


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(n_threads):
    assert in_threads(lambda _start, _stop: True, LARGE)
    child = os.fork()
    if not child:
        os._exit(0 if in_threads(meeting(n_threads), LARGE) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
