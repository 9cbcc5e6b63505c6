"""Which images a report shows."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitcls.outputs import Outputs

MISTAKES = 24
DOUBTFUL = 24
PAIRS = 6
OF_PAIR = 4
LIKE_PAIR = 2
SUSPECTS = 30
ATTRIBUTED = 12


@dataclass(frozen=True)
class Pair:
    """Images of a class that were taken for another.

    Attributes:
        target: index of the class.
        taken_for: index of the other.
        images: how many.
        shown: positions of some, most certain first.
        beside: positions of some images that are of the other class and were recognised.
    """

    target: int
    taken_for: int
    images: int
    shown: list[int]
    beside: list[int]


@dataclass(frozen=True)
class Suspect:
    """An image whose label is probably wrong.

    Attributes:
        position: in the outputs.
        label: index of the class; of multilabel data the one that is in question.
        likely: index of the class that it probably is; of multilabel data the same as `label`.
        margin: score of the label less that of the likely class; below 0 where the model contradicts.
    """

    position: int
    label: int
    likely: int
    margin: float


@dataclass(frozen=True)
class Selection:
    """Positions of the images that a report shows of a split.

    Attributes:
        suspected: how many suspects there are; the worst of them are `suspects`.
    """

    mistakes: list[int]
    doubtful: list[int]
    pairs: list[Pair]
    suspects: list[Suspect]
    attributed: list[int]
    suspected: int

    @property
    def all(self) -> list[int]:
        """Each position once."""
        paired = [position for pair in self.pairs for position in [*pair.shown, *pair.beside]]
        suspected = [suspect.position for suspect in self.suspects]
        return sorted({*self.mistakes, *self.doubtful, *paired, *suspected, *self.attributed})


def select(outputs: Outputs) -> Selection:
    """What a report shows of a split; of training images only the suspects, since the others were learned."""
    found = suspects_of(outputs)
    suspects = found[:SUSPECTS]
    if outputs.role == "train":
        return Selection([], [], [], suspects, [], len(found))
    scores = outputs.probabilities()
    mistakes, doubtful = _of_labels(outputs, scores) if outputs.task == "multilabel" else _of_classes(outputs, scores)
    pairs = [] if outputs.task == "multilabel" else _pairs(outputs, scores)
    return Selection(mistakes, doubtful, pairs, suspects, _attributed(outputs, mistakes), len(found))


def _of_classes(outputs: Outputs, scores: NDArray[np.float64]) -> tuple[list[int], list[int]]:
    """The most certain mistakes, and the answers with the smallest lead over the second best."""
    ranked = np.sort(scores, axis=1)
    wrong = np.flatnonzero(outputs.logits.argmax(axis=1) != outputs.targets)
    mistakes = wrong[np.argsort(-ranked[wrong, -1], kind="stable")][:MISTAKES]
    lead = ranked[:, -1] - ranked[:, -2] if scores.shape[1] > 1 else np.ones(len(scores))
    return mistakes.tolist(), np.argsort(lead, kind="stable")[:DOUBTFUL].tolist()


def _of_labels(outputs: Outputs, scores: NDArray[np.float64]) -> tuple[list[int], list[int]]:
    """The images with the surest wrong decision, and those with the one nearest to its threshold."""
    wrong = (scores >= outputs.thresholds) != outputs.targets
    away = np.abs(scores - outputs.thresholds)
    surest = np.where(wrong, away, -1).max(axis=1)
    mistaken = np.flatnonzero(surest >= 0)
    mistakes = mistaken[np.argsort(-surest[mistaken], kind="stable")][:MISTAKES]
    return mistakes.tolist(), np.argsort(away.min(axis=1), kind="stable")[:DOUBTFUL].tolist()


def _pairs(outputs: Outputs, scores: NDArray[np.float64]) -> list[Pair]:
    predicted = outputs.logits.argmax(axis=1)
    wrong = np.flatnonzero(predicted != outputs.targets)
    kinds, counts = np.unique(np.stack([outputs.targets[wrong], predicted[wrong]]), axis=1, return_counts=True)
    pairs = []
    for kind in np.argsort(-counts, kind="stable")[:PAIRS]:
        target, other = (int(index) for index in kinds[:, kind])
        of_pair = wrong[(outputs.targets[wrong] == target) & (predicted[wrong] == other)]
        shown = of_pair[np.argsort(-scores[of_pair, other], kind="stable")][:OF_PAIR]
        right = np.flatnonzero((outputs.targets == other) & (predicted == other))
        beside = right[np.argsort(-scores[right, other], kind="stable")][:LIKE_PAIR]
        pairs.append(Pair(target, other, len(of_pair), shown.tolist(), beside.tolist()))
    return pairs


def suspects_of(outputs: Outputs) -> list[Suspect]:
    """Images whose labels are probably wrong, the worst first (Northcutt et al. 2021, arXiv:1911.00068, 3.1-3.2).

    Ranked by the normalised margin: the score of the label less that of the likeliest other class that is believed.
    Of images that the model was not trained on, a class is believed where it reaches the mean score that it has among
    the images labelled with it; other contradictions are plain mistakes. Training images are judged by a head that has
    not seen their labels, and there every class is believed: on flower photos with 18 flipped labels among 450, 16 were
    among the 30 first, and 3 among those believed.

    Args:
        outputs: of the images.
    """
    trained = outputs.left_out is not None
    scores = outputs.left_out.astype(np.float64) if outputs.left_out is not None else outputs.probabilities()
    if outputs.task == "multilabel":
        return _suspects_of_labels(outputs.targets.astype(bool), scores, everywhere=trained)
    rows, targets = np.arange(len(scores)), outputs.targets
    believed = np.ones(scores.shape, bool) if trained else scores >= _own_score(scores, targets)
    believed[rows, targets] = False
    likely = np.where(believed, scores, -np.inf).argmax(axis=1)
    margin = scores[rows, targets] - scores[rows, likely]
    suspects = np.flatnonzero(believed.any(axis=1) & (margin < 0))
    worst = suspects[np.argsort(margin[suspects], kind="stable")]
    return [Suspect(int(n), int(targets[n]), int(likely[n]), float(margin[n])) for n in worst]


def _own_score(scores: NDArray[np.float64], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """(K,) mean score of each class over the images labelled with it; 1 where there are none."""
    counts = np.bincount(targets, minlength=scores.shape[1])
    sums = np.bincount(targets, weights=scores[np.arange(len(scores)), targets], minlength=scores.shape[1])
    return np.where(counts > 0, sums / np.maximum(counts, 1), 1.0)


def _suspects_of_labels(targets: NDArray[np.bool_], scores: NDArray[np.float64], everywhere: bool) -> list[Suspect]:
    """The same for each label alone, which is there or not."""
    found = []
    for label in range(targets.shape[1]):
        has, score = targets[:, label], scores[:, label]
        if has.all() or not has.any():
            continue
        missing = ~has & (everywhere | (score >= score[has].mean()))
        wrong = has & (everywhere | (score <= score[~has].mean()))
        margins = np.where(has, 2 * score - 1, 1 - 2 * score)
        of_label = np.flatnonzero((missing | wrong) & (margins < 0))
        found += [Suspect(int(n), label, label, float(margins[n])) for n in of_label]
    return sorted(found, key=lambda suspect: suspect.margin)


def _attributed(outputs: Outputs, mistakes: list[int]) -> list[int]:
    """Some images to ask where the network looked: half of them mistakes, the others spread over the split."""
    wrong = mistakes[: ATTRIBUTED // 2]
    others = np.setdiff1d(np.arange(len(outputs)), wrong)
    spread = np.linspace(0, len(others) - 1, num=min(len(others), ATTRIBUTED - len(wrong))).astype(int)
    return [*wrong, *others[spread].tolist()]
