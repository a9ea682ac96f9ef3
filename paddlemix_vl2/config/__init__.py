"""The configs: one class for each part of a published ``config.json``; ``registry`` lists the families."""
