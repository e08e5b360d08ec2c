"""The source of the built-in world: pure, weighted, with loss on targets only."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from polyglyph.data.shapes.examples import TASKS, verdict
from polyglyph.data.sources.shapes import MIXTURE, Source, to_plain
from polyglyph.errors import InputError


def _content(document):
    return [np.asarray(to_plain(s.content)).tolist() for s in document]


def test_documents_depend_on_seed_split_and_index_only():
    source = Source(seed=3, tasks_per_scene=2)
    forward = [[_content(d) for d in source.get(i)] for i in range(7)]
    again = Source(seed=3, tasks_per_scene=2)
    assert forward == [[_content(d) for d in again.get(i)] for i in reversed(range(7))][::-1]
    assert forward != [[_content(d) for d in Source(seed=3, split="test").get(i)] for i in range(7)]


def test_only_the_target_carries_loss_and_media_survive_the_wrapping():
    source = Source(seed=4, tasks_per_scene=len(TASKS))
    for index in range(3):
        examples = source.examples(index)
        assert sorted(e.task for e in examples) == sorted(TASKS)
        for example, document in zip(examples, source.get(index), strict=True):
            assert [s.loss_weight for s in document] == [0.0] * len(example.prompt) + [1.0]
            assert [s.role for s in document[:-1]] == ["prompt"] * len(example.prompt)
            assert document[-1].role == "target"
            assert document[-1].modality == example.target[0]
            assert verdict(example, to_plain(document[-1].content)).ok


def test_tasks_come_as_often_as_their_weights_say():
    source = Source(seed=5)
    counts = Counter(task for i in range(4000) for task in source.tasks(i))
    total = sum(MIXTURE.values())
    for task, weight in MIXTURE.items():
        assert abs(counts[task] / 4000 - weight / total) < 0.03
    only = Source(seed=5, mixture={"image_to_text": 1, "text_to_image": 0})
    assert {task for i in range(50) for task in only.tasks(i)} == {"image_to_text"}


def test_train_and_test_share_no_scene_stream():
    train = [e.scene for i in range(60) for e in Source(6).examples(i)]
    test = [e.scene for i in range(60) for e in Source(6, "test").examples(i)]
    assert sum(a == b for a, b in zip(train, test)) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixture": {"image_to_txt": 1}}, "did you mean 'image_to_text'"),
        ({"mixture": {"image_to_text": -1}}, "whole number"),
        ({"mixture": {"image_to_text": 0.5}}, "whole number"),
        ({"tasks_per_scene": 12}, "1 to 11"),
        ({"split": "valid"}, "unknown split"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(arguments, message):
    with pytest.raises(InputError, match=message):
        Source(**arguments)


def test_the_texts_of_a_scene_are_given_to_the_text_codec():
    texts = [text for i in range(40) for text in Source(7).captions(i)]
    assert len(texts) > 30 and all(isinstance(text, str) and text for text in texts)
