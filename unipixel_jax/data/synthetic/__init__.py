"""A small world of coloured shapes, drawn on the spot, on which the embedded model is trained and judged."""
