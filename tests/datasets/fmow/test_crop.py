import pytest

from torchgeo_explora.datasets.fmow.rgb import context_region


@pytest.mark.parametrize(
    ('side', 'padding'),
    [
        # Share of a 1000-pixel side, and half of the context, rounded down.
        (500, 37),  # 0.5: 0.15 * 500 / 2 = 37.5
        (499, 49),  # below 0.5: 0.2
        (400, 40),
        (399, 59),  # 0.3
        (300, 45),
        (299, 74),  # 0.5
        (200, 50),
        (199, 99),  # 1
        (100, 50),
        (99, 99),  # 2
        (3, 3),
    ],
)
def test_context_grows_as_boxes_shrink(side, padding):
    wide = context_region((200, 400, side, 600), 1000, 1000)
    high = context_region((400, 200, 600, side), 1000, 1000)
    assert wide == (200 - padding, 355, 200 + side + padding, 1000)
    assert high == (355, 200 - padding, 1000, 200 + side + padding)


def test_each_side_is_compared_with_its_own():
    # 100 of 1000 pixels across (context 1), 100 of 200 down (context 0.15).
    assert context_region((450, 50, 100, 100), 1000, 200) == (400, 43, 600, 157)


def test_region_is_clipped_to_the_image():
    assert context_region((-10, 90, 60, 60), 100, 100) == (0, 86, 54, 100)
    assert context_region((0, 0, 100, 100), 100, 100) == (0, 0, 100, 100)


@pytest.mark.parametrize('box', [(200, 0, 10, 10), (0, -50, 10, 10)])
def test_box_outside_of_the_image_has_no_region(box):
    assert context_region(box, 100, 100) is None
