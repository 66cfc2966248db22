"""Collections: batch scripts under one name, generated, submitted, imported and deleted."""
