"""Vision encoders and projectors."""
