"""FLOPs, memory and days of a model or a recipe, by arithmetic from its config."""
