"""What resizing does wrong that no fault of the catalogue does."""

from __future__ import annotations

UNTIES = "resizing-unties"
#: Name → sentence that completes "the port …".
NAMES = {UNTIES: "makes two matrices of the one at both ends when its vocabulary is resized"}
