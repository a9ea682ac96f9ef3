"""The image tokens of a picture, and the plans of a batch that follow from them. numpy only."""
