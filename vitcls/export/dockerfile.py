"""A Dockerfile beside an exported graph: the server, without PyTorch, for a CPU."""

import re
from importlib.metadata import requires
from pathlib import Path

FILE = "Dockerfile"
# What answers and serves; everything else that vitcls needs, it needs for training.
_ANSWERING = ("onnxruntime", "numpy", "pillow", "simplejpeg")
_SERVING = ("jsonargparse", "fastapi", "uvicorn", "python-multipart", "prometheus-client")
_TEXT = """# syntax=docker/dockerfile:1
# With the source of vitcls in ../vitcls:
#   docker build --build-context vitcls=../vitcls -t classifier .
#   docker run --rm -p 8000:8000 -e VITCLS_TOKEN classifier
FROM python:3.12-slim
RUN pip install --no-cache-dir {packages}
COPY --from=vitcls pyproject.toml README.md LICENSE /source/
COPY --from=vitcls vitcls /source/vitcls
RUN pip install --no-cache-dir --no-deps /source
COPY . /model
USER 10001:10001
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["python", "-m", "vitcls", "serve", "/model", "--host", "0.0.0.0"]
"""


def write_dockerfile(folder: Path) -> None:
    """Write it into a folder with an ONNX graph; its bounds are those of vitcls itself."""
    (folder / FILE).write_text(_TEXT.format(packages=" ".join(packages())), encoding="utf-8")


def packages() -> list[str]:
    """What the server needs of the packages that vitcls requires, quoted for a shell."""
    bounds = [requirement.partition(";")[0].strip() for requirement in requires("vitcls") or []]
    named = {re.split(r"[^\w-]", bound)[0].lower(): bound for bound in bounds}
    return [f"'{named[name]}'" for name in (*_ANSWERING, *_SERVING)]
