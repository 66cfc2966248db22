"""From the declaration of a sweep to its points and their names. Pure: plain mappings in, points out."""
