"""The live page: for those who know the token, newer as the run grows, and never in its way."""

import http.client
import json
import shutil
import threading
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from evomerge.errors import RunError
from evomerge.report.live import open_server
from evomerge.storage.lease_probe import is_driven
from evomerge.storage.run_store import RunFolder, RunStore
from tests.cli.command import tree
from tests.report.synthetic import Plan, append, write_run

PLAN = Plan(n=30)


@contextmanager
def serving(folder, token="a-good-token"):
    with open_server(folder, port=0, token=token) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield urlsplit(server.address)
        finally:
            server.shutdown()
            thread.join()


def get(address, path, **headers):
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=30)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def newer(address, version):
    """Ask until there is something new, as the page does."""
    for _ in range(1000):
        answer, body = get(address, f"{address.path}data.json?seen={version}")
        if answer.status != 204:
            return answer, body
        time.sleep(0.02)
    raise AssertionError("nothing new came")


@pytest.fixture
def folder(run, tmp_path):
    copy = RunFolder(tmp_path / "run")
    shutil.copytree(run.path, copy.path)
    return copy


def test_only_the_token_opens_the_page(folder):
    with serving(folder) as address:
        answer, page = get(address, address.path)
        assert answer.status == 200
        assert b'data-live="data.json"' in page
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        for path in ("/", "/data.json", "/a-bad-token/", "/a-good-token", "/a-good-token/x",
                     "/a-good-token/../a-good-token/data.json", "//", "/%00/"):  # fmt: skip
            answer, body = get(address, path)
            assert (answer.status, body) == (404, b"not found"), path


def test_another_name_for_this_machine_is_refused(folder):
    with serving(folder) as address:
        answer, _ = get(address, address.path, Host=f"evil.example:{address.port}")
        assert answer.status == 404
        answer, _ = get(address, address.path, Host=f"localhost:{address.port}")
        assert answer.status == 200


def test_a_random_token_is_long_and_new_each_time(folder):
    addresses = []
    for _ in range(2):
        with open_server(folder, port=0, token=None) as server:
            addresses.append(server.address)
            assert server.server_address[0] == "127.0.0.1"
    tokens = [address.split("/")[3] for address in addresses]
    assert tokens[0] != tokens[1]
    assert min(map(len, tokens)) >= 20


def test_data_follow_a_run_that_is_being_written_and_leave_it_alone(tmp_path):
    folder = write_run(tmp_path / "run", PLAN)
    header = folder.header()
    store = RunStore(folder, header=header, tasks=header["tasks"])
    before = tree(folder.path)
    with serving(folder) as address:
        answer, body = get(address, address.path + "data.json")
        version = answer.headers["ETag"]
        assert answer.status == 200
        assert json.loads(body)["history"]["told"][-1] == 30
        answer, body = get(address, f"{address.path}data.json?seen={version}")
        assert (answer.status, body) == (204, b"")
        assert tree(folder.path) == before
        assert is_driven(folder.path), "still the writer's"
        append(store, PLAN, range(30, 40))
        answer, body = newer(address, version)
        assert answer.status == 200
        assert json.loads(body)["history"]["told"][-1] == 40
        assert ["State", "running"] in json.loads(body)["summary"]["facts"]
        store.close()
        answer, body = newer(address, answer.headers["ETag"])
        assert ["State", "done"] in json.loads(body)["summary"]["facts"]


def test_a_damaged_journal_is_told_and_the_server_stays(folder):
    with serving(folder) as address:
        good = folder.journal.read_bytes()
        folder.journal.write_bytes(good + b'{"chain":"0","event":{}}\n')
        answer, body = newer(address, "damaged")
        while answer.status == 200:  # the one from before the damage
            answer, body = newer(address, "damaged")
        assert answer.status == 503
        assert b"does not continue the journal" in body
        folder.journal.write_bytes(good)
        answer, _ = get(address, address.path + "data.json")
        assert answer.status == 200


def test_a_port_that_is_taken_is_named(folder):
    with (
        open_server(folder, port=0, token=None) as server,
        pytest.raises(RunError, match="try --port 0"),
    ):
        open_server(folder, port=server.server_port, token=None)
