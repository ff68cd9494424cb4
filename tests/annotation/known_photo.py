"""Places of the objects in the photo that ships with the package."""

import numpy as np

CIRCLE, SQUARE, TRIANGLE = (109, 98), (125, 222), (74, 147)
"""Places (x, y) in the photo that ships with the package: within its small red circle, its large blue square and its large green triangle."""


def is_square(mask):
    """Whether a mask [320, 320] is that of the photo's large blue square."""
    square = np.zeros((320, 320), bool)
    square[185:262, 82:168] = True
    return mask[square].mean() > 0.9 > 0.1 > mask[~square].mean()


def is_circle(mask):
    """Whether a mask [320, 320] is that of the photo's small red circle."""
    rows, columns = np.nonzero(mask)
    return abs(columns.mean() - CIRCLE[0]) < 3 and abs(rows.mean() - CIRCLE[1]) < 3 and 2000 < len(rows) < 3500
