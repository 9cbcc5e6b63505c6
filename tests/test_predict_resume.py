"""A predict that is interrupted goes on, and ends with the file that it would have written."""

import json
import signal

import pytest
import torch

from tests.killing import in_child, in_two_children
from tests.test_predict import rows_of
from vitcls.predictions.parts import Parts


@pytest.fixture
def photos(colours, tmp_path):
    """Eleven photos."""
    folder = tmp_path / "photos"
    folder.mkdir()
    found = sorted((colours / "test").rglob("*.jpg"))[::2]
    for number, file in enumerate(found):
        (folder / f"{number:02}.jpg").write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def words(trained_run, photos, tmp_path):
    """Of a predict in batches of two, without --output."""
    quiet = ("--data.num_workers=0", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu")
    return ["predict", "--ckpt_path", trained_run, "--data.predict", photos, "--data.eval_batch_size=2", *quiet]


@pytest.fixture
def whole(vitcls, words, tmp_path):
    """The bytes that are written without an interruption."""
    assert vitcls(*words, "--output", tmp_path / "whole.csv")[0] == 0
    return (tmp_path / "whole.csv").read_bytes()


def interrupting(number: int, batch: int) -> list[str]:
    arguments = {"number": number, "batch": batch}
    callback = {"class_path": "tests.killing.SignalPrediction", "init_args": arguments}
    return ["--trainer.callbacks+", json.dumps(callback)]


def spoil(photos, done) -> None:
    """What is read again from now on is a row with an error."""
    for number in done:
        (photos / f"{number:02}.jpg").write_bytes(b"")


@pytest.mark.parametrize("torn", [0, 5, 300])
def test_a_killed_predict_goes_on_and_reads_nothing_again(vitcls, words, whole, photos, tmp_path, torn):
    output = tmp_path / "out.csv"
    status = in_child([*words, "--output", output, *interrupting(signal.SIGKILL, 3)], tmp_path / "log.txt")
    assert status == -signal.SIGKILL, (tmp_path / "log.txt").read_text()
    parts = Parts(output)
    (file,) = parts.files()
    file.write_bytes(file.read_bytes()[: -torn or None])  # as if it had been killed while it wrote the last batch
    done = parts.done().tolist()
    assert done == list(range(4 if torn else 6))
    spoil(photos, done)
    status, out, err = vitcls(*words, "--output", output, "--resume=true")
    assert status == 0, err
    assert f"{len(done)} of them are done already" in out
    names = [row["file"] for row in rows_of(output)]
    assert names == [str(photos / f"{number:02}.jpg") for number in range(11)]
    spoilt = [row for row in rows_of(output) if row["error"]]
    assert spoilt == []
    assert output.read_bytes() == whole
    assert [file.name for file in tmp_path.glob(".out*")] == [".out.csv.inputs.json"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_predict_says_how_to_go_on(vitcls, words, whole, tmp_path, keeps_sigint, number, status):
    output = tmp_path / "out.csv"
    found, out, err = vitcls(*words, "--output", output, *interrupting(number, 3))
    assert found == status
    done = 6 if number == signal.SIGINT else 8  # SIGTERM waits for the batch
    assert f"{done} of 11 rows are kept; the same command with --resume true goes on" in out
    assert "interrupted" in err
    assert not output.exists()
    assert vitcls(*words, "--output", output, "--resume=true")[0] == 0
    assert output.read_bytes() == whole


def test_several_interruptions_and_another_number_of_processes(vitcls, words, whole, photos, tmp_path):
    output, log = tmp_path / "out.csv", tmp_path / "log.txt"
    words += ["--output", output, "--resume=true"]
    ddp = ["--trainer.strategy=ddp", "--trainer.devices=2"]
    assert in_two_children([*words, *ddp, *interrupting(signal.SIGKILL, 1)], log) != 0
    spoil(photos, Parts(output).done())
    assert in_child([*words, *interrupting(signal.SIGKILL, 1)], log) == -signal.SIGKILL, log.read_text()
    spoil(photos, Parts(output).done())
    assert in_child([*words, *interrupting(signal.SIGKILL, 2)], log) == -signal.SIGKILL, log.read_text()
    assert len(Parts(output).done()) >= 8
    assert in_two_children([*words, *ddp], log) == 0, log.read_text()
    assert output.read_bytes() == whole


def test_a_predict_that_lacks_only_its_last_step_goes_on(vitcls, words, whole, tmp_path, monkeypatch, keeps_sigint):
    """All rows are in the parts, and there are more processes than rows to do."""
    output = tmp_path / "out.csv"
    monkeypatch.setattr("vitcls.callbacks.predictions.PredictionWriter._finish", interrupted)
    assert vitcls(*words, "--output", output)[0] == 130
    assert len(Parts(output).done()) == 11
    monkeypatch.undo()
    assert vitcls(*words, "--output", output, "--resume=true")[0] == 0
    assert output.read_bytes() == whole


def interrupted(_) -> None:
    raise KeyboardInterrupt


def test_a_finished_output_is_left_as_it_is(vitcls, words, whole, photos, tmp_path):
    spoil(photos, range(11))
    status, out, err = vitcls(*words, "--output", tmp_path / "whole.csv", "--resume=true")
    assert status == 0, err
    assert "whole.csv is finished" in out
    assert (tmp_path / "whole.csv").read_bytes() == whole


def test_a_finished_output_of_something_else_is_not_taken_for_this(refuses, words, whole, photos, tmp_path):
    again = [*words, "--output", tmp_path / "whole.csv", "--resume=true"]
    assert "the finished" in refuses(*again, "--abstain=0.5")
    assert "it is of other --top_k." in refuses(*again, "--top_k=1")
    assert "it is of other images (--data.predict)." in refuses(*again, "--data.predict", photos / "00.jpg")
    record = tmp_path / ".whole.csv.inputs.json"
    record.write_text("{")
    assert "is missing or damaged" in refuses(*again)
    record.unlink()
    assert "is missing or damaged" in refuses(*again)
    assert (tmp_path / "whole.csv").read_bytes() == whole


def test_with_nothing_to_go_on_with_it_begins(vitcls, words, whole, tmp_path):
    assert vitcls(*words, "--output", tmp_path / "out.csv", "--resume=true")[0] == 0
    assert (tmp_path / "out.csv").read_bytes() == whole


@pytest.fixture
def left(vitcls, words, tmp_path, keeps_sigint):
    """What an interrupted predict left: the words of its resume."""
    output = ["--output", tmp_path / "out.csv"]
    assert vitcls(*words, *output, *interrupting(signal.SIGINT, 3))[0] == 130
    return [*words, *output, "--resume=true"]


def test_without_resume_what_is_left_is_deleted_and_that_is_said(vitcls, left, whole, tmp_path):
    status, out, _ = vitcls(*left[:-1])
    assert status == 0
    assert "6 rows that an interrupted predict left" in out
    assert "will be deleted; --resume true would go on" in out
    assert (tmp_path / "out.csv").read_bytes() == whole


def test_what_holds_no_row_is_nothing_to_go_on_with(vitcls, words, whole, tmp_path):
    """Killed before its first batch: other options are no reason to refuse."""
    parts = Parts(tmp_path / "out.csv")
    parts.folder.mkdir()
    parts.file(1, 0).write_bytes(b"")
    status, out, err = vitcls(*words, "--output", tmp_path / "out.csv", "--resume=true")
    assert status == 0, err
    assert "interrupted" not in out
    assert (tmp_path / "out.csv").read_bytes() == whole


def test_other_options_images_and_models_are_refused(refuses, vitcls, trained_run, left, photos, tmp_path):
    before = Parts(tmp_path / "out.csv").done().tolist()
    assert "it is of other --top_k." in refuses(*left, "--top_k=1")
    assert "it is of other --scores." in refuses(*left, "--scores=all")
    assert "it is of other --embeddings." in refuses(*left, "--embeddings=true")
    assert "it is of other views (--data.tta)." in refuses(*left, "--data.tta=flip")
    assert "it is of other classes." in refuses(*left, f"--model.labels=[{','.join('abc')}]")
    content = torch.load(trained_run / "best.ckpt", weights_only=True)
    content["state_dict"]["network.classifier.bias"] += 1
    torch.save(content, tmp_path / "other.ckpt")
    other = [tmp_path / "other.ckpt" if word == trained_run else word for word in left]
    assert "it is of other weights (--ckpt_path)." in refuses(*other)
    (photos / "02a.jpg").write_bytes((photos / "02.jpg").read_bytes())
    assert "it is of other images (--data.predict)." in refuses(*left)
    assert Parts(tmp_path / "out.csv").done().tolist() == before
    (photos / "02a.jpg").unlink()
    assert vitcls(*left)[0] == 0


def test_what_was_refused_leaves_what_was_there(refuses, left, tmp_path):
    before = Parts(tmp_path / "out.csv").done().tolist()
    words = [word for word in left if word != "--resume=true"]
    assert "--top_k" in refuses(*words, "--top_k=9")
    assert Parts(tmp_path / "out.csv").done().tolist() == before
