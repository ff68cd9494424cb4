"""Array operations that know no model: arrays in, arrays out."""
