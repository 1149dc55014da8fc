"""What a build is told from outside."""

ARGUMENTS = {"BASE": "python:3.11@sha256:" + "0" * 64, "COMMIT": "c0ffee"}
