"""A small world of coloured shapes, drawn on the spot: what the embedded model is trained and judged on."""
