"""Image names as plain placeholders: ``compile.py --image`` puts the real, digest-pinned one into the spec."""

BASE_IMAGE = "python:3.11-slim"
IMAGE = "himari-pipeline:unset"
