"""Which images a report shows."""

import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from tests.test_outputs import outputs_of, random_outputs
from vitcls.left_out import PENALTIES, left_out_scores
from vitcls.report.selection import select, suspects_of


def sure(targets, k=4, strength=6.0):
    """Outputs whose answers are the targets."""
    return outputs_of(strength * np.eye(k)[targets], targets)


def flowers(images=400, flips=12, seed=0, noise=1.0):
    """Features of four kinds, and labels of which some are wrong: (features, labels, which are wrong)."""
    random = np.random.default_rng(seed)
    true = random.integers(0, 4, images)
    features = (3 * np.eye(4)[true] + random.normal(0, noise, (images, 4))).astype(np.float32)
    wrong = random.choice(images, flips, replace=False)
    labels = true.copy()
    labels[wrong] = (labels[wrong] + 1) % 4
    return features, labels, true, set(wrong.tolist())


def test_flipped_training_labels_are_found_though_they_were_learned_by_heart():
    features, labels, true, wrong = flowers(noise=0.5)
    learned = outputs_of(9 * np.eye(4)[labels], labels, role="train")  # every answer is the label
    assert suspects_of(learned) == []
    left_out = left_out_scores(features, np.eye(4, dtype=bool)[labels])
    found = suspects_of(dataclasses.replace(learned, left_out=left_out))
    assert {suspect.position for suspect in found[:12]} == wrong
    for suspect in found[:12]:
        assert (suspect.label, suspect.likely) == (labels[suspect.position], true[suspect.position])
        assert suspect.margin < 0
    assert [s.margin for s in found] == sorted(s.margin for s in found)


def test_left_out_scores_are_those_of_fits_without_each_image():
    features, labels, _, _ = flowers(images=40)
    targets = np.eye(4, dtype=bool)[labels]
    inputs = (features - features.mean(axis=0)) / features.std(axis=0)
    found = left_out_scores(features, targets)
    errors = []
    for penalty in PENALTIES:
        by_fits = np.stack([without(n, inputs, targets, penalty * 40) for n in range(40)])
        errors.append(np.abs(found - by_fits).max())
    assert min(errors) < 1e-5


def without(n, inputs, targets, penalty):
    """By scikit-learn, whose intercept is the mean of the images of the fit: so is that of the closed form."""
    kept = np.arange(len(inputs)) != n
    fit = Ridge(alpha=penalty).fit(inputs[kept], targets[kept].astype(float))
    return fit.predict(inputs[n : n + 1])[0]


def test_of_new_images_only_the_believed_are_suspects():
    random = np.random.default_rng(0)
    true = random.integers(0, 4, 400)
    logits = 4 * np.eye(4)[true] + random.normal(0, 2, (400, 4))
    wrong = random.choice(400, 12, replace=False)
    labels = true.copy()
    labels[wrong] = (labels[wrong] + 1) % 4
    outputs = outputs_of(logits, labels)
    found = {suspect.position for suspect in suspects_of(outputs)}
    mistakes = int((logits.argmax(axis=1) != labels).sum())
    assert len(found & set(wrong.tolist())) >= 8
    assert len(found) < mistakes / 2


def test_doubt_alone_is_no_suspicion():
    """A class that is never sure is believed at a lower score than one that always is."""
    logits = np.array([[3.0, 0], [3, 0], [0.4, 0.5], [0, 1.0], [0, 1.2]])
    targets = np.array([0, 0, 0, 1, 1])
    assert suspects_of(outputs_of(logits, targets)) == []


def test_labels_that_are_missing_or_wrong_are_suspects():
    random = np.random.default_rng(0)
    targets = random.random((200, 3)) < 0.4
    logits = np.where(targets, 3.0, -3.0) + random.normal(0, 0.5, (200, 3))
    outputs = outputs_of(logits, targets.copy(), task="multilabel", temperature=1.0)
    outputs.targets[5, 1] ^= True
    outputs.targets[9, 2] ^= True
    assert {(s.position, s.label) for s in suspects_of(outputs)} == {(5, 1), (9, 2)}


def test_mistakes_come_surest_first_and_doubts_closest_first():
    logits = np.array([[2.0, 0, 0], [5, 0, 0], [0.2, 0, 0], [0, 3, 0], [0, 0, 4]])
    targets = np.array([1, 2, 0, 1, 2])
    found = select(outputs_of(logits, targets))
    assert found.mistakes == [1, 0]
    assert found.doubtful[:2] == [2, 0]
    assert [(p.target, p.taken_for, p.images, p.shown) for p in found.pairs] == [(1, 0, 1, [0]), (2, 0, 1, [1])]
    assert found.pairs[0].beside == [2]
    assert set(found.mistakes + found.doubtful) <= set(found.all)


def test_the_most_frequent_pair_comes_first():
    targets = np.array([0] * 5 + [1] * 3 + [2] * 8)
    answers = np.array([1] * 4 + [0] + [0] * 2 + [1] + [2] * 8)
    outputs = outputs_of(3 * np.eye(3)[answers], targets)
    assert [(p.target, p.taken_for, p.images) for p in select(outputs).pairs] == [(0, 1, 4), (1, 0, 2)]


def test_of_multilabel_images_the_surest_wrong_decision_counts():
    logits = np.array([[4.0, -4], [4, 4], [-1, 4], [-0.3, -4]])
    targets = np.array([[1, 0], [1, 0], [1, 1], [0, 0]], dtype=bool)
    found = select(outputs_of(logits, targets, task="multilabel", temperature=1.0))
    assert found.mistakes == [1, 2, 3]
    assert found.doubtful[0] == 3  # 0.43, near the threshold of 0.4
    assert found.pairs == []


@pytest.mark.parametrize("case", [sure(np.arange(8) % 4), sure(np.zeros(1, int)), random_outputs(classes=1)])
def test_without_mistakes_there_are_none(case):
    found = select(case)
    assert found.mistakes == []
    assert found.pairs == []
    assert found.suspects == []


def test_where_it_looked_is_shown_of_the_whole_split():
    """Half are mistakes; the others are not the first images, which may all be of one class."""
    targets = np.sort(np.arange(60) % 4)
    answers = targets.copy()
    answers[:8] = 3
    found = select(outputs_of(3 * np.eye(4)[answers], targets)).attributed
    assert len(set(found)) == 12
    assert sum(n < 8 for n in found) == 6 + 1
    assert set(targets[found]) == {0, 1, 2, 3}
    assert select(outputs_of(3 * np.eye(4)[answers[:9]], targets[:9])).attributed == [*range(6), 6, 7, 8]


def test_of_training_images_only_the_suspects_are_shown():
    outputs = random_outputs(role="train", images=200)
    found = select(dataclasses.replace(outputs, left_out=outputs.logits))
    assert len(found.suspects) == 30
    assert found.all == sorted(suspect.position for suspect in found.suspects)
