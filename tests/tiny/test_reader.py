# SPDX-License-Identifier: GPL-3.0-or-later
"""The reader accepts every drawing of a caption and nothing else."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageFilter

from dizzydiff.tiny import reader, scene

captions = st.builds(
    lambda seed, things, held_out: scene.random_caption(random.Random(seed), things, held_out),
    st.integers(0, 2**32),
    st.sampled_from((1, 2)),
    st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(captions, st.integers(0, 2**32))
def test_reads_every_drawing_of_a_caption(caption, seed):
    assert reader.satisfies(caption, reader.read(scene.draw(caption, random.Random(seed))))


@settings(deadline=None)
@given(captions)
def test_a_caption_survives_being_spelled_out(caption):
    assert scene.parse(str(caption)) == caption


@settings(max_examples=60, deadline=None)
@given(captions, captions, st.integers(0, 2**32))
def test_a_drawing_satisfies_another_caption_only_if_that_one_is_true_of_it(caption, other, seed):
    placed = scene.lay_out(caption, random.Random(seed))

    def says_true(order):
        return scene.fits(other, order) and all(
            (shape.colour, shape.shape) == (thing.colour, thing.shape)
            and (
                thing.size is None or scene.SIZES[thing.size][0] <= shape.width <= scene.SIZES[thing.size][1]
            )
            for shape, thing in zip(order, other.things, strict=True)
        )

    true = (
        other.background == caption.background
        and len(placed) == len(other.things)
        and (says_true(placed) or says_true(placed[::-1]))
    )
    clear = all(abs(abs(a.x - b.x) - abs(a.y - b.y)) > 2 for a, b in itertools.pairwise(placed))
    if clear and not other.place:
        assert reader.satisfies(other, reader.read(scene.paint(placed, caption.background))) == true


def drawing(*shapes, background="white"):
    return scene.paint([scene.Placed(*shape) for shape in shapes], background)


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (drawing(("red", "circle", 30, 48, 20), background="gray"), "background"),
        (drawing(("blue", "circle", 30, 48, 20)), "colour"),
        (drawing(("red", "square", 30, 48, 20)), "shape"),
        (drawing(("red", "circle", 30, 48, 36)), "size"),
        (drawing(("red", "circle", 70, 48, 20)), "place"),
        (drawing(("red", "circle", 30, 48, 20), ("red", "circle", 70, 48, 20)), "number"),
        (drawing(), "nothing"),
        (drawing(("red", "circle", 30, 48, 20)).filter(ImageFilter.GaussianBlur(5)), "blur"),
    ],
)
def test_one_wrong_attribute_is_enough_to_fail(image, why):
    caption = "a small red circle on the left on white"
    assert reader.satisfies(caption, reader.read(drawing(("red", "circle", 30, 48, 20))))
    assert not reader.satisfies(caption, reader.read(image)), why


def test_relations_have_a_direction():
    image = drawing(("red", "circle", 30, 48, 20), ("blue", "square", 70, 48, 20))
    assert reader.satisfies("a red circle left of a blue square on white", reader.read(image))
    assert reader.satisfies("a blue square right of a red circle on white", reader.read(image))
    assert not reader.satisfies("a blue square left of a red circle on white", reader.read(image))
    assert not reader.satisfies("a red circle above a blue square on white", reader.read(image))


def test_swapped_colours_fail():
    image = drawing(("blue", "circle", 30, 48, 20), ("red", "square", 70, 48, 20))
    assert not reader.satisfies("a red circle left of a blue square on white", reader.read(image))


def test_spread_is_the_distance_from_the_mean():
    images = [drawing(("red", "circle", x, 48, 20)) for x in (28, 68)]
    assert reader.spread(images) == pytest.approx(20, abs=0.5)
    assert reader.spread(images[:1] * 5) == 0


def test_the_spread_of_sizes_is_the_deviation_from_the_mean():
    images = [drawing(("red", "circle", 48, 48, width)) for width in (20, 36)]
    assert reader.size_spread(images) == pytest.approx(8, abs=0.5)
    assert reader.size_spread(images[:1] * 5) == 0
    assert reader.size_spread([]) == 0


def test_an_unknown_caption_is_refused_by_name():
    with pytest.raises(ValueError, match="a photo of a cat"):
        scene.parse("a photo of a cat")


def test_training_captions_keep_the_held_out_pairs_out():
    rng = random.Random(0)
    assert not any(scene.random_caption(rng, 1 + i % 2).held_out for i in range(2000))
    assert all(scene.random_caption(rng, 1 + i % 2, held_out=True).held_out for i in range(200))
