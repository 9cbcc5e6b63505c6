"""What the server answers and what it refuses, asked as its clients ask, without a socket."""

import asyncio
import csv
import io
import json
import logging
import re
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from vitcls.serve.access import Access
from vitcls.serve.app import make_app
from vitcls.serve.limits import Limits
from vitcls.serve.metrics import Figures
from vitcls.serve.service import Service
from vitcls.serve.torch_engine import TorchEngine

SMALL = Limits(max_bytes=20_000, max_pixels=10_000, max_images=3, queue=4, timeout=20)


class Asked:
    """An application that runs, and a client of it."""

    def __init__(self, engine, limits=SMALL, access=None, max_batch=4):
        self.figures = Figures()
        self.service = Service(engine, limits, max_batch, 2, self.figures)
        self.app = make_app(self.service, limits, access or Access(), self.figures)
        self._loop = asyncio.Runner()
        self._lifespan = self.app.router.lifespan_context(self.app)
        self._loop.run(self._lifespan.__aenter__())

    def __call__(self, *asks):
        """The replies to what each of `asks`, functions of the client, asks at the same time."""
        return self._loop.run(self._together(asks))

    async def _together(self, asks):
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://vitcls") as client:
            return await asyncio.gather(*(ask(client) for ask in asks))

    def end(self):
        self._loop.run(self._lifespan.__aexit__(None, None, None))
        self._loop.close()

    @property
    def waiting(self):
        """How many images are in the house."""
        return float(re.search(r"^vitcls_waiting_images (.+)$", self.figures.text(), re.MULTILINE)[1])

    def post(self, *files, path="/predict", **options):
        """The reply to one request with these (name, content)."""
        return self(posting(*files, path=path, **options))[0]

    def get(self, path, **options):
        return self(lambda client: client.get(path, **options))[0]


def posting(*files, path="/predict", **options):
    parts = [("image", file) for file in files]
    return lambda client: client.post(path, files=parts, **options)


@pytest.fixture(scope="module")
def engine(trained_run):
    return TorchEngine(str(trained_run), "float32", threads=1)


@pytest.fixture
def asked_of():
    """Makes applications, and ends them."""
    made = []

    def make(*arguments, **options):
        made.append(Asked(*arguments, **options))
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.fixture
def asked(asked_of, engine):
    return asked_of(engine)


@pytest.fixture(scope="module")
def photos(colours):
    return [(file.name, file.read_bytes()) for file in sorted((colours / "test").rglob("*.jpg"))]


@pytest.fixture
def logged():
    """The lines of the log about an event."""
    lines = []

    class Kept(logging.Handler):
        def emit(self, record):
            lines.append(json.loads(record.getMessage()))

    handler, log = Kept(), logging.getLogger("vitcls.serve.logs")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield lambda event: [line for line in lines if line["event"] == event]
    log.removeHandler(handler)
    log.setLevel(logging.NOTSET)


def encoded(kind="PNG", size=(40, 40), mode="RGB"):
    content = io.BytesIO()
    Image.new(mode, size, 120).save(content, kind)
    return content.getvalue()


def problem(reply):
    told = reply.json()
    assert set(told) <= {"status", "message", "image"}
    assert told["status"] == reply.status_code
    assert told["message"].endswith(".")
    return told["message"]


def test_the_answers_are_those_of_predict(vitcls, asked, trained_run, colours, tmp_path):
    words = ("--data.predict", colours / "test", "--data.num_workers=0", "--top_k=2", "--abstain=0.6")
    assert vitcls("predict", "--ckpt_path", trained_run, *words, "--output", tmp_path / "p.csv")[0] == 0
    with (tmp_path / "p.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    asks = [posting((r["file"], Path(r["file"]).read_bytes()), params={"top_k": 2, "abstain": 0.6}) for r in rows]
    replies = [reply for start in range(0, len(asks), 4) for reply in asked(*asks[start : start + 4])]
    for row, reply in zip(rows, replies, strict=True):
        (answer,) = reply.json()["images"]
        assert answer["image"] == row["file"]
        assert answer["label"] == row["label"]
        assert [best["score"] for best in answer["best"]] == pytest.approx(
            [float(row["score"]), float(row["score_2"])], abs=1e-5
        )


def test_several_images_are_answered_in_their_order(asked, photos):
    reply = asked.post(*photos[:3])
    assert reply.status_code == 200
    assert reply.json()["model"] == "run"
    assert [one["image"] for one in reply.json()["images"]] == [name for name, _ in photos[:3]]
    alone = [asked.post(photo).json()["images"][0] for photo in photos[:3]]
    for one, other in zip(reply.json()["images"], alone, strict=True):
        assert one["label"] == other["label"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)


def test_predict_refuses_all_for_one_and_batch_answers_each(asked, photos):
    files = [photos[0], ("cut.jpg", photos[1][1][:300]), photos[2]]
    reply = asked.post(*files)
    assert reply.status_code == 422
    assert reply.json()["image"] == "cut.jpg"
    assert "cannot be decoded" in problem(reply)
    reply = asked.post(*files, path="/predict/batch")
    assert reply.status_code == 200
    outcomes = reply.json()["images"]
    assert [sorted(one) for one in outcomes] == [["answer", "image"], ["error", "image"], ["answer", "image"]]
    assert outcomes[1]["error"]["status"] == 422
    assert outcomes[1]["image"] == "cut.jpg"
    assert "vitcls_images_total 2.0" in asked.figures.text()


BAD = {
    "text": (("notes.txt", b"hello"), 415, "no image type"),
    "pdf": (("x.jpg", b"%PDF-1.4 hello"), 415, "no image type"),
    "postscript": (("x.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n"), 415, "no image type"),
    "empty": (("empty.jpg", b""), 422, "the file is empty"),
    "cut": (("cut.png", encoded()[:60]), 422, "cannot be decoded"),
    "head": (("head.png", b"\x89PNG\r\n\x1a\n" + b"x" * 40), 422, "cannot be decoded"),
    "line": (("line.png", encoded(size=(9000, 1))), 422, "are a line"),
    "bytes": (("large.png", b"\x89PNG\r\n\x1a\n" + b"x" * 20_000), 413, "more than 20,000 bytes"),
    "pixels": (("wide.png", encoded(size=(101, 100))), 413, "101x100 pixels; at most 10,000"),
    "bomb": (("bomb.png", encoded(size=(30_000, 30_000), mode="1")[:19_000]), 413, "more than 10,000 pixels"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_image_is_refused_with_its_name(asked, bad):
    file, status, part = BAD[bad]
    reply = asked.post(file)
    assert (reply.status_code, reply.json()["image"]) == (status, file[0])
    assert part in problem(reply)
    (outcome,) = asked.post(file, path="/predict/batch").json()["images"]
    assert outcome["error"] == reply.json()


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "PNG"), ("RGBA", "WEBP"), ("P", "GIF"), ("CMYK", "JPEG"), ("I;16", "PNG"), ("1", "TIFF")]
)
def test_every_kind_of_image_is_answered(asked, mode, kind):
    assert asked.post(("x", encoded(kind, mode=mode))).status_code == 200


def raw(content, kind="multipart/form-data; boundary=b", **headers):
    return lambda client: client.post("/predict", content=content, headers={"Content-Type": kind, **headers})


PART = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + encoded() + b"\r\n"
BODIES = {
    "json": (raw(b"{}", "application/json"), 415, "multipart/form-data"),
    "form": (raw(b"a=1", "application/x-www-form-urlencoded"), 415, "multipart/form-data"),
    "no type": (lambda client: client.post("/predict", content=encoded()), 415, "multipart/form-data"),
    "no boundary": (raw(b"", "multipart/form-data"), 400, "names no boundary"),
    "long boundary": (raw(b"", f"multipart/form-data; boundary={'b' * 300}"), 400, "no multipart"),
    "garbage": (raw(b"garbage"), 400, "no multipart"),
    "unfinished": (raw(PART), 400, "before its last boundary"),
    "nothing": (raw(b"--b--\r\n"), 422, "no image in the request"),
    "empty": (raw(b""), 400, "before its last boundary"),
    "field": (raw(PART.replace(b'"image"', b'"top_k"') + b"--b--\r\n"), 422, "a field 'top_k'"),
    "nameless": (raw(PART.replace(b'name="image"; ', b"") + b"--b--\r\n"), 422, "a field ''"),
    "many headers": (
        raw(PART.replace(b"\r\n\r\n", b"\r\nX: y" * 50 + b"\r\n\r\n", 1) + b"--b--\r\n"),
        400,
        "no multipart",
    ),
    "too many": (raw(PART * 4 + b"--b--\r\n"), 413, "more than 3 images"),
    "too long": (raw(b"x" * 100_000), 413, "larger than"),
}


@pytest.mark.parametrize("body", BODIES)
def test_a_body_that_is_none_is_a_sentence(asked, body):
    ask, status, part = BODIES[body]
    (reply,) = asked(ask)
    assert reply.status_code == status
    assert part in problem(reply)


def test_a_body_of_unknown_length_is_cut_off_at_the_limit(asked):
    async def endless():
        for _ in range(1000):
            yield b"x" * 10_000

    head = PART[: PART.index(b"\r\n\r\n") + 4]

    async def body():
        yield head
        async for chunk in endless():
            yield chunk

    (reply,) = asked(raw(body()))
    assert reply.status_code == 413
    assert "larger than" in problem(reply)


def test_an_image_without_a_file_name_is_named_by_its_place(asked):
    (reply,) = asked(raw(PART.replace(b'; filename="a.png"', b"") + b"--b--\r\n"))
    assert reply.json()["images"][0]["image"] == "image 1"


OPTIONS = {
    "top_k": ({"top_k": 4}, "top_k is '4'"),
    "zero": ({"top_k": 0}, "top_k is '0'"),
    "word": ({"top_k": "all"}, "top_k is 'all'"),
    "abstain": ({"abstain": 1.5}, "abstain is '1.5'"),
    "nan": ({"abstain": "nan"}, "abstain is 'nan'"),
    "misspelt": ({"topk": 2}, "There is no option 'topk' (did you mean 'top_k'?)"),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_that_has_no_such_value_is_a_sentence(asked, photos, option):
    params, part = OPTIONS[option]
    reply = asked.post(photos[0], params=params)
    assert reply.status_code == 422
    assert part in problem(reply)


def test_below_the_score_that_is_asked_for_the_label_is_unknown(asked, photos):
    answer = asked.post(photos[0]).json()["images"][0]
    above = {"abstain": min(1.0, answer["score"] + 1e-4)}
    unsure = asked.post(photos[0], params=above).json()["images"][0]
    assert unsure["label"] == "unknown"
    assert unsure["best"][0]["label"] == answer["label"]
    assert (
        asked.post(photos[0], params={"abstain": answer["score"] - 1e-4}).json()["images"][0]["label"]
        == answer["label"]
    )


def test_labels_state_and_figures_are_told(asked, photos):
    assert asked.get("/labels").json() == {
        "model": "run",
        "task": "multiclass",
        "labels": ["blue", "green", "red"],
        "attribution": True,
    }
    assert asked.get("/health").json() == {"status": "alive"}
    asked.post(photos[0])
    asked.post(("cut", b"\x89PNG\r\n\x1a\n"))
    text = asked.get("/metrics").text
    assert 'vitcls_requests_total{route="/predict",status="200"} 1.0' in text
    assert 'vitcls_requests_total{route="/predict",status="422"} 1.0' in text
    assert "vitcls_images_total 1.0" in text
    assert "vitcls_waiting_images 0.0" in text
    assert "process_resident_memory_bytes" in text


def test_addresses_that_are_not_there_are_counted_as_one(asked):
    for path in ("/a", "/b"):
        assert problem(asked.get(path)) == "Not Found."
    assert 'vitcls_requests_total{route="other",status="404"} 2.0' in asked.figures.text()


def test_where_the_network_looked_is_a_picture_of_its_input(asked, photos):
    reply = asked.post(photos[0], path="/attribution")
    assert reply.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(reply.content)).size == (32, 32)
    assert asked.post(*photos[:2], path="/attribution").status_code == 413


def test_a_model_that_explains_nothing_has_no_such_route(asked_of, engine, photos, monkeypatch):
    monkeypatch.setattr(engine, "attributed", None)
    asked = asked_of(engine)
    assert asked.post(photos[0], path="/attribution").status_code == 404
    assert "/attribution" not in asked.get("/openapi.json").json()["paths"]
    assert asked.get("/labels").json()["attribution"] is False


def test_multilabel_answers_name_all_that_are_there(asked_of, vitcls, tiny_vit, scenes, tmp_path):
    from tests.conftest import multilabel_options

    assert vitcls(*multilabel_options(tiny_vit, scenes, tmp_path, epochs=1))[0] == 0
    engine = TorchEngine(str(tmp_path / "run"), "float32", threads=1)
    engine.thresholds = np.array([0.0, 1.1, 0.0])
    asked = asked_of(engine)
    answer = asked.post(("x.png", encoded())).json()["images"][0]
    assert answer["present"] == [engine.labels[0], engine.labels[2]]
    assert asked.get("/labels").json()["thresholds"] == {"blue": 0.0, "green": 1.1, "red": 0.0}
    assert "There is no option 'abstain'" in problem(asked.post(("x.png", encoded()), params={"abstain": 0.5}))


class Slow:
    """An engine that answers when it is told to."""

    def __init__(self, engine):
        self.free, self.asked = threading.Event(), threading.Event()
        self.batches = []
        self._engine = engine

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def probabilities(self, batch):
        self.asked.set()
        assert self.free.wait(30)
        self.batches.append(len(batch))
        return self._engine.probabilities(batch)


def warm(asked):
    """Waits until an application is ready."""

    async def until(_):
        while asked.service.why_not_ready is not None:
            await asyncio.sleep(0.001)

    return until


def test_beyond_the_queue_requests_are_refused_at_once_and_the_others_answered(asked_of, engine, photos):
    slow = Slow(engine)
    asked = asked_of(slow)

    async def crowd(client):
        early = [asyncio.create_task(posting(*photos[:2])(client)) for _ in range(2)]
        while asked.waiting != 4:
            await asyncio.sleep(0.001)
        late = await posting(photos[0])(client)
        slow.free.set()
        return late, await asyncio.gather(*early)

    ((late, early),) = asked(crowd)
    assert late.status_code == 429
    assert late.headers["retry-after"] == "1"
    assert "try again" in problem(late)
    assert [reply.status_code for reply in early] == [200, 200]
    assert asked.waiting == 0


def test_what_waits_is_taken_together(asked_of, engine, photos):
    slow = Slow(engine)
    asked = asked_of(slow, max_batch=3)

    async def crowd(client):
        asks = [asyncio.create_task(posting(photo)(client)) for photo in photos[:4]]
        while asked.waiting != 4:
            await asyncio.sleep(0.001)
        slow.free.set()
        return await asyncio.gather(*asks)

    (replies,) = asked(crowd)
    assert [reply.status_code for reply in replies] == [200] * 4
    assert max(slow.batches[2:]) > 1  # after those that warm up


def test_what_takes_too_long_is_given_up_and_leaves_its_place(asked_of, engine, photos):
    slow = Slow(engine)
    asked = asked_of(slow, limits=Limits(timeout=0.2), max_batch=16)

    async def ask(client):
        reply = await posting(photos[0])(client)
        slow.free.set()
        return reply

    (reply,) = asked(ask)
    assert reply.status_code == 504
    assert "within 0.2 seconds" in problem(reply)
    assert asked.waiting == 0
    asked(warm(asked))
    assert slow.batches == [1, 16]  # to warm up; nobody's image is among them


def test_a_body_that_does_not_arrive_is_given_up(asked_of, engine):
    asked = asked_of(engine, limits=Limits(timeout=0.2))
    never = asyncio.Event

    async def body():
        yield PART[:50]
        await never().wait()

    (reply,) = asked(raw(body()))
    assert reply.status_code == 408
    assert "did not arrive" in problem(reply)


def test_the_server_is_ready_between_warm_up_and_its_end(asked_of, engine):
    slow = Slow(engine)
    asked = asked_of(slow)

    async def ask(client):
        cold = await client.get("/ready")
        assert "vitcls_ready 0.0" in asked.figures.text()
        slow.free.set()
        await warm(asked)(client)
        ready = await client.get("/ready")
        assert "vitcls_ready 1.0" in asked.figures.text()
        asked.service.drain()
        assert "vitcls_ready 0.0" in asked.figures.text()
        return cold, ready, await client.get("/ready"), await client.get("/health")

    ((cold, ready, draining, alive),) = asked(ask)
    assert (cold.status_code, ready.status_code, draining.status_code, alive.status_code) == (503, 200, 503, 200)
    assert "warming up" in problem(cold)
    assert "about to stop" in problem(draining)
    assert cold.headers["retry-after"] == "1"
    assert draining.headers["connection"] == "close"


class Broken(Slow):
    def probabilities(self, batch):
        raise RuntimeError("/secret/place of the server")


def test_a_mistake_of_ours_tells_the_client_nothing_and_the_log_all(asked_of, engine, photos, logged):
    asked = asked_of(Broken(engine))
    reply = asked.post(photos[0])
    assert reply.status_code == 500
    assert "secret" not in reply.text
    assert problem(reply).startswith("The server made a mistake")
    failures = logged("failure")
    assert [failure["id"] for failure in failures] == ["warm-up", reply.headers["x-request-id"]]
    assert all("/secret/place" in failure["traceback"] for failure in failures)
    assert asked.get("/ready").status_code == 503


def test_each_request_is_one_line_without_names_or_content(asked, logged, photos):
    reply = asked.post(("a secret name.jpg", photos[0][1]), photos[1], params={"top_k": 1})
    (line,) = logged("request")
    assert set(line) == {"time", "event", "id", "method", "route", "status", "milliseconds", "images"}
    assert (line["route"], line["status"], line["images"]) == ("/predict", 200, 2)
    assert line["id"] == reply.headers["x-request-id"]


TOKEN = Access(token="open sesame".replace(" ", "-"))


@pytest.mark.parametrize("path", ["/predict", "/predict/batch", "/attribution", "/labels", "/metrics"])
def test_without_the_token_the_model_is_not_asked(asked_of, engine, photos, path):
    asked = asked_of(engine, access=TOKEN)
    for headers in (
        {},
        {"Authorization": "Bearer open-sesam"},
        {"Authorization": "Basic open-sesame"},
        {"Authorization": "Bearer é".encode()},
    ):
        reply = (
            asked.get(path, headers=headers)
            if path in ("/labels", "/metrics")
            else asked.post(photos[0], path=path, headers=headers)
        )
        assert reply.status_code == 401
        assert reply.headers["www-authenticate"] == "Bearer"
        assert "token" in problem(reply)
    good = {"Authorization": "Bearer open-sesame"}
    reply = (
        asked.get(path, headers=good)
        if path in ("/labels", "/metrics")
        else asked.post(photos[0], path=path, headers=good)
    )
    assert reply.status_code == 200


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/docs", "/openapi.json"])
def test_what_tells_nothing_of_the_model_needs_no_token(asked_of, engine, path):
    assert asked_of(engine, access=TOKEN).get(path).status_code in (200, 503)


def test_only_pages_of_named_origins_may_ask(asked_of, engine):
    asked = asked_of(engine, access=Access(cors=["https://example.org"]))
    replies = [
        asked.get("/labels", headers={"Origin": origin}) for origin in ("https://example.org", "https://other.org")
    ]
    assert [reply.headers.get("access-control-allow-origin") for reply in replies] == ["https://example.org", None]
    (asks,) = asked(
        lambda c: c.options(
            "/predict",
            headers={
                "Origin": "https://example.org",
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization",
            },
        )
    )
    assert asks.status_code == 200
    assert (
        "access-control-allow-origin"
        not in asked_of(engine).get("/labels", headers={"Origin": "https://example.org"}).headers
    )


def test_pages_load_nothing_from_elsewhere(asked):
    for path in ("/", "/docs", "/page.js", "/page.css", "/docs.js"):
        reply = asked.get(path)
        assert reply.status_code == 200
        assert "https://" not in reply.text
        assert "default-src 'none'; script-src 'self'" in reply.headers["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff"


@pytest.fixture(scope="module")
def exported(trained_run, tmp_path_factory):
    from vitcls.__main__ import main

    folder = tmp_path_factory.mktemp("exported") / "onnx"
    assert main(["export", str(trained_run), "--to=onnx", "--output", str(folder)]) == 0
    return folder


def test_an_exported_folder_answers_as_its_run(asked, asked_of, exported, photos):
    from vitcls.serve.exported_engine import ExportedEngine

    other = asked_of(ExportedEngine(exported, threads=1))
    assert other.get("/labels").json() == {**asked.get("/labels").json(), "model": "onnx", "attribution": False}
    for photo in photos[:6]:
        ours, its = (one.post(photo).json()["images"][0] for one in (asked, other))
        assert ours["label"] == its["label"]
        assert ours["score"] == pytest.approx(its["score"], abs=1e-4)


def test_an_exported_folder_is_served_without_torch(exported):
    code = """
import sys
from vitcls.serve.command import _opened, serve_parser
engine = _opened(serve_parser().parse_args([sys.argv[1]]))
import vitcls.serve.app, vitcls.serve.server
print(engine.name, {"torch", "transformers", "lightning"} & set(sys.modules))
"""
    command = [sys.executable, "-c", code, str(exported)]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout == "onnx set()\n"


def test_the_precision_of_an_exported_folder_is_settled(refuses, exported):
    words = ("serve", exported, "--port=0", "--precision=bfloat16")
    assert "--precision is 'bfloat16'; it must be left out with an exported folder" in refuses(*words)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["nowhere"], "'nowhere' does not exist"),
        (["run", "--prot=8000"], "did you mean --port?"),
        (["run", "--port=70000"], "--port is 70000; it must be in 0..65535."),
        (["run", "--host=999.1.1.1"], "cannot listen on --host '999.1.1.1'"),
        (["run", "--queue=4"], "--queue is 4; it must be at least 16, --max_images"),
        (["run", "--timeout=0"], "--timeout is 0.0; it must be above 0"),
        (["run", "--linger=-1"], "--linger is -1.0; it must be in 0..3600."),
        (["run", "--max_batch=0"], "--max_batch is 0; it must be at least 1."),
        (["run", "--threads=0"], "--threads is 0; it must be at least 1."),
        (["run", "--precision=16"], "--precision is '16'; it must be float32 or bfloat16."),
        (["run", "--cors=[example.org]"], "--cors names 'example.org'"),
        (["run", "--token=a b"], "The token is empty or has spaces"),
        (["run", "--token="], "The token is empty"),
        (["run", "--max_pixels=200000000"], "--max_pixels is 200000000; it must be in 1..178956970."),
        (["run", "--host=.."], "cannot listen on --host '..'"),
        ([], "model"),
    ],
)
def test_mistakes_are_sentences(refuses, words, part):
    assert part in refuses("serve", *words, *([] if not words or any("port" in w for w in words) else ["--port=0"]))


def test_an_empty_token_is_not_taken_for_none(refuses, monkeypatch):
    monkeypatch.setenv("VITCLS_TOKEN", "")
    assert "The token is empty" in refuses("serve", "run", "--port=0")
