"""A server as a process of its own: its end under load, its successor, its limits."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import httpx
import pytest

from vitcls.bench.clients import Clients, Photo, request_of
from vitcls.bench.serving import served


@pytest.fixture(scope="module")
def photos(colours):
    return [Photo(file.name, file.read_bytes()) for file in sorted((colours / "test").rglob("*.jpg"))]


def clients_of(address, photos, **options):
    return Clients(address, photos, lambda photo, answer: answer["images"][0]["image"] == photo.name, **options)


def answered_by(log: Path) -> set[str]:
    """Ids of the requests that a server says it has answered with 200."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return {line["id"] for line in lines if line.get("route") == "/predict" and line["status"] == 200}


def port_of(address):
    return int(address.rpartition(":")[2])


async def after(answers, load, do):
    """Do something once so many requests were answered."""
    while sum(load.statuses.values()) < answers:
        await asyncio.sleep(0.01)
    return await asyncio.to_thread(do)


def test_sigterm_under_load_answers_all_that_was_accepted_and_the_next_takes_over(exported_run, photos, tmp_path):
    logs = tmp_path / "first.txt", tmp_path / "second.txt"
    with served([str(exported_run)], logs[0]) as (address, first):
        clients, ends = clients_of(address, photos), []

        def replace():
            first.send_signal(signal.SIGTERM)
            with served([str(exported_run), f"--port={port_of(address)}"], logs[1]) as (again, second):
                assert again == address
                ends.append(first.wait(60))
                so_far = len(clients.load.ids)
                while len(clients.load.ids) < so_far + 50:
                    time.sleep(0.01)
                ends.append(None)
                second.send_signal(signal.SIGTERM)
                ends.append(second.wait(60))

        async def run():
            asked = asyncio.create_task(clients.ask(8, lambda: len(ends) < 2))
            await after(50, clients.load, replace)
            return await asked

        load = asyncio.run(asyncio.wait_for(run(), 120))
    assert ends == [143, None, 143]
    assert load.wrong == 0
    assert set(load.statuses) == {200}
    assert set(load.ids) == answered_by(logs[0]) | answered_by(logs[1])
    assert len(answered_by(logs[1])) >= 50
    assert "Traceback" not in logs[0].read_text() + logs[1].read_text()


def test_two_servers_share_a_port_so_that_one_can_go_without_a_gap(exported_run, photos, tmp_path):
    words = [str(exported_run), "--share_port=true"]
    with (
        served(words, tmp_path / "first.txt") as (address, first),
        served([*words, f"--port={port_of(address)}"], tmp_path / "second.txt"),
    ):
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 143
        clients = clients_of(address, photos)
        load = asyncio.run(clients.ask(2, lambda: sum(clients.load.statuses.values()) < 10))
    assert (load.broken, set(load.statuses)) == (0, {200})


def test_beyond_its_capacity_it_says_so_and_never_hangs(exported_run, photos, tmp_path):
    words = [str(exported_run), "--queue=2", "--max_images=1", "--max_batch=1"]
    with served(words, tmp_path / "log.txt") as (address, process):
        clients = clients_of(address, photos, pauses_after_refusal=False)
        load = asyncio.run(clients.ask(32, lambda: sum(clients.load.statuses.values()) < 1000))
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130  # as of any verb
    assert (load.broken, load.wrong) == (0, 0)
    assert set(load.statuses) == {200, 429}
    assert "Traceback" not in (tmp_path / "log.txt").read_text()


def test_while_it_lingers_it_answers_and_is_not_ready(exported_run, photos, tmp_path):
    with served([str(exported_run), "--linger=600"], tmp_path / "log.txt") as (address, process):
        clients = clients_of(address, photos)
        process.send_signal(signal.SIGTERM)
        while "about to stop" not in (tmp_path / "log.txt").read_text():
            time.sleep(0.01)
        assert asyncio.run(clients.ask(1, lambda: not clients.load.ids)).statuses == {200: 1}
        assert httpx.get(f"{address}/ready").status_code == 503
        process.kill()


def test_a_port_in_use_is_a_sentence(exported_run):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        words = ["serve", str(exported_run), f"--port={taken.getsockname()[1]}"]
        said = subprocess.run([sys.executable, "-m", "vitcls", *words], capture_output=True, text=True, timeout=60)
    assert said.returncode == 2
    assert len(said.stderr.splitlines()) == 1
    assert "is in use; stop what listens there, or give another with --port" in said.stderr


def test_a_client_that_never_finishes_does_not_hold_the_end_up(exported_run, tmp_path):
    head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    with (
        served([str(exported_run), "--timeout=0.5"], tmp_path / "log.txt") as (address, process),
        socket.create_connection(("127.0.0.1", port_of(address))) as silent,
    ):
        silent.sendall(f"{head}Content-Length: 100\r\n\r\n--b\r\n".encode())
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
        assert b"408" in silent.recv(100)


BEGINNINGS = (
    b"POST /predict HTTP/1.1\r\nX: ",
    b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n",  # its body is not wanted
)


def drip(connection, beginning):
    connection.sendall(beginning)
    while True:
        connection.sendall(b"x")
        time.sleep(0.01)


def test_a_connection_without_a_request_does_not_stay(exported_run, tmp_path):
    with served([str(exported_run), "--timeout=0.5"], tmp_path / "log.txt") as (address, _):
        connect = partial(socket.create_connection, ("127.0.0.1", port_of(address)))
        with connect() as silent:
            assert silent.recv(1) == b""
        for beginning in BEGINNINGS:
            with connect() as slow, pytest.raises((BrokenPipeError, ConnectionResetError)):
                drip(slow, beginning)
        assert httpx.get(f"{address}/health").status_code == 200


def test_an_upload_that_has_begun_is_answered_after_sigterm(exported_run, photos, tmp_path):
    head, _, body = request_of(photos[0]).partition(b"\r\n\r\n")
    with (
        served([str(exported_run)], tmp_path / "log.txt") as (address, process),
        socket.create_connection(("127.0.0.1", port_of(address))) as client,
    ):
        client.sendall(head + b"\r\nExpect: 100-continue\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 100 ")  # it has begun to read
        process.send_signal(signal.SIGTERM)
        while "about to stop" not in (tmp_path / "log.txt").read_text():
            time.sleep(0.01)
        time.sleep(1)  # in which a server that does not wait would have cut it off
        client.sendall(body)
        assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert process.wait(60) == 143


def test_a_second_ctrl_c_ends_the_lingering(exported_run, tmp_path):
    with served([str(exported_run), "--linger=3000"], tmp_path / "log.txt") as (_, process):
        process.send_signal(signal.SIGINT)
        while "about to stop" not in (tmp_path / "log.txt").read_text():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


def test_no_file_is_written(exported_run, tmp_path, monkeypatch):
    """Not even where Python would put what is too large for memory."""
    (tmp_path / "spooled").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "spooled"))
    photo = Photo("large.bmp", b"BM" + bytes(5_000_000))
    with served([str(exported_run)], tmp_path / "log.txt") as (address, process):
        opened = Path(f"/proc/{process.pid}/fd")
        if not opened.is_dir():
            pytest.skip("Linux alone tells")
        before = {str(file.resolve()) for file in opened.iterdir()}
        clients = clients_of(address, [photo])
        load = asyncio.run(clients.ask(4, lambda: sum(clients.load.statuses.values()) < 8))
        files = {
            name for file in opened.iterdir() if not (name := str(file.resolve())).split("/")[-1].startswith("socket")
        }
    assert set(load.statuses) == {422}
    assert files <= before
    assert list((tmp_path / "spooled").iterdir()) == []
